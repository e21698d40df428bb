"""FEI and Thermo Fisher: SEM and FIB (tags 34680, 34682), Titan and Phenom (tag 34683)."""

from typing import Any

from tifffile import TiffPage

from emjax.micrographs.formats.vendors.common import NoLength, Stated, as_text, tag_value, xml
from emjax.micrographs.units import nm, no_length

SFEG, HELIOS, TITAN = 34680, 34682, 34683


def has_sections(page: TiffPage) -> bool:
    """Return whether a page has one of the two tags of sections [Scan], [Image], ..."""
    return SFEG in page.tags or HELIOS in page.tags


def sections(page: TiffPage) -> Stated | None:
    """Return the size that the SFEG or Helios tag states, in metres.

    A navigation camera has no [Scan]: its [IRBeam] states the width and height of the field.
    Source: RosettaSciIO, rsciio/tiff (which fields count).
    """
    for code in (SFEG, HELIOS):
        tag = tag_value(page, code)
        if not isinstance(tag, dict):
            continue
        image: dict[str, Any] = tag.get("Image", {})
        width = int(image.get("ResolutionX", 0))
        scan = tag.get("Scan") or tag.get(tag.get("Beam", {}).get("Scan"))
        if scan and "PixelWidth" in scan:
            return Stated((nm(scan["PixelHeight"], "m"), nm(scan["PixelWidth"], "m")), width)
        field = tag["IRBeam"]
        x, y = field["HFW"] / width, field["VFW"] / image["ResolutionY"]
        return Stated((nm(y, "m"), nm(x, "m")), width)
    return None


def xml_tag(page: TiffPage) -> Stated | None:
    """Return the size in tag 34683: `PixelsSize` of a Titan, `pixelWidth` of a Phenom.

    Titan: X and Y, in metres if no unit is stated. Phenom: with a unit. Other files of Thermo
    Fisher have the tag without content.

    Source: Bio-Formats, FEITiffReader (Titan); ome/bioformats issue 3740 (Phenom).

    Raises: NoLength for a reciprocal unit.
    """
    text = as_text(tag_value(page, TITAN))
    if not text:
        return None
    root = xml(text)
    for element in root.iter():
        name = element.tag.rpartition("}")[2]
        if name in ("PixelsSize", "PixelSize"):
            y, x = element.find("{*}Y"), element.find("{*}X")
        elif name == "pixelWidth":
            x = element
            y = next((e for e in root.iter() if e.tag.endswith("pixelHeight")), None)
        else:
            continue
        if x is None or y is None:
            continue
        units = [side.get("unit", "m") for side in (y, x)]
        if other := no_length(*units):
            raise NoLength(other)
        return Stated((nm(y.text, units[0]), nm(x.text, units[1])))
    return None
