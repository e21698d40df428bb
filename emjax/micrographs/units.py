"""Lengths in nm, and byte counts for people."""

import math

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
