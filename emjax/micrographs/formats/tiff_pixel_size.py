"""Pixel sizes of TIFF files: by vendors, OME-XML, ImageJ and the resolution tags."""

import bisect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from tifffile import TiffFile, TiffPage, TiffPageSeries

from emjax.errors import note
from emjax.micrographs.formats import vendors
from emjax.micrographs.formats.vendors.common import NoLength, Stated, choose, xml
from emjax.micrographs.formats.vendors.resolution import (
    COARSEST,
    RESOLUTION_UNIT,
    X_RESOLUTION,
    Y_RESOLUTION,
    per,
    specimen,
)
from emjax.micrographs.units import UNKNOWN, PixelSize, differing, nm, no_length

RESOLUTION = "resolution tag"
LOOKED_AT = 10_000  # pages of a series that may differ
PAPER = {1e7, 2.54e7}  # nm: centimetres and inches


class OmeImage(NamedTuple):
    """An <Image> of OME-XML: the attributes of its <Pixels>, and the pages that it stands for."""

    pixels: Mapping[str, str]
    pages: tuple[tuple[range, int], ...]  # and which plane of the image the first of them is
    counts: Mapping[str, int]  # of planes along C, Z and T, the fastest first
    channels: tuple[str, ...]  # their names; empty where there is none

    def channels_of(self, pages: Sequence[int]) -> list[int]:
        """Return the number of the channel of each of some pages, -1 where it is not known."""
        step = math.prod(list(self.counts.values())[: list(self.counts).index("C")])
        blocks = sorted(self.pages, key=lambda block: block[0].start)
        starts = [block.start for block, _ in blocks]
        found: list[int] = []
        for page in pages:
            block, first = blocks[bisect.bisect(starts, page) - 1]
            plane = first + page - block.start
            found.append(plane // step % self.counts["C"] if page in block else -1)
        return found


def pixel_size(
    path: str,
    file: TiffFile,
    series: TiffPageSeries,
    ome: OmeImage | None,
    shape: Sequence[int],
    pages: Sequence[TiffPage],
) -> tuple[PixelSize, str, str]:
    """Return ((y, x) in nm, its origin, why it is not a micrograph) of a series of a file.

    The first known one is used of: vendors' tags, OME-XML, ImageJ, texts next to the file,
    resolution tags. A note names any other size.

    Args:
        pages: `pages_to_compare` of the series.
    """
    page = series.keyframe
    found = vendors.in_tags(page)
    if ome:
        found.append(("OME-XML", _ome(ome.pixels)))
    if file.is_imagej:
        found.append(("ImageJ", _imagej(file, page)))
    found += vendors.beside(path, shape)
    if not file.is_imagej or RESOLUTION_UNIT in page.tags:
        found.append((RESOLUTION, Stated(specimen(page))))
    sizes, origin, other = choose(path, found, shape[-1])
    if origin == RESOLUTION:
        if between := differing([specimen(each) for each in pages]):
            note(path, f"pages of {between} nm per pixel: none is taken for all")
            return UNKNOWN, "none", other
    return sizes, origin, other


def pages_to_compare(series: TiffPageSeries) -> list[TiffPage]:
    """Return the first pages of a series that is one by the shape of its pages alone.

    These may differ in what their tags say; what programs write as a series has one set of them.
    """
    if series.kind not in ("generic", "uniform") or len(series.pages) < 2:
        return []
    return [page.aspage() for page in series.pages[:LOOKED_AT] if page is not None]


def plane_distance(file: TiffFile, ome: OmeImage | None) -> float:
    """Return nm from plane to plane of a series, by OME-XML or ImageJ."""
    if ome:
        return _ome_size(ome.pixels, "Z")
    tags = file.imagej_metadata or {}
    return nm(tags.get("spacing"), tags.get("zunit") or str(tags.get("unit", "")))


def ome_images(path: str, file: TiffFile) -> list[OmeImage]:
    """Return the images that the OME-XML of a file says are in this file, with their pages.

    <TiffData> names pages by number, and files by UUID or name. An image of another file, and one
    of <MetadataOnly>, is none of this file. Source: OME-TIFF specification, 6.
    """
    if not file.is_ome:
        return []
    try:
        root = xml(file.ome_metadata or "")
    except (ElementTree.ParseError, ValueError):
        note(path, "its OME-XML is damaged or declares entities; it is not used")
        return []
    if (elsewhere := root.find("{*}BinaryOnly")) is not None:
        name = elsewhere.get("MetadataFile")
        note(path, f"its OME-XML is in {name}, which is not opened; no pixel size is taken from it")
        return []
    every = list(root.iterfind("{*}Image/{*}Pixels"))
    named = [element for pixels in every for element in pixels.iterfind("{*}TiffData/{*}UUID")]
    uuid = _uuid_of_this_file(path, root, named)
    images = []
    for pixels in every:
        counts = _counts(pixels)
        pages = [
            _pages(block, counts)
            for block in pixels.iterfind("{*}TiffData")
            if (owner := block.find("{*}UUID")) is None or owner.text == uuid
        ]
        if pixels.find("{*}TiffData") is None and len(every) == 1 and _is_plain(pixels):
            pages = [(range(len(file.pages)), 0)]  # of a careless program: the image is all pages
        channels = tuple(c.get("Name", "") for c in pixels.iterfind("{*}Channel"))
        images.append(OmeImage(pixels.attrib, tuple(pages), counts, channels))
    return images


def _uuid_of_this_file(
    path: str, root: ElementTree.Element, named: Sequence[ElementTree.Element]
) -> str | None:
    """Return the UUID by which <TiffData> names this file, None where it names none."""
    uuids = {element.text for element in named}
    if root.get("UUID") in uuids:
        return root.get("UUID")
    for element in named:
        if element.get("FileName", "").lower() == Path(path).name.lower():
            return element.text
    return uuids.pop() if len(uuids) == 1 and not root.get("UUID") else None  # it was renamed


def _is_plain(pixels: ElementTree.Element) -> bool:
    return pixels.find("{*}MetadataOnly") is None and pixels.find("{*}BinData") is None


def _counts(pixels: ElementTree.Element) -> dict[str, int]:
    """Return how many planes there are along C, Z and T, the fastest first; colours are one."""
    order = pixels.get("DimensionOrder", "")[2:]
    sizes = {axis: pixels.get(f"Size{axis}", "") for axis in "CZT"}
    counts = {axis: int(size) if size.isdecimal() else 1 for axis, size in sizes.items()}
    counts["C"] = len(pixels.findall("{*}Channel")) or counts["C"]
    return {axis: max(1, counts[axis]) for axis in (order if set(order) == {*"CZT"} else "CZT")}


def _pages(block: ElementTree.Element, counts: Mapping[str, int]) -> tuple[range, int]:
    """Return the pages of one <TiffData>, and which plane of the image the first of them is.

    They are all if neither IFD nor PlaneCount is given.
    """
    try:
        first = int(block.get("IFD", 0))
        every = math.prod(counts.values())
        count = (
            block.get("PlaneCount")
            or block.get("NumPlanes")
            or (1 if "IFD" in block.attrib else every)
        )
        plane, step = 0, 1
        for axis, size in counts.items():
            plane, step = plane + step * int(block.get(f"First{axis}", 0)), step * size
        return range(first, first + int(count)), plane
    except ValueError:
        return range(0), 0


def ome_image(path: str, images: Sequence[OmeImage], series: TiffPageSeries) -> OmeImage | None:
    """Return the image of OME-XML that the first page of `series` belongs to.

    None, with a note, where there is none, or several that differ in size.
    """
    page = next((page for page in series.pages if page is not None), series.keyframe)
    found = [image for image in images if any(page.index in pages for pages, _ in image.pages)]
    sizes = {tuple(_ome_size(image.pixels, axis) for axis in "ZYX") for image in found}
    if len(found) == 1 or (found and len({str(size) for size in sizes}) == 1):
        return found[0]
    if images:
        which = "several images" if found else "no image"
        note(path, f"page {page.index} is {which} of its OME-XML; no pixel size is taken from it")
    return None


def _ome_size(pixels: Mapping[str, str], axis: str) -> float:
    """Return PhysicalSize of an axis in nm: in micrometres where no unit is stated."""
    return nm(pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "um"))


def _ome(pixels: Mapping[str, str]) -> Stated | NoLength:
    if other := no_length(*(pixels.get(f"PhysicalSize{axis}Unit", "um") for axis in "YX")):
        return NoLength(other)
    width = pixels.get("SizeX", "0")
    sizes = _ome_size(pixels, "Y"), _ome_size(pixels, "X")
    return Stated(sizes, int(width) if width.isdecimal() else 0)


def _imagej(file: TiffFile, page: TiffPage) -> Stated | NoLength:
    """Return (y, x) by ImageJ: the resolution tags are pixels per its unit."""
    tags = file.imagej_metadata or {}
    unit = str(tags.get("unit", ""))
    y_unit, x_unit = tags.get("yunit") or unit, tags.get("xunit") or unit
    if other := no_length(y_unit, x_unit):
        return NoLength(other)
    sizes = nm(per(page, Y_RESOLUTION), y_unit), nm(per(page, X_RESOLUTION), x_unit)
    if PAPER & {nm(1, y_unit), nm(1, x_unit)} and max(sizes) >= COARSEST:
        return Stated(UNKNOWN)  # Fiji takes dots per inch or cm of paper for a calibration
    return Stated(sizes)
