"""What every reader says of a file before pixels are read: its images, their sizes and units."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from emjax.errors import InputError
from emjax.micrographs.units import amount, no_length

LIMIT = 4 << 30  # bytes that one image (compressed files: all that is decoded at once) may take
SMALL = 64 << 20  # bytes that no compression ratio makes suspicious
RATIO = 10_000  # to the bytes in the file. Deflate reaches 1032; a constant image is none to keep
UNKNOWN = (math.nan, math.nan)


class Signal(NamedTuple):
    """One 2-D image or stack of images in a file; its pixels are read plane by plane.

    `raw(i)` is plane i as stored, [h, w] or [h, w, samples]; `finish` turns that into grey values
    or red, green, blue: palettes applied, white high.
    """

    name: str
    shape: tuple[int, ...]  # h, w or planes, h, w
    dtype: np.dtype  # as stored
    raw: Callable[[int], np.ndarray]
    nm_per_pixel: tuple[float, float] = UNKNOWN  # y, x
    origin: str = "none"  # of nm_per_pixel
    samples: int = 1  # colours and alpha per pixel
    refused: str = ""  # why it is no micrograph; empty if it is one
    finish: Callable[[np.ndarray], np.ndarray] = lambda pixels: pixels
    nm_per_plane: float = math.nan  # of a stack: from plane to plane

    @property
    def planes(self):
        return math.prod(self.shape[:-2])

    def __str__(self):
        sides = "x".join(map(str, self.shape))
        return " ".join(part for part in (self.name, sides, self.dtype.name) if part)


def no_micrograph(dtype, sides, units=()):
    """Why an array of `sides` with `units` of its axes is no micrograph; empty if it is one."""
    if np.dtype(dtype).kind == "c":
        return "complex numbers"
    if np.dtype(dtype).kind not in "buif":
        return f"{dtype}, where real numbers were due"
    if len(sides) > 3:
        return f"{len(sides)}-D data {tuple(sides)}"
    if len(sides) < 2:
        return "a spectrum or profile"
    return no_length(*units)


def pixels_of(sides, samples):
    """`sides`, and the samples of a pixel where there are several."""
    return tuple(sides) if samples == 1 else (*sides, samples)


def declared(what, shape, dtype, *, stored, limit, compressed=False):
    """Refuse an array before it is decoded, if its declared size cannot be or is over the limit.

    Args:
        stored: bytes that the file has for it.
        limit: bytes that it may take once decoded.

    Raises: InputError without the file's name, which the caller adds.
    """
    shape = tuple(int(side) for side in shape)
    if not shape or min(shape) < 1:
        raise InputError(f"{what} declares the shape {shape}; positive sides were due")
    size = math.prod(shape) * np.dtype(dtype).itemsize
    told = f"{what} declares {'x'.join(map(str, shape))} {np.dtype(dtype).name}, {amount(size)}"
    if not compressed and size > stored:
        raise InputError(f"{told}, where the file has {amount(stored)}: cut off, or a wrong header")
    if compressed and size > max(SMALL, RATIO * stored):
        raise InputError(f"{told}, {size // max(stored, 1)} times the file's {amount(stored)}")
    if size > limit:
        raise InputError(f"{told}; {amount(limit)} may be read at once, more by --memory_limit")
