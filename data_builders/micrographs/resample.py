"""Images at another pixel size: area averages where they shrink, linear where they grow."""

import math

import numpy as np

from emjax.errors import InputError

LARGEST = 4.0  # times; beyond it a pixel would be drawn over more than 4 x 4 and add nothing


class LeftOutByRule(InputError):
    """A good image that cannot have the pixel size that is asked for."""


def resample_to(nm, micrograph, targets, limit):
    """`micrograph` and its {target: [h, w]} at `nm` per pixel, y and x alike.

    Raises: LeftOutByRule if its pixel size is not known, or it would grow more than LARGEST times
    or would take more than `limit` bytes as float64, before or after.
    """
    if not np.isfinite(micrograph.nm_per_pixel).all():
        raise LeftOutByRule("its nm per pixel are not known; the table can state them")
    factors = [known / nm for known in micrograph.nm_per_pixel]
    if max(factors) > LARGEST:
        raise LeftOutByRule(
            f"{max(micrograph.nm_per_pixel):g} nm per pixel, "
            f"to be magnified {max(factors):.3g} times; {LARGEST:g} at most were due"
        )
    h, w = resampled_shape(micrograph.image.shape, factors)
    if 8 * max(h * w, micrograph.image.size) > limit:
        before = "x".join(map(str, micrograph.image.shape))
        raise LeftOutByRule(f"resampled from {before} to {h}x{w}, too large; raise --memory_limit")
    image = resample(micrograph.image, factors)
    targets = {target: resample(pixels, factors) for target, pixels in targets.items()}
    return micrograph._replace(image=image, nm_per_pixel=(nm, nm)), targets


def resampled_shape(shape, factors):
    """(h, w) of an image of `shape` with `factors` (y, x) times as many pixels a length.

    What does not fill a last pixel is cut off, so that the pixel size is exact.
    """
    # 1e-6 of a pixel: 0.3 / 0.1 must be 3.
    sides = zip(shape, factors, strict=True)
    return tuple(max(1, math.floor(side * factor + 1e-6)) for side, factor in sides)


def resample(image, factors):
    """`image` [h, w] with `factors` (y, x) times as many pixels a length, in its number format.

    Each new pixel of a side that shrinks is the mean over its area; a side that grows is
    interpolated between the centres of the pixels. Integers are rounded. The upper left corner
    stays where it is. Memory: 8 bytes a pixel, before and after, of a side at a time.
    """
    h, w = resampled_shape(image.shape, factors)
    values = _rows(_rows(image, h, 1 / factors[0]).T, w, 1 / factors[1]).T
    if image.dtype.kind in "ui":
        values = np.rint(values)
    return np.ascontiguousarray(values.astype(image.dtype))


def _rows(image, rows, step):
    """float64 [rows, w] of `image` [h, w]: new row i covers the rows from i step to (i+1) step."""
    if step == 1:
        return image[:rows].astype(np.float64)
    last = len(image) - 1
    if step < 1:
        at = np.clip((np.arange(rows) + 0.5) * step - 0.5, 0, last)
        above = np.minimum(at.astype(int), max(last - 1, 0))
        part = (at - above)[:, None]
        return image[above] * (1 - part) + image[np.minimum(above + 1, last)] * part
    sums = np.zeros((len(image) + 1, image.shape[1]))
    np.cumsum(image, axis=0, dtype=np.float64, out=sums[1:])
    edges = np.minimum(np.arange(rows + 1) * step, len(image))
    above = np.minimum(edges.astype(int), last)
    sums = sums[above] + (edges - above)[:, None] * image[above]
    return np.diff(sums, axis=0) / step
