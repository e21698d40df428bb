"""SER, the images that FEI's TIA writes next to an EMI file.

ncempy reads them too, but allocates whatever a header declares. Source of the layout: the
description by Chris Boothroyd.
"""

import contextlib
import math
import mmap
import os
import re
import struct
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from emjax.errors import InputError, note
from emjax.micrographs.shapes import Stored
from emjax.micrographs.signal import Signal, check_declared, no_pixels, why_refused
from emjax.micrographs.units import PixelSize, differing, nm

PIXELS = dict(enumerate("u1 u2 u4 i1 i2 i4 f4 f8 c8 c16".split(), start=1))
MODE = re.compile(rb"<Label>Mode</Label><Value>([^<]{0,200})")
SPECTRA, IMAGES = 0x4120, 0x4122  # kinds of data


class _Image:
    """The header of one image: its x and y calibration, number format and size."""

    LAYOUT = struct.Struct("<ddiddihii")

    def __init__(self, file: BinaryIO, offset: int) -> None:
        if not 0 <= offset < 1 << 62:
            raise InputError(f"an image at byte {offset}")
        file.seek(offset)
        head = file.read(self.LAYOUT.size)
        if len(head) < self.LAYOUT.size:
            raise InputError(f"cut off: an image at byte {offset} is not in the file")
        found = self.LAYOUT.unpack(head)
        _, self.x, _, _, self.y, _, kind, w, h = found
        if kind not in PIXELS:
            raise InputError(f"pixels of type {kind}, expected 1 to 10")
        self.dtype, self.shape = np.dtype("<" + PIXELS[kind]), (h, w)
        self.offset = offset + self.LAYOUT.size


@contextlib.contextmanager
def signals(path: str | os.PathLike[str], limit: int) -> Generator[list[Signal]]:
    """Yield the list of the one Signal of a SER file."""
    with open(path, "rb") as file:
        yield [_signal(Path(path), file, os.path.getsize(path), limit)]


@contextlib.contextmanager
def emi_signals(path: str | os.PathLike[str], limit: int) -> Generator[list[Signal]]:
    """Yield the Signals of the SER files of an EMI file."""
    found = companions(path)
    if not found:
        raise InputError(f"an EMI file without its images, expected {Path(path).stem}_1.ser")
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(signals(ser, limit))[0] for ser in found]


def companions(path: str | os.PathLike[str]) -> list[Path]:
    """Return the SER files of the EMI file `path`, in the order of their numbers."""
    path = Path(path)
    numbered: dict[int, Path] = {}
    for other in path.parent.iterdir():
        number = other.stem.removeprefix(f"{path.stem}_")
        named = other.stem == f"{path.stem}_{number}" and number.isdecimal()
        if named and other.suffix.lower() == ".ser" and _inside(other):
            numbered[int(number)] = other
    return [numbered[number] for number in sorted(numbered)]


def others(path: Path) -> list[Path]:
    """Return the SER files of an EMI file, or the EMI file of a SER file; else nothing."""
    if path.suffix.lower() == ".emi":
        return companions(path) if path.is_file() else []
    emi = emi_of(path)
    return [emi] if path.suffix.lower() == ".ser" and emi.is_file() and _inside(emi) else []


def emi_of(path: Path) -> Path:
    """Return the name of the EMI file of the SER file `path`."""
    return path.with_name(re.sub(r"_\d+$", "", path.stem) + ".emi")


def _inside(path: Path) -> bool:
    """Return whether `path` is a file of its folder, not a link out of it."""
    return path.is_file() and path.resolve().parent == path.parent.resolve()


def _signal(path: Path, file: BinaryIO, size: int, limit: int) -> Signal:
    head = file.read(22)
    if len(head) < 22 or head[:4] != b"II\x97\x01":
        raise InputError("expected a SER file, got another start")
    version, kind, _, planned, valid = struct.unpack("<4xHiiii", head)
    form = "<i" if version < 0x220 else "<q"
    table, dimensions = struct.unpack(form + "i", file.read(struct.calcsize(form + "i")))
    if not 0 <= dimensions <= 8:
        raise InputError(f"{dimensions} dimensions, expected 0 to 8")
    scanned = [_dimension(file) for _ in range(dimensions)]
    name = path.stem
    if kind == SPECTRA:
        return Signal(name, (), np.dtype("f4"), no_pixels, refused="spectra")
    if kind != IMAGES:
        raise InputError(f"data of kind {kind:#x}, expected images ({IMAGES:#x})")
    offsets: tuple[int, ...] = ()
    if valid > 0:
        check_declared("its table", (valid,), form, stored=size - max(table, 0), limit=limit)
        file.seek(max(table, 0))
        offsets = struct.unpack(f"<{valid}{form[1]}", file.read(valid * struct.calcsize(form)))
        offsets = tuple(offset for offset in offsets if offset)  # 0: planned, but never recorded
    if not offsets:
        empty = f"an empty series: no image of {planned} was recorded"
        return Signal(name, (), np.dtype("f4"), no_pixels, refused=empty)
    if len(offsets) < planned:
        note(path, f"{len(offsets)} of the {planned} images of its series were recorded")
    first = _Image(file, offsets[0])
    shape = first.shape if len(offsets) == 1 else (len(offsets), *first.shape)
    stored = size - min(offsets)
    check_declared("it", shape, first.dtype, stored=stored, limit=math.inf)
    stored = size - first.offset
    check_declared("its image", first.shape, first.dtype, stored=stored, limit=limit)
    refused = why_refused(first.dtype, shape, ["1/m"] if _is_diffraction(path, first) else [])
    if len(offsets) > 1 and sum(side > 1 for side in scanned) > 1:
        refused = refused or f"4-D data, images at {' x '.join(map(str, scanned))} positions"

    def raw(i: int) -> Stored:
        image = _Image(file, offsets[i])
        if (image.shape, image.dtype) != (first.shape, first.dtype):
            raise InputError(f"image {i} is {image.shape} {image.dtype}, the first {first.shape}")
        stored = size - image.offset
        check_declared(f"image {i}", image.shape, image.dtype, stored=stored, limit=limit)
        file.seek(image.offset)
        content = file.read(math.prod(image.shape) * image.dtype.itemsize)
        pixels = np.frombuffer(content, image.dtype)
        return pixels.reshape(image.shape)[::-1]  # stored from the bottom up

    signal = Signal(name, shape, first.dtype, raw, refused=refused)
    if first.y == first.x == 1:
        note(path, "1 m per pixel, which stands for an unknown size")
        return signal
    if between := differing([*_sizes(file, offsets)]):
        note(path, f"images of {between} nm per pixel: none is taken for all")
        return signal
    return signal.calibrated((nm(first.y, "m"), nm(first.x, "m")), "SER")


def _sizes(file: BinaryIO, offsets: Sequence[int]) -> Iterator[PixelSize]:
    """Yield (y, x) of those images of a series that have a header."""
    for offset in offsets:
        with contextlib.suppress(InputError):  # of one image; raised where it is read
            image = _Image(file, offset)
            yield nm(image.y, "m"), nm(image.x, "m")


def _dimension(file: BinaryIO) -> int:
    """Return the size of one dimension of a series, after reading past its two texts."""
    size, _, _, _, letters = struct.unpack("<iddii", file.read(28))
    _skip_text(file, letters)
    _skip_text(file, struct.unpack("<i", file.read(4))[0])
    return size


def _skip_text(file: BinaryIO, letters: int) -> None:
    if not 0 <= letters <= 10_000:
        raise InputError(f"a description of {letters} letters")
    file.seek(letters, os.SEEK_CUR)


def _objects(content: mmap.mmap) -> Iterator[bytes]:
    """Yield what an EMI file says of each of its objects: that of NAME_1.ser, NAME_2.ser, ..."""
    start = content.find(b"<ObjectInfo>")
    while start >= 0 and (end := content.find(b"</ObjectInfo>", start)) >= 0:
        yield content[start:end]
        start = content.find(b"<ObjectInfo>", end)


def _is_diffraction(path: Path, image: _Image) -> bool:
    """Return whether the images are diffraction patterns: by their scale, or by the EMI file."""
    if max(image.x, image.y) > 1:  # metres; a scale in 1/m is far above 1
        return True
    emi = emi_of(path)
    if not emi.is_file() or not _inside(emi) or not emi.stat().st_size:
        return False
    with open(emi, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        described = list(_objects(content)) or [content[:]]
        number = int(path.stem[len(emi.stem) + 1 :] or 1)
        own = described[number - 1 if 0 < number <= len(described) else 0]
        mode = MODE.search(own)
        if not mode or b"STEM" in mode[1]:
            return bool(mode) and b"<CameraNamePath>" in own
        return b"Diffraction" in mode[1]
