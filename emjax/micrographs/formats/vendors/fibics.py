"""Zeiss Atlas 5 and other programs of Fibics (tag 51023)."""

import math

from tifffile import TiffPage

from emjax.micrographs.formats.vendors.common import Stated, as_text, tag_value, xml
from emjax.micrographs.units import nm

TAG = 51023


def stated(page: TiffPage) -> Stated | None:
    """Return the lengths of the steps U (along a row) and V in <Scan>, in micrometres.

    Source: the importer of SimpleITK's microscopy tools, IASEMImportSeries (names and unit).
    """
    root = xml(as_text(tag_value(page, TAG)))
    scan = next(root.iter("Scan"))
    steps = {}
    for axis in "UV":
        sides = [scan.find(axis + side) for side in "xy"]
        if None in sides:
            return None
        lengths = [float(side.text) for side in sides]  # type: ignore[union-attr]
        steps[axis] = nm(math.hypot(*lengths), sides[0].get("units", "um"))  # type: ignore
    width = root.findtext("Image/Width", "0")
    return Stated((steps["V"], steps["U"]), int(float(width)))
