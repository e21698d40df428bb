"""NPY, and Zarr with or without OME metadata. No object arrays, no codec that runs code."""

import contextlib
import json
import math
import os
from pathlib import Path

import numpy as np

from emjax.errors import InputError
from emjax.micrographs.formats.hdf5 import colours
from emjax.micrographs.signal import UNKNOWN, Signal, declared, no_micrograph, pixels_of
from emjax.micrographs.units import nm

ZARR_FILES = ("zarr.json", ".zarray", ".zgroup", ".zmetadata")
CODECS = {
    "bytes", "transpose", "sharding_indexed", "crc32c", "gzip", "zstd", "blosc", "zlib", "lz4",
    "bz2", "lzma", "shuffle", "delta", "packbits", "fixedscaleoffset", "bitround", "quantize",
}  # fmt: skip
JSON, ARRAYS, DEPTH = 16 << 20, 1000, 6  # bytes of metadata; arrays of a store; groups


@contextlib.contextmanager
def npy_signals(path, limit):
    """The list of the one Signal of an NPY file, mapped and not read."""
    array = np.lib.format.open_memmap(path, mode="r")  # neither pickles nor more than the file
    sides, samples = colours(array.shape, array.dtype)
    refused = no_micrograph(array.dtype, sides)
    if not refused:
        plane = pixels_of(sides[-2:], samples)
        declared("its image", plane, array.dtype, stored=array.nbytes, limit=limit)

    def raw(i):
        return np.array(array[i] if len(sides) == 3 else array)

    yield [Signal("array", sides, array.dtype, raw, samples=samples, refused=refused)]


def is_zarr(path):
    """Whether the folder `path` is a Zarr store."""
    return any((Path(path) / name).is_file() for name in ZARR_FILES)


@contextlib.contextmanager
def zarr_signals(path, limit):
    """The Signals of a Zarr store: its full-size OME images, and arrays that are 2-D or 3-D."""
    import zarr

    size = _check_links(path)
    for name in ZARR_FILES:
        for file in Path(path).rglob(name):
            _check_codecs(file)
    store = zarr.storage.LocalStore(path, read_only=True)
    root = zarr.open(store=store, mode="r")
    found = list(_walk(root, size, limit, 0))
    if len(found) > 1:
        found = [signal for signal in found if not signal.refused] or found
    if not found:
        raise InputError("no 2-D or 3-D array of numbers")
    yield found


def _check_links(folder):
    """The bytes of all files below `folder`, none of which may be a link."""
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


def _check_codecs(file):
    """Refuse metadata that ask for a codec which is not known to only compress."""
    if file.stat().st_size > JSON:
        raise InputError(f"{file.name} of {file.stat().st_size} bytes")
    waiting = [json.loads(file.read_text(encoding="utf-8"))]
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
            own = ("attributes", ".zattrs")  # anybody's words
            waiting += [value for key, value in found.items() if not key.endswith(own)]


def _walk(node, size, limit, depth):
    """Yield the Signals at and below `node`, an array or a group."""
    import zarr

    if isinstance(node, zarr.Array):
        yield _array(node, node.name or "array", (math.nan, *UNKNOWN), size, limit)
        return
    attributes = dict(node.attrs)
    multiscales = (attributes.get("ome") or attributes).get("multiscales")
    if multiscales:
        for scales in multiscales:
            first = scales["datasets"][0]
            if ".." in first["path"].split("/"):
                raise InputError(f"an OME image at {first['path']!r}")
            sizes = _ome_sizes(scales)
            yield _array(node[first["path"]], scales.get("name") or node.name, sizes, size, limit)
        return
    if depth > DEPTH:
        raise InputError(f"groups nested over {DEPTH} deep")
    for place, (_, member) in enumerate(sorted(node.members())):
        if place > ARRAYS:
            raise InputError(f"over {ARRAYS} arrays")
        yield from _walk(member, size, limit, depth + 1)


def _array(array, name, sizes, size, limit):
    """The Signal of an array whose last axes have `sizes` (z, y, x) in nm."""
    sides, samples = colours(array.shape, array.dtype)
    lead = len(sides)
    while len(sides) > 2 and sides[0] == 1:
        sides = sides[1:]
    lead -= len(sides)
    refused = no_micrograph(array.dtype, sides)
    if not refused:
        check = dict(stored=size, limit=limit, compressed=True)
        declared("its image", pixels_of(sides[-2:], samples), array.dtype, **check)
        declared("a chunk", array.shards or array.chunks, array.dtype, **check)
        declared("it", sides, array.dtype, **{**check, "limit": math.inf})

    def raw(i):
        return np.asarray(array[(0,) * lead + ((i,) if len(sides) == 3 else ()) + (...,)])

    origin = "OME-Zarr" if np.isfinite(sizes[1:]).all() else "none"
    told = dict(samples=samples, refused=refused, nm_per_plane=sizes[0])
    return Signal(name, sides, array.dtype, raw, sizes[1:], origin, **told)


def _ome_sizes(scales):
    """nm (z, y, x) by the scale of the first dataset and of the whole image."""
    with contextlib.suppress(KeyError, TypeError, IndexError, AttributeError, ValueError):
        units = [axis.get("unit", "") for axis in scales["axes"]]
        factor = [1.0] * len(units)
        for held in (scales, scales["datasets"][0]):
            for step in held.get("coordinateTransformations", ()):
                if step["type"] == "scale":
                    factor = [a * b for a, b in zip(factor, step["scale"], strict=True)]
        sizes = [math.nan, *map(nm, factor, units)][-3:]
        if np.isfinite(sizes[1:]).all():
            return tuple(sizes)
    return (math.nan, *UNKNOWN)
