"""The computers of microscopes run Windows, without TFDS, Grain, array_record, fcntl and SIGHUP."""

import json
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
import tifffile

from emjax.models import saved
from emjax.models.build import create

UNET = dict(name="unet", blocks=1, receptive_field=18)
WITHOUT = """
import json, signal, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow_datasets", "grain", "array_record", "fcntl"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.modules.pop("fcntl", None)
sys.meta_path.insert(0, Missing())
del signal.SIGHUP, signal.SIGPIPE
from emjax.__main__ import run_verb
import emjax

emjax.write("through.tif", emjax.load_model("m").mask(emjax.read("in/a.tif").image))
codes = {}
for line in json.load(sys.stdin):
    try:
        codes[line[0]] = run_verb(line)
    except Exception as error:
        codes[line[0]] = f"{type(error).__name__}: {error}"
print(json.dumps(codes))
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """(the folder, {verb: exit code or error}) of a process without these libraries."""
    folder = tmp_path_factory.mktemp("windows")
    network = create(UNET, optax.sgd(1.0), key=jax.random.key(0))
    config = dict(model=UNET, task="segmentation", range_rule="percentile")
    saved.write(folder / "m", network, config)
    (folder / "in").mkdir()
    image = np.random.default_rng(0).integers(0, 255, (40, 50)).astype(np.uint8)
    tifffile.imwrite(folder / "in/a.tif", image)
    lines = [
        ["predict", "--model=m", "--out=masks", "in"],
        ["measure", "--model=m", "--out=sizes", "in"],
        ["convert", "--from=m", "--to=torch.safetensors"],
        ["export", "m", "--to=m.stablehlo"],
        ["doctor"],
        ["train", "--config=pretrain:smoke", "--workdir=w"],
        ["build", "simulated/unlabelled", "--data_dir=d"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], input=json.dumps(lines), capture_output=True, text=True,
        cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


def test_prediction_and_measurement_work(ended):
    folder, codes = ended
    works = ("predict", "measure", "convert", "export", "doctor")
    assert {verb: codes[verb] for verb in works} == dict.fromkeys(works, 0)
    mask = tifffile.imread(folder / "masks/a.tif")
    np.testing.assert_array_equal(tifffile.imread(folder / "through.tif"), mask)
    assert (folder / "sizes/particles.parquet").exists()


@pytest.mark.parametrize("verb", ["train", "build"])
def test_what_needs_them_says_so(ended, verb):
    _, codes = ended
    assert f"UsageError: emjax {verb}: expected " in codes[verb]
    assert "for Linux and macOS only; on Windows use WSL" in codes[verb]
