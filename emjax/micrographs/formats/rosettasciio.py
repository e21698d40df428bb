"""Formats that RosettaSciIO reads, if it is installed: by these of its readers and no other.

One of the others evaluates code from a file.
"""

import contextlib
import importlib
import math
import os
import struct
from collections.abc import Generator, Mapping
from typing import Any

import numpy as np

from emjax.errors import InputError
from emjax.micrographs import messages
from emjax.micrographs.shapes import Stored
from emjax.micrographs.signal import Signal, check_declared, why_refused
from emjax.micrographs.units import nm

READERS = {
    ".blo": "blockfile",
    ".prz": "pantarhei",
    ".tvips": "tvips",
    ".unf": "semper",
}


@contextlib.contextmanager
def signals(path: str | os.PathLike[str], limit: int) -> Generator[list[Signal]]:
    """Yield the Signals of a file with a suffix of READERS; pixels are read when needed."""
    suffix = os.path.splitext(path)[1].lower()
    try:
        reader = importlib.import_module(f"rsciio.{READERS[suffix]}")
    except ImportError:
        raise InputError(f"{suffix} is read by RosettaSciIO; install emjax[rsciio]") from None
    messages.collect_from("rsciio")
    size = os.path.getsize(path)
    if suffix == ".blo":
        _check_blockfile(path, size)
    found = reader.file_reader(str(path), lazy=True)
    yield [_signal(part, index, size, limit) for index, part in enumerate(found)]


def _check_blockfile(path: str | os.PathLike[str], size: int) -> None:
    """Refuse a blockfile that declares more patterns than it has: planning them takes for ever."""
    with open(path, "rb") as file:
        pattern, _, columns, rows = struct.unpack("<20x4H", file.read(28))
    check_declared("it", (rows, columns, pattern, pattern), "u1", stored=size, limit=math.inf)


def _signal(part: Mapping[str, Any], index: int, size: int, limit: int) -> Signal:
    """Return the Signal of a dict of RosettaSciIO."""
    array, axes = part["data"], part["axes"]
    shape = tuple(array.shape)
    units = [str(axis.get("units") or "") for axis in axes]
    refused = why_refused(array.dtype, shape, units if len(units) == len(shape) else ())

    def raw(i: int) -> Stored:
        return np.asarray(array[i] if len(shape) == 3 else array)

    name = part.get("metadata", {}).get("General", {}).get("title") or f"signal {index}"
    signal = Signal(name, shape, array.dtype, raw, refused=refused)
    if refused:
        return signal
    for what, checked, most in (("its image", shape[-2:], limit), ("it", shape, math.inf)):
        check_declared(what, checked, array.dtype, stored=size, limit=most, compressed=True)
    if len(axes) != len(shape):
        return signal
    sizes = [nm(axis.get("scale"), axis.get("units") or "") for axis in axes]
    return signal.calibrated(sizes, "RosettaSciIO")
