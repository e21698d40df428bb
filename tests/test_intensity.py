"""Hot and dead pixels do not decide the intensity range; small objects do."""

import numpy as np
import pytest

from emjax import micrographs
from emjax.micrographs.intensity import defective

RNG = np.random.default_rng(6)


def counts(dtype=np.uint16, h=200, w=240):
    """Return detector counts around 2000, the deviation 100."""
    return RNG.normal(2000, 100, (h, w)).round().astype(dtype)


def spoilt(image, share, value):
    """Return (`image` with a share of its pixels at `value`, where)."""
    where = RNG.random(image.shape) < share
    return np.where(where, value, image).astype(image.dtype), where


def range_of(image, rule="percentile", defects=None):
    return micrographs.intensity_range([image], rule, defects=defects)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize("share", [0.0015, 0.003, 0.008])
@pytest.mark.parametrize("value", [65535, 0])
@pytest.mark.parametrize("rule", ["percentile", "sigma"])
def test_hot_and_dead_pixels_do_not_count(dtype, share, value, rule):
    image = counts(dtype)
    bad, where = spoilt(image, share, value)
    shares = []
    low, high = range_of(bad, rule, shares.append)
    expected = micrographs.intensity_range([image], rule)
    assert (low, high) == pytest.approx(expected, abs=60)
    assert shares == [pytest.approx(where.mean(), rel=0.05)]


def test_the_range_of_fractions_is_two_of_their_values():
    """The smallest value that so many do not exceed, of one image and of a stack."""
    stack = RNG.normal(5, 2, (3, 67, 41)).astype(np.float32)
    for images in (stack[:1], stack):
        expected = np.quantile(images, [0.001, 0.999], method="inverted_cdf")
        assert micrographs.intensity_range(images, "percentile") == tuple(map(float, expected))


@pytest.mark.parametrize("rule", ["percentile", "sigma"])
def test_values_that_float32_cannot_tell_apart_have_no_range(rule):
    image = np.zeros((20, 20), np.float32)
    image[::2] = 1e-44
    with pytest.raises(micrographs.NoRange, match="all pixels are the same"):
        range_of(image, rule)


def test_that_they_do_not_count_is_noted(caplog):
    bad, where = spoilt(counts(), 0.003, 65535)
    range_of(bad)
    assert f"without hot or dead pixels, {where.mean():.2%}" in caplog.text
    caplog.clear()
    range_of(counts())
    assert not caplog.text


def test_lines_of_a_detector_and_pairs_of_pixels_do_not_count():
    image = counts()
    expected = range_of(image)
    image[:, 17] = 65535
    assert range_of(image, defects=[].append) == pytest.approx(expected, abs=60)
    image = counts()
    for y, x in RNG.integers(0, 199, (60, 2)):
        image[y : y + 2, x : x + 2] = 65535  # an X-ray in four pixels
    assert range_of(image, defects=[].append) == pytest.approx(expected, abs=60)


@pytest.mark.parametrize("radius", [2, 4, 9])
def test_particles_in_an_empty_field_count(radius):
    image = counts()
    y, x = np.mgrid[:200, :240]
    image[(y - 80) ** 2 + (x - 90) ** 2 <= radius**2] = 30000
    image[(y - 199) ** 2 + (x - 30) ** 2 <= (3 * radius) ** 2] = 30000  # at the border
    assert defective(image) is None
    assert range_of(image)[1] == 30000


@pytest.mark.parametrize(
    "image",
    [
        counts(),
        RNG.exponential(100, (200, 200)).astype(np.float32),
        RNG.lognormal(0, 1, (200, 200)).astype(np.float32),
        RNG.poisson(0.05, (200, 200)).astype(np.uint8),
        RNG.poisson(2, (200, 200)).astype(np.uint16),
        np.kron(RNG.integers(0, 2, (10, 10)), np.ones((20, 20))).astype(np.uint8),
    ],
    ids=["normal", "exponential", "lognormal", "events", "counts", "two values"],
)
def test_other_images_keep_all_their_pixels(image):
    assert defective(image) is None


def test_more_than_a_hundredth_is_no_defect():
    bad, _ = spoilt(counts(), 0.015, 65535)
    assert defective(bad) is None and range_of(bad)[1] == 65535
