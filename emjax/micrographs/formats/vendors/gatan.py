"""Gatan's DigitalMicrograph (tags 65003 to 65010)."""

from tifffile import TiffPage

from emjax.micrographs.formats.vendors.common import NoLength, Stated, tag_value
from emjax.micrographs.units import nm, no_length

UNITS, SCALES = (65004, 65003), (65010, 65009)  # y, x


def has_units(page: TiffPage) -> bool:
    """Return whether both axes have a unit."""
    return all(code in page.tags for code in UNITS)


def stated(page: TiffPage) -> Stated:
    """Return the size by Gatan's scales and their units. Source: RosettaSciIO, rsciio/tiff.

    Raises: NoLength for an energy or reciprocal axis.
    """
    units = [tag_value(page, code) for code in UNITS]
    if other := no_length(*units):
        raise NoLength(other)
    y, x = (nm(tag_value(page, code), unit) for code, unit in zip(SCALES, units, strict=True))
    return Stated((y, x))
