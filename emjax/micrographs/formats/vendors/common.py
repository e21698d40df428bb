"""What the vendors' files share: a stated pixel size, reading a tag, and choosing among sizes."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

from tifffile import TiffPage

from emjax.errors import note
from emjax.micrographs.units import SAME, UNKNOWN, PixelSize, is_known

ANGSTROM = 0.1  # nm


class NoLength(Exception):
    """The pixels of an image are not in real space; says what they are."""


class Stated(NamedTuple):
    """A pixel size as a tag or a file next to the image states it."""

    sizes: PixelSize  # y, x
    width: int = 0  # of the image that it is stated for, in pixels; 0: not stated


Found = tuple[str, Stated | NoLength]  # origin, what it states

# A tag or a text of a vendor's without what makes it a calibration.
NO_CALIBRATION = (
    KeyError,
    ValueError,
    TypeError,
    IndexError,
    AttributeError,
    ZeroDivisionError,
    ElementTree.ParseError,
)


def tag_value(page: TiffPage, code: int) -> Any:
    """Return the value of a tag, None where a page lacks it."""
    return page.tags[code].value if code in page.tags else None


def as_text(value: object) -> str:
    """Return the text of a tag that was written as text or as bytes, up to its first zero byte."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return text.split("\0")[0].strip("\ufeff \r\n\t")


def xml(text: str) -> ElementTree.Element:
    """Return the root of XML.

    Raises: ValueError for XML that declares entities, ParseError for what is no XML.
    """
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("XML that declares entities")
    return ElementTree.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", text))


def choose(path: object, found: Sequence[Found], width: int) -> tuple[PixelSize, str, str]:
    """Return ((y, x) in nm, its origin, why it is not a micrograph) by the first that is known.

    A note names what differs: another size by more than 1 %, an image of another width than
    `width`, and exactly 1 angstrom, which some programs write where they know no size.
    """
    known = [entry for entry in found if isinstance(entry[1], NoLength) or is_known(entry[1].sizes)]
    if not known:
        return UNKNOWN, "none", ""
    origin, stated = known[0]
    if isinstance(stated, NoLength):
        return UNKNOWN, "none", str(stated)
    sizes = stated.sizes
    for other, others in known[1:]:
        if isinstance(others, Stated) and not _agree(others.sizes, sizes, SAME):
            by = f"{listed(sizes)} by {origin}, {listed(others.sizes)} by {other}"
            note(path, f"nm per pixel (y, x) {by}; the first is used")
    if stated.width and stated.width != width:
        resized = [size * stated.width / width for size in sizes]
        note(
            path,
            f"{width} pixels wide, its {origin} is of an image of {stated.width}: "
            f"{listed(sizes)} nm per pixel are used, right if it was cut out; "
            f"{listed(resized)} if it was resized",
        )
    if _agree(sizes, (ANGSTROM, ANGSTROM), 1e-6):
        note(path, f"exactly 1 angstrom (0.1 nm) per pixel by {origin}, often a placeholder")
    return sizes, origin, ""


def _agree(sizes: PixelSize, others: PixelSize, tolerance: float) -> bool:
    pairs = zip(sizes, others, strict=True)
    return all(abs(size - other) <= tolerance * other for size, other in pairs)


def listed(sizes: Sequence[float]) -> str:
    """Return sizes for people."""
    return ", ".join(f"{size:.6g}" for size in sizes)
