"""What an instrument's program draws into an image: a banner along an edge, a scale bar."""

from typing import Any

import numpy as np

from emjax.micrographs.shapes import Grey, Mask, Numbers

# Shares of the intensity range, of pixels, or of the side.
FLAT = 0.02  # by which what follows a strip differs from it, at least
ONE_VALUE = 0.5  # of each line of a strip has its commonest value; the rest may be text
EVEN = 0.005  # of the range: values so near are one, as in a banner saved as JPEG
ACROSS = 0.1  # of the next two lines at most has that value: a strip ends at once
THINNEST, THICKEST = 1 / 64, 1 / 3  # of the side of a whole image, of its banner
FEWEST = 8  # lines of a banner
LONG = 5  # times as wide as high, at least, is a scale bar
SHORTEST, LONGEST = 1 / 25, 2 / 3  # of the width of the image
ALIKE = 0.1  # of all values of the image: as near to the extreme ones counts as one
FILLED = 0.9  # of the rectangle around a scale bar
ROWS = 256  # that are looked at at once
TEXT = 1 / 10  # of the height: how far above or below its bar a length is written

Area = tuple[slice, slice]  # rows, columns


def strip(scaled: Numbers, thickness: int) -> int:
    """Return how many of the first rows are a banner or border: mostly one value, a sharp edge.

    0 if there are fewer than `thickness`. The black background of a dark-field image is none: it
    ends gradually, at the particles, or not at all. Nor is a dark slope of few grey values: the
    next one hardly differs.

    Args:
        scaled: [h, w], in which the intensity range is from 0 to 1.
    """
    values, counts = np.unique(scaled[:thickness], return_counts=True)
    value = values[counts.argmax()]
    if counts.max() < ONE_VALUE * scaled[:thickness].size:
        return 0
    share = np.mean(np.abs(scaled - value) <= EVEN, axis=1)
    start = int(np.argmax(share >= ONE_VALUE))  # a banner may have a frame of a few lines
    ends = start + np.flatnonzero(share[start:] < ONE_VALUE)
    if not len(ends) or start >= thickness or ends[0] - start < thickness:
        return 0
    after = slice(ends[0], ends[0] + 2)
    ended = share[after].max() <= ACROSS and np.abs(scaled[after] - value).mean() > FLAT
    return int(ends[0]) if ended else 0


def picture(image: Grey) -> Area:
    """Return the rows and columns of `image` without banners, borders, and what has a scale bar.

    A scale bar in the upper or lower third takes all rows up to that edge with it, with the length
    that is written above or below it.
    """
    h, w = image.shape
    rows, columns = slice(0, h), slice(0, w)
    low, high = np.quantile(image, (0.02, 0.98), method="inverted_cdf").astype(np.float64)
    if low == high or min(h, w) < 4 * FEWEST:
        return rows, columns

    def scaled(part: Grey) -> Numbers:
        return (part.astype(np.float32) - np.float32(low)) / np.float32(high - low)

    top, bottom, left, right = (
        strip(scaled(view[: int(len(view) * THICKEST)]), max(FEWEST, round(len(view) * THINNEST)))
        for view in (image, image[::-1], image.T, image.T[::-1])
    )
    rows, columns = slice(top, h - bottom), slice(left, w - right)
    above, below = _bar(image[rows, columns])
    return slice(top + above, h - bottom - below), columns


def _bar(image: Grey) -> tuple[int, int]:
    """Return how many rows at the top and at the bottom of `image` a scale bar takes."""
    h, w = image.shape
    darkest, brightest = float(image.min()), float(image.max())
    near = ALIKE * (brightest - darkest)
    for drawn in (image >= brightest - near, image <= darkest + near):
        has_line = has_run(drawn, max(1, int(SHORTEST * w)))
        if not has_line or drawn.mean() > FILLED / LONG:
            continue
        from scipy import ndimage  # not at the top: few images need it

        found: Any = ndimage.label(drawn)
        groups = found[0]
        for number, box in enumerate(ndimage.find_objects(groups), start=1):
            first, last = box[0].start, box[0].stop
            high, wide = last - first, box[1].stop - box[1].start
            if not (high >= 3 and wide >= LONG * high and SHORTEST * w <= wide <= LONGEST * w):
                continue
            if (groups[box] == number).mean() < FILLED:
                continue
            beside = slice(max(0, box[1].start - wide // 2), box[1].stop + wide // 2)
            around = slice(max(0, first - int(TEXT * h)), last + int(TEXT * h))
            lines = around.start + np.flatnonzero(drawn[around, beside].any(axis=1))
            if first > 2 * h / 3:
                return 0, h - int(lines[0])
            if last < h / 3:
                return int(lines[-1]) + 1, 0
    return 0, 0


def has_run(drawn: Mask, length: int) -> bool:
    """Return whether as many pixels as `length` are drawn side by side in a row."""
    for start in range(0, len(drawn), ROWS):
        sums = np.cumsum(drawn[start : start + ROWS], axis=1, dtype=np.int32)
        if (sums[:, length:] - sums[:, :-length] == length).any():
            return True
    return False


def described(shape: tuple[int, ...], area: Area) -> str:
    """Return what is outside of `area` in an image of `shape` as text; "" for nothing."""
    parts = []
    for name, side, part in zip(("rows", "columns"), shape, area, strict=True):
        parts += [f"{name} 0 to {part.start - 1}"] if part.start else []
        parts += [f"{name} {part.stop} to {side - 1}"] if part.stop < side else []
    return ", ".join(parts)
