"""DM3 and DM4, Gatan's tagged files: every count and offset is checked before it is used."""

import contextlib
import math
import mmap
import os
import struct
from collections.abc import Generator, Sequence
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from emjax.errors import InputError, note
from emjax.micrographs.shapes import Stored
from emjax.micrographs.signal import (
    A_SPECTRUM,
    NO_BRIGHTNESS,
    Signal,
    check_declared,
    no_pixels,
    why_refused,
    with_samples,
)
from emjax.micrographs.units import nm

# Types of tag values: a struct format, or 15 struct, 18 string, 20 array.
SIMPLE = dict(zip(range(2, 13), "hiHIfdbbbqQ", strict=True))
PIXELS = {
    1: "i2", 2: "f4", 3: "c8", 5: "c8", 6: "u1", 7: "i4", 8: "u1", 9: "i1", 10: "u2",
    11: "u4", 12: "f8", 13: "c16", 14: "u1", 23: "u1", 27: "c8", 28: "c16", 39: "i8", 40: "u8",
}  # fmt: skip
COLOURS = (8, 23)  # blue, green, red, alpha
SPECTRA = ("spectrum", "spectrum image")
THUMBNAIL = 512  # pixels of its longer side; DigitalMicrograph's have up to 384
TAGS, DEPTH, TEXT = 300_000, 60, 1000

Array: TypeAlias = tuple[str, int, int]  # struct format of an element, offset, count


@contextlib.contextmanager
def signals(path: str | os.PathLike[str], limit: int) -> Generator[list[Signal]]:
    """Yield the list of Signals of a DM3 or DM4 file, without the thumbnail."""
    with open(path, "rb") as file, _mapped(file) as content:
        tags = _Tags(content)
        root = tags.root()
        images = [_members(image) for image in _members(root.get("ImageList")).values()]
        if not images:
            raise InputError("a DM file without an image")
        thumbnails = _thumbnails(path, root, images)
        yield [
            _signal(path, image, tags, limit, index)
            for index, image in enumerate(images)
            if index not in thumbnails
        ]


def _members(group: Any) -> dict[str, Any]:
    """Return the members of a group of tags, none of anything else."""
    return group if isinstance(group, dict) else {}


def _thumbnails(
    path: str | os.PathLike[str], root: dict[str, Any], images: Sequence[dict[str, Any]]
) -> set[int]:
    """Return which images are thumbnails: those that a tag names.

    Without that tag the first is taken to be one if it is small and in colours.
    """
    tags = _members(root.get("Thumbnails")).values()
    indices = [_members(tag).get("ImageIndex") for tag in tags]
    named = {index for index in range(len(images)) if index in indices}
    if len(images) > 1 and not named and _looks_like_a_thumbnail(images[0]):
        note(path, "its first image, small and in colours, is taken to be a thumbnail")
        named = {0}
    return named if len(named) < len(images) else set()


def _looks_like_a_thumbnail(image: dict[str, Any]) -> bool:
    data = _members(image.get("ImageData"))
    sides = [side for side in _members(data.get("Dimensions")).values() if isinstance(side, int)]
    return data.get("DataType") in COLOURS and max(sides, default=0) <= THUMBNAIL


@contextlib.contextmanager
def _mapped(file: BinaryIO) -> Generator[mmap.mmap]:
    """Yield the content of an open file as something to slice that is not copied."""
    content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        yield content
    finally:
        content.close()


class _Tags:
    """The tags of a file as nested dicts; arrays are left as an Array and not read."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content, self.at, self.seen = content, 0, 0
        version = self.take(">I")
        if version not in (3, 4):
            raise InputError(f"version {version} of DM, expected 3 or 4")
        self.size = ">I" if version == 3 else ">Q"
        self.take(self.size)
        self.order = "<" if self.take(">I") == 1 else ">"

    def root(self) -> dict[str, Any]:
        return self.group(0)

    def take(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self.content, self.at)
        self.at += struct.calcsize(form)
        return value

    def group(self, depth: int) -> dict[str, Any]:
        if depth > DEPTH:
            raise InputError(f"tags nested over {DEPTH} deep")
        self.at += 2
        found: dict[str, Any] = {}
        for index in range(self.take(self.size)):
            self.seen += 1
            if self.seen > TAGS:
                raise InputError(f"over {TAGS} tags")
            kind, length = self.take(">B"), self.take(">H")
            name = self.content[self.at : self.at + length].decode("latin-1") or str(index)
            self.at += length
            if self.size == ">Q":
                self.at += 8
            if kind == 20:
                found[name] = self.group(depth + 1)
            elif kind == 21:
                found[name] = self.value()
            else:
                raise InputError(f"a tag of kind {kind} at byte {self.at}, expected 20 or 21")
        return found

    def value(self) -> Any:
        """Return a number or an Array, also for a string; None for a struct, which is read past."""
        if self.content[self.at : self.at + 4] != b"%%%%":
            raise InputError(f"no tag value at byte {self.at}")
        self.at += 4
        count = self.take(self.size)
        if count > TEXT:
            raise InputError(f"a tag described by {count} numbers")
        info = [self.take(self.size) for _ in range(count)]
        if info[0] in SIMPLE:
            return self.take(self.order + SIMPLE[info[0]])
        if info[0] == 20:
            return self.array(info[1:-1], info[-1])
        if info[0] == 18:
            return self.array([8], info[1])
        if info[0] != 15:
            raise InputError(f"a tag of type {info[0]} at byte {self.at}")
        kinds = [SIMPLE[kind] for kind in info[4::2]]
        self.at += struct.calcsize(self.order + "".join(kinds))
        return None

    def array(self, kinds: Sequence[int], count: int) -> Array:
        form = "".join(SIMPLE[kind] for kind in (kinds[4::2] if kinds[0] == 15 else kinds))
        start = self.at
        self.at += count * struct.calcsize(self.order + form)
        if self.at > len(self.content):
            raise InputError(f"cut off: an array at byte {start} ends at byte {self.at}")
        return form, start, count

    def text(self, value: object) -> str:
        """Return the text that an array of 8- or 16-bit numbers spells, "" for anything else."""
        match value:
            case ("H", int(start), int(count)) if count <= TEXT:
                coding = "utf-16-le" if self.order == "<" else "utf-16-be"
                return self.content[start : start + 2 * count].decode(coding, "replace")
            case ("b", int(start), int(count)) if count <= TEXT:
                return self.content[start : start + count].decode("latin-1")
            case _:
                return ""


def _signal(
    path: str | os.PathLike[str], image: dict[str, Any], tags: _Tags, limit: int, index: int
) -> Signal:
    name = tags.text(image.get("Name")).strip("\0") or f"image {index}"
    data, content, order = _members(image.get("ImageData")), tags.content, tags.order
    kind, stored_as = data.get("DataType"), data.get("Data")
    sides = list(_members(data.get("Dimensions")).values())
    if not sides or not isinstance(stored_as, tuple):
        return Signal(name, (), np.dtype("f4"), no_pixels, refused="an image without pixels")
    if kind not in PIXELS:
        refused = f"an image of the number format {kind}, which is not known"
        return Signal(name, tuple(sides[::-1]), np.dtype("V1"), no_pixels, refused=refused)
    dtype = np.dtype(order + PIXELS[kind])
    samples = 4 if kind in COLOURS else 1
    calibrations = _members(data.get("Calibrations"))
    axes = [_members(axis) for axis in _members(calibrations.get("Dimension")).values()]
    if 0 < len(axes) < 2 <= len(sides):
        note(path, f"{name} states the scale of one of its axes; the pixel size is unknown")
    axes += [{}] * (len(sides) - len(axes))  # x, y, ... as the dimensions
    shape, axes = _without_ones(sides[::-1], axes[: len(sides)][::-1])
    units = [tags.text(axis.get("Units")) for axis in axes]
    kinds, start, count = stored_as
    stored = count * struct.calcsize(order + kinds)
    refused = why_refused(dtype, shape, units)
    meant = _members(_members(image.get("ImageTags")).get("Meta Data")).get("Format")
    if len(shape) == 2 and tags.text(meant).strip("\0 ").lower() in SPECTRA:
        refused = refused or A_SPECTRUM
    if not refused:
        whole, plane = with_samples(shape, samples), with_samples(shape[-2:], samples)
        check_declared("it", whole, dtype, stored=stored, limit=math.inf)
        check_declared("its image", plane, dtype, stored=stored, limit=limit)
    step = math.prod(shape[-2:]) * samples

    def raw(i: int) -> Stored:
        size = step * dtype.itemsize
        pixels = np.frombuffer(content[start + i * size : start + (i + 1) * size], dtype)
        if samples == 1:
            return pixels.reshape(shape[-2:])
        return pixels.reshape(*shape[-2:], 4)[..., [2, 1, 0, 3]]

    signal = Signal(name, shape, dtype, raw, samples=samples, refused=refused)
    signal = signal._replace(brightness=_brightness(calibrations, tags))
    sizes = [nm(axis.get("Scale"), unit) for axis, unit in zip(axes, units, strict=True)]
    return signal.calibrated(sizes, "DM") if len(sizes) >= 2 else signal


def _without_ones(
    shape: Sequence[int], axes: Sequence[dict[str, Any]]
) -> tuple[tuple[int, ...], list[dict[str, Any]]]:
    """Return `shape` and its `axes` without those of length 1, but at least two."""
    kept = list(zip(shape, axes, strict=True))
    for pair in list(kept):
        if pair[0] == 1 and len(kept) > 2:
            kept.remove(pair)
    return tuple(side for side, _ in kept), [axis for _, axis in kept]


def _brightness(calibrations: dict[str, Any], tags: _Tags) -> tuple[float, float, str]:
    """Return (origin, scale, unit) of the values, or what stands for none.

    A value is (stored - origin) * scale, as the place of a pixel is along an axis.
    """
    stated = _members(calibrations.get("Brightness"))
    numbers = [stated.get("Origin", 0.0), stated.get("Scale", 1.0)]
    if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
        return NO_BRIGHTNESS
    origin, scale = map(float, numbers)
    if scale == 0 or (origin, scale) == NO_BRIGHTNESS[:2]:
        return NO_BRIGHTNESS
    return origin, scale, tags.text(stated.get("Units")).strip("\0 ")
