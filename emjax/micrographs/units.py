"""Lengths in nm, and byte counts for people."""

import math
from collections.abc import Sequence

import numpy as np

from emjax.errors import UsageError

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


def pixel_size(nm_per_pixel: float | Sequence[float] | None) -> tuple[float, float]:
    """Return (y, x) in nm of one number for both axes, or of two; NaN where unknown.

    None, or NaN for one of them, stands for unknown.

    Raises: UsageError unless the others are positive and finite.
    """
    try:
        sizes = np.atleast_1d(np.asarray(nm_per_pixel, np.float64))
        valid = sizes.shape in ((1,), (2,)) and not ((sizes <= 0) | np.isinf(sizes)).any()
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise UsageError(
            f"expected nm per pixel as one positive number or two (y, x), got {nm_per_pixel!r}"
        )
    return float(sizes[0]), float(sizes[-1])


def no_length(*units):
    """ "reciprocal space" or "an energy axis" if one of `units` says so, else an empty string."""
    for unit in map(unit_name, units):
        if unit.startswith("1/") or unit.endswith(("^-1", "⁻¹")):
            return "reciprocal space"
        for kind, names in OTHERS.items():
            if unit in names:
                return kind
    return ""


def amount(size):
    """Bytes for people."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
