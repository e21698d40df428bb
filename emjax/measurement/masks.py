"""What the values of a file mean that may be a mask, a label image or a micrograph."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emjax.errors import InputError
from emjax.micrographs.masks import (
    OUTLINES_ARE_NO_MASK,
    cut,
    has_grey_edges,
    has_outlines,
    without_alpha,
)

ROWS = 16  # in which a micrograph shows more than two values
EDGES = 0.2  # of the pixels of a mask with grey edges are grey, at most
CLASSES = 8  # values at most that each stand for a kind of particle, as classes do
PIECES = 4  # of a label, in the mean, at most
LARGEST_LABEL = (1 << 63) - 1  # as int64
LARGEST_FLOAT = 1 << 24  # whole numbers from here on are rounded in float32


class Found(NamedTuple):
    """What a plane holds: `kind` is mask, labels, classes, edges or micrograph."""

    kind: str
    values: np.ndarray  # [h, w]; colours as numbers, black as 0
    loose: int = 0  # pieces of labels that have several, less one each


def find(pixels: np.ndarray) -> Found:
    """Return what stored `pixels` hold, [h, w] or [h, w, samples].

    Two values are a mask, and so are two values with grey ones along the edges between them. In a
    label image most values stand in one piece; few values that do not are classes. All of these
    have areas of one value; in a micrograph neighbours differ.
    """
    from skimage import measure

    pixels, _ = without_alpha(pixels)
    values = _as_numbers(pixels)
    differs = values.shape[1] > 1 and np.mean(values[:, 1:] == values[:, :-1]) < 0.5
    if differs and len(np.unique(values[:ROWS])) > 2:
        return Found("micrograph", values)
    found = np.unique(values)
    found = found[found != 0]
    if len(found) <= 1:
        return Found("mask", values)
    if differs:
        return Found("micrograph", values)
    level = pixels if pixels.ndim == 2 else pixels.max(axis=-1)
    if _has_grey_edges(level):
        return Found("edges", cut(level))
    if values.dtype.kind == "f" and (values != np.rint(values)).any():
        return Found("micrograph", values)
    dense = np.where(values != 0, np.searchsorted(found, values) + 1, 0)
    pieces: Any = measure.label(dense, connectivity=2)
    number = int(pieces.max())
    value_of = np.zeros(number + 1, int)
    value_of[pieces] = dense
    several = np.count_nonzero(np.bincount(value_of[1:]) > 1)
    if number <= PIECES * len(found) and (len(found) > CLASSES or 2 * several < len(found)):
        return Found("labels", values, number - len(found))
    return Found("classes" if len(found) <= CLASSES else "micrograph", values)


def _as_numbers(pixels: np.ndarray) -> np.ndarray:
    """Return [h, w]: grey values, or one number for each colour, 0 for black."""
    if pixels.ndim == 2:
        return pixels
    if (pixels == pixels[..., :1]).all():
        return pixels[..., 0]
    numbers = np.zeros(pixels.shape[:2], np.int64)
    for sample in np.moveaxis(pixels, -1, 0):
        levels, indices = np.unique(sample, return_inverse=True)
        numbers = numbers * len(levels) + indices.reshape(sample.shape)
    return np.where(pixels.any(axis=-1), numbers + 1, 0)


def _has_grey_edges(values: np.ndarray) -> bool:
    low, high = float(values.min()), float(values.max())
    near = 0.02 * (high - low)
    if np.mean((values > low + near) & (values < high - near)) > EDGES:
        return False
    return has_grey_edges("", values, is_asked=True)


def has_labels(planes: Iterable[np.ndarray]) -> bool:
    """Return whether a stack is one of label images: a plane of it is, so all are.

    A plane with one label has the values of a mask; its neighbours tell what it is.
    """
    return any(find(pixels).kind == "labels" for pixels in planes)


def read(
    path: Path,
    pixels: np.ndarray,
    *,
    as_labels: bool = False,
    as_classes: bool = False,
    foreground: int | None = None,
) -> tuple[np.ndarray, str]:
    """Return (a mask or a label image for `measurement.label`, a remark or "").

    Args:
        as_labels: it belongs to a stack that `has_labels`.
        as_classes: its values are classes, wherever they stand.
        foreground: the one value that is particle.

    Raises: InputError, which names `path`, for a micrograph, where the background cannot be known,
        and for colours with a `foreground`.
    """
    if foreground is not None:
        grey, _ = without_alpha(pixels)
        if grey.ndim == 3 and (grey != grey[..., :1]).any():
            raise InputError(
                f"{path}: has colours, but --foreground={foreground} is a grey value; save the "
                "mask in grey, or with one colour alone"
            )
        chosen = (grey[..., 0] if grey.ndim == 3 else grey) == foreground
        return chosen, "" if chosen.any() else f"no pixel is {foreground}, the --foreground"
    kind, values, loose = find(pixels)
    if as_labels and kind in ("mask", "classes"):
        kind = "labels"
    if as_classes and kind == "labels":
        kind = "classes"
    if kind == "micrograph":
        if has_outlines(without_alpha(pixels)[0]):
            raise InputError(f"{path}: {OUTLINES_ARE_NO_MASK}")
        raise InputError(f"{path}: looks like a micrograph, expected a mask: leave out --masks")
    if values.dtype.kind == "f" and values.max() >= LARGEST_FLOAT:
        raise InputError(f"{path}: labels above {LARGEST_FLOAT} as floats; save whole numbers")
    if values.dtype == np.uint64 and values.max() > LARGEST_LABEL:
        raise InputError(f"{path}: labels above {LARGEST_LABEL}; number them anew")
    lowest = values.min()
    count = len(np.unique(values))
    if lowest < 0 or (lowest > 0 and (kind != "labels" or (count == 2 and not as_labels))):
        raise InputError(
            f"{path}: expected the background as 0, got values from {lowest:g} to "
            f"{values.max():g}; set it to 0"
        )
    remarks = {"edges": "it has grey edges, which are cut at half"}
    if loose:
        remarks["labels"] = f"labels in several pieces, {loose} more than labels: one particle each"
    elif lowest > 0:
        remarks["labels"] = "no pixel is 0, the background: every pixel belongs to a particle"
    if kind in ("mask", "edges") and np.mean(values > 0) > 0.5:
        remarks["mask"] = "most of its pixels are particle: if it is inverted, exchange its values"
        remarks["edges"] = f"{remarks['edges']}; {remarks['mask']}"
    if kind == "classes":
        return values > 0, (
            f"its {count - 1} values are classes, or stand in many places: all but 0 are particle; "
            "--foreground=VALUE measures one"
        )
    return values > 0 if kind == "mask" else values, remarks.get(kind, "")
