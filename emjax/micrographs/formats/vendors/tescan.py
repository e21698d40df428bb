"""TESCAN: tag 50431, and the `.hdr` next to an image."""

import re

from tifffile import TiffPage

from emjax.micrographs.formats.sidecars import key_values
from emjax.micrographs.formats.vendors.common import Stated, tag_value
from emjax.micrographs.units import nm

TAG = 50431
PAIR = re.compile(rb"(PixelSize[XY])[ \t]*=[ \t]*([-+\d.eE]+)")


def stated(page: TiffPage) -> Stated | None:
    """Return `PixelSizeX` and `PixelSizeY` in metres, the first in the tag's blocks.

    The blocks are a JPEG and texts, of which the first, MAIN, states them.

    Source: Gwyddion, tescan.c; NexusLIMS, tescan_tif.py.
    """
    value = tag_value(page, TAG)
    content = value.encode("latin-1", "replace") if isinstance(value, str) else bytes(value)
    found: dict[bytes, str] = {}
    for key, number in PAIR.findall(content):
        found.setdefault(key, number.decode())
    return _sizes(found[b"PixelSizeY"], found[b"PixelSizeX"])


def header(content: str) -> Stated | None:
    """Return the same of the section [MAIN] of a `.hdr`. Source: NexusLIMS, tescan_tif.py."""
    if "[MAIN]" not in content:
        return None
    values = key_values(content.partition("[MAIN]")[2].partition("\n[")[0])
    return _sizes(values["PixelSizeY"], values["PixelSizeX"])


def _sizes(y: str, x: str) -> Stated:
    return Stated((nm(abs(float(y)), "m"), nm(abs(float(x)), "m")))
