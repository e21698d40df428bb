"""Zeiss SEM (tag 34118)."""

import math

from tifffile import TiffPage

from emjax.micrographs.formats.vendors.common import Stated, tag_value
from emjax.micrographs.units import SAME, nm

TAG = 34118


def stated(page: TiffPage) -> Stated | None:
    """Return the size that newer files state of their own pixels, else that of `per_line`.

    The second has more digits, and is used if they are within 1 %.
    """
    found = per_line(page)
    own = (tag_value(page, TAG) or {}).get("ap_image_pixel_size")
    size = nm(own[1], own[2]) if own else math.nan
    if math.isnan(size) or (found and abs(found.sizes[0] / size - 1) <= SAME):
        return found
    return Stated((size, size))


def per_line(page: TiffPage) -> Stated | None:
    """Return the size by the tag's number in metres: of a pixel of an image 1024 wide.

    Source: RosettaSciIO, rsciio/tiff.
    """
    numbers = (tag_value(page, TAG) or {}).get("", ())
    if len(numbers) < 4:
        return None
    size = nm(numbers[3] * 1024 / page.imagewidth, "m")
    return Stated((size, size))
