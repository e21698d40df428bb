"""The models that come with the package: by name, by digest, and commands without --model."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
import tifffile

from configs.models import MODELS
from emjax import load_model, measure, predict
from emjax.errors import InputError, UsageError
from emjax.main import main as train
from emjax.models import pretrained, saved
from emjax.models.build import create
from launch import pack_models

UNET = dict(name="unet", blocks=2, receptive_field=44)
LARGEST, ALL = 7_000_000, 20_000_000  # bytes


@pytest.fixture
def box(tmp_path, monkeypatch):
    """A package with the model `particles`, of random weights; the folder in which to work."""
    folder = tmp_path / "package"
    network = create(UNET, optax.sgd(1.0), key=jax.random.key(0))
    config = dict(model=UNET, task="segmentation", range_rule="percentile")
    saved.write(folder / "particles", network, config)
    (folder / "digests.json").write_text("{}")
    monkeypatch.setattr(pretrained, "BOX", folder)
    monkeypatch.setattr(pretrained, "DIGESTS", {"particles": saved.digest(folder / "particles")})
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    rng = np.random.default_rng(0)
    for name in ("a.tif", "sub/b.tif"):
        Path(name).parent.mkdir(exist_ok=True)
        tifffile.imwrite(name, rng.integers(0, 255, (40, 50)).astype(np.uint8))
    return work


@pytest.mark.parametrize("inputs", [["a.tif"], ["./a.tif", "a.tif"], ["{here}/a.tif"]])
def test_a_file_alone_is_enough(box, inputs):
    assert predict.main([each.format(here=box) for each in inputs]) == 0
    assert sorted(p.name for p in (box / "emjax-results").iterdir()) == ["a.overlay.png", "a.tif"]
    found = load_model("particles").mask(tifffile.imread("a.tif"))
    np.testing.assert_array_equal(tifffile.imread("emjax-results/a.tif"), found)


@pytest.mark.parametrize("name", ["sub", "sub/", "{here}/sub"])
def test_results_of_a_folder_lie_beside_it(box, name):
    assert predict.main([name.format(here=box)]) == 0
    assert (box / "emjax-results/b.tif").exists() and len(list((box / "sub").iterdir())) == 1


def test_results_of_the_current_folder_lie_in_it_and_are_no_inputs(box, capsys):
    for _ in range(2):
        assert predict.main(["."]) == 0
    assert (box / "emjax-results/sub/b.tif").exists()
    assert capsys.readouterr().out.count("is finished") == 2
    assert len(list(box.rglob("*.tif"))) == 4
    with pytest.raises(UsageError, match="--out=DIR is missing: the inputs lie in several folders"):
        predict.main(["a.tif", "sub/b.tif"])


def test_measuring_takes_it_too(box):
    assert measure.main(["--out=o", "a.tif"]) == 0
    assert json.loads((box / "o/summary.json").read_text())["unit"] == "px"


def test_a_path_of_the_same_name_is_refused(box):
    shutil.copytree(pretrained.BOX / "particles", "particles")
    for call in (lambda: predict.main(["--model=particles", "a.tif"]),
                 lambda: load_model("particles")):  # fmt: skip
        with pytest.raises(UsageError, match=r"and a file or folder here; expected \./particles"):
            call()
    assert predict.main(["--model=./particles", "a.tif"]) == 0
    load_model(Path("particles"))
    assert predict.main(["--out=default", "a.tif"]) == 0  # nothing of that name was asked for


def test_a_damaged_model_and_a_wrong_name(box):
    with pytest.raises(InputError, match="no such file; .* come with emjax: particles"):
        load_model("particle")
    config = pretrained.BOX / "particles/config.json"
    config.write_text(config.read_text().replace("percentile", "minmax"))
    with pytest.raises(InputError, match="digest .*, expected .*install emjax again"):
        load_model("particles")


def test_a_run_starts_from_it(box, tiny_records, one_device, capsys):
    train(["--config=segment_au:smoke", "--workdir=run", f"--config.data.dir={tiny_records}",
           "--config.initialise.workdir=particles", "--config.initialise.fresh=()"])  # fmt: skip
    assert "from particles: " in capsys.readouterr().out


def test_packing_writes_what_is_found(box, tmp_path):
    shutil.copytree(pretrained.BOX / "particles", tmp_path / "runs/denoise/model")
    assert pack_models.pack(tmp_path / "runs") == ["denoise"]
    digests = json.loads((pretrained.BOX / "digests.json").read_text())
    assert digests == {"denoise": saved.digest(pretrained.BOX / "denoise")}
    assert json.loads((pretrained.BOX / "denoise/config.json").read_text())["title"] == "denoise"


@pytest.mark.parametrize("name", sorted(pretrained.DIGESTS))
def test_every_model_that_comes_with_emjax(name):
    folder = pretrained.BOX / name
    assert name in MODELS and saved.digest(folder) == pretrained.DIGESTS[name]
    assert (folder / "model.safetensors").stat().st_size < LARGEST
    config = json.loads((folder / "config.json").read_text())
    assert config["title"] == name
    assert all(part.startswith("simulated/") for part in config["trained_on"].split(", "))
    card = (folder / "README.md").read_text()
    for words in ("Licence", "make models", pretrained.DIGESTS[name], "not for"):
        assert words in card
    model = load_model(name)
    y, x = np.mgrid[:70, :90]
    image = (120 + 50 * np.sin(y / 9) * np.cos(x / 7)).astype(np.uint8)
    assert model.predict(image).shape == image.shape


def test_all_models_together_are_small():
    files = [path for path in pretrained.BOX.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < ALL
    folders = {path.name for path in pretrained.BOX.iterdir() if path.is_dir()}
    assert folders == set(pretrained.DIGESTS)
