"""Lengths in nm, and byte counts for people."""

import contextlib
import html
import math
import re
import unicodedata
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

SAME = 0.01  # pixel sizes that differ by less are one

LENGTHS = {  # nm, by what `unit_name` makes of a unit
    "pm": 1e-3, "picometer": 1e-3,
    "a": 0.1, "å": 0.1, "aa": 0.1, "ang": 0.1, "angst": 0.1, "angstrom": 0.1,
    "nm": 1.0, "nanometer": 1.0,
    "um": 1e3, "μ": 1e3, "mum": 1e3, "micron": 1e3, "micrometer": 1e3,
    "mm": 1e6, "millimeter": 1e6, "cm": 1e7, "centimeter": 1e7,
    "m": 1e9, "meter": 1e9, "inch": 2.54e7, "inches": 2.54e7, "in": 2.54e7,
}  # fmt: skip
RECIPROCAL = re.compile(
    r"(1(\.0)?|cycles?|lines?)?/.+"  # 1/nm, cycles/nm
    r"|.+?(\^|\*\*)?-[12]"  # nm^-1, A**-1, nm-1; nm⁻¹ becomes nm-1
    r"|(inv|inverse|reciprocal)\.?.+|.+inv|per([pnumc]?m|a|å|angstrom|.*meter|micron)"
    r"|(milli|micro|nano|[munk])?rad(ian)?s?|m?deg(rees?)?|°"  # of a diffraction pattern
)
ENERGY_AXIS = "an energy axis"
ENERGY = re.compile(r"(kilo|mega|milli|[kmg])?(ev|electron-?volts?)")
ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})|\\x([0-9a-fA-F]{2})")
PER_PIXEL = re.compile(r"(?<=[a-zμå])(/|per)(px|pix|pixel|voxel)s?$")
SPELLINGS = {"\N{MINUS SIGN}": "-", "–": "-", "mathrm": "", "mikro": "micro", "metre": "meter",
             "ö": "o", "ångstr": "angstr", "angstroem": "angstrom"}  # fmt: skip


def unit_name(unit: object) -> str:
    """Return `unit` in one spelling: lower case, um for µm, without brackets, plural, "per pixel".

    Escapes (\\u00B5, &micro;), UTF-8 that was decoded as another encoding (Âµm), and the several
    signs for micro, angstrom and superscripts count as what they stand for.
    """
    if isinstance(unit, bytes):
        try:
            text = unit.decode("utf-8")
        except UnicodeDecodeError:
            text = unit.decode("latin-1")
    else:
        text = str(unit)[:100]
    text = ESCAPE.sub(lambda escape: chr(int(escape[1] or escape[2], 16)), text)
    for encoding in ("cp1252", "latin-1"):
        with contextlib.suppress(UnicodeError):
            text = text.encode(encoding).decode("utf-8")
    text = unicodedata.normalize("NFKC", html.unescape(text))
    text = text.replace("Mm", "megameter").lower()
    text = re.sub(r"[\s\[\](){}$\\_\0]", "", text).strip(".")
    for spelling, usual in SPELLINGS.items():
        text = text.replace(spelling, usual)
    text = re.sub("μ(?=.)", "u", PER_PIXEL.sub("", text))
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


def differing(sizes: Sequence[PixelSize]) -> str:
    """Return "LEAST to MOST" of pixel sizes in nm that differ; "" if those that are known do not.

    They differ if along y or x one is more than SAME larger than another.
    """
    for axis in (1, 0):
        known = [size[axis] for size in sizes if math.isfinite(size[axis])]
        if known and max(known) > (1 + SAME) * min(known):
            return f"{min(known):.4g} to {max(known):.4g}"
    return ""


def is_known(nm_per_pixel: PixelSize) -> bool:
    """Return whether both sides of a pixel are known."""
    return all(math.isfinite(size) for size in nm_per_pixel)


def no_length(*units: object) -> str:
    """Return "reciprocal space" or "an energy axis" if a unit of `units` is one, else ""."""
    for unit in map(unit_name, units):
        if RECIPROCAL.fullmatch(unit):
            return "reciprocal space"
        if ENERGY.fullmatch(unit):
            return ENERGY_AXIS
    return ""


def no_image(*units: object) -> str:
    """Return why the `units` of an image (y, x) or a stack (planes, y, x) are not those of one.

    From plane to plane a stack may run along an angle or a frequency, but not along an energy.
    """
    if ENERGY_AXIS in map(no_length, units):
        return ENERGY_AXIS
    return no_length(*units[-2:])


def amount(size: int | float) -> str:
    """Return a number of bytes for people, such as 3.6 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
