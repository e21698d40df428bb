"""A mask gives what was drawn, whatever program saved it, or a line that names its values."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy import ndimage

from data_builders.micrographs.masks import Tally, interpret
from emjax import micrographs, pictures
from emjax.errors import InputError
from emjax.micrographs.masks import has_outlines

RNG = np.random.default_rng(3)
GREY = "has grey edges, which are cut at half"


def drawn(h=96, w=112, particles=6):
    """Return a mask [h, w] of 0 and 1: discs of 4 to 9 pixels radius."""
    y, x = np.mgrid[:h, :w]
    mask = np.zeros((h, w), bool)
    for _ in range(particles):
        cy, cx, r = RNG.uniform(10, h - 10), RNG.uniform(10, w - 10), RNG.uniform(4, 9)
        mask |= (y - cy) ** 2 + (x - cx) ** 2 < r**2
    return mask.astype(np.uint8)


def saved(pixels, kind, **options):
    """Return `pixels` as a program reads them back from a file of `kind`."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return np.asarray(Image.open(file))


def labels(mask, dtype=np.uint16, step=1):
    return (ndimage.label(mask)[0] * step).astype(dtype)


def shell(mask):
    """Return classes 0, 1 and 2: background, a shell of one pixel, the core."""
    return mask + ndimage.binary_erosion(mask).astype(np.uint8)


AS_DRAWN = {
    "0 and 1": lambda mask: mask,
    "0 and 255": lambda mask: mask * 255,
    "0 and 65535": lambda mask: mask * np.uint16(65535),
    "0.0 and 1.0": lambda mask: mask.astype(np.float32),
    "labels": labels,
    "labels of 8 bits, far apart": lambda mask: labels(mask, np.uint8, 40),
    "labels as float": lambda mask: labels(mask, np.float32),
    "two classes": shell,
    "two classes at 128 and 255": lambda mask: (shell(mask) * 127.5).astype(np.uint8),
    "a class 1 beside 255": lambda mask: np.where(shell(mask) == 1, 255, shell(mask) // 2),
    "red on black": lambda mask: np.stack([mask * 255, mask * 0, mask * 0], -1),
    "white, opaque": lambda mask: np.stack([mask * 255] * 3 + [mask * 0 + 255], -1),
    "grey and alpha, opaque": lambda mask: np.stack([mask * 255, mask * 0 + 255], -1),
    "white, drawn in alpha": lambda mask: np.stack([mask * 0 + 255] * 3 + [mask * 255], -1),
    "black, drawn in alpha": lambda mask: np.stack([mask * 0] * 3 + [mask * 255], -1),
}


@pytest.mark.parametrize("code", AS_DRAWN)
def test_every_coding_gives_what_was_drawn(code):
    mask = drawn()
    found, _ = interpret("m.png", AS_DRAWN[code](mask), None)
    np.testing.assert_array_equal(found, mask)
    assert found.dtype == np.uint8


@pytest.mark.parametrize("side", [1, 2, 3])
def test_labels_of_small_particles_stay(side):
    values = np.zeros((90, 90), np.uint8)
    for number, (y, x) in enumerate(np.ndindex(14, 14), start=1):
        values[6 * y : 6 * y + side, 6 * x : 6 * x + side] = number
    np.testing.assert_array_equal(interpret("m.tif", values, None)[0], values > 0)


@pytest.mark.parametrize("quality", [50, 75, 95])
@pytest.mark.parametrize("name", ["m.jpg", "converted.png"])
def test_grey_edges_of_jpeg_are_cut(name, quality):
    mask = drawn()
    for pixels in (mask * 255, np.stack([mask * 255] * 3, -1)):
        found, what = interpret(name, saved(pixels, "JPEG", quality=quality), None)
        assert (found != mask).mean() < 2e-3
        assert what.note == GREY
        colour = (255,) * (3 if pixels.ndim == 3 else 1)
        asked, _ = interpret(name, saved(pixels, "JPEG", quality=quality), colour)
        assert (asked != mask).mean() < 2e-3
    found, what = interpret("m.jpg", saved(mask * 0, "JPEG"), None)
    assert not found.any() and what.share == 0


@pytest.mark.parametrize("highest", [60, 100, 127, 128, 200, 250])
def test_grey_edges_of_masks_are_cut_at_half(highest):
    mask = drawn()
    smooth = ndimage.zoom(mask.astype(np.float32), 3, order=1)
    pixels = np.rint(smooth * highest).astype(np.uint8)
    found, what = interpret("m.png", pixels, None)
    assert what.note == GREY
    assert ((found > 0) != (pixels >= highest / 2)).mean() == 0


@pytest.mark.parametrize("factor", [0.5, 1.5, 3])
@pytest.mark.parametrize("scale", [255, 1])
def test_grey_edges_of_resizing_are_cut(factor, scale):
    mask = drawn()
    grown = ndimage.zoom(mask.astype(np.float32), factor, order=1)
    pixels = (grown * 255).astype(np.uint8) if scale == 255 else grown
    found, what = interpret("m.png", pixels, None)
    np.testing.assert_array_equal(found, pixels >= scale / 2 - 1e-6)
    assert what.note and set(what.values) == {(0,), (scale,)}


def test_a_picture_is_no_mask_unless_its_foreground_is_named():
    picture = RNG.integers(0, 200, (64, 64)).astype(np.uint8)
    with pytest.raises(InputError, match="m.png: expected a mask, got a picture: 1.. grey values"):
        interpret("m.png", picture, None)
    np.testing.assert_array_equal(interpret("m.png", picture, (7,))[0], picture == 7)


def test_a_picture_in_jpeg_is_no_mask_either():
    picture = RNG.normal(120, 30, (64, 64)).clip(0, 255).astype(np.uint8)
    with pytest.raises(InputError, match="expected a mask, got a picture"):
        interpret("m.jpg", saved(picture, "JPEG"), None)


def test_coloured_masks_with_greys_are_masks():
    mask = drawn()
    smooth = np.uint8(255 * ndimage.gaussian_filter(mask.astype(float), 1))
    bar = np.stack([smooth] * 3, -1)
    bar[88:94, 60:100] = 255, 0, 0  # a scale bar on soft edges
    numbers = np.stack([labels(mask, np.uint8, 9)] * 3, -1)
    numbers[:9, :9] = 0, 200, 0  # one label in a colour
    for picture in (bar, numbers):
        assert not has_outlines(picture)
        assert interpret("m.png", picture, None)[1].note in ("", GREY)


@pytest.mark.parametrize("levels", [6, 200])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_overlay_is_no_mask(levels, dtype):
    image = ndimage.gaussian_filter(RNG.integers(0, levels, (96, 112)) * 10.0, 1)
    picture = pictures.overlay(image.round(), drawn()).astype(dtype)
    with pytest.raises(InputError, match="outlines on it"):
        interpret("m.overlay.png", picture, None)
    colour = pictures.OUTLINES[0]
    np.testing.assert_array_equal(
        interpret("m.overlay.png", picture, colour)[0], (picture == colour).all(-1)
    )


def test_shares_are_those_of_the_pixels():
    mask = np.zeros((4, 5), np.uint8)
    mask[0] = 2
    _, found = interpret("m.png", mask, None)
    assert found.values == {(0,): 15, (2,): 5}
    assert found.share == 0.25 and found.border == 5 / 14
    colours = np.stack([mask, mask * 3, mask * 0], -1)
    assert interpret("m.png", colours, None)[1].values == {(0, 0, 0): 15, (2, 6, 0): 5}


def tally(masks, foreground=None):
    total = Tally(foreground)
    for name, mask in masks.items():
        total.add(name, [interpret(name, mask, foreground)[1]])
    return total


def test_masks_without_a_background_are_asked_about():
    total = tally({name: drawn() + 1 for name in "ab"})
    with pytest.raises(InputError, match=r"1 \(9?8?\d.*2 \(.*such as --foreground=2"):
        total.check()
    with pytest.raises(InputError, match="no mask has a pixel of foreground=nonzero"):
        tally({"a": drawn() * 0}).check()
    with pytest.raises(InputError, match=r"foreground=7; the masks hold the values 0 \("):
        tally({"a": drawn()}, (7,)).check()
    tally({name: drawn() + 1 for name in "ab"}, (2,)).check()


def test_a_split_of_one_kind_of_pixels_is_refused_or_named():
    full, empty = np.ones((8, 8), np.uint8), np.zeros((8, 8), np.uint8)
    with pytest.raises(InputError, match="masks of train have nothing but foreground"):
        tally({"a": full, "b": drawn()}).describe({"a": "train", "b": "test"})
    notes = tally({"a": drawn(), "b": full}).describe({"a": "train", "b": "test"})
    assert "test has no background: its scores say nothing about particles" in notes
    with pytest.raises(InputError, match="masks of train have no foreground"):
        tally({"a": empty, "b": drawn()}).describe({"a": "train", "b": "test"})
    notes = tally({"a": drawn(), "b": empty}).describe({"a": "train", "b": "val"})
    assert "val has no foreground: its scores say nothing about particles" in notes
    assert "no foreground in 1 masks: b" in notes


def test_what_is_strange_is_named():
    masks = {f"m{i:02d}": drawn() for i in range(12)}
    masks["odd"] = np.ones((96, 112), np.uint8)
    notes = tally(masks).describe(dict.fromkeys(masks, "train"))
    assert notes[0].startswith("foreground of the masks (every value but 0): train ")
    assert "nothing but foreground in 1 masks: odd" in notes
    assert notes[-1].startswith("least usual foreground: odd 100 %, ")
    assert len(notes[-1].split(", ")) == 10
    inverted = {name: 1 - mask for name, mask in masks.items()}
    notes = tally(inverted).describe(dict.fromkeys(masks, "train"))
    assert any("if the masks are inverted, the foreground is --foreground=0" in n for n in notes)
    several = tally({"a": shell(drawn())}).describe({"a": "train"})
    assert any("all but 0 are foreground, --foreground takes one" in n for n in several)


def stored(path):
    """Return the foreground of the mask in a file."""
    (plane,) = micrographs.planes(path, as_mask=True)
    return interpret(path, plane.image, None)[0]


def test_files_are_read_by_stored_values(tmp_path, caplog):
    """As Fiji's inverting LUT, a bool array, a signed image and drawings in alpha are stored."""
    mask, tif, png = drawn(), tmp_path / "m.tif", tmp_path / "m.png"
    tifffile.imwrite(tif, mask * 255, photometric="miniswhite")
    np.testing.assert_array_equal(stored(tif), mask)
    assert not caplog.records
    grey = micrographs.read(tif).image  # the rule of micrographs is another
    np.testing.assert_array_equal(grey, 255 * (1 - mask))
    assert "its zero is white (MINISWHITE)" in caplog.text
    for photometric in ("minisblack", "miniswhite"):  # of 1 bit both are drawn alike
        written = mask.astype(bool) ^ (photometric == "miniswhite")
        tifffile.imwrite(tif, written, photometric=photometric, software="")
        with Image.open(tif) as image:  # the oracle
            np.testing.assert_array_equal(np.asarray(image), mask.astype(bool))
        np.testing.assert_array_equal(stored(tif), mask)
    tifffile.imwrite(tif, mask.astype(bool))  # MINISWHITE, without turning it over
    np.testing.assert_array_equal(stored(tif), mask)
    signed = "ImageJ=1.54f\ncf=0\nc0=-32768.0\nc1=1.0\n"
    tifffile.imwrite(tif, mask + np.uint16(32768), description=signed, metadata=None)
    np.testing.assert_array_equal(stored(tif), mask)
    drawing = np.stack([mask * 0 + 255] * 3 + [mask * 255], -1)
    tifffile.imwrite(tif, drawing, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(stored(tif), mask)
    for pixels in (drawing, drawing[..., 2:]):
        Image.fromarray(pixels).save(png)
        np.testing.assert_array_equal(stored(png), mask)
    image = Image.fromarray(labels(mask, np.uint8))
    image.putpalette([0, 0, 0, *RNG.integers(60, 255, 765).tolist()])
    image.save(png)
    np.testing.assert_array_equal(stored(png), mask)


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_png_of_few_bits_keeps_the_labels_that_are_stored(tmp_path, bits):
    labels = np.arange(24 * 20, dtype=np.uint8).reshape(24, 20) % 2**bits
    of_pixels = np.unpackbits(labels[..., None], axis=-1)[..., -bits:]
    rows = np.packbits(of_pixels.reshape(24, -1), axis=-1)
    content = b"".join(b"\0" + row.tobytes() for row in rows)
    chunks = {b"IHDR": struct.pack(">2I5B", 20, 24, bits, 0, 0, 0, 0),
              b"IDAT": zlib.compress(content), b"IEND": b""}  # fmt: skip
    (tmp_path / "m.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks.items()
        )
    )
    (found,) = micrographs.planes(tmp_path / "m.png", as_mask=True)
    np.testing.assert_array_equal(found.image, labels)
    white = 2**bits - 1
    grey = micrographs.read(tmp_path / "m.png").image
    np.testing.assert_array_equal(grey, labels * (255 // white))
