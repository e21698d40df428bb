"""NPY, and Zarr with or without OME metadata. No object arrays, no codec that runs code."""

import contextlib
import json
import math
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emjax.errors import InputError
from emjax.micrographs.formats.hdf5 import colours
from emjax.micrographs.shapes import Stored
from emjax.micrographs.signal import Signal, check_declared, why_refused, with_samples
from emjax.micrographs.units import nm

ZARR_FILES = ("zarr.json", ".zarray", ".zgroup", ".zmetadata")
CODECS = {
    "bytes", "transpose", "sharding_indexed", "crc32c", "gzip", "zstd", "blosc", "zlib", "lz4",
    "bz2", "lzma", "shuffle", "delta", "packbits", "fixedscaleoffset", "bitround", "quantize",
}  # fmt: skip
METADATA = 16 << 20  # bytes of a JSON file
ARRAYS, DEPTH = 1000, 6  # members of a group; groups in each other


@contextlib.contextmanager
def npy_signals(path: str | os.PathLike[str], limit: int) -> Generator[list[Signal]]:
    """Yield the list of the one Signal of an NPY file, which is mapped and not read."""
    # Reads no pickles, and maps no more than the file has.
    array = np.lib.format.open_memmap(path, mode="r")
    shape, samples = colours(array.shape, array.dtype)
    refused = why_refused(array.dtype, shape)
    if not refused:
        plane = with_samples(shape[-2:], samples)
        check_declared("its image", plane, array.dtype, stored=array.nbytes, limit=limit)

    def raw(i: int) -> Stored:
        return np.array(array[i] if len(shape) == 3 else array)

    yield [Signal("array", shape, array.dtype, raw, samples=samples, refused=refused)]


def is_zarr(path: str | os.PathLike[str]) -> bool:
    """Return whether the folder `path` is a Zarr store."""
    return any((Path(path) / name).is_file() for name in ZARR_FILES)


@contextlib.contextmanager
def zarr_signals(path: str | os.PathLike[str], limit: int) -> Generator[list[Signal]]:
    """Yield the Signals of a Zarr store: its full-size OME images, and its 2-D and 3-D arrays."""
    import zarr
    from zarr.storage import LocalStore

    size = _check_links(path)
    for name in ZARR_FILES:
        for file in Path(path).rglob(name):
            _check_codecs(file)
    root = zarr.open(store=LocalStore(os.fspath(path), read_only=True), mode="r")
    found = list(_walk(root, size, limit, 0))
    if len(found) > 1:
        found = [signal for signal in found if not signal.refused] or found
    if not found:
        raise InputError("no 2-D or 3-D array of numbers")
    yield found


def _check_links(folder: str | os.PathLike[str]) -> int:
    """Return the bytes of all files below `folder`; refuse a link among them."""
    total = 0
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(parent, name)
            if os.path.islink(path):
                raise InputError(
                    f"{os.path.relpath(path, folder)} is a link, which is not followed"
                )
        total += sum(os.path.getsize(os.path.join(parent, name)) for name in files)
    return total


def _check_codecs(file: Path) -> None:
    """Refuse metadata that ask for a codec which is not known to only compress."""
    if file.stat().st_size > METADATA:
        raise InputError(f"{file.name} of {file.stat().st_size} bytes")
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
                    raise InputError(f"{file.name} asks for the codec {codec[:50]!r}; not allowed")
            own = ("attributes", ".zattrs")  # free text of whoever wrote the file
            waiting += [value for key, value in found.items() if not key.endswith(own)]


def _walk(node: Any, size: int, limit: int, depth: int) -> Iterator[Signal]:
    """Yield the Signals at and below `node`, an array or a group."""
    import zarr

    if isinstance(node, zarr.Array):
        yield _signal(node, node.name or "array", size, limit)
        return
    attributes = dict(node.attrs)
    multiscales = (attributes.get("ome") or attributes).get("multiscales")
    if multiscales:
        for scales in multiscales:
            first = scales["datasets"][0]
            if ".." in first["path"].split("/"):
                raise InputError(f"an OME image at {first['path']!r}")
            signal = _signal(node[first["path"]], scales.get("name") or node.name, size, limit)
            yield signal.calibrated(_ome_sizes(scales), "OME-Zarr")
        return
    if depth > DEPTH:
        raise InputError(f"groups nested over {DEPTH} deep")
    for index, (_, member) in enumerate(sorted(node.members())):
        if index > ARRAYS:
            raise InputError(f"over {ARRAYS} arrays")
        yield from _walk(member, size, limit, depth + 1)


def _signal(array: Any, name: str, size: int, limit: int) -> Signal:
    """Return the Signal of an array, without its leading axes of length 1."""
    shape, samples = colours(array.shape, array.dtype)
    lead = len(shape)
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    lead -= len(shape)
    refused = why_refused(array.dtype, shape)

    def check(what: str, shape: Sequence[int], limit: int | float) -> None:
        check_declared(what, shape, array.dtype, stored=size, limit=limit, compressed=True)

    if not refused:
        check("its image", with_samples(shape[-2:], samples), limit)
        check("a chunk", array.shards or array.chunks, limit)
        check("it", shape, math.inf)

    def raw(i: int) -> Stored:
        return np.asarray(array[(0,) * lead + ((i,) if len(shape) == 3 else ()) + (...,)])

    return Signal(name, shape, array.dtype, raw, samples=samples, refused=refused)


def _ome_sizes(scales: Mapping[str, Any]) -> tuple[float, float, float]:
    """Return nm (z, y, x) by the scale of the first dataset and of the whole image."""
    with contextlib.suppress(KeyError, TypeError, IndexError, AttributeError, ValueError):
        units = [axis.get("unit", "") for axis in scales["axes"]]
        factor = [1.0] * len(units)
        for held in (scales, scales["datasets"][0]):
            for step in held.get("coordinateTransformations", ()):
                if step["type"] == "scale":
                    factor = [a * b for a, b in zip(factor, step["scale"], strict=True)]
        z, y, x = [math.nan, *map(nm, factor, units)][-3:]
        if math.isfinite(y) and math.isfinite(x):
            return z, y, x
    return math.nan, math.nan, math.nan
