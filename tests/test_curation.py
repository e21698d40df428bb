"""Patches without information are dropped for the right reason, others are not; repeats go."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from data_builders.micrographs import curation

RNG = np.random.default_rng(5)


def view(h=128, w=128, contrast=40, noise=8):
    """Return uint8 [h, w] of blobs in noise."""
    blobs = ndimage.gaussian_filter(RNG.normal(size=(h, w)), 6)
    image = 128 + contrast * blobs / max(blobs.std(), 1e-6) + RNG.normal(0, noise, (h, w))
    return np.clip(image, 1, 254).astype(np.uint8)


def with_banner(image, rows=24, quality=None):
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, image.shape[0] - rows, image.shape[1], image.shape[0]), fill=0)
    pen.text((4, image.shape[0] - rows + 6), "5 kV  500 nm", fill=255)
    if quality:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        picture = Image.open(file)
    return np.asarray(picture)


def with_framed_banner(image):
    image = with_banner(image).copy()
    image[-24:] = 255 - image[-24:]
    image[-2:] = image[-25:-23] = 0
    return image


def with_frame(image):
    image = image.copy()
    image[:, :20] = 0
    return image


def particle_on_black():
    y, x = np.mgrid[:128, :128] - 64
    inside = y**2 + x**2 < 40**2
    return np.where(inside, view(), 0).astype(np.uint8)


def bar_on_black():
    y, x = np.mgrid[:128, :128]
    return np.where(np.abs(x + y // 4 - 80) < 25, view(), 0).astype(np.uint8)


def facet():
    """A crystal's straight edge on a quiet, but real, background."""
    image = view()
    image[90:] = 60 + RNG.normal(0, 6, (38, 128))
    return image


CASES = {
    "blobs": (view(), ""),
    "faint blobs": (view(contrast=10, noise=2), ""),
    "noise as strong as this": (view(contrast=0, noise=8), ""),
    "a particle on black": (particle_on_black(), ""),
    "a bar on black": (bar_on_black(), ""),
    "a straight edge": (facet(), ""),
    "few counts": (RNG.poisson(20 * view() / 255).astype(np.uint8) * 8, ""),
    "a thin line of black": (np.concatenate([np.zeros((3, 128), np.uint8), view(125)]), ""),
    "weak noise": (view(contrast=0, noise=2), "flat"),
    "two values": (np.where(view() > 128, 200, 50).astype(np.uint8), "flat"),
    "mostly black": (np.where(view() > 170, view(), 0).astype(np.uint8), "saturated"),
    "a banner": (with_banner(view()), "strip"),
    "a banner above": (with_banner(view())[::-1], "strip"),
    "a banner as JPEG": (with_banner(view(), quality=90), "strip"),
    "a white banner in a black frame": (with_framed_banner(view()), "strip"),
    "a frame": (with_frame(view()), "strip"),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("scale", [1, 200 / 3])
def test_reasons(name, scale):
    image, expected = CASES[name]
    image = image if scale == 1 else image.astype(np.float32) * np.float32(scale)
    assert curation.why_uninformative(image, (0, 255 * scale)) == expected


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (9, 8), (130, 33)])
def test_any_size(shape):
    assert curation.why_uninformative(view(*shape), (0, 255)) in ("", *curation.REASONS)


def record(image):
    return {"image": image[..., None], "intensity_range": np.float32((0, 255))}


def test_the_first_of_those_alike_stays_and_all_is_counted():
    images = [view() for _ in range(30)]
    repeat = np.clip(images[4] + RNG.normal(0, 2, (128, 128)), 0, 255).astype(np.uint8)
    images += [repeat, CASES["a frame"][0], CASES["weak noise"][0], images[5] // 2]
    curated = curation.curate(map(record, images))
    assert list(curated.keep) == [True] * 30 + [False] * 4
    assert curated.dropped == {"flat": 1, "saturated": 0, "strip": 1, "alike": 2}
    sizes = {name: Image.open(io.BytesIO(png)).size for name, png in curated.sheets.items()}
    assert sizes == {"kept.png": (1140, 342), "dropped.png": (456, 114)}
    again = curation.curate(map(record, images))
    assert again == curated


def test_sheets_show_a_hundred_at_most_and_of_every_reason():
    flat = np.full((8, 8), 9, np.uint8)
    images = [flat] * 300 + [CASES["a frame"][0]] * 3 + [view() for _ in range(150)]
    curated = curation.curate(map(record, images))
    sheets = {name: Image.open(io.BytesIO(png)) for name, png in curated.sheets.items()}
    assert {sheet.size for sheet in sheets.values()} == {(1140, 1140)}
    last = np.asarray(sheets["dropped.png"])[9 * 114 :, 7 * 114 :]
    assert (last[20:112, :15] == 0).all() and last[20:112, 20:112].mean() > 90  # the frames
