"""Files become 2-D images, or one line that names the file; ranges and their inverse."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from emjax import cli, micrographs
from emjax.errors import InputError

RNG = np.random.default_rng(0)
GREY8 = RNG.integers(0, 256, (13, 17), np.uint8)
GREY16 = RNG.integers(0, 65536, (13, 17), np.uint16)


@pytest.mark.parametrize(
    "stored, expected",
    [
        (GREY8, GREY8),
        (GREY16, GREY16),
        (GREY16.astype(">u2"), GREY16),
        (GREY8 > 100, (GREY8 > 100) * np.uint8(255)),
        (GREY16.astype(np.int32) - 30000, GREY16.astype(np.float32) - 30000),
        (GREY8.astype(np.float64) / 3, (GREY8.astype(np.float64) / 3).astype(np.float32)),
        (GREY8.astype(np.float16), GREY8.astype(np.float32)),
        (GREY8[None], GREY8),
    ],
)
def test_tiff_values_stay_or_become_float32(tmp_path, stored, expected):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stored, photometric="minisblack")
    image, nm_per_pixel, origin = micrographs.read(path)
    assert image.dtype == expected.dtype and image.dtype.isnative
    np.testing.assert_array_equal(image, expected)
    assert np.isnan(nm_per_pixel).all() and origin == "none"


def test_white_is_high_whatever_the_tiff_calls_zero(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", 255 - GREY8, photometric="miniswhite")
    np.testing.assert_array_equal(micrographs.read(tmp_path / "a.tif").image, GREY8)


@pytest.mark.parametrize("grey", [GREY8, GREY16])
@pytest.mark.parametrize("name", ["a.tif", "a.png"])
def test_equal_colours_are_that_grey_and_others_luminance(tmp_path, grey, name):
    path = tmp_path / name
    colours = np.stack([grey, grey, grey], -1)

    def write(pixels):
        if name == "a.png":
            path.write_bytes(imagecodecs.png_encode(pixels))
        else:
            tifffile.imwrite(path, pixels, photometric="rgb")

    write(colours)
    np.testing.assert_array_equal(micrographs.read(path).image, grey)
    colours[..., 1] = 0
    write(colours)
    expected = np.rint(0.413 * grey.astype(np.float64))
    image = micrographs.read(path).image
    assert image.dtype == grey.dtype
    np.testing.assert_allclose(image, expected, atol=1)
    np.testing.assert_array_equal(micrographs.read_pixels(path), colours)


def test_png_and_jpeg_modes(tmp_path):
    Image.fromarray(GREY16).save(tmp_path / "16.png")
    np.testing.assert_array_equal(micrographs.read(tmp_path / "16.png").image, GREY16)

    grey = Image.fromarray(GREY8)
    for mode in ("LA", "RGBA", "RGB"):
        grey.convert(mode).save(tmp_path / "mode.png")
        np.testing.assert_array_equal(micrographs.read(tmp_path / "mode.png").image, GREY8)

    deep = GREY8.astype(np.uint16) * 257 - (GREY8 > 9)
    alpha = np.stack([deep, np.full_like(deep, 65535)], -1)
    (tmp_path / "deep.png").write_bytes(imagecodecs.png_encode(alpha))
    np.testing.assert_array_equal(micrographs.read(tmp_path / "deep.png").image, deep)

    palette = Image.new("P", (17, 13))
    palette.putdata((GREY8 % 4).ravel().tolist())
    palette.putpalette([0, 0, 0, 50, 50, 50, 100, 100, 100, 200, 200, 200])
    palette.save(tmp_path / "palette.png")
    expected = np.array([0, 50, 100, 200], np.uint8)[GREY8 % 4]
    np.testing.assert_array_equal(micrographs.read(tmp_path / "palette.png").image, expected)

    smooth = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.JPG", quality=95)
    jpeg = micrographs.read(tmp_path / "a.JPG").image
    assert np.abs(jpeg.astype(int) - smooth).max() < 8


def test_tiff_palette_is_applied(tmp_path):
    levels = np.arange(256, dtype=np.uint16)[::-1] * 257
    tifffile.imwrite(
        tmp_path / "a.tif", GREY8, photometric="palette", colormap=np.stack([levels] * 3)
    )
    np.testing.assert_array_equal(micrographs.read(tmp_path / "a.tif").image, 255 - GREY8)


def test_a_png_named_tif_is_read_by_its_content(tmp_path):
    Image.fromarray(GREY8).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.tif")
    np.testing.assert_array_equal(micrographs.read(tmp_path / "a.tif").image, GREY8)


def bad_text(path):
    path.write_text("not an image at all")


def bad_empty(path):
    path.write_bytes(b"")


def bad_truncated(path):
    tifffile.imwrite(path, GREY16)
    path.write_bytes(path.read_bytes()[:-100])


def bad_truncated_png(path):
    content = imagecodecs.png_encode(RNG.integers(0, 256, (64, 64), np.uint8))
    path.write_bytes(content[: len(content) // 2])


def bad_garbage(path):
    path.write_bytes(b"II*\0" + bytes(range(200)))


def bad_stack(path):
    tifffile.imwrite(path, np.stack([GREY8] * 5), photometric="minisblack")


def bad_pages(path):
    with tifffile.TiffWriter(path) as file:
        file.write(GREY8)
        file.write(GREY8[:5, :5])


def bad_nan(path):
    image = GREY8.astype(np.float32)
    image[3, 4] = np.nan
    tifffile.imwrite(path, image)


def bad_infinite(path):
    tifffile.imwrite(path, np.full((4, 4), 1e300))


def bad_complex(path):
    tifffile.imwrite(path, GREY8.astype(np.complex64))


def bad_missing(path):
    pass


BAD = {
    bad_text: "no format that emjax reads: it starts with b'not an image",
    bad_empty: "an empty file, expected a micrograph",
    bad_truncated: "cut off at byte",
    bad_truncated_png: "truncated; expected an undamaged micrograph",
    bad_garbage: "a TIFF without an image",
    bad_stack: r"3-D data \(5, 13, 17\), expected one 2-D image",
    bad_pages: "2 different images",
    bad_nan: "1 of 221 values are NaN or infinite",
    bad_infinite: "16 of 16 values are NaN or infinite",
    bad_complex: "complex64",
    bad_missing: "No such file",
}


@pytest.mark.parametrize("make", BAD)
def test_bad_files_give_one_line_that_names_them(tmp_path, make, capfd):
    path = tmp_path / "scan.tif"
    make(path)
    with pytest.raises(InputError, match=BAD[make]) as caught:
        micrographs.read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert "Traceback" not in "".join(capfd.readouterr())


def test_find_is_sorted_recursive_and_skips_the_hidden(tmp_path):
    for name in ("b.TIF", "a.png", "sub/c.jpeg", ".hidden.png", ".dir/d.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = micrographs.find(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in found] == ["a.png", "b.TIF", "sub/c.jpeg"]
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "nowhere", tmp_path / "a.png"):
        with pytest.raises(InputError, match=folder.name):
            micrographs.find(folder)


@pytest.mark.parametrize("image", [GREY8, GREY16, GREY8 / np.float32(7)])
@pytest.mark.parametrize("nm_per_pixel", [(np.nan, np.nan), (0.25, 0.5)])
def test_written_files_come_back(tmp_path, image, nm_per_pixel):
    path = tmp_path / "out" / "a.tif"
    micrographs.write(path, image, nm_per_pixel)
    back = micrographs.read(path).image
    assert back.dtype == image.dtype
    np.testing.assert_array_equal(back, image)
    assert [p.name for p in path.parent.iterdir()] == ["a.tif"]
    if np.isfinite(nm_per_pixel).all():
        with tifffile.TiffFile(path) as file:
            assert file.imagej_metadata["unit"] == "nm"
            x, y = (file.pages[0].tags[tag].value for tag in ("XResolution", "YResolution"))
        assert (y[1] / y[0], x[1] / x[0]) == pytest.approx(nm_per_pixel)


def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    micrographs.write(path, GREY8)

    def fail(file, image, **kwargs):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(tifffile, "imwrite", fail)
    with pytest.raises(OSError, match="disk full"):
        micrographs.write(path, GREY16)
    assert list(tmp_path.iterdir()) == [path]
    np.testing.assert_array_equal(micrographs.read(path).image, GREY8)


def test_what_a_folder_holds_beyond_files_is_said(tmp_path, monkeypatch, caplog):
    """Links to folders, folders that may not be read, names that no table can hold."""
    far = tmp_path / "far"
    for folder in (tmp_path / "in", far, tmp_path / "in/locked"):
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(GREY8).save(folder / "a.png")
    (tmp_path / "in/linked").symlink_to(far)
    odd = tmp_path / "in" / os.fsdecode(b"gr\xf6sse.png")
    Image.fromarray(GREY8).save(odd)

    def refuse(path, *rest, of=os.scandir):
        if os.fspath(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return of(path, *rest)

    monkeypatch.setattr(os, "scandir", refuse)
    assert micrographs.find(tmp_path / "in") == [tmp_path / "in/a.png"]
    for text in ("linked: a link to a folder", "locked: Permission denied; it is left out",
                 "sse.png: its name is not UTF-8 and is left out; rename it"):  # fmt: skip
        assert text in caplog.text
    with pytest.raises(InputError, match="its name is not UTF-8; rename it"):
        micrographs.read(odd)


def test_a_folder_that_may_not_be_entered_is_no_zarr(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(Path, "is_file", refuse)
    assert not micrographs.is_zarr(tmp_path)


def test_a_disk_that_takes_a_part_is_full(tmp_path):
    """NumPy's error of it has no number by which a command would know it from a fault of ours."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 15, limits[1]))
    try:
        with pytest.raises(OSError, match="only a part could be written") as raised:
            micrographs.write(tmp_path / "a.tif", np.zeros((512, 512), np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    code, line = cli.exit_code_and_line(raised.value)
    assert code == 3 and "a.tif" in line and line.endswith("make room and run it again")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_percentile_range_is_numpys_over_all_images(dtype):
    images = [RNG.normal(100, 20, (30, 40)).clip(0, 255).astype(dtype) for _ in range(3)]
    expected = np.percentile(np.stack(images), [0.1, 99.9], method="inverted_cdf")
    assert micrographs.intensity_range(iter(images), "percentile") == pytest.approx(tuple(expected))


@pytest.mark.parametrize("image", [GREY8, GREY16, GREY8 / np.float32(255)])
def test_sigma_and_fixed_ranges(image):
    values = image.astype(np.float64)
    expected = (values.mean() - 4 * values.std(), values.mean() + 4 * values.std())
    assert micrographs.intensity_range([image], "sigma") == pytest.approx(expected)
    top = {"uint8": 255, "uint16": 65535, "float32": 1}[str(image.dtype)]
    assert micrographs.intensity_range([image], "fixed") == (0, top)


@pytest.mark.parametrize("rule", ["percentile", "sigma"])
def test_a_constant_image_has_no_range(rule):
    for image in (np.full((8, 8), 7, np.uint8), np.full((8, 8), 7.5, np.float32)):
        with pytest.raises(micrographs.NoRange, match="all pixels are the same"):
            micrographs.intensity_range([image], rule)
    with pytest.raises(micrographs.NoRange, match="at least one image"):
        micrographs.intensity_range([], rule)


def test_ranges_go_to_minus_one_and_one_and_back():
    low, high = 40.0, 90.0
    ends = micrographs.from_range(np.array([low, 65, high], np.float32), (low, high))
    np.testing.assert_allclose(ends, [-1, 0, 1], atol=1e-6)
    beyond = micrographs.from_range(np.array([0, 255], np.uint8), (low, high))
    np.testing.assert_array_equal(beyond, [-1, 1])
    there = micrographs.from_range(GREY16, (0.0, 65535.0))
    assert there.dtype == np.float32
    np.testing.assert_allclose(micrographs.to_range(there, (0.0, 65535.0)), GREY16, atol=0.02)


def test_reading_micrographs_needs_no_training_library():
    heavy = ("jax", "grain", "tensorflow_datasets", "array_record", "orbax")
    code = f"import sys, emjax.micrographs; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
