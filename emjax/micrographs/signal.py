"""What every reader says of a file before pixels are read: its images, their sizes and units."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from emjax.errors import InputError

LIMIT = 4 << 30  # bytes that one image (compressed files: all that is decoded at once) may take
SMALL = 64 << 20  # bytes that no compression ratio makes suspicious
RATIO = 10_000  # to the bytes in the file. Deflate reaches 1032; a constant image is none to keep
UNKNOWN = (math.nan, math.nan)

LENGTHS = {  # nm
    "pm": 1e-3, "picometer": 1e-3,
    "a": 0.1, "å": 0.1, "angstrom": 0.1, "angstroem": 0.1, "ångström": 0.1,
    "nm": 1.0, "n_m": 1.0, "nanometer": 1.0,
    "um": 1e3, "µm": 1e3, "u_m": 1e3, "micron": 1e3, "micrometer": 1e3,
    "mm": 1e6, "millimeter": 1e6, "cm": 1e7, "centimeter": 1e7,
    "m": 1e9, "meter": 1e9, "inch": 2.54e7, "in": 2.54e7,
}  # fmt: skip
OTHERS = {
    "reciprocal space": ("rad", "mrad", "deg", "degree"),
    "an energy axis": ("ev", "kev", "mev"),
}


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


def unit_name(unit):
    """`unit` in small letters, one spelling of micro, without brackets and plural."""
    if isinstance(unit, bytes):
        unit = unit.decode("utf-8", "replace")
    unit = str(unit).replace("\\u00B5", "µ").replace("μ", "µ").strip(" []\0").lower()
    unit = unit.replace("metre", "meter").replace(" ", "")
    return unit[:-1] if unit.endswith(("meters", "microns", "angstroms")) else unit


def nm(value, unit):
    """`value` in nm, NaN where it is no positive length."""
    try:
        size = float(value) * LENGTHS.get(unit_name(unit), math.nan)
    except (TypeError, ValueError):
        return math.nan
    return size if 0 < size < math.inf else math.nan


def no_length(*units):
    """ "reciprocal space" or "an energy axis" if one of `units` says so, else an empty string."""
    for unit in map(unit_name, units):
        if unit.startswith("1/") or unit.endswith(("^-1", "⁻¹")):
            return "reciprocal space"
        for kind, names in OTHERS.items():
            if unit in names:
                return kind
    return ""


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

    Raises: BadInput without the file's name, which the caller adds.
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


def amount(size):
    """Bytes for people."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
