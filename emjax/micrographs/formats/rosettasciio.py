"""Formats that RosettaSciIO reads, if it is installed: by these of its readers and no other.

One of the others evaluates what a file says.
"""

import contextlib
import importlib
import os
import struct

import numpy as np

from emjax.errors import InputError
from emjax.micrographs.formats import hdf5
from emjax.micrographs.signal import UNKNOWN, Signal, declared, no_micrograph
from emjax.micrographs.units import nm

READERS = {
    ".blo": "blockfile",
    ".hspy": "hspy",
    ".nxs": "nexus",
    ".prz": "pantarhei",
    ".tvips": "tvips",
    ".unf": "semper",
}
IN_HDF5 = (".hspy", ".nxs")


@contextlib.contextmanager
def signals(path, limit):
    """The Signals of a file with one of the suffixes of READERS; pixels are read when due."""
    suffix = os.path.splitext(path)[1].lower()
    try:
        reader = importlib.import_module(f"rsciio.{READERS[suffix]}")
    except ImportError:
        raise InputError(f"{suffix} is read by RosettaSciIO; install emjax[rsciio]") from None
    size = os.path.getsize(path)
    if suffix in IN_HDF5:
        import h5py

        hdf5.check_heaps(path)
        with h5py.File(path, "r") as file:
            hdf5.inside(file)
    if suffix == ".blo":
        _check_blockfile(path, size)
    found = reader.file_reader(str(path), lazy=True)
    yield [_signal(part, place, size, limit) for place, part in enumerate(found)]


def _check_blockfile(path, size):
    """Refuse a blockfile that declares more patterns than it has; planning them takes for ever."""
    with open(path, "rb") as file:
        pattern, _, columns, rows = struct.unpack("<20x4H", file.read(28))
    declared("it", (rows, columns, pattern, pattern), "u1", stored=size, limit=float("inf"))


def _signal(part, place, size, limit):
    array, axes = part["data"], part["axes"]
    sides = tuple(array.shape)
    units = [str(axis.get("units") or "") for axis in axes]
    refused = no_micrograph(array.dtype, sides, units if len(units) == len(sides) else ())
    if not refused:
        check = dict(stored=size, compressed=True)
        declared("its image", sides[-2:], array.dtype, **check, limit=limit)
        declared("it", sides, array.dtype, **check, limit=float("inf"))
    nm_per_pixel, nm_per_plane = UNKNOWN, float("nan")
    if not refused and len(axes) == len(sides):
        known = [nm(axis.get("scale"), axis.get("units") or "") for axis in axes]
        nm_per_pixel = tuple(known[-2:]) if np.isfinite(known[-2:]).all() else UNKNOWN
        nm_per_plane = known[0] if len(known) == 3 else nm_per_plane

    def raw(i):
        return np.asarray(array[i] if len(sides) == 3 else array)

    name = part.get("metadata", {}).get("General", {}).get("title") or f"signal {place}"
    origin = "RosettaSciIO" if nm_per_pixel is not UNKNOWN else "none"
    told = dict(refused=refused, nm_per_plane=nm_per_plane)
    return Signal(name, sides, array.dtype, raw, nm_per_pixel, origin, **told)
