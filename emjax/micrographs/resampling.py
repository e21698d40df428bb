"""Images at another pixel size: area averages where they shrink, linear where they grow."""

import math

import numpy as np
from jaxtyping import Float64, Real


def resampled_shape(shape: tuple[int, ...], factors: tuple[float, float]) -> tuple[int, int]:
    """Return (h, w) of an image of `shape` with `factors` (y, x) times as many pixels per length.

    What does not fill a last pixel is cut off, so that the pixel size is exact.
    """

    def resampled(side: int, factor: float) -> int:
        return max(1, math.floor(side * factor + 1e-6))  # of a pixel: 0.3 / 0.1 must be 3

    h, w = shape
    return resampled(h, factors[0]), resampled(w, factors[1])


def resample(
    image: Real[np.ndarray, "h w"], factors: tuple[float, float]
) -> Real[np.ndarray, "h2 w2"]:
    """Return `image` with `factors` (y, x) times as many pixels per length, in its number format.

    Each new pixel of a side that shrinks is the mean over its area; a side that grows is
    interpolated between the centres of the pixels. Integers are rounded. The upper left corner
    stays fixed. Memory: 8 bytes per pixel, before and after, of one side at a time.
    """
    h, w = resampled_shape(image.shape, factors)
    values = _rows(_rows(image, h, 1 / factors[0]).T, w, 1 / factors[1]).T
    if image.dtype.kind in "ui":
        values = np.rint(values)
    return np.ascontiguousarray(values.astype(image.dtype))


def _rows(
    image: Real[np.ndarray, "h w"], rows: int, step: float
) -> Float64[np.ndarray, "{rows} w"]:
    """Return `rows` new rows of `image`: row i covers its rows from i step to (i+1) step."""
    if step == 1:
        return image[:rows].astype(np.float64)
    last = len(image) - 1
    if step < 1:
        centres = np.clip((np.arange(rows) + 0.5) * step - 0.5, 0, last)
        above = np.minimum(centres.astype(int), max(last - 1, 0))
        part = (centres - above)[:, None]
        return image[above] * (1 - part) + image[np.minimum(above + 1, last)] * part
    sums = np.zeros((len(image) + 1, image.shape[1]))
    np.cumsum(image, axis=0, dtype=np.float64, out=sums[1:])
    edges = np.minimum(np.arange(rows + 1) * step, len(image))
    above = np.minimum(edges.astype(int), last)
    sums = sums[above] + (edges - above)[:, None] * image[above]
    return np.diff(sums, axis=0) / min(step, len(image))
