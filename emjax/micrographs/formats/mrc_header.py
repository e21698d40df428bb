"""What the header of an MRC file says, also of one that is not quite as MRC2014 asks.

Sources: MRC2014 (https://www.ccpem.ac.uk/mrc-format/mrc2014/), IMOD's mrc_format.txt
(https://bio3d.colorado.edu/imod/doc/mrc_format.txt) for the stamp, the flags and modes 16 and 101,
mrcfile's dtypes for the fields and for FEI's extended headers, and "FEI extended MRC format"
(https://lbem-focus.epfl.ch/wiki/) for the older ones.
"""

import math
import re
import struct
import unicodedata
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from emjax.errors import InputError
from emjax.micrographs.formats.four_bits import SAID, may_be_packed
from emjax.micrographs.units import nm

SIZE = 1024  # bytes of the header
PIXELS = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2", 16: "u1", 101: "u1"}
COMPLEX = (3, 4)
RGB, FOUR_BITS = 16, 101
IMOD, SIGNED_BYTES, TWO_VALUES = 1146047817, 1, 16  # the stamp, and bits of the flags after it
Order: TypeAlias = Literal["<", ">"]
STAMPS: dict[int, Order] = {0x44: "<", 0x11: ">"}
LARGEST_SIDE = 65_535  # at least one side of any file is smaller, says IMOD
PLACEHOLDER = 0.1  # nm: 1 angstrom, which many programs write where they know no size
# A label states what an axis is, unless it speaks of a filter. "Grid A-1" states none.
LENGTH = "(?:[pnuμm]m|å|angstroms?)"
RECIPROCAL_UNIT = re.compile(
    rf"(?<![\w./])1 ?/ ?{LENGTH}(?!\w)|(?<!\w){LENGTH}-1(?!\w)"
    rf"|(?<!\w)(?:{LENGTH}|[am])(?:\^|\*\*)-1(?!\w)|mrad(?:/| per )?pix"
)
RECIPROCAL_WORDS = ("reciprocal space", "power spectrum", "diffraction pattern")
FILTERS = ("filter", "cutoff", "resolution", "pass", "frequency", "radius")


class Header(NamedTuple):
    """A header, and what to tell about it."""

    fields: Any  # mrcfile's record
    order: Order  # of the bytes
    shape: tuple[int, ...]  # rows, columns, or with sections before them
    start: int  # of the pixels
    flags: int | None  # IMOD's; None without its stamp
    has_map: bool  # whether MAP is at byte 208
    notes: list[str]

    @property
    def mode(self) -> int:
        return int(self.fields.mode)

    @property
    def extended(self) -> str:
        """The kind of extended header: FEI1, FEI2, AGAR, ..."""
        return bytes(self.fields.exttyp).decode("latin-1").strip(" \0")

    @property
    def four_bits(self) -> bool:
        """Whether a byte holds two pixels, the first in the low bits."""
        if self.mode != 0:
            return self.mode == FOUR_BITS
        size, labels = (int(self.fields.ny), int(self.fields.nx)), self.labels
        said = len(labels) == 1 and SAID in labels[0] and may_be_packed(size)
        return said or bool((self.flags or 0) & TWO_VALUES)

    @property
    def labels(self) -> list[str]:
        found: list[str] = []
        for label in list(self.fields.label)[: max(0, int(self.fields.nlabl))]:
            text = bytes(label).strip(b" \0")
            try:
                found.append(text.decode("utf-8"))
            except UnicodeDecodeError:
                found.append(text.decode("latin-1"))
        return found

    @property
    def rows_on_top(self) -> bool:
        """Whether the header says that the first row is the top one; others do not say.

        So does IMOD take the files of FEI's own programs, and those with a negative MAPR.
        """
        return self.flags is None and (self.extended.startswith("FEI") or self.fields.mapr < 0)


def read(content: bytes) -> Header:
    """Return the Header of the first SIZE bytes of a file.

    Raises: InputError if it cannot be one, or for complex numbers and unknown modes.
    """
    if len(content) < SIZE:
        raise InputError(f"{len(content)} bytes, expected a header of {SIZE}")
    has_map = content[208:211] == b"MAP"
    order, notes = _byte_order(content, has_map)
    fields = _fields(content, order)
    mode = int(fields.mode)
    if mode in COMPLEX:
        raise InputError(f"mode {mode}, complex numbers; expected real numbers")
    if mode not in PIXELS:
        modes = ", ".join(map(str, PIXELS))
        raise InputError(f"an MRC file of the unknown mode {mode}; expected one of {modes}")
    start = SIZE + int(fields.nsymbt)
    if start < SIZE:
        raise InputError(f"an extended header of {start - SIZE} bytes")
    stamp, flags = struct.unpack_from(f"{order}2i", content, 152)
    found = Header(fields, order, (), start, flags if stamp == IMOD else None, has_map, notes)
    return found._replace(shape=_shape(found))


def _fields(content: bytes, order: Order) -> Any:
    from mrcfile import dtypes  # not at the top: few need it

    record: Any = np.frombuffer(content, dtypes.HEADER_DTYPE.newbyteorder(order))
    return record.view(np.recarray)[0]


def _byte_order(content: bytes, has_map: bool) -> tuple[Order, list[str]]:
    """Return (< or >, notes): the order of the stamp if sizes and mode fit it, else what fits.

    Raises: InputError for a file without MAP that fits neither.
    """
    stamp = content[212:216]
    stated: Order = STAMPS.get(stamp[0], "<") if has_map else "<"
    other: Order = ">" if stated == "<" else "<"
    orders: tuple[Order, Order] = (stated, other)
    fitting: list[Order] = [order for order in orders if _is_plausible(content, order)]
    if not fitting and not has_map:
        raise InputError("not an MRC file: no MAP at byte 208, and no sizes and mode at its start")
    order = fitting[0] if fitting else stated
    if order == other and has_map and stamp[0] in STAMPS:
        seen = "little" if order == "<" else "big"
        said = f"its machine stamp is {stamp[:2].hex(' ')}, but sizes and mode are {seen}-endian"
        return order, [said]
    return order, []


def _is_plausible(content: bytes, order: Order) -> bool:
    *sides, mode = struct.unpack_from(f"{order}4i", content)
    axes = struct.unpack_from(f"{order}3i", content, 64)
    return (
        min(sides) > 0
        and min(sides) <= LARGEST_SIDE
        and (mode in PIXELS or mode in COMPLEX)
        and max(map(abs, axes)) <= 3
    )


def _shape(header: Header) -> tuple[int, ...]:
    fields = header.fields
    columns, rows, sections = int(fields.nx), int(fields.ny), int(fields.nz)
    if header.four_bits and header.mode == 0:
        columns *= 2
    shape: tuple[int, ...] = (sections, rows, columns)
    if 401 <= fields.ispg <= 630 and fields.mz != sections:  # several volumes, of mz sections each
        if fields.mz < 1 or sections % fields.mz:
            raise InputError(f"volumes of {fields.mz} sections, {sections} in all")
        shape = (sections // int(fields.mz), int(fields.mz), rows, columns)
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    return shape


def bytes_are_signed(header: Header) -> tuple[bool, str]:
    """Return (whether the bytes of mode 0 are signed, a note).

    IMOD's flag decides. Without its stamp the minimum and maximum do, where they are stated, and
    otherwise MRC2014, in which bytes are signed.
    """
    if header.flags is not None:
        return bool(header.flags & SIGNED_BYTES), ""
    low, high = float(header.fields.dmin), float(header.fields.dmax)
    if not low < high or high <= 127:
        return True, ""
    stated = f"bytes of {low:g} to {high:g} by its header"
    if low >= 0:
        return False, f"{stated}; read as unsigned"
    return True, f"{stated}, neither signed nor unsigned; read as signed"


def axes_of(header: Header) -> tuple[int, int, int]:
    """Return which of x, y and z (1, 2, 3) the columns, rows and sections run along."""
    axes = tuple(abs(int(axis)) for axis in (header.fields.mapc, header.fields.mapr))
    if not set(axes) < {1, 2, 3} or axes[0] == axes[1]:
        axes = (1, 2)
    return axes[0], axes[1], 6 - sum(axes)


def cell_sizes(header: Header) -> tuple[float, float, float]:
    """Return nm (z, y, x) of sections, rows and columns: the cell (in angstrom) over its intervals.

    In a stack of images, unlike a volume, there are not as many intervals as sections: z is NaN.
    Programs that state no intervals (HyperSpy) mean one for each pixel.
    """
    fields, shape = header.fields, header.shape
    cell = (fields.cella.x, fields.cella.y, fields.cella.z)
    intervals: tuple[int, ...] = (fields.mx, fields.my, fields.mz)
    axes = axes_of(header)
    if not any(intervals):
        pixels = (fields.nx, fields.ny, fields.nz)
        intervals = tuple(pixels[axes.index(axis)] for axis in (1, 2, 3))
    x, y, z = (nm(cell[a - 1] / intervals[a - 1] if intervals[a - 1] > 0 else 0, "a") for a in axes)
    if len(shape) < 3 or intervals[axes[2] - 1] != shape[0]:
        z = math.nan
    return z, y, x


def is_oblique(header: Header) -> bool:
    """Return whether an angle of the cell is stated and not 90 degrees."""
    angles = header.fields.cellb
    return any(a != 0 and abs(a - 90) > 0.01 for a in (angles.alpha, angles.beta, angles.gamma))


def extended_sizes(header: Header, extended: bytes) -> tuple[float, float]:
    """Return metres (y, x) per pixel by the first block of an extended header of FEI; NaN without.

    Args:
        extended: the bytes after the header, as many as there are up to 1024.
    """
    unknown = math.nan, math.nan
    kind = header.extended
    if kind.startswith("FEI"):
        from mrcfile import dtypes

        layout: Any = dtypes.get_ext_header_dtype(b"FEI1", header.order)
        if len(extended) < layout.itemsize:
            return unknown
        block = np.frombuffer(extended[: layout.itemsize], layout)[0]
        return float(block["Pixel size Y"]), float(block["Pixel size X"])
    # Numbers of integers and floats of FEI; SerialEM keeps bytes and flags in their place.
    numbers = struct.unpack_from(f"{header.order}2h", bytes(header.fields.tobytes()), 128)
    if (kind == "AGAR" or (not kind and numbers == (0, 32))) and len(extended) >= 128:
        size = struct.unpack_from(f"{header.order}f", extended, 44)[0]
        return size, size
    return unknown


def reciprocal_label(header: Header) -> str:
    """Return the label that states reciprocal space, such as a scale in 1/nm; "" without one."""
    for label in header.labels:
        lower = unicodedata.normalize("NFKC", label).lower()
        states = RECIPROCAL_UNIT.search(lower) or any(word in lower for word in RECIPROCAL_WORDS)
        if states and not any(word in lower for word in FILTERS):
            return label
    return ""
