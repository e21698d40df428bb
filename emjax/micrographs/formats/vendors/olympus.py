"""Olympus Soft Imaging Solutions (tag 33560)."""

from tifffile import TiffPage

from emjax.micrographs.formats.vendors.common import Stated, tag_value
from emjax.micrographs.units import nm

TAG = 33560


def stated(page: TiffPage) -> Stated | None:
    """Return the size that the tag states, in metres. Source: tifffile, `read_sis`."""
    tag = tag_value(page, TAG)
    return Stated((nm(tag["pixelsizey"], "m"), nm(tag["pixelsizex"], "m"))) if tag else None
