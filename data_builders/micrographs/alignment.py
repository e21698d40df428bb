"""How a mask lies on its image: shifted, mirrored, turned or right.

It is judged by the directions of the edges of both, at all shifts at a time: A. J. Fitch et al.,
"Orientation correlation" (BMVC 2002), with doubled angles, so that particles count alike whether
they are dark or bright. A lattice fits itself after each of its periods, so its other peaks are as
high as the best one, and nothing is known of it then.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Complex64, Float32

# Pixels of an image reduced to SIDE at most.
SIDE = 512
LEAST_SIDE = 32  # smaller ones are not compared
SIGMA = 2.0  # of the gradients
SLACK = 2  # a mask lies right if it fits within so many pixels
APART = 12  # peaks nearer than this to the best one belong to it
RIM = 5  # pixels on each side of an outline

VIEWS = (
    "",
    "mirrored left to right",
    "mirrored top to bottom",
    "turned by 180 degrees",
    "mirrored at its diagonal, rows and columns are swapped",
    "turned by 90 degrees counterclockwise",
    "turned by 90 degrees clockwise",
    "mirrored at its other diagonal",
)


class Fit(NamedTuple):
    """How a mask lies on its image: the best view and shift, and how much better they are."""

    view: int  # of VIEWS: how the mask is turned
    shift: tuple[int, int]  # by how many rows and columns the mask lies too low and too far right
    height: float  # of the best peak, in standard deviations of the correlation
    as_is: float  # fit of the mask as it lies, relative to the best
    second: float  # the next best peak, relative to the best
    factor: int  # by which the image was reduced: the shift is as exact

    def misfits(self, limits: tuple[float, float, float]) -> bool:
        """Return whether the mask fits elsewhere and not as it lies."""
        height, as_is, second = limits
        return self.height >= height and self.as_is <= as_is and self.second <= second


def fit_of(
    image: Float32[np.ndarray, "h w"],
    mask: Float32[np.ndarray, "h w"],
    factor: int,
    rotations: bool,
) -> Fit:
    """Return how `mask` lies on `image`, both reduced by `factor`."""
    from scipy import fft

    shape = [fft.next_fast_len(side) for side in image.shape]
    spectrum: Any = fft.fft2(_orientations(image, None), shape)
    outlines = _orientations(mask, 0.4 / SIGMA)  # the slope of an edge of height 1
    views = [k for k in range(8 if rotations else 1) if k < 4 or image.shape[0] == image.shape[1]]
    maps: list[np.ndarray] = []
    for k in views:
        other = -outlines.conj() if k & 4 else outlines  # doubled angles, turned with the mask
        other = other.conj() if k & 3 in (1, 2) else other
        transform: Any = fft.fft2(turned_to(other, k), shape)
        product: Any = fft.ifft2(spectrum * transform.conj())
        maps.append(product.real)
    noise = float(np.std(maps[0])) + 1e-12
    near = np.ix_(*[np.arange(-SLACK, SLACK + 1)] * 2)
    as_is = float(maps[0][near].max())
    y, x = np.unravel_index(int(maps[0].argmax()), maps[0].shape)
    best, view, shift = float(maps[0][y, x]), 0, _offset((int(y), int(x)), maps[0].shape)
    turned = [float(each[near].max()) for each in maps]
    if max(turned) > best:
        view = int(np.argmax(turned))
        best, shift = turned[view], (0, 0)
    # A turn must be better than every shift of the mask as it is.
    rivals = [_beyond(maps[view], shift)] + ([float(maps[0].max())] if view else [])
    moved = (-shift[0] * factor, -shift[1] * factor)
    best = max(best, 1e-12)
    return Fit(views[view], moved, best / noise, as_is / best, max(rivals) / best, factor)


def _orientations(
    image: Float32[np.ndarray, "h w"], full: float | None
) -> Complex64[np.ndarray, "h w"]:
    """Return the doubled angle of each gradient as a complex number, 0 to 1 long.

    Args:
        full: the slope from which it is 1 long; None to compare it with the image's median.
    """
    from scipy import ndimage

    slopes: Any = ndimage.gaussian_filter
    parts = [slopes(image, SIGMA, order=order, mode="nearest") for order in ((0, 1), (1, 0))]
    slope = np.hypot(*parts)
    weight = np.minimum(slope / full, 1) if full else slope / (slope + 2 * np.median(slope) + 1e-12)
    return (weight * ((parts[0] + 1j * parts[1]) / (slope + 1e-12)) ** 2).astype(np.complex64)


def _offset(at: tuple[int, int], shape: Sequence[int]) -> tuple[int, int]:
    """Return an index of a circular correlation as a shift to either side."""
    y, x = (i - n if i > n // 2 else i for i, n in zip(at, shape, strict=True))
    return y, x


def _beyond(map_: np.ndarray, shift: tuple[int, int]) -> float:
    """Return the highest value that is more than APART away from `shift`."""
    rest = np.roll(map_, [APART - shift[0], APART - shift[1]], axis=(0, 1))
    rest[: 2 * APART + 1, : 2 * APART + 1] = 0
    return float(rest.max())


def polarity_of(image: Float32[np.ndarray, "h w"], labelled: Bool[np.ndarray, "h w"]) -> float:
    """Return the correlation of mask and image along the outlines: above 0 if brighter inside."""
    from scipy import ndimage

    outer: Any = ndimage.binary_dilation(labelled, iterations=RIM)
    inner: Any = ndimage.binary_erosion(labelled, iterations=RIM, border_value=1)
    rim = outer & ~inner
    inside, values = labelled[rim], image[rim]
    if inside.all() or not inside.any() or values.min() == values.max():
        return 0.0
    return float(np.corrcoef(inside, values)[0, 1])


def way(shift: tuple[int, int]) -> str:
    """Return (rows, columns) as text: 12 rows down and 7 columns left."""
    y, x = shift
    parts = [f"{abs(y)} rows {'down' if y > 0 else 'up'}"] if y else []
    parts += [f"{abs(x)} columns {'right' if x > 0 else 'left'}"] if x else []
    return " and ".join(parts)


def turned_to(image: np.ndarray, k: int) -> np.ndarray:
    """Return [h, w] turned: the number `k` of VIEWS."""
    image = image.T if k & 4 else image
    image = image[::-1] if k & 2 else image
    return image[:, ::-1] if k & 1 else image


def reduced(image: Float32[np.ndarray, "h w"], factor: int) -> Float32[np.ndarray, "y x"]:
    """Return the means of squares of `factor` pixels; a rest at the right and below is left out."""
    if factor == 1:
        return image
    h, w = (side // factor * factor for side in image.shape)
    return image[:h, :w].reshape(h // factor, factor, w // factor, factor).mean((1, 3))
