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
    scan = {side.tag: side for side in root.iterfind(".//Scan/*")}
    sizes = [
        nm(math.hypot(float(x.text or ""), float(y.text or "")), x.get("units", "um"))
        for x, y in ((scan["Vx"], scan["Vy"]), (scan["Ux"], scan["Uy"]))
    ]
    return Stated((sizes[0], sizes[1]), int(float(root.findtext("Image/Width", "0"))))
