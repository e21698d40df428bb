"""What is inside an HDF5 file and how it is read: nothing outside the file is followed."""

import functools
import importlib
import math
import mmap
import os
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from emjax.errors import InputError, note
from emjax.micrographs.axes import Axes, Layout, layouts, numbers
from emjax.micrographs.formats.stored_values import ATTRIBUTES, Values, spacing, values_of
from emjax.micrographs.shapes import Stored
from emjax.micrographs.signal import Signal, check_declared, no_pixels, with_samples
from emjax.micrographs.units import UNKNOWN

OBJECTS, DEPTH = 100_000, 50
METADATA = 1 << 20  # bytes of an axis, or of the text that Velox keeps for an image
# Filters that hdf5plugin has, lossless. Source: the HDF Group's list of registered filters.
PLUGINS = {307: "bzip2", 32001: "Blosc", 32004: "LZ4", 32008: "bitshuffle", 32015: "Zstandard",
           32026: "Blosc2"}  # fmt: skip
OTHERS = {32013: "ZFP", 32017: "SZ", 32018: "FCIDECOMP", 32019: "JPEG", 32024: "SZ3",
          32028: "SPERR"}  # fmt: skip


class Inside(NamedTuple):
    """An open file: its groups and datasets by name, and what reading them may take."""

    path: str
    size: int
    limit: int
    groups: Mapping[str, Any]
    arrays: Mapping[str, Any]
    by_group: Mapping[str, Mapping[str, Any]]
    elsewhere: Sequence[str]  # links to other files and datasets with values there: left out

    def members(self, name: str) -> Mapping[str, Any]:
        """Return the datasets of the group `name` by their last names."""
        return self.by_group.get(name.rstrip("/"), {})

    def check(self, array: Any, plane: Sequence[int], name: str) -> None:
        """Refuse `array` if a plane or a chunk of it is impossible or too large."""
        start = array.id.get_offset()
        chunked = start is None  # or never written: all values are the fill value
        stored = self.size if chunked else self.size - start

        check = functools.partial(check_declared, stored=stored, compressed=chunked)
        dtype, most = array.dtype, self.limit
        unwritten = most if array.chunks else 0
        check(name, array.shape, dtype, limit=math.inf, unwritten=unwritten)
        check(f"an image of {name}", plane, numbers(dtype), limit=most, unwritten=unwritten)
        if array.chunks:
            check(f"a chunk of {name}", array.chunks, dtype, limit=most)

    def signals(
        self,
        array: Any,
        name: str,
        axes: Axes,
        values: Values | None = None,
        shape: Sequence[int] | None = None,
    ) -> list[Signal]:
        """Return the Signals in a dataset: one image or stack, or one for each channel.

        Args:
            values: what the numbers become; by default what the CF attributes say.
            shape: of the part of the dataset, from its start, that is the image.
        """
        found, refused = layouts(shape or array.shape or (), array.dtype, axes)
        values = values or values_of(numbers(array.dtype), attributes(array))
        refused = refused or values.refused or why_not_read(array)
        if refused:
            shape = tuple(array.shape or ())
            return [Signal(name, shape, array.dtype, no_pixels, refused=refused)]
        return [self._signal(array, layout, name, axes, values) for layout in found]

    def _signal(self, array: Any, layout: Layout, name: str, axes: Axes, values: Values) -> Signal:
        label = " ".join(part for part in (name, layout.label) if part)
        refused = layout.no_length(axes.units)
        if not refused:
            self.check(array, with_samples(layout.shape[-2:], layout.samples), name)
            if not any(layout.fixed.values()):  # once for all channels
                self._note_missing(array, name)

        def raw(index: int) -> Stored:
            try:
                pixels = layout.plane(array, index)
            except OSError as error:
                raise InputError(f"HDF5 cannot decode {name}: {error}") from None
            return values.convert(pixels)

        signal = Signal(
            label, layout.shape, values.dtype, raw, samples=layout.samples, refused=refused
        )._replace(channel=layout.label)
        return signal.calibrated(layout.of(axes.steps) or UNKNOWN, axes.origin)

    def _note_missing(self, array: Any, name: str) -> None:
        """Note chunks that were never written, and what stands for them."""
        if not array.chunks or (
            not array.compression and array.id.get_storage_size() >= array.nbytes
        ):
            return
        chunks = math.prod(
            -(-side // chunk) for side, chunk in zip(array.shape, array.chunks, strict=True)
        )
        missing = chunks - array.id.get_num_chunks()
        if missing > 0:
            note(
                self.path,
                f"{missing} of {chunks} chunks of {name} were never written; their pixels are "
                f"{array.fillvalue}",
            )


def inside(file: Any, limit: int) -> Inside:
    """Return what is inside an open file, without what points out of it."""
    from h5py import Dataset, ExternalLink, Group, HardLink
    from h5py.h5o import get_info

    groups: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    elsewhere: list[str] = []
    seen: set[Any] = set()
    waiting: list[tuple[str, Any, int]] = [("", file["/"], 0)]
    while waiting:
        name, item, depth = waiting.pop(0)
        address = get_info(item.id).addr
        if address in seen:  # a group may hold itself
            continue
        seen.add(address)
        if isinstance(item, Dataset):
            if is_elsewhere(item):
                elsewhere.append(name)
            else:
                arrays[name] = item
            continue
        groups[name or "/"] = item
        if depth > DEPTH or len(seen) > OBJECTS:
            raise InputError(f"over {OBJECTS} objects, or {DEPTH} groups in each other")
        for key in item:
            link = item.get(key, getlink=True)
            if isinstance(link, ExternalLink):
                elsewhere.append(f"{name}/{key}")
            elif isinstance(link, HardLink):
                member = item.get(key)
                if isinstance(member, (Group, Dataset)):
                    waiting.append((f"{name}/{key}", member, depth + 1))
    by_group: dict[str, dict[str, Any]] = {}
    for name, array in arrays.items():
        group, _, last = name.rpartition("/")
        by_group.setdefault(group, {})[last] = array
    size = os.path.getsize(file.filename)
    return Inside(file.filename, size, limit, groups, arrays, by_group, elsewhere)


def is_elsewhere(array: Any) -> bool:
    """Return whether a dataset is virtual or external: even its shape may be in other files."""
    return array.is_virtual or bool(array.external)


def member(group: Any, name: str) -> Any:
    """Return what `name` of a group is, also by soft links; None where it is not in the file."""
    from h5py import Group, HardLink, SoftLink

    found: Any = group
    parts, links = [name], 0
    while parts:
        part = parts.pop(0)
        link = found.get(part, getlink=True) if isinstance(found, Group) else None
        if isinstance(link, HardLink):
            found = found.get(part)
        elif isinstance(link, SoftLink) and links < DEPTH:
            links += 1
            found = found.file["/"] if link.path.startswith("/") else found
            parts = [name for name in link.path.split("/") if name not in ("", ".")] + parts
        else:
            return None
    return found


def attribute(item: Any, name: str, missing: Any = None) -> Any:
    """Return the attribute `name` of a group or dataset, or `missing`."""
    from h5py.h5t import TypeStringID, TypeVlenID

    if name not in item.attrs:
        return missing
    kind = item.attrs.get_id(name).get_type()
    if isinstance(kind, (TypeStringID, TypeVlenID)):
        check_heaps(item.file.filename)
    if isinstance(kind, TypeVlenID) and not is_sequence(kind.encode()):
        raise InputError(f"its attribute {name} is neither a text nor a sequence")
    return item.attrs[name]


def is_sequence(encoded: bytes) -> bool:
    """Return whether a datatype of variable length, as HDF5 encodes it, is a sequence.

    HDF5 has two of these, sequences and texts, and does not check for others.
    Source: HDF5's file format specification 3.0, IV.A.2.d, class 9; two bytes of H5Tencode first.
    """
    return encoded[2] & 15 == 9 and encoded[3] & 15 == 0


def coordinates(inside: Inside, vectors: Sequence[Any]) -> tuple[list[str], list[float]]:
    """Return (units, nm per pixel) of axes by the datasets of their positions; None: unknown."""
    units = [text(part, "units") if part is not None else "" for part in vectors]
    steps = [spacing(vector(part, inside), unit) for part, unit in zip(vectors, units, strict=True)]
    return units, steps


def text(item: Any, name: str) -> str:
    """Return the attribute `name` as text, "" where there is none."""
    value = attribute(item, name, "")
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def texts(value: Any) -> list[str]:
    """Return the texts of an attribute or an array of them, bytes decoded."""
    return [
        part.decode("utf-8", "replace") if isinstance(part, bytes) else str(part)
        for part in np.ravel(np.asarray(value, dtype=object))
    ]


def attributes(item: Any) -> dict[str, Any]:
    """Return the CF attributes of a dataset."""
    return {name: attribute(item, name) for name in ATTRIBUTES if name in item.attrs}


def vector(array: Any, inside: Inside) -> Any:
    """Return the positions of an axis that a dataset [n] or [n, 1] keeps, () if it is none."""
    if array is None or array.shape is None or array.dtype.kind not in "uif":
        return ()
    if array.ndim not in (1, 2) or array.shape[1:] not in ((), (1,)) or len(array) < 2:
        return ()
    if array.nbytes > METADATA or why_not_read(array):
        return ()
    inside.check(array, array.shape, "an axis")
    return array[()].reshape(-1)


def why_not_read(array: Any) -> str:
    """Return why HDF5 cannot decode a dataset: a filter that is not there, or nothing written."""
    from h5py import h5z  # pyright: ignore[reportAttributeAccessIssue]

    settings = array.id.get_create_plist()
    for index in range(settings.get_nfilters()):
        code, _, _, name = settings.get_filter(index)
        if h5z.filter_avail(code):
            continue
        if code not in PLUGINS:
            called = OTHERS.get(code) or name.split(b"\0")[0].decode("ascii", "replace")[:40]
            return f"compressed by the HDF5 filter {code} {called}".strip() + ", which is not read"
        try:
            importlib.import_module("hdf5plugin")  # tells HDF5 of its filters
        except ImportError:
            pass
        if not h5z.filter_avail(code):
            return (
                f"compressed by the HDF5 filter {code} ({PLUGINS[code]}); "
                "install emjax[hdf5plugin], or save it with gzip"
            )
    if array.id.get_storage_size() == 0 and array.size:
        return "declared, but its values were never written"
    return ""


def check_heaps(path: str | os.PathLike[str]) -> None:
    """Refuse a file in which a heap of texts is damaged, before HDF5 reads a text in one."""
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
                step = length if number == 0 else 16 + (length + 7) // 8 * 8
                if not 0 < step <= end - at:
                    raise InputError(f"a damaged heap of texts at byte {start}")
                at += step
            start = content.find(b"GCOL\1\0\0\0", start + 1)
