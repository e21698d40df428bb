"""napari: layers with scale and units, stacks read when shown, particles and their table."""

import os
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
with warnings.catch_warnings():  # of the libraries that napari loads
    warnings.simplefilter("ignore")
    pytest.importorskip("napari", reason="needs the extra napari: make test-handon")
    QtWidgets = pytest.importorskip("qtpy.QtWidgets", reason="needs the extra napari")
    import npe2
    from napari.components import ViewerModel

    from emjax.apps.napari import reader, widget

import emjax  # noqa: E402
from emjax import micrographs  # noqa: E402
from emjax.errors import InputError  # noqa: E402
from tests.exported_networks import field, written  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::Warning"),  # of napari and what it loads
]
MANIFEST = Path(reader.__file__).with_name("napari.yaml")


@pytest.fixture(scope="module")
def application():
    return QtWidgets.QApplication.instance() or QtWidgets.QApplication([])


@pytest.fixture
def particles(application):
    """The widget on an empty viewer."""
    return widget.Particles(ViewerModel())


def shown(path):
    """Return the layers of a viewer that has opened a file."""
    viewer = ViewerModel()
    for data, arguments, kind in reader.get_reader(str(path))(str(path)):
        getattr(viewer, f"add_{kind}")(data, **arguments)
    return list(viewer.layers)


def wait_for(application, done, seconds=120):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it does not end"
        application.processEvents()
        time.sleep(0.01)


def test_the_manifest_is_valid_and_what_it_names_is_there():
    manifest = npe2.PluginManifest.from_file(MANIFEST)
    manifest.validate_imports()
    patterns = manifest.contributions.readers[0].filename_patterns
    endings = {pattern.removeprefix("*") for pattern in patterns}
    assert endings == {*micrographs.reading.SUFFIXES, *micrographs.reading.COMPRESSED}


def test_an_image_keeps_its_values_and_scale(tmp_path):
    image = field(40, 50)
    micrographs.write(tmp_path / "a.tif", image, (0.5, 0.25))
    (layer,) = shown(tmp_path / "a.tif")
    np.testing.assert_array_equal(layer.data, image)
    assert layer.name == "a" and tuple(layer.scale) == (0.5, 0.25)
    assert [str(unit) for unit in layer.units] == ["nanometer", "nanometer"]
    assert layer.metadata["pixel_size_from"] == emjax.read(tmp_path / "a.tif").origin


def test_without_a_pixel_size_it_is_in_pixels(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", field(40, 50))
    (layer,) = shown(tmp_path / "a.tif")
    assert tuple(layer.scale) == (1, 1) and {str(unit) for unit in layer.units} == {"pixel"}
    assert widget.pixel_size_of(layer) is micrographs.UNKNOWN


def test_a_stack_is_read_plane_by_plane_when_it_is_shown(tmp_path, monkeypatch):
    stack = np.stack([field(40, 50, seed=k) for k in range(4)])
    micrographs.write(tmp_path / "a.mrc", stack, 0.5)
    read = []
    whole = micrographs.read_plane
    monkeypatch.setattr(
        micrographs, "read_plane", lambda *given: read.append(given[1]) or whole(*given)
    )
    ((data, arguments, _),) = reader.read(str(tmp_path / "a.mrc"))
    assert read == [0] and data.shape == (4, 40, 50) and data.dtype == np.uint16
    np.testing.assert_array_equal(data[2].compute(), stack[2])
    assert read == [0, 2]
    assert arguments["scale"][1:] == pytest.approx((0.5, 0.5))
    assert arguments["units"][1:] == ("nm", "nm")
    np.testing.assert_array_equal(data.compute(), stack)


def test_several_images_are_several_layers_and_what_is_none_is_left_out(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["first"], file["second"] = field(30, 40), field(30, 40, seed=1)
        file["spectrum"] = np.arange(10.0)
    layers = shown(tmp_path / "a.h5")
    assert len(layers) == 2
    np.testing.assert_array_equal(layers[1].data, field(30, 40, seed=1))


def test_other_files_are_left_to_others_and_bad_ones_are_one_line(tmp_path):
    assert reader.get_reader(str(tmp_path / "a.txt")) is None
    assert reader.get_reader([str(tmp_path / "a.tif"), str(tmp_path / "a.txt")]) is None
    (tmp_path / "a.tif").write_bytes(b"nothing")
    with pytest.raises(InputError, match="a.tif"):
        reader.read(str(tmp_path / "a.tif"))


def test_the_sample_has_a_mask_in_its_place():
    (image, given, _), (mask, theirs, kind) = reader.nanoparticles()
    assert image.shape == mask.shape == (reader.SIDE, reader.SIDE) and kind == "labels"
    assert given["scale"] == theirs["scale"] and set(np.unique(mask)) == {0, 1}


def run(application, particles):
    particles.start()
    wait_for(application, lambda: particles.worker is None)


def test_particles_are_those_of_the_model(application, particles):
    """As labels in the micrograph's place, and as rows; each selects the other."""
    image = field(120, 150)
    layer = particles.viewer.add_image(image, name="a", scale=(0.5, 0.5), units=("nm", "nm"))
    particles.smallest.setValue(5)
    run(application, particles)
    table = emjax.load_model("particles").measure(image, 0.5, min_size=5)
    found = particles.viewer.layers["a particles"]
    assert found.data.max() == len(table["label"]) > 3
    assert tuple(found.scale) == tuple(layer.scale) and found.units == layer.units
    assert list(found.features["index"]) == [*range(1, len(table["label"]) + 1)]
    np.testing.assert_allclose(found.features["area_nm2"], table["area_nm2"])
    assert particles.table.rowCount() == len(table["label"])
    header = particles.table.horizontalHeaderItem(2).text()
    wide = particles.table.fontMetrics().horizontalAdvance(header)
    assert header == "equivalent_diameter_nm" and particles.table.columnWidth(2) > wide
    inside = int((table["border"] == 0).sum())
    assert particles.message.text().startswith(f"{inside} particles, ")
    assert set(found.features) == {"index", "plane", *table} - {"label"}
    particles.table.selectRow(2)
    assert found.selected_label == int(particles.table.item(2, 0).text())
    found.selected_label = 1
    (row,) = particles.table.selectionModel().selectedRows()
    assert int(particles.table.item(row.row(), 0).text()) == 1
    found.selected_label = len(table["label"]) + 5
    assert not particles.table.selectionModel().selectedRows()


def test_numbers_are_those_of_the_layer_where_particles_were_left_out(application, particles):
    """The first ones in the layer, of 2 pixels each, are smaller than those that count."""
    image = field(120, 150)
    particles.viewer.add_image(image, name="a")
    model, labels = emjax.load_model("particles"), np.zeros((120, 150), np.float32)
    labels[2:4, 5:100:10], labels[40:60, 30:50], labels[80:110, 90:120] = 0.9, 0.9, 0.9
    model.predict = lambda *arguments, **options: labels
    particles.model, particles.result = ("particles", model), None
    particles.smallest.setValue(5)
    run(application, particles)
    found = particles.viewer.layers["a particles"]
    areas = dict(zip(found.features["index"], found.features["area_px"], strict=True))
    assert areas == {1: 400, 2: 900}
    assert {n: (found.data == n).sum() for n in areas} == areas


def test_a_stack_has_one_number_per_particle(application, particles):
    stack = np.stack([field(64, 80, seed=k) for k in range(3)])
    particles.viewer.add_image(stack, name="s")
    run(application, particles)
    labels = particles.viewer.layers["s particles"].data
    assert labels.shape == stack.shape
    numbers = [set(np.unique(plane)) - {0} for plane in labels]
    assert not numbers[0] & numbers[1] and not numbers[1] & numbers[2]
    assert particles.table.rowCount() == sum(map(len, numbers))
    assert particles.bar.value() == 3
    assert any(c.endswith("_px") for c in particles.viewer.layers["s particles"].features)


def test_a_restoration_is_an_image_in_its_place(application, particles, tmp_path):
    folder = written(tmp_path / "m", "unet_no_norm")
    image = field(60, 70)
    particles.viewer.add_image(image, name="a", scale=(0.5, 0.5), units=("nm", "nm"))
    particles.name.insertItem(0, str(folder))
    particles.name.setCurrentIndex(0)
    run(application, particles)
    restored = particles.viewer.layers["a restored"]
    np.testing.assert_allclose(restored.data, emjax.load_model(folder).predict(image))
    assert tuple(restored.scale) == (0.5, 0.5)


def test_it_can_be_cancelled(application, particles):
    particles.viewer.add_image(np.stack([field(64, 64)] * 50), name="s")
    particles.start()
    wait_for(application, lambda: particles.bar.value() >= 1)
    assert particles.stop.isEnabled() and not particles.run.isEnabled()
    particles.stop.click()
    wait_for(application, lambda: particles.worker is None)
    assert particles.bar.value() < 50 and len(particles.viewer.layers) == 1
    assert particles.message.text() == "cancelled" and particles.run.isEnabled()


@pytest.mark.parametrize(
    "data, size, words",
    [
        (field(40, 40), "0", "nm per pixel: expected a positive number, got '0'"),
        (field(40, 40), "small", "nm per pixel: expected a positive number, got 'small'"),
        (np.zeros((2, 3, 40, 40)), "", "s: expected a grey image or a stack, got the shape (2,"),
        (np.full((40, 40), 7, np.uint8), "", "error: the percentile range is 7 to 7: (nearly) all"),
    ],
)
def test_what_cannot_be_predicted_is_one_line(application, particles, data, size, words):
    particles.viewer.add_image(data, name="s")
    particles.size.setText(size)
    particles.start()
    wait_for(application, lambda: particles.worker is None)
    assert particles.message.text().startswith(words)
    assert len(particles.viewer.layers) == 1


def test_a_layer_that_is_renamed_is_still_found(application, particles):
    layer = particles.viewer.add_image(np.full((40, 40), 7, np.uint8), name="a")
    layer.name = "b"
    assert particles.layer.currentText() == "b"
    run(application, particles)
    assert particles.message.text().startswith("error: ")


def test_an_error_of_jax_ends_the_work(application, particles, monkeypatch):
    def failing(name):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(widget, "load_model", failing)
    particles.viewer.add_image(field(40, 40), name="a")
    run(application, particles)
    assert particles.message.text() == "error: RESOURCE_EXHAUSTED: out of memory"
    assert particles.run.isEnabled()


FINETUNE = """
import time
print("  crop = 96", flush=True)
print("step 3/8  val/dice 0.5", flush=True)
time.sleep({seconds})
print("done")
"""


@pytest.mark.parametrize("seconds, cancels", [(0, False), (60, True)])
def test_a_finetuning_is_followed_and_can_be_cancelled(
    application, particles, monkeypatch, tmp_path, seconds, cancels
):
    """A program that stands for `emjax finetune`."""
    start = subprocess.Popen
    given = []

    def popen(line, **options):
        given.append(line)
        return start([sys.executable, "-c", FINETUNE.format(seconds=seconds)], **options)

    monkeypatch.setattr(widget.subprocess, "Popen", popen)
    said, bars = [], []
    monkeypatch.setattr(particles, "say", said.append)
    particles.bar.valueChanged.connect(lambda value: bars.append((value, particles.bar.maximum())))
    monkeypatch.setattr(particles.name, "currentText", lambda: "particles")
    for updates in (0, 8):  # the second into the same folder
        particles.updates.setValue(updates)
        particles.finetune("images", "masks", str(tmp_path))
        assert particles.bar.maximum() == 0  # it is not known how long it takes
        wait_for(application, lambda: (3, 8) in bars)
        if cancels:
            particles.stop.click()
        wait_for(application, lambda: particles.worker is None, seconds=30)
        assert said[:3] == ["begins ...", "crop = 96", "step 3/8  val/dice 0.5"]
        assert ("finetune on the same folders again" in said[-1]) is cancels
        assert said[-1].startswith(str(tmp_path / "report.html")) is not cancels
        assert ((particles.bar.value(), particles.bar.maximum()) == (1, 1)) is not cancels
        said.clear()
        bars.clear()
    common = ["emjax.finetune", "--images=images", "--base=particles", "--targets=masks",
              f"--out={tmp_path}", "--task=segmentation"]  # fmt: skip
    assert [line[3:] for line in given] == [common, [*common, "--steps=8"]]
    assert particles.process is None and particles.train.isEnabled()
    names = [particles.name.itemText(k) for k in range(particles.name.count())]
    assert names.count(str(tmp_path)) == (0 if cancels else 1)
    assert (particles.name.currentIndex() == 0) is not cancels


@pytest.mark.parametrize(
    "model, titles, task",
    [
        ("particles", ["Micrographs", "Masks", "Where the new model goes"], "segmentation"),
        ("denoise", ["Micrographs", "Images as they are to become", "Where the new model goes"],
         "denoise"),
    ],
)  # fmt: skip
def test_folders_are_asked_for_as_the_model_needs_them(particles, monkeypatch, model, titles, task):
    asked, given = [], []

    def ask(parent, title):
        asked.append(title)
        return f"/{title}"

    monkeypatch.setattr(widget.QtWidgets.QFileDialog, "getExistingDirectory", ask)
    monkeypatch.setattr(particles, "finetune", lambda *folders: given.append(folders))
    particles.name.setCurrentText(model)
    particles.train.click()
    assert asked == titles and given == [tuple(f"/{title}" for title in titles)]
    assert widget.task_of(model) == task


def test_a_folder_without_a_model_is_not_finetuned(particles, monkeypatch, tmp_path):
    monkeypatch.setattr(particles, "finetune", None)
    particles.offer(str(tmp_path))
    particles.train.click()
    assert particles.message.text().startswith("error: ")
    assert "no such file" in particles.message.text() and particles.train.isEnabled()
    assert particles.name.toolTip() == str(tmp_path)  # the box shows only its start


def test_without_an_image_there_is_nothing_to_do(particles):
    assert not particles.run.isEnabled()
    particles.viewer.add_image(field(20, 20), name="a")
    assert particles.run.isEnabled() and particles.layer.currentText() == "a"
    particles.viewer.layers.clear()
    assert not particles.run.isEnabled()


WINDOW = """
import sys, time
import napari, numpy as np
from emjax.apps.napari import reader, widget
viewer = napari.Viewer()
for data, arguments, kind in reader.nanoparticles():
    getattr(viewer, f"add_{kind}")(data, **arguments)
particles = widget.Particles(viewer)
viewer.window.add_dock_widget(particles, name="emjax")
viewer.window._qt_window.resize(1300, 900)
particles.smallest.setValue(30)
particles.start()
application = napari.qt.get_qapp() if hasattr(napari.qt, "get_qapp") else None
from qtpy import QtWidgets
application = QtWidgets.QApplication.instance()
end = time.monotonic() + 120
while particles.worker is not None and time.monotonic() < end:
    application.processEvents()
    time.sleep(0.01)
for _ in range(50):
    application.processEvents()
    time.sleep(0.02)
print(particles.message.text())
viewer.screenshot(sys.argv[1], canvas_only=False, flash=False)
viewer.close()
"""


@pytest.mark.screen
def test_in_a_window(tmp_path):
    if not shutil.which("Xvfb"):
        pytest.skip("needs Xvfb: make test-handon")
    display = f":{os.getpid() % 500 + 100}"
    server = subprocess.Popen(["Xvfb", display, "-screen", "0", "1400x1000x24"],
                              stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        environment = {**os.environ, "DISPLAY": display, "QT_QPA_PLATFORM": "xcb",
                       "LIBGL_ALWAYS_SOFTWARE": "1"}  # fmt: skip
        line = [sys.executable, "-c", WINDOW, str(tmp_path / "window.png")]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert " particles, " in done.stdout
        from PIL import Image

        picture = np.asarray(Image.open(tmp_path / "window.png").convert("L"))
        assert min(picture.shape) > 500 and picture.std() > 10
    finally:
        server.terminate()
        server.wait()
