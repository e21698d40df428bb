"""Models as packages of bioimage.io, and what its own library makes of them.

bioimageio.core holds bioimageio.spec back, so it runs in an environment of its own, whose Python
$BIOIMAGEIO_PYTHON names.
"""

import json
import os
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest

import emjax
from emjax import export
from emjax.errors import UsageError
from emjax.interchange import bioimageio
from tests.exported_networks import agrees, field, written

spec = pytest.importorskip("bioimageio.spec", reason="needs bioimageio: make test-handon")
pytest.importorskip("onnxruntime", reason="needs the extra onnx: make test-handon")

# bioimageio.spec leaves the packages that it reads open.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

# Tests the package with its own test tensors, then predicts each image of the folder, whole.
CORE = """
import json, sys
from pathlib import Path
import numpy as np
from bioimageio.core import load_model, predict, test_model

package, folder = sys.argv[1], Path(sys.argv[2])
model = load_model(package, perform_io_checks=False)
status = test_model(model).status
for path in sorted(folder.glob("*.image.npy")):
    image = np.load(path).astype(np.float32)[None, None]
    found = predict(model=model, inputs={"image": image}).members["prediction"].data.values
    np.save(path.with_name(path.name.replace("image", "found")), found[0])
print(json.dumps(status))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a U-Net that segments."""
    return written(tmp_path_factory.mktemp("unet"), "unet_mask", held_out="Dice 0.91 of 4 images",
                   title="run1: a finetuned model of runs/segment/w.pt")  # fmt: skip


@pytest.fixture(scope="module")
def package(model):
    """Its package."""
    path = model.parent / "unet.zip"
    bioimageio.write(model, path, author="A. Developer", licence="CC-BY-4.0")
    return path


def test_the_package_is_valid_and_says_what_the_model_is(package, model):
    described = spec.load_description(package, format_version="latest", perform_io_checks=False)
    assert described.validation_summary.status.startswith("valid")
    assert described.name == "emjax run1- a finetuned model of runs-segment-w-pt"
    assert [author.name for author in described.authors] == ["A. Developer"]
    assert str(described.license) == "CC-BY-4.0"
    (given,), (answer,) = described.inputs, described.outputs
    assert [axis.id for axis in given.axes] == ["batch", "channel", "y", "x"]
    for axis in given.axes[2:]:
        assert (axis.size.min, axis.size.step, axis.concatenable) == (4, 1, False)
    assert not hasattr(answer.axes[2], "halo")
    card = zipfile.ZipFile(package).read("README.md").decode()
    assert (model / "README.md").read_text() in card
    assert "Dice 0.91 of 4 images" in card and "Do not process" in card
    assert emjax.load_model(model, engine="jax").digest in card


def test_the_test_tensors_are_predictions_of_the_model(package, model):
    archive = zipfile.ZipFile(package)
    with archive.open("input.npy") as given, archive.open("output.npy") as answer:
        image, expected = np.load(given)[0, 0], np.load(answer)[0, 0]
    assert agrees(emjax.load_model(model, engine="jax").predict(image), expected)


@pytest.mark.parametrize("name", ["unet_mask", "unet_classes", "unet_no_norm", "hrnet"])
def test_its_own_library_predicts_the_same_at_any_size(name, tmp_path, tiny_hrnet):
    """Also at the borders, and where the divisor divides no side."""
    python = os.environ.get("BIOIMAGEIO_PYTHON")
    if not python:
        pytest.skip("needs bioimageio.core: make test-handon")
    folder = written(tmp_path / "model", name)
    bioimageio.write(folder, tmp_path / "m.zip", author="A. Developer", licence="MIT")
    ours, expected = emjax.load_model(folder, engine="jax"), {}
    for shape, dtype in (((101, 67), np.uint16), ((128, 96), np.uint8), ((70, 133), np.float32)):
        image = (field(*shape, np.float32) / 8).astype(dtype)
        found = ours.predict(image)
        if not ours.is_mask:  # the package leaves it in the network's interval
            low, high = ours.intensity_range([image])
            found = (found - low) * (2 / (high - low)) - 1
        expected[shape] = found if found.ndim == 3 else found[..., None]
        np.save(tmp_path / f"{shape[0]}.image.npy", image)
    done = subprocess.run([python, "-c", CORE, tmp_path / "m.zip", tmp_path],
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == "passed"
    for shape, answer in expected.items():
        found = np.moveaxis(np.load(tmp_path / f"{shape[0]}.found.npy"), 0, -1)
        assert found.shape == answer.shape and agrees(found, answer)


def test_the_command_writes_one(model, tmp_path, capsys):
    assert export.main([str(model), f"--to={tmp_path / 'm.zip'}", "--author=B"]) == 0
    out, err = capsys.readouterr()
    assert "standard deviations from the model" in out and err == ""
    assert [path.name for path in tmp_path.iterdir()] == ["m.zip"]


def test_models_that_come_with_emjax_have_their_licence(tmp_path):
    export.export("particles", tmp_path / "m.zip")
    described = spec.load_description(tmp_path / "m.zip", perform_io_checks=False)
    assert (str(described.license), described.authors[0].name) == export.OURS[::-1]


@pytest.mark.parametrize(
    "config, options, words",
    [
        ({}, {"licence": "my own"}, "licence=my own: .*; expected an identifier of SPDX"),
        ({"range_rule": "fixed"}, {}, "intensity range fixed: expected percentile or sigma"),
    ],
)
def test_what_a_package_cannot_say_is_one_line(config, options, words, tmp_path):
    folder = written(tmp_path / "model", "unet_mask", **config)
    with pytest.raises(UsageError, match=words) as error:
        bioimageio.write(folder, Path(tmp_path / "m.zip"), **options)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
