"""EER, the events that Falcon cameras count: BigTIFF with a page for each frame, which are summed.

Source: "EER file format documentation 3.0" (Thermo Fisher, 2023), as tifffile and imagecodecs
follow it. A pixel counts no more than one event per frame; the place within the pixel is not
used. Neither a gain reference nor the orientation is applied.
"""

import contextlib
import os
import re
import struct
from collections.abc import Generator, Iterator
from typing import BinaryIO

import numpy as np
from tifffile import TiffFile

from emjax.errors import InputError, note
from emjax.micrographs.shapes import Stored
from emjax.micrographs.signal import Signal, check_declared
from emjax.micrographs.units import nm

START = b"II+\0"
COMPRESSIONS = (65000, 65001, 65002)
FRAMES = 65_535  # that a sum of 16 bits can hold
COMPRESSION, METADATA = 259, 65001  # tags
ITEM = re.compile(rb"<item\b([^>]{0,200})>([^<]{0,200})</item>")
ATTRIBUTE = re.compile(rb"""(name|unit)\s*=\s*["']([^"']*)["']""")


def is_eer(path: str | os.PathLike[str]) -> bool:
    """Return whether one of the first two pages of a BigTIFF holds events.

    The first may be an image that the camera's software has summed.
    """
    with open(path, "rb") as file:
        for _, compression in zip(range(2), _compressions(file), strict=False):
            if compression in COMPRESSIONS:
                return True
    return False


@contextlib.contextmanager
def signals(path: str | os.PathLike[str], limit: int) -> Generator[list[Signal]]:
    """Yield the list of the one Signal of an EER file: the sum of its frames."""
    with open(path, "rb") as content:
        found = enumerate(_compressions(content))
        frames = [index for index, compression in found if compression in COMPRESSIONS]
        content.seek(0)
        file = TiffFile(content, _multifile=False, is_mmstack=False, is_ndtiff=False)
        yield [_signal(path, file, frames, limit)]


def _compressions(file: BinaryIO) -> Iterator[int]:
    """Yield the compression of each page, 0 of a page that states none."""
    at = struct.unpack("<8xQ", file.read(16))[0]
    seen: set[int] = set()
    while at:
        if at in seen or len(seen) > FRAMES:
            raise InputError(f"a circle, or over {FRAMES}, of pages")
        seen.add(at)
        file.seek(at)
        head = file.read(8)
        entries = min(struct.unpack("<Q", head)[0], 4096) if len(head) == 8 else 0
        content = file.read(20 * entries + 8)
        if len(content) < 20 * entries + 8 or not entries:
            return
        tags = {
            tag: value for tag, value in struct.iter_unpack("<H10xH6x", content[: 20 * entries])
        }
        yield tags.get(COMPRESSION, 0)
        at = struct.unpack("<Q", content[-8:])[0]


def _signal(path: str | os.PathLike[str], file: TiffFile, frames: list[int], limit: int) -> Signal:
    first = file.pages[frames[0]].aspage()
    shape = first.imagelength, first.imagewidth
    size = os.path.getsize(path)
    check_declared("its image", shape, "u2", stored=size, limit=limit, compressed=True)
    items = _items(first.tags.valueof(METADATA))
    stated = items.get("numberOfFrames", ("", ""))[0]
    counted = f", of {stated} by its metadata" if stated not in ("", str(len(frames))) else ""
    note(path, f"events of {len(frames)} frames{counted}; their sum is used")

    def raw(_: int) -> Stored:
        total = np.zeros(shape, np.uint16)
        for index in frames:
            page = file.pages[index].aspage()
            if (page.imagelength, page.imagewidth) != shape:
                raise InputError(f"frame {index} is {page.shape}, the first {shape}")
            end = max(map(sum, zip(page.dataoffsets, page.databytecounts, strict=True)), default=0)
            if end > size:
                raise InputError(f"events up to byte {end}, but it is cut off at byte {size}")
            total += page.asarray(maxworkers=1)
        return total

    signal = Signal(f"sum of {len(frames)} frames", shape, np.dtype(np.uint16), raw)
    sides = (items.get(f"sensorPixelSize.{side}", ("", "")) for side in ("height", "width"))
    return signal.calibrated([nm(value, unit) for value, unit in sides], "EER metadata")


def _items(content: object) -> dict[str, tuple[str, str]]:
    """Return {name: (value, unit)} of the XML of the acquisition."""
    text = content if isinstance(content, bytes) else str(content or "").encode()
    found: dict[str, tuple[str, str]] = {}
    for item in ITEM.finditer(text[: 1 << 20]):
        attributes = {
            key: value.decode("utf-8", "replace") for key, value in ATTRIBUTE.findall(item[1])
        }
        value = item[2].decode("utf-8", "replace").strip()
        found[attributes.get(b"name", "")] = value, attributes.get(b"unit", "")
    return found
