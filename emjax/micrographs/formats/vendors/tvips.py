"""TVIPS's EM-Menu (tag 37706)."""

from tifffile import TiffPage

from emjax.micrographs.formats.vendors.common import Stated, tag_value
from emjax.micrographs.units import nm

TAG = 37706


def stated(page: TiffPage) -> Stated | None:
    """Return the size that the tag states, in nm. Source: tifffile, `read_tvips_header`."""
    tag = tag_value(page, TAG)
    if not tag:
        return None
    sizes = nm(tag["PixelSizeY"], "nm"), nm(tag["PixelSizeX"], "nm")
    return Stated(sizes, int(tag.get("ImageSizeX", 0)))
