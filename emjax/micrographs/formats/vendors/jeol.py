"""JEOL: the TEM's report in a TIFF, and the SEM's `.txt` next to an image."""

import re

from tifffile import TiffPage

from emjax.micrographs.formats.vendors.common import NoLength, Stated, tag_value, xml
from emjax.micrographs.formats.vendors.resolution import detector
from emjax.micrographs.units import nm

MAKE = 271
TEM = "eosTEM"


def has_report(page: TiffPage) -> bool:
    """Return whether a page is JEOL's and has the report of its TEM."""
    return str(tag_value(page, MAKE)).startswith("JEOL") and "<TemReporter" in page.description


def report(page: TiffPage) -> Stated | None:
    """Return the resolution on JEOL's detector over the magnification; None of a scanned image.

    Source: RosettaSciIO, rsciio/tiff.

    Raises: NoLength for a diffraction pattern.
    """
    said = xml(page.description.strip("\0\1"))
    imaging = said.find("ImageFormingSystem")
    if imaging is None or said.findtext("Eos/EosMode", TEM) != TEM:
        return None
    if imaging.findtext("ModeString") == "DIFF":
        raise NoLength("reciprocal space")
    if imaging.findtext("ModeString") == "MAG":
        magnification = float(imaging.findtext("SelectorValue", ""))
        y, x = detector(page)
        return Stated((y / magnification, x / magnification))
    return None


def text(content: str) -> Stated | None:
    """Return the size by the scale bar in the SEM's `.txt`: its label over its pixels.

    The bar is given in whole pixels: of 100 pixels, the size is right to 0.5 %.

    Source: pynxtools-em, image_tiff_jeol (names and meaning).
    """
    pairs = re.findall(r"^\$+(\w+)[ \t]+([^\r\n]+)", content, re.MULTILINE)
    values = {key: value.strip() for key, value in pairs}
    label = re.fullmatch(r"([\d.]+)\s*(\S+)", values["SM_MICRON_MARKER"])
    if not label:
        return None
    size = nm(label[1], label[2]) / float(values["SM_MICRON_BAR"])
    full = re.match(r"\d+", values.get("CM_FULL_SIZE", ""))
    return Stated((size, size), int(full[0]) if full else 0)
