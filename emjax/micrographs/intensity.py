"""Grey values and the interval [-1, 1] that networks see."""

from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np

from emjax.errors import InputError
from emjax.micrographs.shapes import Floats, Grey, Numbers

RULES = ("percentile", "fixed", "sigma")

Range: TypeAlias = tuple[float, float]  # low, high


class NoRange(InputError):
    """The images do not hold two values that could become -1 and 1."""


def intensity_range(images: Iterable[Grey], rule: str) -> Range:
    """Return the two values (low, high) of `images` that become -1 and 1.

    percentile: 0.1 and 99.9 percent of all pixels of all images (the smallest value that at least
    this part of the pixels does not exceed). sigma: mean -+ 4 standard deviations. fixed: 0 and
    255, 65535 or 1 for uint8, uint16, float32, by the first image. `images` may be a generator;
    8- and 16-bit images are counted and forgotten, one at a time.

    Raises: NoRange if there is no image, or the two values are the same.
    """
    if rule not in RULES:
        raise InputError(f"no range rule {rule!r}; there are: {', '.join(RULES)}")
    counts = np.zeros(1 << 16, np.int64)
    floats: list[np.ndarray] = []
    tops: list[float] = []
    for image in images:
        tops.append(1.0 if image.dtype.kind == "f" else float(np.iinfo(image.dtype).max))
        if rule == "fixed":
            continue
        if image.dtype.kind == "f":
            floats.append(image.ravel())
        else:
            counts += np.bincount(image.ravel(), minlength=counts.size)
    if not tops:
        raise NoRange("expected at least one image to take the intensity range from, got none")
    if rule == "fixed":
        return 0.0, tops[0]
    values = np.concatenate([np.flatnonzero(counts).astype(np.float64), *floats])
    weights = np.concatenate([counts[counts > 0], *(np.ones(f.size, np.int64) for f in floats)])
    if rule == "sigma":
        mean = np.average(values, weights=weights)
        sd = np.sqrt(np.average((values - mean) ** 2, weights=weights))
        low, high = mean - 4 * sd, mean + 4 * sd
    else:
        order = np.argsort(values)
        below = np.cumsum(weights[order])
        indices = np.searchsorted(below, [0.001 * below[-1], 0.999 * below[-1]])
        low, high = values[order][indices]
    if not low < high:
        raise NoRange(f"the {rule} range is {low:g} to {high:g}: (nearly) all pixels are the same")
    return float(low), float(high)


def from_range(image: Numbers, intensity_range: Any, *, clip: bool = True) -> Floats:
    """Return `image` as float32 with `intensity_range` (low, high) at -1 and 1, clipped there."""
    low, high = np.asarray(intensity_range, np.float32)
    scaled = (np.asarray(image, np.float32) - low) * (2 / (high - low)) - 1
    return np.clip(scaled, -1, 1) if clip else scaled


def to_range(image: Numbers, intensity_range: Any) -> Floats:
    """Return `image` in [-1, 1] as float32 in the values of `intensity_range` (low, high)."""
    low, high = np.asarray(intensity_range, np.float32)
    return (np.asarray(image, np.float32) + 1) * ((high - low) / 2) + low
