"""HDF5, and EMD of Velox and of Berkeley inside it. Nothing outside the file is followed."""

import contextlib
import functools
import json
import math
import mmap
import os
import struct
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np

from emjax.errors import InputError
from emjax.micrographs.shapes import Stored
from emjax.micrographs.signal import (
    DType,
    Signal,
    check_declared,
    no_pixels,
    why_refused,
    with_samples,
)
from emjax.micrographs.units import UNKNOWN, nm, unit_name

OBJECTS, DEPTH = 100_000, 50
METADATA = 1 << 20  # bytes of text that Velox keeps for an image; 60 000 in its files
COLOURS = (3, 4)


@contextlib.contextmanager
def signals(path: str | os.PathLike[str], limit: int) -> Generator[list[Signal]]:
    """Yield the Signals of a file's EMD groups, or of all its 2-D and 3-D arrays of numbers."""
    import h5py

    with h5py.File(path, "r") as file:
        if "file_format" in file.attrs and "Experiments" in file:
            raise InputError("a HyperSpy file; rename it .hspy and install emjax[rsciio]")
        size = os.path.getsize(path)
        groups, arrays = inside(file)
        found: list[Signal] = []
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
            listed = ", ".join(f"{name} {array.shape}" for name, array in list(arrays.items())[:8])
            raise InputError(
                f"no 2-D or 3-D array of numbers; it has {listed or 'no array at all'}"
            )
        yield found


def inside(file: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return ({name: group}, {name: dataset}) of an open file, without what points out of it.

    Raises: InputError for a dataset with values in another file.
    """
    from h5py import Dataset, Group, HardLink
    from h5py.h5o import get_info

    groups: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    seen: set[Any] = set()
    waiting: list[tuple[str, Any, int]] = [("", file["/"], 0)]
    while waiting:
        name, item, depth = waiting.pop(0)
        address = get_info(item.id).addr
        if address in seen:  # a group may hold itself
            continue
        seen.add(address)
        if isinstance(item, Dataset):
            if item.external or item.is_virtual:
                raise InputError(f"{name} keeps its values in other files, which are not followed")
            arrays[name] = item
            continue
        groups[name or "/"] = item
        if depth > DEPTH or len(seen) > OBJECTS:
            raise InputError(f"over {OBJECTS} objects, or {DEPTH} groups in each other")
        for key in item:
            if isinstance(item.get(key, getlink=True), HardLink):
                member = item.get(key)
                if isinstance(member, (Group, Dataset)):
                    waiting.append((f"{name}/{key}", member, depth + 1))
    return groups, arrays


def attribute(item: Any, name: str, missing: Any) -> Any:
    """Return the attribute `name` of a group or dataset, or `missing`."""
    from h5py.h5t import TypeStringID, TypeVlenID

    if name not in item.attrs:
        return missing
    if isinstance(item.attrs.get_id(name).get_type(), (TypeStringID, TypeVlenID)):
        check_heaps(item.file.filename)
    return item.attrs[name]


def check_heaps(path: str | os.PathLike[str]) -> None:
    """Refuse a file that HDF5 would read for ever.

    Texts lie in heaps, lists of (size, content). Free space has the number 0; where its size is 0
    too, HDF5 gets no further.
    """
    state = os.stat(path)
    _check_heaps(os.fspath(path), state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _check_heaps(path: str, size: int, _: int) -> None:
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


def _check(array: Any, plane: Sequence[int], size: int, limit: int, name: str) -> None:
    """Refuse `array` if a plane or a chunk of it is impossible or too large."""
    start = array.id.get_offset()
    chunked = start is None  # or never written: all values are the fill value
    stored = size if chunked else size - start

    def check(what: str, shape: Sequence[int], limit: int | float) -> None:
        check_declared(what, shape, array.dtype, stored=stored, limit=limit, compressed=chunked)

    check(name, array.shape, math.inf)
    check(f"an image of {name}", plane, limit)
    if array.chunks:
        check(f"a chunk of {name}", array.chunks, limit)


def _plain(array: Any, size: int, limit: int, name: str) -> Signal:
    """Return the Signal of an array [h, w], [planes, h, w] or [h, w, colours]."""
    if array.shape is None or 0 in array.shape:
        return Signal(name, (), array.dtype, no_pixels, refused="an array without values")
    shape, samples = colours(array.shape, array.dtype)
    refused = why_refused(array.dtype, shape)
    if not refused:
        _check(array, with_samples(shape[-2:], samples), size, limit, name)

    def raw(i: int) -> Stored:
        return array[i] if len(shape) == 3 else array[()]

    signal = Signal(name, shape, array.dtype, raw, samples=samples, refused=refused)
    sizes = np.ravel(attribute(array, "element_size_um", ()))  # as ImageJ and ilastik write it
    if len(sizes) in (2, 3):
        return signal.calibrated([nm(size, "um") for size in sizes], "element_size_um")
    return signal


def colours(shape: Sequence[int], dtype: DType) -> tuple[tuple[int, ...], int]:
    """Return (h, w or planes, h, w; samples per pixel).

    A short last axis of 8- or 16-bit numbers is colours.
    """
    few = len(shape) == 3 and shape[-1] in COLOURS and min(shape[:2]) > max(COLOURS)
    if few and np.dtype(dtype).kind == "u":
        return tuple(shape[:-1]), shape[-1]
    return tuple(shape), 1


def _velox(held: Mapping[str, Any], size: int, limit: int, name: str) -> Signal:
    """Return the Signal of an array [h, w, frames] with its pixel size in a JSON text."""
    array = held["Data"]
    shape = array.shape[2:] + array.shape[:2] if array.shape[2:] != (1,) else array.shape[:2]
    detector, nm_per_pixel, units = "", UNKNOWN, ()
    with contextlib.suppress(KeyError, ValueError, TypeError, AttributeError):
        known = json.loads(_text(held["Metadata"], size, limit))["BinaryResult"]
        detector = str(known.get("Detector", ""))
        units = known["PixelUnitY"], known["PixelUnitX"]
        pixel = known["PixelSize"]
        nm_per_pixel = nm(pixel["height"], units[0]), nm(pixel["width"], units[1])
    refused = why_refused(array.dtype, shape, units)
    if array.dtype.names:
        refused = "complex numbers"
    if not refused:
        _check(array, shape[-2:], size, limit, name)

    def raw(i: int) -> Stored:
        return array[:, :, i] if array.ndim == 3 else array[()]

    label = f"{detector} {name[12:20]}".strip()
    return Signal(label, shape, array.dtype, raw, refused=refused).calibrated(nm_per_pixel, "Velox")


def _text(array: Any, size: int, limit: int) -> bytes:
    """Return what the first column of an array of bytes spells."""
    rows = array.shape[0]
    if array.dtype != np.uint8 or rows > METADATA:
        raise ValueError("no text")
    _check(array, (rows,), size, limit, "Metadata")
    return bytes(array[:, 0] if array.ndim == 2 else array[()]).split(b"\0", 1)[0]


def _berkeley(held: Mapping[str, Any], size: int, limit: int, name: str) -> Signal:
    """Return the Signal of an array and the vectors dim1, dim2, ... that describe its axes.

    The axes of an image are the last two, or the two that are lengths; x may stand before y.
    """
    data = {key: array for key, array in held.items() if not key.startswith("dim")}
    if len(data) != 1:
        raise InputError(f"{name} holds {len(data)} arrays, {', '.join(data)}; expected one")
    (array,) = data.values()
    axes = [_axis(held.get(f"dim{axis + 1}"), size) for axis in range(len(array.shape))]
    refused = why_refused(array.dtype, array.shape)
    order = list(range(array.ndim))
    if not refused:
        lengths = [axis for axis in order if np.isfinite(axes[axis][1])]
        image = lengths if len(lengths) == 2 else order[-2:]
        if [axes[axis][0] for axis in image] in (["x", "y"], ["r_x", "r_y"]):
            image = image[::-1]
        order = [axis for axis in order if axis not in image] + image
        refused = why_refused(array.dtype, array.shape, [axes[axis][2] for axis in image])
        other = why_refused(array.dtype, array.shape, [axes[axis][2] for axis in order])
        refused = refused or (other if other == "an energy axis" else "")
    shape = tuple(array.shape[axis] for axis in order)
    if not refused:
        _check(array, shape[-2:], size, limit, name)

    def raw(i: int) -> Stored:
        where: list[slice | int] = [slice(None)] * array.ndim
        if array.ndim == 3:
            where[order[0]] = i
        pixels = array[tuple(where)]
        return pixels if order[-2] < order[-1] else pixels.T

    signal = Signal(name, shape, array.dtype, raw, refused=refused)
    return (
        signal if refused else signal.calibrated([axes[axis][1] for axis in order], "Berkeley EMD")
    )


def _axis(array: Any, size: int) -> tuple[str, float, str]:
    """Return (name, nm per pixel or NaN, unit) of an axis by its vector of positions."""
    if array is None or array.ndim != 1 or len(array) < 2 or array.dtype.kind not in "uif":
        return "", math.nan, ""
    _check(array, array.shape, size, METADATA, "an axis")
    first, second = (float(value) for value in array[:2])
    name, unit = attribute(array, "name", ""), attribute(array, "units", "")
    return unit_name(name), nm(second - first, unit), unit_name(unit)
