"""Read micrographs of any format as 2-D arrays with their pixel size, and write them.

A file holds one or more Signals (an image or a stack each); `read` returns one image, `planes`
yields the images of a stack one by one. docs/reference/formats.md lists the formats, and where
pixel sizes come from.
"""

from emjax.micrographs.formats.npy_zarr import is_zarr
from emjax.micrographs.intensity import (
    RULES,
    NoRange,
    beyond_fixed,
    from_range,
    intensity_range,
    is_far,
    to_range,
)
from emjax.micrographs.reading import (
    MRC_ROWS,
    Micrograph,
    SeveralImages,
    find,
    open_all,
    parts_of,
    planes,
    read,
    read_pixels,
    read_plane,
    read_stack,
    top_row_is_stated,
)
from emjax.micrographs.signal import LIMIT, Signal, TooLarge
from emjax.micrographs.units import UNKNOWN
from emjax.micrographs.writers import WRITERS, write

__all__ = [
    "LIMIT",
    "MRC_ROWS",
    "RULES",
    "UNKNOWN",
    "WRITERS",
    "Micrograph",
    "NoRange",
    "SeveralImages",
    "Signal",
    "TooLarge",
    "beyond_fixed",
    "find",
    "from_range",
    "intensity_range",
    "is_far",
    "is_zarr",
    "open_all",
    "parts_of",
    "planes",
    "read",
    "read_pixels",
    "read_plane",
    "read_stack",
    "to_range",
    "top_row_is_stated",
    "write",
]
