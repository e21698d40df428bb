"""The resolution tags of a TIFF, which JEOL's TEM uses as well."""

import math

from tifffile import TiffPage

from emjax.micrographs.formats.vendors.common import tag_value
from emjax.micrographs.units import UNKNOWN, PixelSize, nm

X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 282, 283, 296
COARSEST = 2000.0  # nm: a resolution tag above it (12 700 dpi) is meant for printers


def per(page: TiffPage, code: int) -> float:
    """Return 1 / the resolution tag `code`, NaN where it is missing or zero."""
    match tag_value(page, code):
        case (numerator, denominator) if numerator:
            return denominator / numerator
        case _:
            return math.nan


def detector(page: TiffPage) -> PixelSize:
    """Return nm (y, x) by the resolution tags, whatever they are good for.

    Source: TIFF 6.0, where the unit is an inch if none is stated.
    """
    stated = tag_value(page, RESOLUTION_UNIT)
    code = 2 if stated is None else stated  # 1 states that there is none
    unit = {2: "inch", 3: "cm", 4: "mm", 5: "um"}.get(code, "")
    return nm(per(page, Y_RESOLUTION), unit), nm(per(page, X_RESOLUTION), unit)


def specimen(page: TiffPage) -> PixelSize:
    """Return (y, x) by the resolution tags, unless meant for a printer (72, 96, 300, ... dpi)."""
    sizes = detector(page)
    return sizes if max(sizes) < COARSEST else UNKNOWN
