"""Lengths in nm, and byte counts for people."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from emjax.errors import UsageError
from emjax.micrographs.shapes import Pair

# The pixel size of an image in nm, (y, x); NaN where unknown.
PixelSize = tuple[float, float]
UNKNOWN: PixelSize = (math.nan, math.nan)
# What stands for a pixel size: one number for both axes, or (y, x); None: unknown.
AnyPixelSize = float | Sequence[float] | Pair | None

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


def unit_name(unit: object) -> str:
    """Return `unit` in lower case, with one spelling of micro, without brackets and plural."""
    text = unit.decode("utf-8", "replace") if isinstance(unit, bytes) else str(unit)
    text = text.replace("\\u00B5", "µ").replace("μ", "µ").strip(" []\0").lower()
    text = text.replace("metre", "meter").replace(" ", "")
    return text[:-1] if text.endswith(("meters", "microns", "angstroms")) else text


def nm(value: Any, unit: object) -> float:
    """Return `value`, a number or its text, in nm; NaN where it is no positive length."""
    try:
        size = float(value) * LENGTHS.get(unit_name(unit), math.nan)
    except (TypeError, ValueError):
        return math.nan
    return size if 0 < size < math.inf else math.nan


def pixel_size(nm_per_pixel: AnyPixelSize) -> PixelSize:
    """Return (y, x) in nm of one number for both axes, or of two; None and NaN are unknown.

    Raises: UsageError unless the others are positive and finite.
    """
    try:
        sizes = np.atleast_1d(np.asarray(nm_per_pixel, np.float64))
        valid = sizes.shape in ((1,), (2,)) and not ((sizes <= 0) | np.isinf(sizes)).any()
    except (TypeError, ValueError):
        sizes, valid = np.empty(0), False
    if not valid:
        raise UsageError(
            f"expected nm per pixel as one positive number or two (y, x), got {nm_per_pixel!r}"
        )
    return float(sizes[0]), float(sizes[-1])


def is_known(nm_per_pixel: PixelSize) -> bool:
    """Return whether both sides of a pixel are known."""
    return all(math.isfinite(size) for size in nm_per_pixel)


def no_length(*units: object) -> str:
    """Return "reciprocal space" or "an energy axis" if a unit of `units` is one, else ""."""
    for unit in map(unit_name, units):
        if unit.startswith("1/") or unit.endswith(("^-1", "⁻¹")):
            return "reciprocal space"
        for kind, names in OTHERS.items():
            if unit in names:
                return kind
    return ""


def amount(size: int | float) -> str:
    """Return a number of bytes for people, such as 3.6 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
