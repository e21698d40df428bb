"""Hitachi SEM: the `.txt` next to an image."""

import re

from emjax.micrographs.formats.sidecars import key_values
from emjax.micrographs.formats.vendors.common import Stated
from emjax.micrographs.units import nm

START = "[SemImageFile]"


def text(content: str) -> Stated | None:
    """Return `PixelSize`, in nm. Source: Gwyddion, hitachi-sem.c."""
    if START not in content:
        return None
    values = key_values(content.partition(START)[2])
    size = nm(values["PixelSize"].replace(",", "."), "nm")
    width = re.match(r"\d+", values.get("DataSize", ""))
    return Stated((size, size), int(width[0]) if width else 0)
