"""Drop patches that a network learns nothing from, and picture what was kept and dropped.

The thresholds were chosen by looking at the contact sheets of public sets, listed in
docs/reference/micrographs.md.
"""

import io
import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Real
from PIL import Image, ImageDraw

from data_builders import duplicates
from data_builders.writer import Record
from emjax.micrographs import from_range
from emjax.micrographs.banner import ACROSS, EVEN, FLAT, ONE_VALUE, strip

# Shares of the intensity range, of pixels, or of the side of a patch.
# FLAT: standard deviation below which there is at most noise to see
VALUES = 4  # different grey values at least: fewer are drawn, or nearly constant
SATURATED = 0.75  # of the pixels at or beyond the two ends of the range
STRIP = 1 / 16  # of the side: a strip along an edge, at least as thick, is a banner or a border
THRESHOLDS = {
    "flat": FLAT,
    "values": VALUES,
    "saturated": SATURATED,
    "strip": STRIP,
    "one_value": ONE_VALUE,
    "even": EVEN,
    "across": ACROSS,
    "alike_bits": duplicates.DISTANCE,
}
KEPT = ""
REASONS = ("flat", "saturated", "strip", "alike")  # the first that applies counts

KEPT_SHEET, DROPPED_SHEET = "kept.png", "dropped.png"  # beside the card of a build
SHOWN = 100  # thumbnails of a contact sheet at most
SIDE = 112  # pixels, of a thumbnail
COLUMNS = 10

Thumbnail = tuple[int, str, Image.Image]  # index of the patch, caption, picture


class Curated(NamedTuple):
    """What is left of a collection."""

    keep: bytearray  # 1 or 0 for each patch, by its index
    dropped: dict[str, int]  # reason: patches
    sheets: dict[str, bytes]  # name: PNG


def curate(records: Iterable[Record]) -> Curated:
    """Return the Curated of all `records` of a collection, which come in order of their indices.

    Of patches that look alike the first stays, whatever split it is in: the result depends on the
    order of the indices alone. Memory: a byte per patch, duplicates.Seen, 500 thumbnails.
    """
    keep, seen, draw = bytearray(), duplicates.Seen(), random.Random(0)
    counts: dict[str, int] = dict.fromkeys((KEPT, *REASONS), 0)
    shown: dict[str, list[Thumbnail]] = {reason: [] for reason in counts}
    for index, record in enumerate(records):
        image = record["image"][..., 0]
        reason = why_uninformative(image, record["intensity_range"])
        caption = f"{index} {reason}"
        if not reason:
            first = seen.first_like(duplicates.fingerprint(image), index)
            if first is not None:
                reason, caption = "alike", f"{index} like {first}"
        keep.append(not reason)
        counts[reason] += 1
        # A random sample: each of the first n patches stays with the probability SHOWN / n.
        n = counts[reason]
        slot = n - 1 if n <= SHOWN else draw.randrange(n)
        if slot < SHOWN:
            thumbnail = _thumbnail(image, record["intensity_range"])
            shown[reason][slot : slot + 1] = [(index, caption, thumbnail)]
    sheets = {
        KEPT_SHEET: _sheet(_shared_out([shown.pop(KEPT)])),
        DROPPED_SHEET: _sheet(_shared_out(list(shown.values()))),
    }
    dropped = {reason: counts[reason] for reason in REASONS}
    return Curated(keep, dropped, {name: png for name, png in sheets.items() if png})


def why_uninformative(
    image: Real[np.ndarray, "h w"], intensity_range: Sequence[float] | Real[np.ndarray, "2"]
) -> str:
    """Return the one of REASONS to drop `image`, or KEPT.

    Args:
        intensity_range: (low, high), in the values of `image`.
    """
    low, high = np.asarray(intensity_range, np.float32)
    scaled = (image.astype(np.float32) - low) / (high - low)
    if scaled.std() < FLAT or not _has_values(image):
        return "flat"
    if np.mean((scaled <= 0) | (scaled >= 1)) > SATURATED:
        return "saturated"
    views = (scaled, scaled[::-1], scaled.T, scaled.T[::-1])
    return "strip" if any(_starts_with_strip(view) for view in views) else KEPT


def _has_values(image: Real[np.ndarray, "h w"]) -> bool:
    """Return whether `image` has at least VALUES different values."""
    part = image.ravel()[:: max(1, image.size // 4096)]  # nearly always enough, and quick
    return len(np.unique(part)) >= VALUES or len(np.unique(image)) >= VALUES


def _starts_with_strip(scaled: Float32[np.ndarray, "h w"]) -> bool:
    """Return whether the first rows are a banner or border of at least STRIP of the side."""
    return strip(scaled, max(2, round(len(scaled) * STRIP))) > 0


def _shared_out(groups: list[list[Thumbnail]]) -> list[Thumbnail]:
    """Return at most SHOWN of all `groups` together, group by group; small groups stay whole."""
    most = SHOWN
    while sum(min(len(group), most) for group in groups) > SHOWN:
        most -= 1
    return [one for group in groups for one in sorted(group[:most], key=lambda one: one[0])]


def _thumbnail(
    image: Real[np.ndarray, "h w"], intensity_range: Sequence[float] | Real[np.ndarray, "2"]
) -> Image.Image:
    """Return a picture of at most SIDE x SIDE, the range from black to white."""
    grey = (from_range(image, intensity_range) + 1) * 127.5
    picture = Image.fromarray(grey.astype(np.uint8))
    picture.thumbnail((SIDE, SIDE))
    return picture


def _sheet(picked: list[Thumbnail]) -> bytes | None:
    """Return the PNG of the thumbnails `picked`, row by row; None if there are none."""
    if not picked:
        return None
    rows = -(-len(picked) // COLUMNS)
    sheet = Image.new("L", (min(len(picked), COLUMNS) * (SIDE + 2), rows * (SIDE + 2)))
    pen = ImageDraw.Draw(sheet)
    for number, (_, caption, thumbnail) in enumerate(picked):
        corner = number % COLUMNS * (SIDE + 2), number // COLUMNS * (SIDE + 2)
        sheet.paste(thumbnail, corner)
        pen.text((corner[0] + 2, corner[1] + 1), caption, 255, stroke_width=2, stroke_fill=0)
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()
