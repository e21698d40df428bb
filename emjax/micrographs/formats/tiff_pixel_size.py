"""Pixel sizes of TIFF files: one function per vendor, and the tags that programs write.

To add a vendor: write a function that returns (y, x) in nm of a page, give it a row in VENDORS with
its tag or test, and add a test. It may look up what some files lack: such errors mean that there is
no calibration.
"""

import math
from collections.abc import Callable
from typing import Any, TypeAlias
from xml.etree import ElementTree

import numpy as np
from tifffile import TiffFile, TiffPage, TiffPageSeries

from emjax.errors import note
from emjax.micrographs.units import UNKNOWN, PixelSize, is_known, nm, no_length

MAKE, X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 271, 282, 283, 296
OLYMPUS, ZEISS, FEI_SFEG, FEI_HELIOS, TVIPS = 33560, 34118, 34680, 34682, 37706
GATAN_UNITS, GATAN_SCALES = (65004, 65003), (65010, 65009)  # y, x
TagOrTest: TypeAlias = int | Callable[[TiffPage], bool]
COARSEST = 2000.0  # nm: a resolution tag above it (12 700 dpi) is meant for printers


class NoLength(Exception):
    """The pixels of a page are not in real space; says what they are."""


def pixel_size(
    path: object, file: TiffFile, index: int, series: TiffPageSeries
) -> tuple[PixelSize, str, str]:
    """Return ((y, x) in nm, its origin, why it is no micrograph) of series `index` of a file.

    The first known one is used of: vendors, OME-XML, ImageJ, resolution tags. A note names any
    other size in the file.
    """
    page = series.keyframe
    found: list[tuple[str, PixelSize]] = []
    refused = ""
    for vendor, (where, sizes_of) in VENDORS.items():
        try:
            applies = where in page.tags if isinstance(where, int) else where(page)
            sizes = sizes_of(page) if applies else None
        except NoLength as error:
            refused, sizes = str(error), None
        except NO_CALIBRATION:
            sizes = None
        if sizes:
            found.append((f"{vendor} tag", sizes))
    if file.is_ome:
        found.append(("OME-XML", _ome(file, index)[1:]))
    if file.is_imagej:
        found.append(("ImageJ", _imagej(file, page)))
    found.append(("resolution tag", _resolution(page)))
    known = [(origin, sizes) for origin, sizes in found if is_known(sizes)]
    if not known:
        return UNKNOWN, "none", refused
    origin, sizes = known[0]
    for other, others in known[1:]:
        if not np.allclose(others, sizes, rtol=0.01):
            stated = f"{_listed(sizes)} by {origin}, {_listed(others)} by {other}"
            note(path, f"nm per pixel (y, x) {stated}; the first is used")
    return sizes, origin, refused


def plane_distance(file: TiffFile, index: int) -> float:
    """Return nm from plane to plane of series `index`, by OME-XML or ImageJ."""
    if file.is_ome:
        return _ome(file, index)[0]
    tags = file.imagej_metadata or {}
    return nm(tags.get("spacing"), tags.get("zunit") or str(tags.get("unit", "")))


def is_fei(page: TiffPage) -> bool:
    """Return whether a page has one of FEI's tags."""
    return FEI_SFEG in page.tags or FEI_HELIOS in page.tags


def fei(page: TiffPage) -> PixelSize | None:
    """Return the size that FEI's SFEG or Helios tag states, in metres."""
    for code in (FEI_SFEG, FEI_HELIOS):
        tag = _tag(page, code)
        if isinstance(tag, dict):
            scan = tag.get("Scan") or tag[tag["Beam"]["Scan"]]
            return nm(scan["PixelHeight"], "m"), nm(scan["PixelWidth"], "m")
    return None


def zeiss(page: TiffPage) -> PixelSize | None:
    """Return the size that Zeiss states: of a pixel of an image 1024 wide, in metres.

    Newer files state the size of their own pixels as well, which then counts.
    """
    tag = _tag(page, ZEISS)
    if not tag:
        return None
    size = nm(tag[""][3] * 1024 / page.imagewidth, "m")
    stated = tag.get("ap_image_pixel_size")
    if stated and abs(size / nm(stated[1], stated[2]) - 1) > 0.01:
        size = nm(stated[1], stated[2])
    return size, size


def olympus(page: TiffPage) -> PixelSize | None:
    """Return the size that the tag of Olympus SIS states, in metres."""
    tag = _tag(page, OLYMPUS)
    return (nm(tag["pixelsizey"], "m"), nm(tag["pixelsizex"], "m")) if tag else None


def tvips(page: TiffPage) -> PixelSize | None:
    """Return the size that the tag of TVIPS's EM-Menu states, in nm."""
    tag = _tag(page, TVIPS)
    return (nm(tag["PixelSizeY"], "nm"), nm(tag["PixelSizeX"], "nm")) if tag else None


def is_gatan(page: TiffPage) -> bool:
    """Return whether both axes have a unit of Gatan."""
    return all(code in page.tags for code in GATAN_UNITS)


def gatan(page: TiffPage) -> PixelSize:
    """Return the size by Gatan's scales and their units.

    Raises: NoLength for an energy or reciprocal axis.
    """
    units = [_tag(page, code) for code in GATAN_UNITS]
    if other := no_length(*units):
        raise NoLength(other)
    y, x = (nm(_tag(page, code), unit) for code, unit in zip(GATAN_SCALES, units, strict=True))
    return y, x


def is_jeol(page: TiffPage) -> bool:
    """Return whether a page is JEOL's and has the report of its TEM."""
    return str(_tag(page, MAKE)).startswith("JEOL") and "<TemReporter" in page.description


def jeol(page: TiffPage) -> PixelSize | None:
    """Return the resolution on JEOL's detector over the magnification.

    Raises: NoLength for a diffraction pattern.
    """
    imaging = _xml(page.description.strip("\0\1")).find("ImageFormingSystem")
    if imaging is None:
        return None
    if imaging.findtext("ModeString") == "DIFF":
        raise NoLength("reciprocal space")
    if imaging.findtext("ModeString") == "MAG":
        magnification = float(imaging.findtext("SelectorValue", ""))
        y, x = _detector(page)
        return y / magnification, x / magnification
    return None


# In the order of preference: the tag that a vendor writes, or a test of a page; its function.
VENDORS: dict[str, tuple[TagOrTest, Callable[[TiffPage], PixelSize | None]]] = {
    "FEI": (is_fei, fei),
    "Zeiss": (ZEISS, zeiss),
    "Olympus": (OLYMPUS, olympus),
    "TVIPS": (TVIPS, tvips),
    "Gatan": (is_gatan, gatan),
    "JEOL": (is_jeol, jeol),
}
# A tag of a vendor's number without what makes it a calibration.
NO_CALIBRATION = (
    KeyError,
    ValueError,
    TypeError,
    IndexError,
    AttributeError,
    ZeroDivisionError,
    ElementTree.ParseError,
)


def _listed(sizes: PixelSize) -> str:
    return ", ".join(f"{size:.6g}" for size in sizes)


def _tag(page: TiffPage, code: int) -> Any:
    return page.tags[code].value if code in page.tags else None


def _xml(text: str) -> ElementTree.Element:
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("XML that declares entities")
    return ElementTree.fromstring(text)


def _ome(file: TiffFile, index: int) -> tuple[float, float, float]:
    """Return (z, y, x) by OME-XML, in micrometres where no unit is stated."""
    try:
        pixels = list(_xml(file.ome_metadata or "").iterfind("{*}Image/{*}Pixels"))[index].attrib
    except (ElementTree.ParseError, IndexError, ValueError, TypeError):
        return math.nan, *UNKNOWN
    z, y, x = (
        nm(pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "um"))
        for axis in "ZYX"
    )
    return z, y, x


def _imagej(file: TiffFile, page: TiffPage) -> PixelSize:
    """Return (y, x) by ImageJ: the resolution tags are pixels per its unit."""
    tags = file.imagej_metadata or {}
    unit = str(tags.get("unit", ""))
    y = nm(_per(page, Y_RESOLUTION), tags.get("yunit") or unit)
    x = nm(_per(page, X_RESOLUTION), tags.get("xunit") or unit)
    return y, x


def _per(page: TiffPage, code: int) -> float:
    """Return 1 / the resolution tag `code`, NaN where it is missing or zero."""
    match _tag(page, code):
        case (numerator, denominator) if numerator:
            return denominator / numerator
        case _:
            return math.nan


def _detector(page: TiffPage) -> PixelSize:
    """Return nm (y, x) by the resolution tags, whatever they are good for."""
    unit = {2: "inch", 3: "cm"}.get(_tag(page, RESOLUTION_UNIT), "")
    return nm(_per(page, Y_RESOLUTION), unit), nm(_per(page, X_RESOLUTION), unit)


def _resolution(page: TiffPage) -> PixelSize:
    """Return (y, x) by the resolution tags, unless meant for a printer (72, 96, 300, ... dpi)."""
    sizes = _detector(page)
    return sizes if max(sizes) < COARSEST else UNKNOWN
