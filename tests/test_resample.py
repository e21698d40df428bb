"""Resampling: areas where images shrink, lines where they grow, the pixel size exact."""

import numpy as np
import pytest

from emjax.micrographs.resampling import resample, resampled_shape

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("factors", "atol"),
    [
        ((1, 1), 0),
        ((0.5, 0.25), 1e-4),
        ((2.5, 3), 1e-4),
        # A pixel is even over its area: where new edges cut it, an eighth of its step is missed.
        ((0.37, 0.81), 5 / 8),
        ((0.4, 1.7), 3 / 8),
    ],
)
def test_a_plane_stays_the_plane_it_is(factors, atol):
    y, x = np.mgrid[:60, :80] + 0.5  # centres of the pixels
    image = (3 * y - 2 * x).astype(np.float32)
    new = resample(image, factors)
    assert new.dtype == np.float32 and new.shape == resampled_shape((60, 80), factors)
    y, x = np.mgrid[: new.shape[0], : new.shape[1]] + 0.5
    expected = 3 * y / factors[0] - 2 * x / factors[1]
    inner = slice(3, -3)  # linear interpolation knows nothing beyond the outermost centres
    np.testing.assert_allclose(new[inner, inner], expected[inner, inner], atol=atol)


def test_shrinking_takes_the_mean_of_areas():
    image = RNG.random((64, 48)).astype(np.float32)
    expected = image.reshape(16, 4, 12, 4).mean((1, 3))
    np.testing.assert_allclose(resample(image, (0.25, 0.25)), expected, rtol=1e-6)
    third = resample(image[:3, :1], (2 / 3, 1))[:, 0]  # 1.5 rows each
    a, b, c = image[:3, 0]
    np.testing.assert_allclose(third, [(a + b / 2) / 1.5, (b / 2 + c) / 1.5], rtol=1e-6)


def test_growing_is_linear_between_centres():
    new = resample(np.float32([[0, 1]]), (1, 4))
    np.testing.assert_allclose(new, [[0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1]])
    assert resample(np.uint8([[7]]), (2, 3)).tolist() == [[7] * 3] * 2


def test_a_side_of_less_than_a_new_pixel_keeps_its_mean():
    np.testing.assert_allclose(resample(np.ones((1, 24)), (0.5, 0.5)), np.ones((1, 12)))


def test_integers_are_rounded_and_masks_go_by_majority():
    image = RNG.integers(0, 1 << 16, (50, 50)).astype(np.uint16)
    new = resample(image, (0.5, 0.5))
    mean = image.reshape(25, 2, 25, 2).mean((1, 3))
    assert new.dtype == np.uint16 and np.abs(new - mean).max() <= 0.5
    mask = np.uint8([[1, 1, 0, 0], [1, 0, 0, 1]])
    assert resample(mask, (0.5, 0.5)).tolist() == [[1, 0]]


@pytest.mark.parametrize(
    ("side", "factor", "expected"),
    [(3, 0.3 / 0.1, 9), (100, 0.333, 33), (10, 0.01, 1), (7, 0.1 * 3, 2)],
)
def test_sides_are_whole_pixels(side, factor, expected):
    assert resampled_shape((side, side), (factor, factor)) == (expected, expected)
