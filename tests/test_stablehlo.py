"""Models as one StableHLO file: the same values as the model, on any sides, whole or in tiles."""

import io
import json
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
import tifffile

import emjax
from emjax import export, predict
from emjax.errors import EmjaxError, InputError, UsageError
from emjax.inference.network import from_folder
from emjax.interchange import exports, stablehlo
from tests.exported_networks import agrees, field, written

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a U-Net that segments."""
    return written(tmp_path_factory.mktemp("unet"), "unet_mask")


@pytest.fixture(scope="module")
def file(model):
    """Its StableHLO file."""
    path = model.parent / "unet.stablehlo"
    stablehlo.write(model, path)
    return path


# One of each kind that is traced in a way of its own.
TRACED = ("unet_classes", "unet_group", "unet_pools", "hrnet", "hrnet_corners")


@pytest.mark.parametrize("name", TRACED)
def test_every_network_gives_its_values_at_any_size(name, tmp_path, tiny_hrnet):
    folder = written(tmp_path / "model", name)
    assert stablehlo.write(folder, tmp_path / "m.stablehlo") <= exports.TOLERANCE
    ours = emjax.load_model(folder, engine="jax")
    theirs = emjax.load_model(tmp_path / "m.stablehlo")
    assert (theirs.divisor, theirs.margin) == (ours.divisor, ours.margin)
    assert theirs.bytes_per_pixel == ours.bytes_per_pixel
    assert (theirs.is_mask, theirs.classes) == (ours.is_mask, ours.classes)
    assert theirs.config == ours.config
    image = field(101, 67)
    expected, found = ours.predict(image), theirs.predict(image)
    assert found.shape == expected.shape and found.dtype == np.float32
    assert agrees(found, expected)


def test_the_batch_is_free_and_all_platforms_are_there(file):
    network = stablehlo.read(file)
    images = np.random.default_rng(0).uniform(-1, 1, (3, 32, 48, 1)).astype(np.float32)
    together = np.asarray(network.apply(images))
    for image, expected in zip(images, together, strict=True):
        np.testing.assert_allclose(network.apply(image[None])[0], expected, atol=1e-6)
    program = zipfile.ZipFile(file).read("program")
    assert jax.export.deserialize(bytearray(program)).platforms == stablehlo.PLATFORMS


def test_tiles_have_the_values_of_the_whole_image(file):
    whole = emjax.load_model(file)
    image = field(300, 260)
    tiled = emjax.load_model(file, memory=whole.bytes_per_pixel * 140**2)
    np.testing.assert_allclose(tiled.predict(image), whole.predict(image), atol=1e-5)


def test_the_command_exports_and_predicts_with_the_file(model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("a.tif", field(90, 77))
    assert export.main([str(model), "--to=m.stablehlo"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{model} -> m.stablehlo  ")
    assert "standard deviations from the model" in said
    line = [f"--model={model}", "--engine=jax", "--out=ours", "--probabilities", "a.tif"]
    assert predict.main(line) == 0
    line = ["--model=m.stablehlo", "--out=theirs", "--probabilities", "a.tif"]
    assert predict.main(line) == 0
    ours, theirs = (tifffile.imread(f"{each}/a.probability.tif") for each in ("ours", "theirs"))
    np.testing.assert_allclose(theirs, ours, atol=1e-5)
    capsys.readouterr()
    assert predict.main(line) == 0
    assert "is finished" in capsys.readouterr().out
    with pytest.raises(UsageError, match="--to=m.stablehlo is there already; .*--overwrite"):
        export.main([str(model), "--to=m.stablehlo"])
    assert export.main([str(model), "--to=m.stablehlo", "--overwrite"]) == 0
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        *("a.tif", "m.stablehlo", "ours", "theirs")
    ]


def test_equal_models_are_equal_files_without_paths(file, model, tmp_path):
    for text in (b"/emjax/", b".py", str(model).encode()):
        assert text not in file.read_bytes()
    stablehlo.write(model, tmp_path / "again.stablehlo")
    assert (tmp_path / "again.stablehlo").read_bytes() == file.read_bytes()


def test_the_file_says_what_the_model_is(file, model):
    archive = zipfile.ZipFile(file)
    assert archive.read("README.md").decode() == (model / "README.md").read_text()
    facts = exports.Facts.parse(file, archive.read("facts.json"))
    assert facts.digest == emjax.load_model(model, engine="jax").digest
    assert facts.written_by["jax"] == jax.__version__
    assert facts.output == "the probability of a particle"
    assert "in tiles that start at multiples of 4 pixels and lose 26 pixels" in facts.tiling
    assert emjax.load_model(file).digest != facts.digest  # results by the file are its own


def test_a_network_that_needs_the_whole_image_says_so(tmp_path):
    folder = written(tmp_path / "model", "unet_instance")
    stablehlo.write(folder, tmp_path / "m.stablehlo")
    facts = exports.facts_of(folder)[1]
    assert facts.tiling == (
        "the whole image is needed: norm=instance takes statistics over the whole image"
    )
    assert emjax.load_model(tmp_path / "m.stablehlo").whole_image_reason


def damaged(content, kind):
    """Return the content of a StableHLO file with a fault."""
    entries = {name: zipfile.ZipFile(io.BytesIO(content)).read(name) for name in exports.ENTRIES}
    if kind == "cut":
        return content[:-200]
    if kind == "empty":
        return b""
    if kind == "no zip":
        return b"x" * 5000
    if kind == "another program":
        entries["program"] = entries["program"][:-1] + bytes([entries["program"][-1] ^ 1])
    if kind == "another zip":
        entries = {"a.txt": b"a"}
    if kind == "one more":
        entries["more"] = b""
    if kind == "no facts":
        entries["facts.json"] = b"[]"
    if kind == "a newer format":
        facts = json.loads(entries["facts.json"])
        entries["facts.json"] = json.dumps({**facts, "export": 99}).encode()
    buffer = io.BytesIO()
    packing = zipfile.ZIP_DEFLATED if kind == "compressed" else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", packing) as archive:
        for name, text in entries.items():
            archive.writestr(name, text)
    return buffer.getvalue()


FAULTS = {
    "cut": "damaged or another file",
    "empty": "damaged or another file",
    "no zip": "damaged or another file",
    "another program": "its program does not have its digest",
    "another zip": "it holds a.txt",
    "one more": "it holds facts.json, program, README.md, more",
    "compressed": "damaged or another file",
    "no facts": "without readable facts",
    "a newer format": "expected an export of format 1, got 99",
}


@pytest.mark.parametrize("kind", FAULTS)
def test_damaged_files_are_one_line(file, tmp_path, kind):
    (tmp_path / "m.stablehlo").write_bytes(damaged(file.read_bytes(), kind))
    with pytest.raises(InputError, match=FAULTS[kind]) as error:
        emjax.load_model(tmp_path / "m.stablehlo")
    assert str(error.value).startswith(str(tmp_path / "m.stablehlo"))
    assert "\n" not in str(error.value)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(InputError, match="m.stablehlo: no such file; expected a model that emjax"):
        emjax.load_model(tmp_path / "m.stablehlo")


def test_a_file_of_a_newer_jax_names_it(file, monkeypatch):
    monkeypatch.setattr(jax, "__version__", "0.9.3")
    words = r"was exported with JAX \d+\.\d+\.\d+ and needs \d+\.\d+ or newer, here is 0.9.3; inst"
    with pytest.raises(UsageError, match=words):
        emjax.load_model(file)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.stablehlo")), ids=lambda path: path.name)
def test_files_of_earlier_versions_are_read_and_newer_ones_named(path):
    """Each has the prediction beside it that was made when it was written."""
    theirs, ours = (
        [int(part) for part in version.split(".")[:2]]
        for version in (path.stem.rpartition("_")[2], jax.__version__)
    )
    if theirs > ours:
        with pytest.raises(UsageError, match="and needs .* or newer, here is"):
            emjax.load_model(path)
        return
    expected = np.load(path.with_suffix(".npy"))
    found = emjax.load_model(path).predict(field(75, 90))
    assert agrees(found, expected)


def test_an_export_that_differs_is_not_written(model, tmp_path, monkeypatch):
    def wrong(path):
        network = from_folder(model)
        return network._replace(apply=lambda images: network.apply(images) + 0.01)

    monkeypatch.setattr(stablehlo, "parse", lambda path, content: wrong(path))
    with pytest.raises(EmjaxError, match="it differs from the model by up to 0.01, expected at m"):
        stablehlo.write(model, tmp_path / "m.stablehlo")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "line, words",
    [
        (["--to=m.pt"], "m.pt: expected a name that ends in .stablehlo, .onnx, .zip, .safetensors"),
        (["--to=no/m.stablehlo"], "the folder no does not exist; make it"),
        (["--to=."], "--to=. is a folder, expected a file"),
        (["--to=m.stablehlo", "--licence=MIT"], "a licence are for .zip alone; leave them out"),
    ],
)
def test_wrong_lines_write_nothing(model, tmp_path, monkeypatch, line, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=words):
        export.main([str(model), *line])
    assert list(tmp_path.iterdir()) == []


def test_weights_for_pytorch_are_those_of_convert(model, tmp_path):
    from emjax import convert

    assert export.main([str(model), f"--to={tmp_path / 'a.safetensors'}"]) == 0
    assert convert.main([f"--from={model}", f"--to={tmp_path / 'b.safetensors'}"]) == 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_model_exports_itself_and_an_export_does_not(model, tmp_path):
    assert emjax.load_model(model).export(tmp_path / "m.stablehlo") <= exports.TOLERANCE
    theirs = emjax.load_model(tmp_path / "m.stablehlo")
    for use in (lambda: theirs.export(tmp_path / "n.stablehlo"),
                lambda: theirs.finetune("images", "masks", tmp_path / "out")):  # fmt: skip
        with pytest.raises(UsageError, match="is an export, which only predicts; load the folder"):
            use()


def test_an_engine_that_cannot_run_it(file, model):
    with pytest.raises(UsageError, match="engine=openvino: .* runs in jax; leave the engine out"):
        emjax.load_model(file, engine="openvino")
    with pytest.raises(UsageError, match="no engine 'torch'; there are: jax, onnxruntime, openvi"):
        emjax.load_model(model, engine="torch")
