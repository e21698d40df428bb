"""HDF5, and EMD of Velox and of Berkeley inside it. Nothing outside the file is followed."""

import contextlib
import functools
import json
import math
import mmap
import os
import struct

import numpy as np

from emjax.errors import InputError
from emjax.micrographs.signal import UNKNOWN, Signal, declared, no_micrograph, pixels_of
from emjax.micrographs.units import nm, unit_name

OBJECTS, DEPTH = 100_000, 50
METADATA = 1 << 20  # bytes of text that Velox keeps for an image; 60 000 in its files
COLOURS = (3, 4)


@contextlib.contextmanager
def signals(path, limit):
    """The Signals of an HDF5 file: of its EMD groups, or of all 2-D and 3-D arrays of numbers."""
    import h5py

    with h5py.File(path, "r") as file:
        if "file_format" in file.attrs and "Experiments" in file:
            raise InputError("a HyperSpy file; rename it .hspy and install emjax[rsciio]")
        size = os.path.getsize(path)
        groups, arrays = inside(file)
        found = []
        for name, group in groups.items():
            held = {n.rpartition("/")[2]: d for n, d in arrays.items() if d.parent == group}
            if name.startswith("/Data/Image/") and "Data" in held:
                found.append(_velox(held, size, limit, name))
            elif attribute(group, "emd_group_type", 0) == 1:
                found.append(_berkeley(held, size, limit, name))
        if not found:
            found = [_plain(arrays[name], size, limit, name) for name in arrays]
            found = [signal for signal in found if not signal.refused]
        if not found:
            told = ", ".join(f"{name} {array.shape}" for name, array in list(arrays.items())[:8])
            raise InputError(f"no 2-D or 3-D array of numbers; it has {told or 'no array at all'}")
        yield found


def inside(file):
    """({name: group}, {name: dataset}) of an open file; what points out of it is left out.

    Raises: InputError for a dataset whose values lie in another file.
    """
    import h5py

    groups, arrays, seen, waiting = {}, {}, set(), [("", file["/"], 0)]
    while waiting:
        name, item, depth = waiting.pop(0)
        address = h5py.h5o.get_info(item.id).addr
        if address in seen:  # a group may hold itself
            continue
        seen.add(address)
        if isinstance(item, h5py.Dataset):
            if item.external or item.is_virtual:
                raise InputError(f"{name} keeps its values in other files, which are not followed")
            arrays[name] = item
            continue
        groups[name or "/"] = item
        if depth > DEPTH or len(seen) > OBJECTS:
            raise InputError(f"over {OBJECTS} objects, or {DEPTH} groups in each other")
        for key in item:
            if isinstance(item.get(key, getlink=True), h5py.HardLink):
                member = item.get(key)
                if isinstance(member, (h5py.Group, h5py.Dataset)):
                    waiting.append((f"{name}/{key}", member, depth + 1))
    return groups, arrays


def attribute(item, name, missing):
    """The attribute `name` of a group or dataset, or `missing`."""
    import h5py

    if name not in item.attrs:
        return missing
    if isinstance(item.attrs.get_id(name).get_type(), (h5py.h5t.TypeStringID, h5py.h5t.TypeVlenID)):
        check_heaps(item.file.filename)
    return item.attrs[name]


def check_heaps(path):
    """Refuse a file that HDF5 would read for ever: texts lie in heaps, lists of (size, content)
    whose free space has the number 0, and where that has the size 0 too it gets no further."""
    state = os.stat(path)
    _check_heaps(os.fspath(path), state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _check_heaps(path, size, _):
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.find(b"GCOL\1\0\0\0")
        while start >= 0:
            end = min(start + int.from_bytes(content[start + 8 : start + 16], "little"), size)
            at = start + 16
            while at + 16 <= end:
                number, _, _, length = struct.unpack_from("<HHIQ", content, at)
                if number == 0 and length == 0:
                    raise InputError(f"a heap of texts at byte {start} that never ends")
                at += length if number == 0 else 16 + (length + 7) // 8 * 8
            start = content.find(b"GCOL\1\0\0\0", start + 1)


def _check(array, plane, size, limit, name):
    """Refuse `array` if a plane or a chunk of it cannot be, or is too large."""
    start = array.id.get_offset()
    chunked = start is None  # or never written: all values are the fill value
    stored = size if chunked else size - start
    check = dict(stored=stored, compressed=chunked)
    declared(name, array.shape, array.dtype, **check, limit=math.inf)
    declared(f"an image of {name}", plane, array.dtype, **check, limit=limit)
    if array.chunks:
        declared(f"a chunk of {name}", array.chunks, array.dtype, **check, limit=limit)


def _plain(array, size, limit, name):
    """An array [h, w], [planes, h, w] or [h, w, colours]."""
    if array.shape is None or 0 in array.shape:
        return Signal(name, (), array.dtype, None, refused="an array without values")
    sides, samples = colours(array.shape, array.dtype)
    refused = no_micrograph(array.dtype, sides)
    if not refused:
        _check(array, pixels_of(sides[-2:], samples), size, limit, name)

    def raw(i):
        return array[i] if len(sides) == 3 else array[()]

    sizes = np.ravel(attribute(array, "element_size_um", ()))  # as ImageJ and ilastik write it
    nm_per_plane, *nm_per_pixel = math.nan, *UNKNOWN
    if len(sizes) in (2, 3):
        nm_per_plane, *nm_per_pixel = (nm(size, "um") for size in (math.nan, *sizes)[-3:])
    origin = "element_size_um" if np.isfinite(nm_per_pixel).all() else "none"
    told = dict(samples=samples, refused=refused, nm_per_plane=nm_per_plane)
    return Signal(name, sides, array.dtype, raw, tuple(nm_per_pixel), origin, **told)


def colours(shape, dtype):
    """(h, w or planes, h, w; samples per pixel): a short last axis of 8 or 16 bits is colours."""
    few = len(shape) == 3 and shape[-1] in COLOURS and min(shape[:2]) > max(COLOURS)
    if few and np.dtype(dtype).kind == "u":
        return tuple(shape[:-1]), shape[-1]
    return tuple(shape), 1


def _velox(held, size, limit, name):
    """An array [h, w, frames], its pixel size in a JSON text."""
    array = held["Data"]
    sides = array.shape[2:] + array.shape[:2] if array.shape[2:] != (1,) else array.shape[:2]
    detector, nm_per_pixel, units = "", UNKNOWN, ()
    with contextlib.suppress(KeyError, ValueError, TypeError, AttributeError):
        known = json.loads(_text(held["Metadata"], size, limit))["BinaryResult"]
        detector = str(known.get("Detector", ""))
        units = known["PixelUnitY"], known["PixelUnitX"]
        pixel = known["PixelSize"]
        nm_per_pixel = nm(pixel["height"], units[0]), nm(pixel["width"], units[1])
    refused = no_micrograph(array.dtype, sides, units)
    if array.dtype.names:
        refused = "complex numbers"
    if not refused:
        _check(array, sides[-2:], size, limit, name)
    origin = "Velox" if np.isfinite(nm_per_pixel).all() else "none"

    def raw(i):
        return array[:, :, i] if array.ndim == 3 else array[()]

    label = f"{detector} {name[12:20]}".strip()
    return Signal(label, sides, array.dtype, raw, nm_per_pixel, origin, refused=refused)


def _text(array, size, limit):
    """What the first column of an array of bytes spells."""
    rows = array.shape[0]
    if array.dtype != np.uint8 or rows > METADATA:
        raise ValueError("no text")
    _check(array, (rows,), size, limit, "Metadata")
    return bytes(array[:, 0] if array.ndim == 2 else array[()]).split(b"\0", 1)[0]


def _berkeley(held, size, limit, name):
    """An array beside vectors dim1, dim2, ..., which say what its axes are.

    The axes of an image are the last two, or the two that are lengths; x may stand before y.
    """
    data = {key: array for key, array in held.items() if not key.startswith("dim")}
    if len(data) != 1:
        raise InputError(f"{name} holds {len(data)} arrays, {', '.join(data)}; one was due")
    (array,) = data.values()
    axes = [_axis(held.get(f"dim{place + 1}"), size) for place in range(len(array.shape))]
    refused = no_micrograph(array.dtype, array.shape)
    places = list(range(array.ndim))
    if not refused:
        lengths = [place for place in places if np.isfinite(axes[place][1])]
        image = lengths if len(lengths) == 2 else places[-2:]
        if [axes[place][0] for place in image] in (["x", "y"], ["r_x", "r_y"]):
            image = image[::-1]
        places = [place for place in places if place not in image] + image
        refused = no_micrograph(array.dtype, array.shape, [axes[place][2] for place in image])
        other = no_micrograph(array.dtype, array.shape, [axes[place][2] for place in places])
        refused = refused or (other if other == "an energy axis" else "")
    sides = tuple(array.shape[place] for place in places)
    if not refused:
        _check(array, sides[-2:], size, limit, name)
    nm_per_pixel = tuple(axes[place][1] for place in places[-2:]) if not refused else UNKNOWN
    if not np.isfinite(nm_per_pixel).all():
        nm_per_pixel = UNKNOWN

    def raw(i):
        where = [slice(None)] * array.ndim
        if array.ndim == 3:
            where[places[0]] = i
        pixels = array[tuple(where)]
        return pixels if places[-2] < places[-1] else pixels.T

    origin = "Berkeley EMD" if np.isfinite(nm_per_pixel).all() else "none"
    told = dict(refused=refused, nm_per_plane=axes[places[0]][1] if len(places) == 3 else math.nan)
    return Signal(name, sides, array.dtype, raw, nm_per_pixel, origin, **told)


def _axis(array, size):
    """(name, nm per pixel or NaN, unit) of an axis by its vector of at least two places."""
    if array is None or array.ndim != 1 or len(array) < 2 or array.dtype.kind not in "uif":
        return "", math.nan, ""
    _check(array, array.shape, size, METADATA, "an axis")
    first, second = (float(value) for value in array[:2])
    name, unit = attribute(array, "name", ""), attribute(array, "units", "")
    return unit_name(name), nm(second - first, unit), unit_name(unit)
