"""Zeiss SEM (tag 34118)."""

from tifffile import TiffPage

from emjax.micrographs.formats.vendors.common import Stated, tag_value
from emjax.micrographs.units import nm

TAG = 34118


def stated(page: TiffPage) -> Stated | None:
    """Return the size that newer files state of their own pixels, else that of `per_line`.

    The first is used only if they differ by more than 1 %: it has fewer digits.
    """
    found = per_line(page)
    own = (tag_value(page, TAG) or {}).get("ap_image_pixel_size")
    if found and own and abs(found.sizes[0] / nm(own[1], own[2]) - 1) > 0.01:
        size = nm(own[1], own[2])
        return Stated((size, size))
    return found


def per_line(page: TiffPage) -> Stated | None:
    """Return the size by the tag's number in metres: of a pixel of an image 1024 wide.

    Source: RosettaSciIO, rsciio/tiff.
    """
    tag = tag_value(page, TAG)
    if not tag:
        return None
    size = nm(tag[""][3] * 1024 / page.imagewidth, "m")
    return Stated((size, size))
