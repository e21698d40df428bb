"""SER, the images that FEI's TIA writes beside an EMI file.

ncempy reads them too, but allocates whatever a header declares. The layout is Chris Boothroyd's
description of it.
"""

import contextlib
import math
import mmap
import os
import re
import struct
from pathlib import Path

import numpy as np

from emjax.errors import InputError
from emjax.micrographs.signal import UNKNOWN, Signal, declared, no_micrograph
from emjax.micrographs.units import nm

PIXELS = dict(enumerate("u1 u2 u4 i1 i2 i4 f4 f8 c8 c16".split(), start=1))
MODE = re.compile(rb"<Label>Mode</Label><Value>([^<]{0,200})")


class _Image:
    """What stands before the pixels of one image: x and y calibration, number format, size."""

    LAYOUT = struct.Struct("<ddiddihii")

    def __init__(self, file, offset):
        if not 0 <= offset < 1 << 62:
            raise InputError(f"an image at byte {offset}")
        file.seek(offset)
        found = self.LAYOUT.unpack(file.read(self.LAYOUT.size))
        _, self.x, _, _, self.y, _, kind, w, h = found
        if kind not in PIXELS:
            raise InputError(f"pixels of type {kind}, where 1 to 10 were due")
        self.dtype, self.shape = np.dtype("<" + PIXELS[kind]), (h, w)
        self.offset = offset + self.LAYOUT.size


@contextlib.contextmanager
def signals(path, limit):
    """The list of the one Signal of a SER file."""
    with open(path, "rb") as file:
        yield [_signal(Path(path), file, os.path.getsize(path), limit)]


@contextlib.contextmanager
def emi_signals(path, limit):
    """The Signals of the SER files of an EMI file."""
    found = companions(path)
    if not found:
        raise InputError(f"an EMI file whose images, {Path(path).stem}_1.ser, are not beside it")
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(signals(ser, limit))[0] for ser in found]


def companions(path):
    """The SER files of the EMI file `path`, in the order of their numbers."""
    path = Path(path)
    numbered = {}
    for other in path.parent.iterdir():
        number = other.stem.removeprefix(f"{path.stem}_")
        named = other.stem == f"{path.stem}_{number}" and number.isdecimal()
        if named and other.suffix.lower() == ".ser" and _inside(other):
            numbered[int(number)] = other
    return [numbered[number] for number in sorted(numbered)]


def _inside(path):
    """Whether `path` is a file of its folder, not a link out of it."""
    return path.is_file() and path.resolve().parent == path.parent.resolve()


def _signal(path, file, size, limit):
    order, series, version, kind, _, _, valid = struct.unpack("<HHHiiii", file.read(22))
    if (order, series) != (0x4949, 0x0197):
        raise InputError("a SER file was due")
    form = "<i" if version < 0x220 else "<q"
    table, dimensions = struct.unpack(form + "i", file.read(struct.calcsize(form + "i")))
    if not 0 <= dimensions <= 8:
        raise InputError(f"{dimensions} dimensions")
    scanned = [_dimension(file) for _ in range(dimensions)]
    name = path.stem
    if kind == 0x4120:
        return Signal(name, (), np.dtype("f4"), None, refused="spectra")
    if kind != 0x4122:
        raise InputError(f"data of kind {kind:#x}, where images (0x4122) were due")
    declared("its table", (valid,), form, stored=size - max(table, 0), limit=limit)
    file.seek(max(table, 0))
    offsets = struct.unpack(f"<{valid}{form[1]}", file.read(valid * struct.calcsize(form)))
    first = _Image(file, offsets[0])
    sides = first.shape if valid == 1 else (valid, *first.shape)
    stored = size - min(offsets)
    declared("it", sides, first.dtype, stored=stored, limit=math.inf)
    declared("its image", first.shape, first.dtype, stored=size - first.offset, limit=limit)
    nm_per_pixel = nm(first.y, "m"), nm(first.x, "m")
    refused = no_micrograph(first.dtype, sides, ["1/m"] if _diffraction(path, first) else [])
    if sum(side > 1 for side in scanned) > 1:
        refused = refused or f"4-D data, images at {' x '.join(map(str, scanned))} places"

    def raw(i):
        image = _Image(file, offsets[i])
        if (image.shape, image.dtype) != (first.shape, first.dtype):
            raise InputError(f"image {i} is {image.shape} {image.dtype}, the first {first.shape}")
        declared(f"image {i}", image.shape, image.dtype, stored=size - image.offset, limit=limit)
        file.seek(image.offset)
        content = file.read(math.prod(image.shape) * image.dtype.itemsize)
        pixels = np.frombuffer(content, image.dtype)
        return pixels.reshape(image.shape)[::-1]  # stored from the bottom up

    if not np.isfinite(nm_per_pixel).all():
        nm_per_pixel = UNKNOWN
    origin = "SER" if np.isfinite(nm_per_pixel).all() else "none"
    return Signal(name, sides, first.dtype, raw, nm_per_pixel, origin, refused=refused)


def _dimension(file):
    """The size of one dimension of a series, after reading past its description."""
    size, _, _, _, text = struct.unpack("<iddii", file.read(28))
    for _ in range(2):
        if not 0 <= text <= 10_000:
            raise InputError(f"a description of {text} letters")
        file.seek(text, os.SEEK_CUR)
        text = struct.unpack("<i", file.read(4))[0] if _ == 0 else text
    return size


def _diffraction(path, image):
    """Whether the images are diffraction patterns: by their scale, or by the EMI file."""
    if max(image.x, image.y) > 1:  # metres; 1/m if there ever was one
        return True
    emi = path.with_name(re.sub(r"_\d+$", "", path.stem) + ".emi")
    if not emi.is_file() or not _inside(emi) or not emi.stat().st_size:
        return False
    with open(emi, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        mode = MODE.search(content)
        if not mode or b"STEM" in mode[1]:
            return bool(mode) and content.find(b"<CameraNamePath>") >= 0
        return b"Diffraction" in mode[1]
