"""The public API: lazy names, the example of the README, refusals, and several threads at once."""

import contextlib
import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import mrcfile
import numpy as np
import optax
import pytest
import tifffile
from PIL import Image

import emjax
from emjax import micrographs
from emjax.errors import InputError, UsageError
from emjax.models import saved
from emjax.models.build import create
from emjax.models.formulation import FASTEST, PLAIN, Formulation, formulated, formulation
from tests.docs_commands import fences

README = Path(__file__).parents[1] / "README.md"
UNET = dict(name="unet", blocks=2, receptive_field=44)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a function that makes the workdir of a trained run, with random weights."""

    def make(task="segmentation"):
        workdir = tmp_path_factory.mktemp("run")
        network = create(UNET, optax.sgd(1.0), key=jax.random.key(0))
        saved.write(workdir / "model", network, dict(model=UNET, task=task, range_rule="sigma"))
        return workdir

    return make


@pytest.fixture(scope="module")
def model(folder):
    return emjax.load_model(folder())


def noise(*shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, 250, shape).astype(dtype)


def in_a_new_process(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_public_name_is_there_and_loaded_when_used():
    assert {name for name in emjax.__all__ if callable(getattr(emjax, name))} == {*emjax.__all__}
    assert {*emjax.__all__} <= {*dir(emjax)}
    assert emjax.read is micrographs.read and emjax.write is micrographs.write
    with pytest.raises(AttributeError, match="module 'emjax' has no attribute 'raed'"):
        emjax.raed  # noqa: B018
    loaded = "sorted({'numpy', 'jax', 'flax', 'importlib.metadata'} & set(sys.modules))"
    code = f"import sys, emjax; a = {loaded}; emjax.read; print(a, 'jax' in sys.modules)"
    assert in_a_new_process(code) == "[] False"


def test_the_example_of_the_readme(folder, tmp_path, monkeypatch):
    example = next(text for language, text in fences(README) if language == "python")
    image = noise(50, 61, dtype=np.uint16)
    micrographs.write(tmp_path / "images" / "micrograph.tif", image, (0.5, 0.25))
    (tmp_path / "runs").mkdir()
    folder().rename(tmp_path / "runs" / "segment")
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(example, "README.md", "exec"), found := {})
    model = emjax.load_model("runs/segment")
    np.testing.assert_array_equal(found["probability"], model.predict(image))
    mask = emjax.read("mask.tif")
    np.testing.assert_array_equal(mask.image, np.where(found["probability"] > 0.5, 255, 0))
    assert mask.nm_per_pixel == pytest.approx((0.5, 0.25))
    assert printed.getvalue().startswith("(50, 61) (0.5, 0.25)")


@pytest.mark.parametrize("suffix", [".tif", ".ome.tif", ".mrc", ".zarr"])
@pytest.mark.parametrize("planes", [1, 3])
def test_a_stack_is_read_whole(tmp_path, suffix, planes):
    stack = noise(planes, 20, 31, dtype=np.uint16)
    path = tmp_path / f"a{suffix}"
    emjax.write(path, stack if planes > 1 else stack[0], (2, 3))
    read = emjax.read_stack(path)
    assert read.image.dtype == np.uint16 and read.image.flags.c_contiguous
    np.testing.assert_array_equal(read.image, stack)
    first = next(micrographs.planes(path))
    assert read.nm_per_pixel == first.nm_per_pixel == pytest.approx((2, 3))
    assert read.origin == first.origin != "none"


def test_a_stack_in_colour_becomes_luminance(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", noise(4, 20, 31, 3), photometric="rgb")
    planes = [plane.image for plane in micrographs.planes(tmp_path / "a.tif")]
    np.testing.assert_array_equal(emjax.read_stack(tmp_path / "a.tif").image, planes)


def test_a_stack_above_the_limit_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", noise(10, 20, 30), photometric="minisblack")
    assert emjax.read_stack(tmp_path / "a.tif", limit=6000).image.shape == (10, 20, 30)
    with pytest.raises(InputError, match="a.tif: .*6 kB, to be read as a whole, .* 5.99 kB; raise"):
        emjax.read_stack(tmp_path / "a.tif", limit=5990)
    assert len(list(micrographs.planes(tmp_path / "a.tif", limit=5990))) == 10
    with pytest.raises(InputError, match="one 2-D image"):
        emjax.read(tmp_path / "a.tif")


@pytest.mark.parametrize(
    "given, read",
    [
        (0.5, (0.5, 0.5)),
        ((0.5, 0.25), (0.5, 0.25)),
        (np.float32([2, 4]), (2, 4)),
        (None, micrographs.UNKNOWN),
        (np.nan, micrographs.UNKNOWN),
        ((1.0, np.nan), micrographs.UNKNOWN),
    ],
)
def test_pixel_sizes_are_written(tmp_path, given, read):
    emjax.write(tmp_path / "a.tif", noise(8, 9), given)
    assert emjax.read(tmp_path / "a.tif").nm_per_pixel == pytest.approx(read, nan_ok=True)


WRONG_SIZES = [0, -1.0, np.inf, (1, 0), (1, 2, 3), (), "1 nm", [[1, 2]], (1, "x")]


@pytest.mark.parametrize("size", WRONG_SIZES, ids=repr)
def test_wrong_pixel_sizes_are_refused(model, tmp_path, size):
    words = "expected nm per pixel as one positive number or two"
    with pytest.raises(UsageError, match=words):
        emjax.write(tmp_path / "a.tif", noise(8, 9), size)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match=words):
        model.predict(noise(8, 9), size)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("shape", [(37, 41), (1, 1)])
def test_predictions_have_the_size_of_the_image(model, folder, dtype, shape):
    image = noise(*shape, dtype=dtype)
    given = {} if shape != (1, 1) else dict(intensity_range=(0.0, 255.0))
    probability = model.predict(image, **given)
    assert probability.dtype == np.float32 and probability.shape == shape
    assert 0 <= probability.min() and probability.max() <= 1
    np.testing.assert_array_equal(probability, model.predict(image, 0.5, **given))
    mask = model.mask(image, **given)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, np.where(probability > 0.5, 255, 0))


def test_a_restoration_is_in_grey_values_and_has_no_mask(folder):
    model = emjax.load_model(folder("denoise"))
    image = noise(40, 44, dtype=np.float32)
    restored = model.predict(image)
    assert restored.dtype == np.float32
    # Grey values: a shifted and stretched micrograph gives the same, shifted and stretched.
    np.testing.assert_allclose(model.predict(4 * image + 1000), 4 * restored + 1000, rtol=1e-4)
    with pytest.raises(UsageError, match=r"segmentation, got one that restores.*denoise.*predict"):
        model.mask(image)


@pytest.mark.parametrize(
    "image, words",
    [
        (noise(3, 20, 20), r"got the shape \(3, 20, 20\); pass the planes"),
        (noise(20), r"got the shape \(20,\)"),
        (noise(0, 20), r"got the shape \(0, 20\)"),
        (noise(20, 20, dtype=np.int16), "got int16; convert it"),
        (noise(20, 20, dtype=np.float64), "got float64; convert it"),
        (noise(20, 20, dtype=bool), "got bool; convert it"),
        (noise(20, 20, dtype=">u2"), "got >u2; convert it"),
        (np.full((4, 5), np.nan, np.float32), "NaN or infinity in 20 of 20 pixels"),
        (np.float32([[1, 2], [3, np.inf]]), "NaN or infinity in 1 of 4 pixels"),
        (np.float32([[1, -np.inf], [3, 4]]), "NaN or infinity in 1 of 4 pixels"),
        (micrographs.Micrograph(noise(4, 5), (1.0, 1.0)), "got a Micrograph; pass its .image"),
        ([[1, 2], [3, 4]], "got a list; pass numpy.asarray of it"),
        ("image.tif", "got a str"),
        (np.full((4, 5), 7, np.uint8), "all pixels are the same"),
    ],
)
def test_other_images_are_refused(model, image, words):
    for function in (model.predict, model.mask):
        with pytest.raises(InputError, match=words) as error:
            function(image)
        assert "\n" not in str(error.value) and "--" not in str(error.value)


@pytest.fixture(scope="module")
def mixed_files(tmp_path_factory):
    """Return 16 files of four formats and three number formats, some of them in colour."""
    folder, paths = tmp_path_factory.mktemp("mixed"), []
    for n in range(4):
        shape = [(40, 44), (37, 43), (33, 20), (64, 12)][n]
        grey = noise(*shape, dtype=[np.uint8, np.uint16, np.float32, np.uint8][n], seed=n)
        tifffile.imwrite(folder / f"{n}.tif", grey)
        np.save(folder / f"{n}.npy", grey[::-1])
        with mrcfile.new(folder / f"{n}.mrc") as file:
            file.set_data(
                noise(*shape, dtype=[np.int8, np.uint16, np.float32, np.int16][n], seed=9)
            )
            file.voxel_size = 1 + n
        Image.fromarray(noise(*shape, 3, seed=n) if n % 2 else noise(*shape, seed=n)).save(
            folder / f"{n}.png"
        )
        paths += [folder / f"{n}.{suffix}" for suffix in ("tif", "npy", "mrc", "png")]
    return paths


def test_a_formulation_is_chosen_for_one_thread():
    with formulated(Formulation(strided=True)), ThreadPoolExecutor(1) as pool:
        assert formulation() == Formulation(strided=True)
        with formulated(PLAIN):
            assert formulation() == PLAIN
        assert formulation() == Formulation(strided=True)
        other = pool.submit(formulation).result()
    assert other == formulation() == FASTEST.get(jax.default_backend(), PLAIN)


def test_eight_threads_get_what_one_gets(folder, mixed_files):
    """They share a model, which compiles for several sizes at the same time."""
    workdir = folder()

    def results(model, path):
        micrograph = emjax.read(path)
        return (
            micrograph.image,
            np.array(micrograph.nm_per_pixel),
            model.predict(micrograph.image, micrograph.nm_per_pixel),
            model.mask(micrograph.image),
        )

    alone = emjax.load_model(workdir)
    expected = {path: results(alone, path) for path in mixed_files}
    shared = emjax.load_model(workdir)
    work = [*mixed_files, *reversed(mixed_files)] * 2
    with ThreadPoolExecutor(8) as pool:
        several = pool.map(lambda path: results(shared, path), work)
        for path, found in zip(work, several, strict=True):
            for ours, theirs in zip(found, expected[path], strict=True):
                np.testing.assert_array_equal(ours, theirs, err_msg=str(path))
