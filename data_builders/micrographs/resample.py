"""Images at another pixel size: area averages where they shrink, linear where they grow."""

import math

import numpy as np
from jaxtyping import Float64, Real

from emjax.errors import InputError
from emjax.micrographs import Micrograph

MAX_MAGNIFICATION = 4.0  # times; beyond it a pixel would cover more than 4 x 4 and add nothing


class SkippedByRule(InputError):
    """A good image that cannot have the requested pixel size."""


def resample_to(
    nm: float, micrograph: Micrograph, targets: dict[str, Real[np.ndarray, "h w"]], limit: int
) -> tuple[Micrograph, dict[str, Real[np.ndarray, "h2 w2"]]]:
    """Return `micrograph` and its `targets` at `nm` per pixel, y and x alike.

    Raises: SkippedByRule if its pixel size is not known, or it would grow more than
        MAX_MAGNIFICATION times or would take more than `limit` bytes as float64, before or after.
    """
    if not np.isfinite(micrograph.nm_per_pixel).all():
        raise SkippedByRule("its nm per pixel are not known; the table can state them")
    y, x = (known / nm for known in micrograph.nm_per_pixel)
    if max(y, x) > MAX_MAGNIFICATION:
        raise SkippedByRule(
            f"{max(micrograph.nm_per_pixel):g} nm per pixel, "
            f"to be magnified {max(y, x):.3g} times, expected at most {MAX_MAGNIFICATION:g}"
        )
    h, w = resampled_shape(micrograph.image.shape, (y, x))
    if 8 * max(h * w, micrograph.image.size) > limit:
        before = "x".join(map(str, micrograph.image.shape))
        raise SkippedByRule(f"resampled from {before} to {h}x{w}, too large; raise --memory_limit")
    image = resample(micrograph.image, (y, x))
    targets = {
        target: (resample_classes if target == "mask" else resample)(pixels, (y, x))
        for target, pixels in targets.items()
    }
    return micrograph._replace(image=image, nm_per_pixel=(nm, nm)), targets


def resample_classes(
    mask: Real[np.ndarray, "h w"], factors: tuple[float, float]
) -> Real[np.ndarray, "h2 w2"]:
    """Return what `resample` does, of class numbers: the class with most of each new pixel."""
    numbers = np.unique(mask)
    if numbers[-1] <= 1:
        return resample(mask, factors)
    shares = [resample((mask == number).astype(np.float32), factors) for number in numbers]
    return numbers[np.argmax(shares, axis=0)]


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
    return np.diff(sums, axis=0) / step
