"""Models as ONNX files, and onnxruntime and OpenVINO as engines of predict."""

import functools
import os
import shutil
import subprocess
import sys
import threading
import time
from importlib.util import find_spec

import numpy as np
import pytest
import tifffile
from safetensors.numpy import load_file, save

import emjax
from emjax import errors, export, measure, predict
from emjax.errors import EmjaxError, InputError, UsageError
from emjax.inference.network import from_folder
from emjax.interchange import exports, onnx, runtimes
from emjax.models import saved
from tests.exported_networks import NETWORKS, agrees, field, written

ENGINES = list(runtimes.SESSIONS)
library = pytest.importorskip("onnx", reason="needs the extra onnx: make test-handon")
pytest.importorskip("onnxruntime", reason="needs the extra onnx: make test-handon")


@pytest.fixture(params=ENGINES)
def engine(request):
    if not find_spec(request.param):
        pytest.skip("needs this engine: make test-handon")
    return request.param


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of the kept graphs, which is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/emjax/graphs"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a U-Net that segments."""
    return written(tmp_path_factory.mktemp("unet"), "unet_mask")


@pytest.fixture(scope="module")
def file(model):
    """Its ONNX file."""
    path = model.parent / "unet.onnx"
    onnx.write(model, path)
    return path


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_gives_its_values_at_any_size(name, engine, tmp_path, tiny_hrnet):
    folder = written(tmp_path / "model", name)
    assert onnx.write(folder, tmp_path / "m.onnx") <= exports.TOLERANCE
    ours = emjax.load_model(folder, engine="jax")
    for theirs in (emjax.load_model(tmp_path / "m.onnx", engine=engine),
                   emjax.load_model(folder, engine=engine)):  # fmt: skip
        assert (theirs.divisor, theirs.margin) == (ours.divisor, ours.margin)
        assert (theirs.is_mask, theirs.classes) == (ours.is_mask, ours.classes)
        image = field(101, 67)
        expected, found = ours.predict(image), theirs.predict(image)
        assert found.shape == expected.shape and found.dtype == np.float32
        assert agrees(found, expected)


def test_the_graph_pads_by_itself_and_takes_batches(file):
    network = runtimes.onnxruntime_session(file.read_bytes())
    images = np.random.default_rng(0).uniform(-1, 1, (3, 45, 50, 1)).astype(np.float32)
    together = network(images)
    padded = np.pad(images, [(0, 0), (0, 3), (0, 2), (0, 0)], mode="reflect")
    for image, whole, found in zip(images, padded, together, strict=True):
        np.testing.assert_allclose(network(image[None])[0], found, atol=1e-6)
        np.testing.assert_allclose(network(whole[None])[0, :45, :50], found, atol=1e-6)


def test_tiles_have_the_values_of_the_whole_image(model, engine):
    whole = emjax.load_model(model, engine=engine)
    image = field(300, 260)
    tiled = emjax.load_model(model, memory=whole.bytes_per_pixel * 140**2, engine=engine)
    np.testing.assert_allclose(tiled.predict(image), whole.predict(image), atol=1e-5)


def test_eight_threads_predict_like_one(model, engine):
    loaded = emjax.load_model(model, engine=engine)
    images = [field(60 + 7 * k, 80, seed=k) for k in range(8)]
    alone = [loaded.predict(image) for image in images]
    found = {}
    threads = [
        threading.Thread(target=lambda k=k: found.update({k: loaded.predict(images[k])}))
        for k in range(8)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    for k, expected in enumerate(alone):
        np.testing.assert_allclose(found[k], expected, atol=1e-6)


def test_the_file_says_what_the_model_is(file, model):
    read = library.load(file)
    props = {each.key: each.value for each in read.metadata_props}
    assert props["task"] == "segmentation" and props["intensity_range"] == "percentile"
    assert props["input"].endswith("of a micrograph, clipped there")
    assert props["output"] == "the probability of a particle"
    assert props["digest"] == emjax.load_model(model, engine="jax").digest
    assert props["nm_per_pixel"] == "any"
    assert "lose 26 pixels on each side" in props["tiles"]
    assert read.doc_string == (model / "README.md").read_text()
    assert [(each.domain, each.version) for each in read.opset_import] == [("", onnx.OPSET)]
    sides = [each.dim_param or each.dim_value for each in
             read.graph.input[0].type.tensor_type.shape.dim]  # fmt: skip
    assert sides == ["batch", 1, "height", "width"]


def test_equal_models_are_equal_files(file, model, tmp_path):
    onnx.write(model, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == file.read_bytes()


def test_the_commands_take_engines(model, engine, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("a.tif", field(90, 77))
    line = ["--probabilities", "a.tif"]
    assert predict.main([f"--model={model}", "--engine=jax", "--out=ours", *line]) == 0
    named = [f"--model={model}", f"--engine={engine}"]
    assert predict.main([*named, "--out=theirs", *line]) == 0
    ours, theirs = (tifffile.imread(f"{each}/a.probability.tif") for each in ("ours", "theirs"))
    assert agrees(theirs, ours)
    assert export.main([str(model), "--to=m.onnx"]) == 0
    assert predict.main(["--model=m.onnx", f"--engine={engine}", "--out=file", *line]) == 0
    assert agrees(tifffile.imread("file/a.probability.tif"), ours)
    capsys.readouterr()
    # Results of another engine are not the same results.
    assert predict.main([f"--model={model}", "--engine=jax", "--out=theirs", *line]) == 0
    assert "is finished" not in capsys.readouterr().out
    other = ENGINES[ENGINES.index(engine) - 1]
    pytest.importorskip(other, reason="needs this engine: make test-handon")
    assert predict.main(["--model=m.onnx", f"--engine={other}", "--out=file", *line]) == 0
    assert "is finished" not in capsys.readouterr().out
    assert measure.main([*named, "--out=sizes", "a.tif"]) == 0
    assert (tmp_path / "sizes/summary.json").exists()


@pytest.mark.parametrize("rule, clip", [("percentile", True), ("percentile", False),
                                        ("sigma", True), ("sigma", False)])  # fmt: skip
def test_grey_values_get_the_range_of_the_rule(rule, clip, tmp_path):
    """In the graph, as packages of bioimage.io have it; each image of a batch its own."""
    folder = written(tmp_path / "model", "unet_mask", range_rule=rule, clip=clip)
    network, facts = exports.facts_of(folder)
    session = runtimes.onnxruntime_session(onnx.serialised(network, facts, grey=True))
    ours = emjax.load_model(folder, engine="jax")
    for dtype, shape in ((np.uint8, (100, 80)), (np.uint16, (97, 83)), (np.float32, (64, 64))):
        images = [(field(*shape, np.float32, seed=k) / (9 - k)).astype(dtype) for k in range(2)]
        found = session(np.stack(images).astype(np.float32)[..., None])
        for image, output in zip(images, found, strict=True):
            assert agrees(output[..., 0], ours(image))


def test_a_constant_image_gives_numbers(tmp_path):
    network, facts = exports.facts_of(written(tmp_path / "model", "unet_mask"))
    session = runtimes.onnxruntime_session(onnx.serialised(network, facts, grey=True))
    assert np.isfinite(session(np.full((1, 32, 32, 1), 7, np.float32))).all()


def test_a_rule_of_a_number_format_has_no_graph(tmp_path):
    network, facts = exports.facts_of(written(tmp_path, "unet_mask", range_rule="fixed"))
    with pytest.raises(UsageError, match="intensity range fixed: expected percentile or sigma"):
        onnx.serialised(network, facts, grey=True)


FAULTS = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "another file": lambda content: b"\xff" * 1000,
    "by another program": lambda content: without_facts(content),
}


def without_facts(content):
    read = library.load_from_string(content)
    del read.metadata_props[:]
    return read.SerializeToString()


@pytest.mark.parametrize("kind", FAULTS)
def test_damaged_files_are_one_line(file, tmp_path, kind):
    (tmp_path / "m.onnx").write_bytes(FAULTS[kind](file.read_bytes()))
    with pytest.raises(InputError, match="damaged or another|without readable facts") as error:
        emjax.load_model(tmp_path / "m.onnx")
    assert str(error.value).startswith(str(tmp_path / "m.onnx"))
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_wrong_engine_are_one_line(file, tmp_path):
    with pytest.raises(InputError, match="m.onnx: no such file; expected a model that emjax"):
        emjax.load_model(tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="engine=jax: .* runs in onnxruntime or openvino"):
        emjax.load_model(file, engine="jax")


def test_an_export_that_differs_is_not_written(model, tmp_path, monkeypatch):
    exact = onnx.predicted

    def wrong(g, x, config):
        return g.add("Mul", exact(g, x, config), g.constant(1.01))

    monkeypatch.setattr(onnx, "predicted", wrong)
    with pytest.raises(EmjaxError, match="it differs from the model by up to 0.0"):
        onnx.write(model, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_openvino_computes_in_float32(model):
    """Its own choice on processors that can is bfloat16."""
    if not find_spec("openvino"):
        pytest.skip("needs OpenVINO: make test-handon")
    openvino = runtimes.imported_openvino()
    asked = {}
    compile_model = openvino.Core.compile_model

    @functools.wraps(compile_model)
    def watched(self, read, device, settings):
        asked.update(settings, device=device)
        return compile_model(self, read, device, settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino.Core, "compile_model", watched)
        emjax.load_model(model, engine="openvino")
    assert asked["INFERENCE_PRECISION_HINT"] == "f32" and asked["device"] == "CPU"


def test_openvino_reports_to_nobody(tmp_path):
    """Its telemetry would, at each import, and keep a number for the user."""
    if not find_spec("openvino_telemetry"):
        pytest.skip("needs OpenVINO: make test-handon")
    code = """if True:
        import sys
        from emjax.interchange import runtimes

        openvino = runtimes.imported_openvino()
        assert openvino is runtimes.imported_openvino()
        print(*(name for name in sys.modules if name.startswith("openvino_telemetry")))
        import openvino_telemetry  # others may
    """
    environment = {**os.environ, "HOME": str(tmp_path)}
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_library_that_is_not_installed_is_one_line(model, cache, monkeypatch):
    for missing, engine in (("onnx", "openvino"), ("onnxruntime", "onnxruntime")):

        def imported(name, missing=missing):
            if name == missing:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return __import__(name)

        with monkeypatch.context() as patch:
            patch.setattr(errors.importlib, "import_module", imported)
            words = rf"{missing} is not installed; python -m pip install 'emjax\[onnx\]'"
            with pytest.raises(UsageError, match=words):
                emjax.load_model(model, engine=engine)


def test_a_second_process_predicts_without_jax(model, engine, cache, tmp_path):
    """From the graph that the first has kept; the values are the same."""
    image = field(60, 70)
    np.save(tmp_path / "image.npy", image)
    np.save(tmp_path / "first.npy", emjax.load_model(model, engine=engine).predict(image))
    (kept,) = cache.iterdir()
    assert kept.name.startswith(saved.digest(model)[:32])
    code = f"""if True:
        import sys
        import numpy as np
        import emjax

        image = np.load({str(tmp_path / "image.npy")!r})
        found = emjax.load_model({str(model)!r}, engine={engine!r}).predict(image)
        assert (found == np.load({str(tmp_path / "first.npy")!r})).all()
        print(*({{"jax", "flax", "onnx"}} & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


def test_a_kept_graph_is_made_again_where_it_is_not_the_right_one(
    model, engine, cache, monkeypatch
):
    def predicted():
        return emjax.load_model(model, engine=engine).predict(field(60, 70))

    expected = predicted()
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:2000] + b"\0\0\0" + whole[2003:]):
        kept.write_bytes(damaged)
        assert (predicted() == expected).all()
        assert kept.read_bytes() == whole
    monkeypatch.setattr(emjax, "code_digest", lambda: "another")
    assert (predicted() == expected).all()
    assert sorted(path.name for path in cache.iterdir()) == sorted(
        [kept.name, f"{kept.name.rpartition('-')[0]}-another"]
    )


def test_a_graph_is_not_kept_for_a_model_that_was_replaced_meanwhile(
    engine, cache, tmp_path, monkeypatch
):
    """As a training does that saves a better one."""
    first, second = (
        written(tmp_path / name, "unet_mask", range_rule=rule)
        for name, rule in (("first", "percentile"), ("second", "fixed"))
    )

    def replaced(folder):
        for file in second.iterdir():
            shutil.copy(file, folder)
        return from_folder(folder)

    with monkeypatch.context() as patch:
        patch.setattr(onnx, "from_folder", replaced)
        assert emjax.load_model(first, engine=engine).config["range_rule"] == "fixed"
    assert not cache.exists()


def test_what_is_added_to_a_model_is_there_with_a_kept_graph(engine, cache, tmp_path):
    folder = written(tmp_path / "model", "unet_mask")
    before = emjax.load_model(folder, engine=engine)
    saved.annotate(folder, {"held_out": "Dice 0.9"})
    after = emjax.load_model(folder, engine=engine)
    assert len(list(cache.iterdir())) == 1 and after.digest == before.digest
    assert after.config["held_out"] == "Dice 0.9" and after.engine == engine


def test_the_latest_graphs_are_kept(engine, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, "KEPT", 2)
    rules = ("percentile", "fixed", "sigma")
    folders = [written(tmp_path / rule, "unet_mask", range_rule=rule) for rule in rules]
    for folder in (folders[0], folders[1], folders[0], folders[2]):
        emjax.load_model(folder, engine=engine)
        time.sleep(0.05)  # times of files are coarse
    kept = {path.name[:32] for path in cache.iterdir()}
    assert kept == {saved.digest(folders[index])[:32] for index in (0, 2)}


def test_without_a_home_no_graph_is_kept(model, engine, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(onnx, "cache", no_home)
    assert emjax.load_model(model, engine=engine).predict(field(60, 70)).shape == (60, 70)


def test_a_graph_that_cannot_be_kept_is_used(model, engine, cache):
    cache.parent.mkdir(parents=True)
    cache.write_text("no folder")
    assert emjax.load_model(model, engine=engine).predict(field(60, 70)).shape == (60, 70)


def test_a_changed_model_has_another_graph(engine, cache, tmp_path):
    folder = written(tmp_path / "model", "unet_mask")
    before = emjax.load_model(folder, engine=engine).predict(field(60, 70))
    params, _, _ = saved.read(folder)
    changed = {f"params/{path}": 1.1 * array for path, array in params.items()}
    arrays = load_file(folder / "model.safetensors") | changed
    (folder / "model.safetensors").write_bytes(save(arrays))
    after = emjax.load_model(folder, engine=engine).predict(field(60, 70))
    assert np.abs(after - before).max() > 1e-3
    assert agrees(after, emjax.load_model(folder, engine="jax").predict(field(60, 70)))
