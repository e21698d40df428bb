"""MRC and MAP, also compressed. The header is read by mrc_header, pixels when they are needed."""

import bz2
import contextlib
import gzip
import math
import os
from collections.abc import Generator, Sequence
from io import BufferedIOBase
from typing import Any

import numpy as np

from emjax.errors import InputError, note
from emjax.micrographs.formats import four_bits, mrc_header, sidecars
from emjax.micrographs.formats.mrc_header import Header
from emjax.micrographs.shapes import Stored
from emjax.micrographs.signal import Signal, check_declared, why_refused, with_samples
from emjax.micrographs.units import SAME, UNKNOWN, PixelSize, is_known, nm

OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open}
SUFFIXES = (".mrc", ".mrcs", ".map", ".rec", ".st", ".ali", ".preali", ".ccp4")


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
        yield [_signal(path, file, size, limit, compressed=opener is not None)]


def is_one_without_map(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is MRC by its sizes, mode and length, though it has no MAP."""
    with open(path, "rb") as file:
        start = file.read(mrc_header.SIZE)
    try:
        header = mrc_header.read(start)
    except InputError:
        return False
    return header.start + _Layout(header).bytes_in_all == os.path.getsize(path)


class _Layout:
    """How the pixels of a file are stored, and as what they are read."""

    def __init__(self, header: Header) -> None:
        self.note = ""
        self.samples = 3 if header.mode == mrc_header.RGB else 1
        self.four_bits = header.four_bits
        self.pixels_per_byte = 2 if header.four_bits else 1
        self.stored = np.dtype(mrc_header.PIXELS[header.mode]).newbyteorder(header.order)
        self.dtype, self.offset = self.stored, 0
        if self.four_bits:
            self.stored = self.dtype = np.dtype("u1")
        elif header.mode == 0:
            signed, self.note = mrc_header.bytes_are_signed(header)
            if not signed or header.flags is not None:
                self.stored = self.dtype = np.dtype("u1")
                self.offset = 128 if signed else 0
        rows, columns = header.shape[-2:]
        self.shape = with_samples((rows, columns), self.samples)
        row = -(-columns // 2) if self.four_bits else columns * self.samples * self.stored.itemsize
        self.bytes_per_plane = rows * row
        self.bytes_in_all = math.prod(header.shape[:-2]) * self.bytes_per_plane

    def plane(self, content: bytes) -> Stored:
        """Return [h, w] or [h, w, 3] of the bytes of a plane."""
        pixels = np.frombuffer(content, self.stored)
        if self.four_bits:
            rows, columns = self.shape
            return four_bits.unpacked(pixels.reshape(rows, -1))[:, :columns]
        return (pixels ^ np.uint8(self.offset) if self.offset else pixels).reshape(self.shape)


def _signal(
    path: str | os.PathLike[str], file: BufferedIOBase, size: int, limit: int, *, compressed: bool
) -> Signal:
    header = mrc_header.read(file.read(mrc_header.SIZE))
    layout = _Layout(header)
    shape, start = header.shape, header.start
    stored, plane = size if compressed else size - start, layout.bytes_per_plane

    def check(what: str, shape: Sequence[int], limit: int | float, stored: int = stored) -> None:
        check_declared(what, shape, layout.dtype, stored=stored, limit=limit, compressed=compressed)

    whole = with_samples(shape, layout.samples)
    if layout.four_bits:
        check("its bytes of two pixels", (*shape[:-1], -(-shape[-1] // 2)), math.inf)
    check("it", whole, limit - start if compressed else math.inf, layout.pixels_per_byte * stored)
    check("its image", layout.shape, limit, layout.pixels_per_byte * stored)
    if not header.has_map:
        _check_length(file, start + layout.bytes_in_all, None if compressed else size)
    extended = b""
    if start > mrc_header.SIZE:
        file.seek(mrc_header.SIZE)
        extended = file.read(min(start - mrc_header.SIZE, mrc_header.SIZE))
    decoded: list[bytes] = []

    def raw(i: int) -> Stored:
        if not compressed:
            file.seek(start + i * plane)
            return layout.plane(file.read(plane))
        if not decoded:
            file.seek(start)
            decoded.append(file.read(layout.bytes_in_all))
        return layout.plane(decoded[0][i * plane : (i + 1) * plane])

    refused = why_refused(layout.dtype, shape)
    is_stated = header.mode != 0 or header.four_bits or header.flags is not None
    if not is_stated and four_bits.may_be_packed(shape):
        refused = refused or four_bits.doubt(shape)
    metres = mrc_header.extended_sizes(header, extended)
    label = mrc_header.reciprocal_label(header)
    if label:
        refused = refused or f"reciprocal space by its label {label!r}"
    elif max(metres) > 1:  # as in SER: a scale in 1/m is far above 1, a pixel far below
        refused = refused or f"reciprocal space by its extended header, {max(metres):.6g} 1/m"
    for text in _notes(header, layout):
        note(path, text)
    signal = Signal(
        "image",
        shape,
        layout.dtype,
        raw,
        samples=layout.samples,
        refused=refused,
        top_row_stated=header.rows_on_top,
    )
    z, *sides = mrc_header.cell_sizes(header)
    sizes, origin = _sizes(path, header, (sides[0], sides[1]), metres)
    return signal.calibrated((z, *sizes), origin)


def _check_length(file: BufferedIOBase, expected: int, size: int | None) -> None:
    """Raise InputError unless a file without MAP has exactly `expected` bytes.

    Args:
        size: of the file; None where it is compressed, which tells no more than its decoding.
    """
    if size is None:
        file.seek(expected - 1)
        fits, found = len(file.read(2)) == 1, "another number"
    else:
        fits, found = size == expected, str(size)
    if not fits:
        raise InputError(
            f"not an MRC file: no MAP at byte 208, and {found} bytes, expected {expected} by its "
            "sizes and mode"
        )


def _notes(header: Header, layout: _Layout) -> list[str]:
    """Return what a user should know of a file that is read nevertheless."""
    notes = [*header.notes, *([layout.note] if layout.note else [])]
    if not header.has_map:
        notes.append("no MAP at byte 208; read as MRC, by its sizes, its mode and its length")
    if header.fields.mapc < 0:
        notes.append("its columns run from right to left (MAPC -1), and are kept as stored")
    low, high = float(header.fields.dmin), float(header.fields.dmax)
    if header.mode in (1, 6) and low < high:
        limits = np.iinfo(layout.dtype)
        if low < limits.min or high > limits.max:
            stated = f"values of {low:g} to {high:g} by its header"
            notes.append(f"{stated}, which mode {header.mode} ({layout.dtype.name}) cannot hold")
    if mrc_header.is_oblique(header):
        notes.append("its cell has angles other than 90 degrees; the pixel size is unknown")
    return notes


def _sizes(
    path: str | os.PathLike[str], header: Header, cell: PixelSize, metres: tuple[float, float]
) -> tuple[PixelSize, str]:
    """Return ((y, x) in nm, origin), by the first of these that states them.

    The extended header of FEI, unless IMOD wrote the file anew; the header's cell, unless it says
    1 angstrom; SerialEM's .mdoc; the 1 angstrom after all. Notes name what differs.
    """
    if mrc_header.is_oblique(header):
        return UNKNOWN, "none"
    by_header = cell, "MRC header"
    by_fei = (nm(metres[0], "m"), nm(metres[1], "m")), "FEI extended header"
    by_mdoc = sidecars.serialem(path, header.shape), "SerialEM .mdoc"
    is_placeholder = all(math.isclose(side, mrc_header.PLACEHOLDER, rel_tol=1e-6) for side in cell)
    if is_placeholder:
        stated = by_fei, by_mdoc, by_header
    elif header.flags is None:
        stated = by_fei, by_header, by_mdoc
    else:
        stated = by_header, by_fei, by_mdoc
    known = [(sizes, origin) for sizes, origin in stated if is_known(sizes)]
    if not known:
        return UNKNOWN, "none"
    sizes, origin = known[0]
    for other, other_origin in known[1:]:
        if not np.allclose(sizes, other, rtol=SAME, atol=0):
            listed = f"{_angstrom(sizes)} by {origin}, {_angstrom(other)} by {other_origin}"
            note(path, f"{listed}; the first is used")
    if origin == "MRC header" and is_placeholder:
        note(path, "exactly 1 angstrom per pixel, which many programs write for an unknown size")
    return sizes, origin


def _angstrom(sizes: PixelSize) -> str:
    """Return (y, x) in nm as text."""
    values = [f"{10 * size:.6g}" for size in dict.fromkeys(sizes)]
    return f"{' x '.join(values)} angstrom per pixel"
