"""Text files that microscopes write next to an image, and SerialEM's .mdoc among them.

A sidecar lies in the folder of its image and is named NAME.ext, STEM.ext (or .EXT) or, as TESCAN
does, STEM-tif.hdr (STEM-png.hdr of a PNG); nothing else is opened. Links are not followed, and no
more than LARGEST bytes are read.
"""

import math
import os
import re
import stat
from collections.abc import Iterator, Sequence

from emjax.errors import note
from emjax.micrographs.units import SAME, UNKNOWN, PixelSize, nm

LARGEST = 16 << 20  # bytes of a sidecar; the .mdoc of 3000 images has 4 MB
DASHED = {".tif": "tif", ".tiff": "tif", ".png": "png"}  # TESCAN writes NAME-tif.hdr
SECTION = re.compile(r"^[ \t]*\[[ \t]*(\w+)[ \t]*=[^\]\n]*\]", re.MULTILINE)
IMAGES = ("ZValue", "FrameSet", "Image")  # sections of SerialEM that describe an image
BINNINGS = (2, 3, 4, 8, 16, 1 / 2, 1 / 3, 1 / 4, 1 / 8, 1 / 16)


def text_beside(path: str | os.PathLike[str], suffix: str) -> str:
    """Return the text of the sidecar of `path` with `suffix` (".hdr"), "" where there is none."""
    for name, found in beside(path, suffix):
        if (content := _content(name, found)) is not None:
            return decoded(content)
    return ""


def beside(path: str | os.PathLike[str], suffix: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield (name, what it is) of all that may be the sidecar of `path` with `suffix`."""
    image = os.fspath(path)
    stem, end = os.path.splitext(image)
    names = [image + suffix, stem + suffix, image + suffix.upper(), stem + suffix.upper()]
    if suffix == ".hdr" and end.lower() in DASHED:
        names.append(f"{stem}-{DASHED[end.lower()]}{suffix}")
    for name in names:
        try:
            found = os.lstat(name)
        except OSError:  # as a rule, there is none
            continue
        if name != image:
            yield name, found


def _content(path: str, found: os.stat_result) -> bytes | None:
    """Return the bytes of a plain file; None of a link, a pipe, a folder or a large file."""
    if stat.S_ISLNK(found.st_mode):
        note(path, "a link, which is not followed")
    if not stat.S_ISREG(found.st_mode):
        return None
    if found.st_size > LARGEST:
        note(path, f"{found.st_size} bytes, expected at most {LARGEST}; not read")
        return None
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
    try:
        with open(os.open(path, flags), "rb") as file:
            return file.read(LARGEST)
    except OSError:
        return None


def decoded(content: bytes) -> str:
    """Return the text of `content`: by its byte order mark, as UTF-8, or else as Windows does.

    Without a mark it is UTF-16 if every second of its first bytes is 0.
    """
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", "replace")
    for first, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        if len(content) >= 4 and not any(content[first:16:2]) and any(content[1 - first : 16 : 2]):
            return content.decode(encoding, "replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace")


def key_values(text: str, separator: str = "=") -> dict[str, str]:
    """Return {key: value} of lines "key = value"; of a key that comes twice, the first counts."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, is_pair, value = line.partition(separator)
        if is_pair and key.strip():
            found.setdefault(key.strip(), value.strip())
    return found


def serialem_sections(text: str) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Return (the values of the file, those of each image) of an .mdoc.

    Source: SerialEM's help, "File Formats": sections [ZValue = 0] or [FrameSet = 0] for an image.
    """
    starts = list(SECTION.finditer(text))
    ends = [*(start.start() for start in starts[1:]), len(text)][: len(starts)]
    of_file = key_values(text[: starts[0].start()] if starts else text)
    images = [
        key_values(text[start.end() : end])
        for start, end in zip(starts, ends, strict=True)
        if start[1] in IMAGES
    ]
    return of_file, images


def serialem(path: str | os.PathLike[str], shape: Sequence[int]) -> PixelSize:
    """Return (y, x) in nm by the .mdoc next to an image of `shape`; UNKNOWN where it has none.

    `PixelSpacing` is in angstrom and counts for the image as SerialEM saved it: its binning is
    included. If `ImageSize` is a multiple of the image's size, or a part of it, the image was
    binned or expanded later: the pixel size follows, and a note says so.
    """
    text = text_beside(path, ".mdoc")
    if not text:
        return UNKNOWN
    of_file, sections = serialem_sections(text)
    images = [{**of_file, **section} for section in sections] or [of_file]
    stated_sizes = {nm(image.get("PixelSpacing"), "a") for image in images}
    sizes = sorted(size for size in stated_sizes if math.isfinite(size))
    if not sizes:
        return UNKNOWN
    if sizes[-1] > (1 + SAME) * sizes[0]:
        listed = f"{10 * sizes[0]:.6g} to {10 * sizes[-1]:.6g}"
        note(path, f"{listed} angstrom per pixel by its .mdoc; the pixel size is unknown")
        return UNKNOWN
    stated = images[0].get("ImageSize", "")
    factor = stored_over_stated(shape, stated)
    h, w = shape[-2:]
    if math.isnan(factor):
        note(path, f"{w} x {h} pixels, its .mdoc is of {stated}; the pixel size is unknown")
        return UNKNOWN
    size = sizes[0] * factor
    if factor != 1:
        listed = f"{10 * sizes[0]:.6g} angstrom per pixel by its .mdoc for an image of {stated}"
        note(path, f"{listed}; {10 * size:.6g} for its {w} x {h}")
    return size, size


def stored_over_stated(shape: Sequence[int], stated: str) -> float:
    """Return how many stated pixels one of an image [..., h, w] has; `stated` is "width height".

    1 where nothing is stated, or the width fits: a banner that was cut off changes no pixel. NaN
    where the sizes fit by no usual binning.
    """
    sides = [float(side) for side in re.findall(r"\d+", stated)]
    if len(sides) != 2 or 0 in sides or sides[0] == shape[-1]:
        return 1.0
    x, y = sides[0] / shape[-1], sides[1] / shape[-2]
    for binning in BINNINGS:
        if abs(x / binning - 1) < 0.01 and abs(y / binning - 1) < 0.01:
            return float(binning)
    return math.nan
