"""Micrographs of any format as 2-D arrays with their pixel size, and written back.

A file holds one or more Signals (an image or a stack each); `read` gives one image, `planes` the
images of a stack one by one. docs/reference/formats.md says what is read, and where pixel sizes
come from.
"""

from emjax.micrographs.formats.npy_zarr import is_zarr
from emjax.micrographs.intensity import RULES, NoRange, from_range, intensity_range, to_range
from emjax.micrographs.reading import (
    Micrograph,
    find,
    open_all,
    planes,
    read,
    read_pixels,
    read_stack,
)
from emjax.micrographs.signal import LIMIT, UNKNOWN, Signal
from emjax.micrographs.writers import WRITERS, write

__all__ = [
    "LIMIT",
    "RULES",
    "UNKNOWN",
    "WRITERS",
    "Micrograph",
    "NoRange",
    "Signal",
    "find",
    "from_range",
    "intensity_range",
    "is_zarr",
    "open_all",
    "planes",
    "read",
    "read_pixels",
    "read_stack",
    "to_range",
    "write",
]
