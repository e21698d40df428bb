"""Grey values and the interval [-1, 1] that networks see."""

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np

from emjax.errors import InputError, note
from emjax.micrographs.shapes import Floats, Grey, Mask, Numbers

RULES = ("percentile", "fixed", "sigma")
# Of values: the middle 96 %, and what the percentile rule takes. If the latter is so many times as
# wide, single pixels decide it. (A normal distribution has 1.5, an exponential one 1.8.)
MIDDLE, ENDS, TIMES = (0.02, 0.98), (0.001, 0.999), 4
SIGMAS = 4  # standard deviations on each side of the mean, of the sigma rule
SOLID = 3  # pixels: what holds a square of this side is an object, whatever its values
MOST_DEFECTS = 0.01  # of the pixels of an image
BLOCK = 1 << 22  # pixels that are counted at once: NumPy makes 8 bytes of each

Range: TypeAlias = tuple[float, float]  # low, high


class NoRange(InputError):
    """The images do not hold two values that could become -1 and 1."""


def intensity_range(
    images: Iterable[Grey], rule: str, *, defects: Callable[[float], None] | None = None
) -> Range:
    """Return the two values (low, high) of `images` that become -1 and 1.

    percentile: 0.1 and 99.9 percent of all pixels of all images (the smallest value that at least
    this part of the pixels does not exceed). sigma: mean -+ 4 standard deviations. fixed: 0 and
    255, 65535 or 1 for uint8, uint16, float32, by the first image. `images` may be a generator;
    8- and 16-bit images are counted and forgotten, one at a time. Hot and dead pixels do not count,
    see `defective`.

    Args:
        defects: called with the share of pixels that do not count, if there are any; by default
            this is noted.

    Raises: NoRange if there is no image, or the two values are the same.
    """
    if rule not in RULES:
        raise InputError(f"no range rule {rule!r}; there are: {', '.join(RULES)}")
    counts = np.zeros(1 << 16, np.int64)
    floats: list[np.ndarray] = []
    tops: list[float] = []
    left_out = total = 0
    for image in images:
        tops.append(1.0 if image.dtype.kind == "f" else float(np.iinfo(image.dtype).max))
        if rule == "fixed":
            continue
        own = None if image.dtype.kind == "f" else histogram(image)
        defect = defective(image, own)
        pixels = image.ravel() if defect is None else image[~defect]
        left_out, total = left_out + image.size - pixels.size, total + image.size
        if own is None:
            floats.append(pixels)
        elif defect is None:
            counts += own
        else:
            counts += histogram(pixels)
    if not tops:
        raise NoRange("expected at least one image to take the intensity range from, got none")
    if rule == "fixed":
        return 0.0, tops[0]
    if rule == "percentile" and floats and not counts.any():
        pooled = floats[0] if len(floats) == 1 else np.concatenate(floats)
        floats.clear()  # a stack may take most of the memory
        ranks = np.maximum(np.ceil(np.multiply(ENDS, pooled.size)).astype(int) - 1, 0)
        low, high = map(float, np.partition(pooled, ranks)[ranks])
        return _checked(low, high, rule, left_out / total, defects)
    values = np.concatenate([np.flatnonzero(counts).astype(np.float64), *floats])
    weights = np.concatenate([counts[counts > 0], *(np.ones(f.size, np.int64) for f in floats)])
    if rule == "sigma":
        mean = np.average(values, weights=weights)
        sd = np.sqrt(np.average((values - mean) ** 2, weights=weights))
        low, high = mean - SIGMAS * sd, mean + SIGMAS * sd
    else:
        order = np.argsort(values)
        below = np.cumsum(weights[order])
        indices = np.searchsorted(below, np.multiply(ENDS, below[-1]))
        low, high = values[order][indices]
    return _checked(float(low), float(high), rule, left_out / total, defects)


def _checked(
    low: float, high: float, rule: str, left_out: float, defects: Callable[[float], None] | None
) -> Range:
    """Return (low, high); raise NoRange if they are one value; tell what is left out, a share."""
    if not is_range(low, high):
        raise NoRange(f"the {rule} range is {low:g} to {high:g}: (nearly) all pixels are the same")
    if left_out and defects:
        defects(left_out)
    elif left_out:
        note(f"range {low:g} to {high:g}", f"without hot or dead pixels, {left_out:.2%} of all")
    return low, high


def is_far(values: Range, lower: float, median: float, upper: float) -> bool:
    """Return whether most pixels are so far outside of a range that they all look alike in it.

    Args:
        lower, median, upper: 5, 50 and 95 percent of the pixels.
    """
    low, high = values
    width = high - low
    return not low - width <= median <= high + width or upper - lower > 3 * width


def beyond_fixed(image: Grey) -> str:
    """Return in words that most pixels of an image are far outside of the fixed range, or ""."""
    low, high = intensity_range([image], "fixed")
    lower, median, upper = map(float, np.quantile(image, [0.05, 0.5, 0.95]))
    if not is_far((low, high), lower, median, upper):
        return ""
    return (
        f"grey values of {lower:g} to {upper:g}, expected about {low:g} to {high:g} for the fixed "
        f"range of {image.dtype.name}"
    )


def is_range(low: float | int, high: float | int) -> bool:
    """Return whether two values can become -1 and 1, in float32, in which images are computed."""
    with np.errstate(over="ignore", invalid="ignore"):
        width = np.float32(high) - np.float32(low)
    return bool(np.finfo(np.float32).tiny <= width < np.inf)


def histogram(image: Numbers) -> np.ndarray:
    """Return how often each grey value is in an image of 8 or 16 bits, int64 [65536]."""
    counts, pixels = np.zeros(1 << 16, np.int64), image.reshape(-1)
    for start in range(0, pixels.size, BLOCK):
        counts += np.bincount(pixels[start : start + BLOCK], minlength=counts.size)
    return counts


def defective(image: Grey, counts: np.ndarray | None = None) -> Mask | None:
    """Return where a detector's hot and dead pixels decide the range of `image`; None nowhere.

    Such pixels are farther from the middle 96 % of the values than these are wide, stand alone, in
    small groups or thin lines, and are at most 1 % of all. Larger groups are objects: particles in
    an empty field stay.

    Args:
        counts: how often each grey value is in the image, if that is known.
    """
    if image.dtype.kind == "f":
        (low, a, b, high) = np.quantile(image, [ENDS[0], *MIDDLE, ENDS[1]], method="inverted_cdf")
    else:
        below = np.cumsum(histogram(image) if counts is None else counts)
        (low, a, b, high) = np.searchsorted(
            below, np.multiply([ENDS[0], *MIDDLE, ENDS[1]], below[-1])
        )
    middle = float(b) - float(a)
    if not 0 < middle * TIMES < float(high) - float(low):
        return None
    from scipy import ndimage  # not at the top: few images need it

    far = (image < a - middle) | (image > b + middle)
    found: Any = ndimage.label(far, np.ones((3, 3)))
    groups, count = found
    solid = np.zeros(count + 1, bool)
    solid[groups[ndimage.binary_erosion(far, np.ones((SOLID, SOLID)))]] = True
    far &= ~solid[groups]
    return far if 0 < far.mean() <= MOST_DEFECTS else None


def from_range(image: Numbers, intensity_range: Any, *, clip: bool = True) -> Floats:
    """Return `image` as float32 with `intensity_range` (low, high) at -1 and 1, clipped there."""
    low, high = np.asarray(intensity_range, np.float32)
    scaled = (np.asarray(image, np.float32) - low) * (2 / (high - low)) - 1
    return np.clip(scaled, -1, 1) if clip else scaled


def to_range(image: Numbers, intensity_range: Any) -> Floats:
    """Return `image` in [-1, 1] as float32 in the values of `intensity_range` (low, high)."""
    low, high = np.asarray(intensity_range, np.float32)
    values = np.array(image, np.float32)
    values += 1
    values *= (high - low) / 2
    values += low
    return values
