"""Pixel sizes of TIFF files: one function per vendor."""

import math
from xml.etree import ElementTree

import numpy as np

from emjax.errors import note
from emjax.micrographs.signal import UNKNOWN
from emjax.micrographs.units import nm, no_length

SIS, FEI, ZEISS = 33560, (34680, 34682), 34118
GATAN_UNIT, GATAN_SCALE = (65004, 65003), (65010, 65009)  # y, x
COARSEST = 2000.0  # nm: a resolution tag above it (12 700 dpi) is meant for printers


def _pixel_size(path, file, place, series):
    """((y, x) in nm, its origin, why it is no micrograph), from the best place that knows."""
    page = series.keyframe
    found, strange = [], ""
    for name, look in VENDORS.items():
        try:
            sizes = look(page)
        except _NoLength as error:
            strange, sizes = str(error), None
        except (KeyError, ValueError, TypeError, IndexError, AttributeError, ZeroDivisionError):
            sizes = None  # a tag of that name, without what makes it a calibration
        except ElementTree.ParseError:
            sizes = None
        if sizes:
            found.append((f"{name} tag", sizes))
    if file.is_ome:
        found.append(("OME-XML", _ome(file, place)))
    if file.is_imagej:
        found.append(("ImageJ", _imagej(file, page)))
    found.append(("resolution tag", _resolution(page)))
    known = [(origin, sizes) for origin, sizes in found if np.isfinite(sizes).all()]
    if not known:
        return UNKNOWN, "none", strange
    origin, sizes = known[0]
    for other, others in known[1:]:
        if not np.allclose(others, sizes, rtol=0.01):
            by = f"nm per pixel (y, x) {_told(sizes)} by {origin}, {_told(others)} by {other}"
            note(path, f"{by}; the first is used")
    return sizes, origin, strange


class _NoLength(Exception):
    """The pixels of a page are not in real space."""


def _told(sizes):
    return ", ".join(f"{size:.6g}" for size in sizes)


def _tag(page, code):
    return page.tags[code].value if code in page.tags else None


def _fei(page):
    for code in FEI:
        tag = _tag(page, code)
        if isinstance(tag, dict):
            scan = tag.get("Scan") or tag[tag["Beam"]["Scan"]]
            return nm(scan["PixelHeight"], "m"), nm(scan["PixelWidth"], "m")


def _zeiss(page):
    """Zeiss states the size of a pixel of an image 1024 wide (in metres)."""
    tag = _tag(page, ZEISS)
    if tag:
        size = nm(tag[""][3] * 1024 / page.imagewidth, "m")
        stated = tag.get("ap_image_pixel_size")
        if stated and abs(size / nm(stated[1], stated[2]) - 1) > 0.01:
            size = nm(stated[1], stated[2])
        return size, size


def _olympus(page):
    tag = _tag(page, SIS)
    if tag:
        return nm(tag["pixelsizey"], "m"), nm(tag["pixelsizex"], "m")


def _tvips(page):
    tag = _tag(page, 37706)
    if tag:
        return nm(tag["PixelSizeY"], "nm"), nm(tag["PixelSizeX"], "nm")


def _gatan(page):
    units = [_tag(page, code) for code in GATAN_UNIT]
    if None not in units:
        if no_length(*units):
            raise _NoLength(no_length(*units))
        y, x = (nm(_tag(page, code), unit) for code, unit in zip(GATAN_SCALE, units, strict=True))
        return y, x


def _jeol(page):
    """JEOL states the resolution on the detector, and the magnification."""
    if str(_tag(page, 271)).startswith("JEOL") and "<TemReporter" in page.description:
        imaging = _xml(page.description.strip("\0\1")).find("ImageFormingSystem")
        if imaging.findtext("ModeString") == "DIFF":
            raise _NoLength("reciprocal space")
        if imaging.findtext("ModeString") == "MAG":
            magnification = float(imaging.findtext("SelectorValue"))
            return tuple(size / magnification for size in _detector(page))


VENDORS = {
    "FEI": _fei,
    "Zeiss": _zeiss,
    "Olympus": _olympus,
    "TVIPS": _tvips,
    "Gatan": _gatan,
    "JEOL": _jeol,
}


def _xml(text):
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("XML that declares entities")
    return ElementTree.fromstring(text)


def _ome(file, place, axes="YX"):
    """By OME-XML, whose unit is the micrometre where none is stated."""
    try:
        pixels = list(_xml(file.ome_metadata).iterfind("{*}Image/{*}Pixels"))[place].attrib
    except (ElementTree.ParseError, IndexError, ValueError, TypeError):
        return UNKNOWN
    return tuple(
        nm(pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "um"))
        for axis in axes
    )


def _imagej(file, page):
    """By ImageJ: the resolution tags are pixels per its unit."""
    tags = file.imagej_metadata or {}
    unit = str(tags.get("unit", ""))
    return tuple(nm(_per(page, tag), tags.get(f"{axis}unit") or unit)
                 for tag, axis in ((283, "y"), (282, "x")))  # fmt: skip


def _plane_distance(file, place):
    """nm from plane to plane, by OME-XML or ImageJ."""
    if file.is_ome:
        return _ome(file, place, "Z")[0]
    tags = file.imagej_metadata or {}
    return nm(tags.get("spacing"), tags.get("zunit") or str(tags.get("unit", "")))


def _per(page, code):
    """1 / the resolution tag `code`, NaN where it is missing or nothing."""
    value = _tag(page, code)
    if not isinstance(value, tuple) or len(value) != 2 or not value[0]:
        return math.nan
    return value[1] / value[0]


def _detector(page):
    """nm (y, x) by the resolution tags, whatever they are good for."""
    unit = {2: "inch", 3: "cm"}.get(_tag(page, 296), "")
    return nm(_per(page, 283), unit), nm(_per(page, 282), unit)


def _resolution(page):
    """By the resolution tags, unless they are meant for a printer (72, 96, 300, ... dpi)."""
    sizes = _detector(page)
    return sizes if max(sizes) < COARSEST else UNKNOWN
