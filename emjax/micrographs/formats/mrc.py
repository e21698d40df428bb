"""MRC and MAP, also compressed: mrcfile interprets the header, pixels are read when needed."""

import bz2
import contextlib
import gzip
import math
import os
from collections.abc import Generator, Sequence
from io import BufferedIOBase
from typing import Any

import numpy as np

from emjax.errors import InputError
from emjax.micrographs.shapes import Stored
from emjax.micrographs.signal import Signal, check_declared, why_refused
from emjax.micrographs.units import nm

OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open}
SUFFIXES = (".mrc", ".mrcs", ".map", ".rec", ".st", ".ali")


@contextlib.contextmanager
def signals(path: str | os.PathLike[str], limit: int) -> Generator[list[Signal]]:
    """Yield the list of the one Signal of an MRC file; a compressed file is decoded as a whole."""
    size = os.path.getsize(path)
    with contextlib.ExitStack() as stack:
        file: Any = stack.enter_context(open(path, "rb"))
        magic = file.read(4)
        file.seek(0)
        opener = next((OPENERS[start] for start in OPENERS if magic.startswith(start)), None)
        if opener:
            file = stack.enter_context(opener(file))
        yield [_signal(file, size, limit, compressed=opener is not None)]


def _signal(file: BufferedIOBase, size: int, limit: int, *, compressed: bool) -> Signal:
    header, dtype, shape = _header(file.read(1024))
    start = 1024 + int(header.nsymbt)
    if start < 1024:
        raise InputError(f"an extended header of {start - 1024} bytes")
    stored, plane = size if compressed else size - start, math.prod(shape[-2:]) * dtype.itemsize

    def check(what: str, shape: Sequence[int], limit: int | float) -> None:
        check_declared(what, shape, dtype, stored=stored, limit=limit, compressed=compressed)

    check("it", shape, limit - start if compressed else math.inf)
    check("its image", shape[-2:], limit)
    whole: list[np.ndarray] = []

    def raw(i: int) -> Stored:
        if not compressed:
            file.seek(start + i * plane)
            return np.frombuffer(file.read(plane), dtype).reshape(shape[-2:])
        if not whole:
            file.seek(start)
            whole.append(np.frombuffer(file.read(math.prod(shape) * dtype.itemsize), dtype))
        return whole[0].reshape(-1, *shape[-2:])[i]

    signal = Signal("image", shape, dtype, raw, refused=why_refused(dtype, shape))
    return signal.calibrated(_sizes(header, shape), "MRC header")


def _header(content: bytes) -> tuple[Any, np.dtype[Any], tuple[int, ...]]:
    """Return (header, dtype, shape) of the first 1024 bytes of a file."""
    from mrcfile import dtypes, utils  # not at the top: few need it

    if len(content) < 1024:
        raise InputError(f"{len(content)} bytes, expected a header of 1024")
    header: Any = np.frombuffer(content, dtypes.HEADER_DTYPE)
    if bytes(header["map"][0])[:3] != b"MAP":
        raise InputError("no MRC file: byte 208 does not start MAP")
    order = utils.byte_order_from_machine_stamp(header["machst"][0])
    header = header.view(header.dtype.newbyteorder(order)).view(np.recarray)[0]
    if header.mode in (3, 4):
        raise InputError(f"mode {header.mode}, complex numbers; expected real numbers")
    dtype = utils.dtype_from_mode(int(header.mode)).newbyteorder(order)
    if header.mz == 0 and 401 <= header.ispg <= 630:
        raise InputError("volumes of 0 sections")
    shape = tuple(int(side) for side in utils.data_shape_from_header(header))
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    return header, dtype, shape


def _sizes(header: Any, shape: Sequence[int]) -> tuple[float, float, float]:
    """Return nm (z, y, x) of sections, rows and columns: the cell (in angstrom) over its intervals.

    In a stack of images, unlike a volume, there are not as many intervals as sections: z is NaN.
    """
    cell = (header.cella.x, header.cella.y, header.cella.z)
    intervals = (header.mx, header.my, header.mz)
    axes = (int(header.mapr), int(header.mapc))
    if not set(axes) < {1, 2, 3} or axes[0] == axes[1]:
        axes = (2, 1)
    axes += (6 - sum(axes),)
    y, x, z = (nm(cell[a - 1] / intervals[a - 1] if intervals[a - 1] > 0 else 0, "a") for a in axes)
    if len(shape) < 3 or intervals[axes[2] - 1] != shape[0]:
        z = math.nan
    return (z, y, x)
