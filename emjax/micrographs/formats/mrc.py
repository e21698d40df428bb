"""MRC and MAP, also compressed: mrcfile says what a header means, pixels are read when due."""

import bz2
import contextlib
import gzip
import math
import os

import numpy as np

from emjax.errors import InputError
from emjax.micrographs.signal import UNKNOWN, Signal, declared, no_micrograph
from emjax.micrographs.units import nm

OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open}
SUFFIXES = (".mrc", ".mrcs", ".map", ".rec", ".st", ".ali")


@contextlib.contextmanager
def signals(path, limit):
    """The list of the one Signal of an MRC file; what is compressed is decoded as a whole."""
    size = os.path.getsize(path)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "rb"))
        magic = file.read(4)
        file.seek(0)
        opener = next((OPENERS[start] for start in OPENERS if magic.startswith(start)), None)
        if opener:
            file = stack.enter_context(opener(file))
        yield [_signal(file, size, limit, compressed=opener is not None)]


def _signal(file, size, limit, *, compressed):
    header, dtype, sides = _header(file.read(1024))
    start = 1024 + int(header.nsymbt)
    if start < 1024:
        raise InputError(f"an extended header of {start - 1024} bytes")
    stored, plane = size if compressed else size - start, math.prod(sides[-2:]) * dtype.itemsize
    check = dict(stored=stored, compressed=compressed)
    declared("it", sides, dtype, **check, limit=limit - start if compressed else math.inf)
    declared("its image", sides[-2:], dtype, **check, limit=limit)
    whole = []

    def raw(i):
        if not compressed:
            file.seek(start + i * plane)
            return np.frombuffer(file.read(plane), dtype).reshape(sides[-2:])
        if not whole:
            file.seek(start)
            whole.append(np.frombuffer(file.read(math.prod(sides) * dtype.itemsize), dtype))
        return whole[0].reshape(-1, *sides[-2:])[i]

    *nm_per_pixel, nm_per_plane = _pixel_size(header, sides)
    origin = "MRC header" if np.isfinite(nm_per_pixel).all() else "none"
    refused = no_micrograph(dtype, sides)
    told = dict(refused=refused, nm_per_plane=nm_per_plane)
    return Signal("image", sides, dtype, raw, tuple(nm_per_pixel), origin, **told)


def _header(content):
    """(header, dtype, shape) of the first 1024 bytes of a file."""
    from mrcfile import dtypes, utils  # not at the top: few need it

    if len(content) < 1024:
        raise InputError(f"{len(content)} bytes, where a header of 1024 was due")
    header = np.frombuffer(content, dtypes.HEADER_DTYPE)
    if bytes(header["map"][0])[:3] != b"MAP":
        raise InputError("no MRC file: byte 208 does not start MAP")
    order = utils.byte_order_from_machine_stamp(header["machst"][0])
    header = header.view(header.dtype.newbyteorder(order)).view(np.recarray)[0]
    if header.mode in (3, 4):
        raise InputError(f"mode {header.mode}, complex numbers; real numbers were due")
    dtype = utils.dtype_from_mode(int(header.mode)).newbyteorder(order)
    if header.mz == 0 and 401 <= header.ispg <= 630:
        raise InputError("volumes of 0 sections")
    sides = tuple(int(side) for side in utils.data_shape_from_header(header))
    while len(sides) > 2 and sides[0] == 1:
        sides = sides[1:]
    return header, dtype, sides


def _pixel_size(header, sides):
    """nm (y, x, z) of rows, columns and sections: the cell (in angstrom) over its intervals.

    In a stack of images, unlike a volume, there are not as many intervals as sections: z is NaN.
    """
    cell = (header.cella.x, header.cella.y, header.cella.z)
    intervals = (header.mx, header.my, header.mz)
    axes = (int(header.mapr), int(header.mapc))
    if not set(axes) < {1, 2, 3} or axes[0] == axes[1]:
        axes = (2, 1)
    axes += (6 - sum(axes),)
    y, x, z = (nm(cell[a - 1] / intervals[a - 1] if intervals[a - 1] > 0 else 0, "a") for a in axes)
    if len(sides) < 3 or intervals[axes[2] - 1] != sides[0]:
        z = math.nan
    return (y, x, z) if np.isfinite((y, x)).all() else (*UNKNOWN, z)
