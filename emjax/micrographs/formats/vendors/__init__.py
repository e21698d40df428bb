"""Pixel sizes that the makers of microscopes state: in a tag of a TIFF, or next to an image.

To add a vendor: write a file with a function that returns what a page's tag, or a text next to an
image, states; give it one row in TAGS or TEXTS; name its public source; and add a test. The
function may look up what some files lack: such errors mean that there is no calibration.
"""

import os
from collections.abc import Callable, Sequence
from typing import TypeAlias

from tifffile import TiffPage

from emjax.micrographs.formats import sidecars
from emjax.micrographs.formats.vendors import (
    fei,
    fibics,
    gatan,
    hitachi,
    jeol,
    olympus,
    tescan,
    tvips,
    zeiss,
)
from emjax.micrographs.formats.vendors.common import NO_CALIBRATION, Found, NoLength, Stated

TagOrTest: TypeAlias = int | Callable[[TiffPage], bool]

# In the order of preference: the tag that a vendor writes, or a test of a page; its function.
TAGS: dict[str, tuple[TagOrTest, Callable[[TiffPage], Stated | None]]] = {
    "FEI tag": (fei.has_sections, fei.sections),
    "Thermo Fisher tag": (fei.TITAN, fei.xml_tag),
    "Fibics tag": (fibics.TAG, fibics.stated),
    "Zeiss tag": (zeiss.TAG, zeiss.stated),
    "Zeiss tag, at 1024 pixels per line": (zeiss.TAG, zeiss.per_line),
    "TESCAN tag": (tescan.TAG, tescan.stated),
    "Olympus tag": (olympus.TAG, olympus.stated),
    "TVIPS tag": (tvips.TAG, tvips.stated),
    "Gatan tag": (gatan.has_units, gatan.stated),
    "JEOL tag": (jeol.has_report, jeol.report),
}
# Texts next to an image: their suffix, and what the text states.
TEXTS: dict[str, tuple[str, Callable[[str], Stated | None]]] = {
    "TESCAN .hdr": (".hdr", tescan.header),
    "Hitachi .txt": (".txt", hitachi.text),
    "JEOL .txt": (".txt", jeol.text),
}


def in_tags(page: TiffPage) -> list[Found]:
    """Return [(origin, what it states)] of the vendors' tags of a page."""
    found: list[Found] = []
    for origin, (where, stated_by) in TAGS.items():
        try:
            applies = where in page.tags if isinstance(where, int) else where(page)
            stated = stated_by(page) if applies else None
        except NoLength as error:
            found.append((origin, error))
            continue
        except NO_CALIBRATION:
            continue
        if stated:
            found.append((origin, stated))
    return found


def beside(path: str | os.PathLike[str], shape: Sequence[int]) -> list[Found]:
    """Return [(origin, what it states)] of the texts next to an image of `shape`."""
    texts = {suffix: sidecars.text_beside(path, suffix) for suffix, _ in TEXTS.values()}
    found: list[Found] = []
    for origin, (suffix, stated_by) in TEXTS.items():
        try:
            stated = stated_by(texts[suffix]) if texts[suffix] else None
        except NO_CALIBRATION:
            continue
        if stated:
            found.append((origin, stated))
    return [*found, ("SerialEM .mdoc", Stated(sidecars.serialem(path, shape)))]
