"""NPY, and Zarr with or without OME metadata. No object arrays, no codec that runs code."""

import bisect
import contextlib
import dataclasses
import functools
import itertools
import json
import math
import os
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emjax.errors import InputError, note
from emjax.micrographs.axes import Axes, Layout, layouts, numbers, role
from emjax.micrographs.formats.stored_values import (
    Values,
    axistags,
    hyperspy_axes,
    spacing,
    values_of,
)
from emjax.micrographs.shapes import Stored
from emjax.micrographs.signal import Signal, check_declared, no_pixels, with_samples
from emjax.micrographs.units import UNKNOWN, nm

ZARR_FILES = ("zarr.json", ".zarray", ".zgroup", ".zmetadata")
CODECS = {
    "bytes", "transpose", "sharding_indexed", "crc32c", "crc32", "adler32", "fletcher32",
    "gzip", "zstd", "blosc", "zlib", "lz4", "bz2", "lzma", "shuffle", "delta", "packbits",
    "fixedscaleoffset", "bitround", "quantize",
    "vlen-utf8", "vlen-bytes",  # of texts, which are not read
}  # fmt: skip
METADATA = 16 << 20  # bytes of a JSON file
ARRAYS, DEPTH = 1000, 6  # members of a group; groups in each other


class _Store(NamedTuple):
    """A Zarr store on the disk, and what reading it may take."""

    path: str | os.PathLike[str]
    limit: int
    size: int  # bytes of all files
    files: list[str]  # relative, sorted


@contextlib.contextmanager
def npy_signals(path: str | os.PathLike[str], limit: int) -> Generator[list[Signal]]:
    """Yield the Signals of an NPY file, which is mapped and not read: one, or one per channel."""
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        old = version == (1, 0)
        read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        stored = os.path.getsize(path) - file.tell()
    if dtype.hasobject:
        raise InputError("an NPY file of pickled Python objects, which are not read")
    if 0 not in shape:
        check_declared("it", shape or (1,), dtype, stored=stored, limit=math.inf)
    # Reads no pickles, and maps no more than the file has.
    array = np.lib.format.open_memmap(path, mode="r")
    found, refused = layouts(array.shape, array.dtype, Axes())
    if refused:
        yield [Signal("array", array.shape, array.dtype, no_pixels, refused=refused)]
        return
    yield [_of_npy(array, layout, limit) for layout in found]


def _of_npy(array: np.ndarray, layout: Layout, limit: int) -> Signal:
    plane, dtype = with_samples(layout.shape[-2:], layout.samples), numbers(array.dtype)
    check_declared("its image", plane, dtype, stored=array.nbytes, limit=limit)

    def raw(index: int) -> Stored:
        return np.array(layout.plane(array, index))

    name = f"array {layout.label}".strip()
    signal = Signal(name, layout.shape, dtype, raw, samples=layout.samples)
    return signal._replace(channel=layout.label)


def is_zarr(path: str | os.PathLike[str]) -> bool:
    """Return whether the folder `path` is a Zarr store; one that may not be entered is none."""
    try:
        return any((Path(path) / name).is_file() for name in ZARR_FILES)
    except PermissionError:
        return False


@contextlib.contextmanager
def zarr_signals(path: str | os.PathLike[str], limit: int) -> Generator[list[Signal]]:
    """Yield the Signals of a Zarr store: its full-size OME images, and its other arrays."""
    import zarr
    from zarr.storage import LocalStore

    size, files = _check_links(path)
    for name in ZARR_FILES:
        for file in Path(path).rglob(name):
            _check_codecs(file, file.relative_to(path).as_posix())
    root = zarr.open(store=LocalStore(os.fspath(path), read_only=True), mode="r")
    found = list(_walk(root, None, _Store(path, limit, size, files), 0))
    if len(found) > 1:
        found = [signal for signal in found if not signal.refused] or found
    if not found:
        raise InputError("no 2-D or 3-D array of numbers")
    yield found


def _check_links(folder: str | os.PathLike[str]) -> tuple[int, list[str]]:
    """Return (bytes of all files, their names) below `folder`; refuse a link among them."""
    total, found = 0, []
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(parent, name)
            if os.path.islink(path):
                raise InputError(
                    f"{os.path.relpath(path, folder)} is a link, which is not followed"
                )
        inner = os.path.relpath(parent, folder).replace(os.sep, "/")
        found += [name if inner == "." else f"{inner}/{name}" for name in files]
        total += sum(os.path.getsize(os.path.join(parent, name)) for name in files)
    return total, sorted(found)


def _check_codecs(file: Path, name: str) -> None:
    """Refuse metadata, `name` in the store, that ask for a codec not known to only compress."""
    if file.stat().st_size > METADATA:
        raise InputError(f"{name} of {file.stat().st_size} bytes")
    waiting: list[Any] = [json.loads(file.read_text(encoding="utf-8"))]
    while waiting:
        found = waiting.pop()
        if isinstance(found, list):
            waiting += found
        elif isinstance(found, dict):
            named = [found.get("id")] if "id" in found else []
            for key in ("codecs", "index_codecs"):
                listed = found.get(key)
                named += [c.get("name") for c in listed or () if isinstance(c, dict)]
            for codec in named:
                if isinstance(codec, str) and codec.removeprefix("numcodecs.") not in CODECS:
                    raise InputError(f"{name} asks for the codec {codec[:50]!r}; not allowed")
            own = ("attributes", ".zattrs")  # free text of whoever wrote the file
            waiting += [value for key, value in found.items() if not key.endswith(own)]


def _walk(node: Any, parent: Any, store: _Store, depth: int) -> Iterator[Signal]:
    """Yield the Signals at and below `node`, an array or a group, in the group `parent`."""
    import zarr

    if isinstance(node, zarr.Array):
        yield from _signals(node, node.name or "array", store, _axes(node, parent))
        return
    attributes = dict(node.attrs)
    known = attributes.get("ome") or attributes
    if multiscales := known.get("multiscales"):
        for scales in multiscales:
            first = scales["datasets"][0]
            if ".." in first["path"].split("/"):
                raise InputError(f"an OME image at {first['path']!r}")
            array = node[first["path"]]
            axes = _ome_axes(scales, array.ndim)._replace(labels=_ome_labels(known))
            yield from _signals(array, scales.get("name") or node.name, store, axes)
        return
    data, first = node.get("data"), node.get("axis-0")
    if isinstance(data, zarr.Array) and isinstance(first, zarr.Group):  # ZSpy, of HyperSpy
        axes = [node.get(f"axis-{axis}") for axis in range(data.ndim)]
        known = hyperspy_axes(data.shape, [axis.attrs for axis in axes if axis is not None])
        yield from _signals(data, node.basename, store, known)
        return
    if depth > DEPTH:
        raise InputError(f"groups nested over {DEPTH} deep")
    for index, (_, member) in enumerate(sorted(node.members())):
        if index > ARRAYS:
            raise InputError(f"over {ARRAYS} arrays")
        yield from _walk(member, node, store, depth + 1)


def _signals(array: Any, name: str, store: _Store, axes: Axes) -> list[Signal]:
    """Return the Signals of an array: one, or one for each channel."""
    found, refused = layouts(array.shape, array.dtype, axes)
    dtype = numbers(array.dtype)
    values = Values(dtype, np.asarray) if refused else values_of(dtype, array.attrs)
    if refused := refused or values.refused:
        return [Signal(name, tuple(array.shape), array.dtype, no_pixels, refused=refused)]
    signals: list[Signal] = []
    for layout in found:
        label = " ".join(part for part in (name, layout.label) if part)
        shape, samples = layout.shape, layout.samples
        if reason := layout.no_length(axes.units):
            signals.append(Signal(label, shape, array.dtype, no_pixels, refused=reason))
            continue
        plane = with_samples(shape[-2:], samples)
        size, most = store.size, store.limit
        check = functools.partial(check_declared, stored=size, compressed=True)
        check("its image", plane, dtype, limit=most, unwritten=most)
        check("a chunk", array.shards or array.chunks, array.dtype, limit=most)
        check("it", shape, array.dtype, limit=math.inf, unwritten=most)
        if not signals:
            array = _with_its_chunks(array, name, store)
        raw = functools.partial(_plane, array, layout, values)
        signal = Signal(label, shape, values.dtype, raw, samples=samples, channel=layout.label)
        signals.append(signal.calibrated(layout.of(axes.steps) or UNKNOWN, axes.origin))
    return signals


def _plane(array: Any, layout: Layout, values: Values, index: int) -> Stored:
    return values.convert(layout.plane(array, index))


def _with_its_chunks(array: Any, name: str, store: _Store) -> Any:
    """Return `array`, after a note on chunks that are not there; by the names that chunks have.

    OME-Zarr of versions 0.1 to 0.3 has chunks in nested folders (0/0/0) with and without a
    "dimension_separator" that says so.
    """
    start = f"{array.path}/" if array.path else ""
    grid = [
        -(-side // chunk)
        for side, chunk in zip(array.shape, array.shards or array.chunks, strict=True)
    ]
    here, elsewhere = 0, set[str]()
    first = bisect.bisect_left(store.files, start)
    for file in itertools.islice(store.files, first, None):
        if not file.startswith(start):
            break
        key = file.removeprefix(start)
        parts = re.fullmatch(r"(?:c[./])?(\d+(?:[./]\d+)*)", key)
        if parts is None:
            continue
        at = tuple(map(int, re.split("[./]", parts[1])))
        if len(at) != len(grid) or any(n >= most for n, most in zip(at, grid, strict=True)):
            continue
        if array.metadata.encode_chunk_key(at) == key:
            here += 1
        else:
            elsewhere.add("/" if "/" in parts[1] else ".")
    total = math.prod(grid)
    if not here and elsewhere:
        if array.metadata.zarr_format == 2 and len(elsewhere) == 1:
            (separator,) = elsewhere
            note(store.path, f"chunks of {name} are named with {separator!r}, unlike its metadata")
            return _with_separator(array, separator)
        raise InputError(f"chunks of {name} are not named as its metadata say")
    if here < total:
        note(
            store.path,
            f"{total - here} of {total} chunks of {name} are not there; their pixels are "
            f"{array.fill_value}: they were never written, or the store was copied in part",
        )
    return array


def _with_separator(array: Any, separator: str) -> Any:
    """Return a Zarr 2 array with the names of its chunks separated by `separator`."""
    import zarr

    metadata = dataclasses.replace(array.metadata, dimension_separator=separator)
    return zarr.Array(zarr.AsyncArray(metadata=metadata, store_path=array.store_path))


def _axes(array: Any, parent: Any) -> Axes:
    """Return what dimension names, as of xarray, their coordinates and axistags say of an array."""
    import zarr

    attributes = dict(array.attrs)
    names: Any = axistags(attributes.get("axistags")) or attributes.get("_ARRAY_DIMENSIONS")
    names = names or getattr(array.metadata, "dimension_names", None) or ()
    if not isinstance(names, (list, tuple)) or len(names) != array.ndim:
        return Axes()
    units, steps = [], []
    for name, side in zip(names, array.shape, strict=True):
        known = isinstance(name, str) and "/" not in name
        item: Any = parent.get(name) if parent is not None and known else None
        if (
            isinstance(item, zarr.Array)
            and item.shape == (side,)
            and item.dtype.kind in "uif"
            and item.nbytes <= METADATA
        ):
            units.append(str(item.attrs.get("units", "")))
            steps.append(spacing(np.asarray(item[...]), units[-1]))
        else:
            units.append("")
            steps.append(math.nan)
    return Axes(names, units, steps, origin="coordinates")


def _ome_axes(scales: Mapping[str, Any], ndim: int) -> Axes:
    """Return the axes of an OME image: their names and units, and the scale of its first dataset.

    That is the product of the scale of the dataset and that of all; another kind of transformation
    makes the sizes unknown, and so does no scale at all. Without axes (0.1, 0.2) they are t, c, z,
    y, x.
    """
    axes = scales.get("axes")
    if axes is None and scales.get("coordinateSystems"):
        axes = scales["coordinateSystems"][0]["axes"]
    if axes is None:
        return Axes("tczyx" if ndim == 5 else ())
    listed = [axis if isinstance(axis, dict) else {"name": axis} for axis in axes]
    kinds = {"channel": "c", "time": "t"}
    names = [
        axis.get("name") if role(axis.get("name")) else kinds.get(axis.get("type", ""), "")
        for axis in listed
    ]
    units = [str(axis.get("unit") or "") for axis in listed]
    found: list[list[float]] | None = []
    for held in (scales, scales["datasets"][0]):
        found = _scales(found, held.get("coordinateTransformations") or (), len(units))
    factor = np.prod(found, axis=0) if found else np.full(len(units), np.nan)
    steps = list(map(nm, factor, units))
    if len(units) != ndim:
        return Axes()
    return Axes(names, units, steps, origin="OME-Zarr")


def _scales(
    found: list[list[float]] | None, steps: Sequence[Any], ndim: int
) -> list[list[float]] | None:
    """Return `found` and the scales of `steps`; None where they are not scales alone."""
    for step in steps:
        kind = step.get("type")
        if kind == "sequence":
            found = _scales(found, step.get("transformations") or (), ndim)
        elif kind == "scale" and found is not None and len(step.get("scale") or ()) == ndim:
            found = [*found, [float(factor) for factor in step["scale"]]]
        elif kind not in ("translation", "identity"):
            return None
    return found


def _ome_labels(known: Mapping[str, Any]) -> list[str]:
    """Return the names of the channels."""
    with contextlib.suppress(KeyError, TypeError, AttributeError):
        return [str(channel["label"]) for channel in known["omero"]["channels"]]
    return []
