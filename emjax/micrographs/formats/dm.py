"""DM3 and DM4, Gatan's tagged files: every count and offset is checked before it is used."""

import contextlib
import math
import mmap
import struct

import numpy as np

from emjax.errors import InputError
from emjax.micrographs.signal import UNKNOWN, Signal, declared, no_micrograph, pixels_of
from emjax.micrographs.units import nm

# What tag values are called: a struct format, or 15 struct, 18 string, 20 array.
SIMPLE = dict(zip(range(2, 13), "hiHIfdbbbqQ", strict=True))
PIXELS = {
    1: "i2", 2: "f4", 3: "c8", 5: "c8", 6: "u1", 7: "i4", 9: "i1", 10: "u2", 11: "u4",
    12: "f8", 13: "c16", 14: "u1", 23: "u1", 27: "c8", 28: "c16", 39: "i8", 40: "u8",
}  # fmt: skip
COLOUR = 23  # blue, green, red, alpha
TAGS, DEPTH, TEXT = 300_000, 60, 1000


@contextlib.contextmanager
def signals(path, limit):
    """The list of Signals of a DM3 or DM4 file, without the thumbnail."""
    with open(path, "rb") as file, _mapped(file) as content:
        tags = _Tags(content)
        root = tags.root()
        thumbnails = {
            entry.get("ImageIndex")
            for entry in root.get("Thumbnails", {}).values()
            if isinstance(entry, dict)
        }
        images = list(root.get("ImageList", {}).values())
        if not thumbnails and len(images) > 1:
            thumbnails = {0}
        if not images:
            raise InputError("a DM file without an image")
        yield [
            _signal(image, tags, limit, place)
            for place, image in enumerate(images)
            if place not in thumbnails
        ]


@contextlib.contextmanager
def _mapped(file):
    """The content of an open file as something to slice that is not copied."""
    content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        yield content
    finally:
        content.close()


class _Tags:
    """The tags of a file as nested dicts; arrays as (type, offset, count) and not read."""

    def __init__(self, content):
        self.content, self.at, self.seen = content, 0, 0
        version = self.take(">I")
        if version not in (3, 4):
            raise InputError(f"version {version} of DM, where 3 or 4 was due")
        self.size = ">I" if version == 3 else ">Q"
        self.take(self.size)
        self.order = "<" if self.take(">I") == 1 else ">"

    def root(self):
        return self.group(0)

    def take(self, form):
        (value,) = struct.unpack_from(form, self.content, self.at)
        self.at += struct.calcsize(form)
        return value

    def group(self, depth):
        if depth > DEPTH:
            raise InputError(f"tags nested over {DEPTH} deep")
        self.at += 2
        found = {}
        for place in range(self.take(self.size)):
            self.seen += 1
            if self.seen > TAGS:
                raise InputError(f"over {TAGS} tags")
            kind, length = self.take(">B"), self.take(">H")
            name = self.content[self.at : self.at + length].decode("latin-1") or str(place)
            self.at += length
            if self.size == ">Q":
                self.at += 8
            if kind == 20:
                found[name] = self.group(depth + 1)
            elif kind == 21:
                found[name] = self.value()
            else:
                raise InputError(f"a tag of kind {kind} at byte {self.at}, where 20 or 21 was due")
        return found

    def value(self):
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
        kinds = ["b"] * info[1] if info[0] == 18 and info[1] <= len(self.content) else None
        if info[0] == 15:
            kinds = [SIMPLE[kind] for kind in info[4::2]]
        if kinds is None:
            raise InputError(f"a tag of type {info[0]} at byte {self.at}")
        self.at += struct.calcsize(self.order + "".join(kinds))

    def array(self, kinds, count):
        """(struct format, offset, count)."""
        kinds = [SIMPLE[kind] for kind in (kinds[4::2] if kinds[0] == 15 else kinds)]
        start = self.at
        self.at += count * struct.calcsize(self.order + "".join(kinds))
        if self.at > len(self.content):
            raise InputError(f"cut off: an array at byte {start} ends at byte {self.at}")
        return "".join(kinds), start, count

    def text(self, value):
        """The text that an array of 16-bit numbers spells, empty for anything else."""
        if not isinstance(value, tuple) or value[0] != "H" or value[2] > TEXT:
            return ""
        coding = "utf-16-le" if self.order == "<" else "utf-16-be"
        return self.content[value[1] : value[1] + 2 * value[2]].decode(coding, "replace")


def _signal(image, tags, limit, place):
    data, content, order = image["ImageData"], tags.content, tags.order
    if data["DataType"] not in PIXELS:
        raise InputError(f"pixels of type {data['DataType']}, which nobody has described")
    dtype = np.dtype(order + PIXELS[data["DataType"]])
    sides = tuple(data["Dimensions"].values())[::-1]
    samples = 4 if data["DataType"] == COLOUR else 1
    kinds, start, count = data["Data"]
    stored = count * struct.calcsize(order + kinds)
    axes = list(data.get("Calibrations", {}).get("Dimension", {}).values())[::-1]
    units = [tags.text(axis.get("Units")) for axis in axes]
    refused = no_micrograph(dtype, sides, units)
    if not refused:
        declared("it", pixels_of(sides, samples), dtype, stored=stored, limit=math.inf)
        declared("its image", pixels_of(sides[-2:], samples), dtype, stored=stored, limit=limit)
    nm_per_plane, *nm_per_pixel = math.nan, *UNKNOWN
    if len(axes) == len(sides) >= 2:
        sizes = [nm(axis.get("Scale"), unit) for axis, unit in zip(axes, units, strict=True)]
        nm_per_plane, *nm_per_pixel = [math.nan, *sizes][-3:]
    step = math.prod(sides[-2:]) * samples

    def raw(i):
        size = step * dtype.itemsize
        pixels = np.frombuffer(content[start + i * size : start + (i + 1) * size], dtype)
        if samples == 1:
            return pixels.reshape(sides[-2:])
        return pixels.reshape(*sides[-2:], 4)[..., [2, 1, 0, 3]]

    return Signal(
        tags.text(image.get("Name")).strip("\0") or f"image {place}",
        sides,
        dtype,
        raw,
        tuple(nm_per_pixel),
        "DM" if np.isfinite(nm_per_pixel).all() else "none",
        samples,
        refused,
        nm_per_plane=nm_per_plane,
    )
