"""Banners, borders and scale bars are found by their edges; images without them stay whole."""

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from emjax.micrographs import banner

RNG = np.random.default_rng(8)


def view(h=240, w=320, dtype=np.uint8):
    """Return a field of blobs with noise."""
    smooth = ndimage.gaussian_filter(RNG.normal(size=(h, w)), 6)
    image = 120 + 40 * smooth / smooth.std() + RNG.normal(0, 8, (h, w))
    return (np.clip(image, 1, 254) * (1 if dtype == np.uint8 else 100)).astype(dtype)


def drawn(image, box, fill, text="", at=(0, 0)):
    """Return `image` with a filled box (left, top, right, bottom) and a text."""
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    pen.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=fill)
    pen.text(at, text, fill=255 - fill)
    return np.asarray(picture).copy()


def outside(image):
    return banner.described(image.shape, banner.picture(image))


@pytest.mark.parametrize("fill", [0, 255])
def test_a_banner_with_text_is_found_at_any_edge(fill):
    image = drawn(view(), (0, 216, 320, 240), fill, "15.0 kV  x50,000  WD 8.2 mm", (10, 222))
    assert outside(image) == "rows 216 to 239"
    assert outside(image[::-1]) == "rows 0 to 23"
    assert outside(image.T) == "columns 216 to 239"
    assert outside(image.T[:, ::-1]) == "columns 0 to 23"
    np.testing.assert_array_equal(image[banner.picture(image)], image[:216])


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_a_banner_of_other_number_formats(dtype):
    image = view(dtype=np.uint16).astype(dtype)
    image[-30:] = 65535
    assert outside(image) == "rows 210 to 239"


@pytest.mark.parametrize("fill", [0, 255])
def test_a_scale_bar_is_left_out_with_its_length(fill):
    image = drawn(np.clip(view(), 60, 190), (20, 220, 90, 226), fill)
    assert outside(image) == "rows 220 to 239"
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    pen.fontmode = "1"  # without grey edges
    pen.text((40, 206), "50 nm", fill=fill)
    top = np.flatnonzero((np.asarray(picture)[200:220, 20:90] == fill).any(1))[0] + 200
    assert outside(np.asarray(picture)) == f"rows {top} to 239"
    assert outside(np.asarray(picture)[::-1]).startswith("rows 0 to ")


def particle():
    y, x = np.mgrid[:240, :320]
    image = np.where((y - 210) ** 2 + (x - 100) ** 2 < 900, 255, 0).astype(np.uint8)
    return image


WITHOUT = {
    "a field": view,
    "a particle on black": particle,
    "black": lambda: np.zeros((240, 320), np.uint8),
    "saturated blobs": lambda: np.where(view() > 190, 255, view()),
    "a bright half": lambda: np.vstack([view(120), view(120) // 2 + 120]),
    "a small image": lambda: view(20, 24),
    "a long particle": lambda: np.where(
        np.abs(np.subtract.outer(np.arange(240), np.arange(320) * 0.1 + 190)) < 4, 255, view()
    ),
}


@pytest.mark.parametrize("kind", WITHOUT)
def test_images_without_them_stay_whole(kind):
    assert outside(WITHOUT[kind]()) == ""
