"""What the values of a mask mean: which are foreground, and what its author should be told.

A mask is read by its stored values. Foreground is what --foreground names, or every value but 0.
Where that may not be what was drawn, a note or an error lists the values.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Real, UInt8

from emjax.errors import InputError
from emjax.micrographs.masks import (
    OUTLINES_ARE_NO_MASK,
    cut,
    has_grey_edges,
    has_outlines,
    without_alpha,
)

Value: TypeAlias = tuple[float, ...]  # one number, or red, green, blue
LISTED = 10


class Found(NamedTuple):
    """What one plane of a mask holds."""

    values: Counter[Value]
    share: float  # of its pixels that are foreground
    border: float  # of the pixels along its four sides
    note: str  # how it was taken, if not by its values as they are


def interpret(
    path: str | Path,
    pixels: Real[np.ndarray, "..."],
    foreground: Value | None,
    classes: int | None = None,
) -> tuple[UInt8[np.ndarray, "h w"], Found]:
    """Return (foreground 0 or 1, what was found) of `pixels`, [h, w] or [h, w, samples] as stored.

    Grey edges, as JPEG and resizing leave them, are cut at half. Where the colours say nothing, the
    alpha channel does.

    Args:
        foreground: its value or colour; None for every value but 0.
        classes: their number, for masks with the number of a class in each pixel. These numbers are
            then returned, and grey edges are left alone; `Tally.check` refuses other values.

    Raises: InputError for a picture in grey values, for one with outlines on it, and for a colour
        that needs three numbers.
    """
    pixels, note = without_alpha(pixels)
    if foreground is None and has_outlines(pixels):
        raise InputError(
            f"{path}: {OUTLINES_ARE_NO_MASK}; where each pixel of the foreground is coloured, name "
            "its --foreground"
        )
    if classes is None and has_grey_edges(path, pixels, is_asked=foreground is not None):
        halves = cut(pixels)
        if foreground is None or set(foreground) <= {0.0, float(halves.max())}:
            pixels, note = halves, "has grey edges, which are cut at half"
    flat = np.asarray(pixels.reshape(-1, pixels.shape[-1] if pixels.ndim == 3 else 1))
    if flat.shape[1] == 3 and np.all(flat == flat[:, :1]):
        flat = flat[:, :1]
    if foreground is None:
        chosen = np.any(flat, axis=1)
    elif len(foreground) == 1 < flat.shape[1]:
        raise InputError(f"{path}: a mask in colours, expected --foreground=R,G,B for it")
    else:
        chosen = np.all(flat == np.asarray(foreground), axis=1)
    mask = np.asarray(chosen).reshape(pixels.shape[:2])
    edge = np.concatenate([mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]])
    found = Found(_counted(flat), float(mask.mean()), float(edge.mean()), note)
    if classes:
        mask = np.clip(flat[:, 0], 0, classes - 1).reshape(mask.shape)
    return mask.astype(np.uint8), found


def _counted(flat: Real[np.ndarray, "n samples"]) -> Counter[Value]:
    """Return how often each value or colour stands in the rows of `flat`."""
    levels, packed = [], np.zeros(len(flat), np.int64)  # one number for each colour
    for sample in flat.T:
        values, indices = np.unique(sample, return_inverse=True)
        packed = packed * len(values) + indices
        levels.append(values)
    numbers, counts = np.unique(packed, return_counts=True)
    parts: list[np.ndarray] = []
    for values in reversed(levels):
        numbers, indices = np.divmod(numbers, len(values))
        parts.insert(0, values[indices])
    return Counter(
        dict(
            zip(zip(*(part.tolist() for part in parts), strict=True), counts.tolist(), strict=True)
        )
    )


class Tally:
    """What all masks of a dataset hold, added up file by file."""

    def __init__(self, foreground: Value | None, classes: int | None = None) -> None:
        self.foreground, self.classes = foreground, classes
        self.values: Counter[Value] = Counter()
        self.notes: dict[str, list[str]] = {}  # note: names
        self.share: dict[str, float] = {}  # of the foreground, by name
        self.enclosed: set[str] = set()  # names of masks with foreground all around

    def add(self, name: str, planes: Sequence[Found]) -> None:
        """Add the planes of one file."""
        for plane in planes:
            self.values += plane.values
        for note in {plane.note for plane in planes} - {""}:
            self.notes.setdefault(note, []).append(name)
        self.share[name] = float(np.mean([plane.share for plane in planes]))
        if np.mean([plane.border for plane in planes]) >= 0.95:
            self.enclosed.add(name)

    def check(self) -> None:
        """Raise InputError if it cannot be known what is foreground, or for other classes."""
        known = sum(self.values.values())
        if self.classes:
            numbers = {(float(number),) for number in range(self.classes)}
            if others := [
                value for value in self.values if tuple(map(float, value)) not in numbers
            ]:
                advice = (
                    "Number the classes so, with the background at 0, or give another --classes"
                )
                if any(len(value) > 1 for value in others):
                    advice = "These are colours: save the numbers, in grey and without a palette"
                raise InputError(
                    f"expected class numbers from 0 to {self.classes - 1} in the masks, by "
                    f"--classes={self.classes}, got {_text(min(others))}; they hold "
                    f"{self._listed()}. {advice}"
                )
            return
        if self.foreground is not None:
            if not any(self.share.values()):
                raise InputError(
                    f"no mask has a pixel of foreground={_text(self.foreground)}; "
                    f"the masks hold {self._listed()}"
                )
            return
        background = sum(n for value, n in self.values.items() if not any(value))
        if len(self.values) > 1 and not background:
            rarest = min(self.values, key=lambda value: self.values[value])
            raise InputError(
                f"no mask has the value 0 for the background; they hold {self._listed()}. "
                f"Name the foreground, such as --foreground={_text(rarest)}"
            )
        if background == known:
            raise InputError("no mask has a pixel of foreground=nonzero: all values are 0")

    def describe(self, split_of: Mapping[str, str]) -> list[str]:
        """Return notes for the card: what is foreground, of each split and of odd images.

        Args:
            split_of: the split of each name that is in one.

        Raises: InputError if the masks of train have nothing but foreground, or none.
        """
        meaning = "every value but 0" if self.foreground is None else _text(self.foreground)
        shares: dict[str, list[float]] = {}
        for name, share in self.share.items():
            if name in split_of:
                shares.setdefault(split_of[name], []).append(share)
        means = {s: float(np.mean(shares[s])) for s in ("train", "val", "test") if s in shares}
        for split, mean in () if self.classes else means.items():
            if mean in (0, 1) and split == "train":
                what = "nothing but foreground" if mean else "no foreground"
                raise InputError(
                    f"the masks of {split} have {what} ({meaning}); they hold {self._listed()}. "
                    "Name the foreground by --foreground, or other splits in a table"
                )
        listed = ", ".join(f"{split} {_percent(mean)}" for split, mean in means.items())
        notes = [f"foreground of the masks ({meaning}): {listed}"]
        if len(self.values) > 2:
            others = "; all but 0 are foreground, --foreground takes one, --classes keeps all"
            others = "" if self.foreground or self.classes else others
            notes.append(f"the masks hold {self._listed()}{others}")
        absent = [k for k in range(self.classes or 0) if not self.values[(k,)]]
        if absent:
            notes.append(f"no mask has a pixel of the classes {', '.join(map(str, absent))}")
        notes += [
            f"{len(names)} of {len(self.share)} masks: each {note}: {first_of(names)}"
            for note, names in self.notes.items()
        ]
        for split, mean in means.items():
            if not mean:
                notes.append(f"{split} has no foreground: its scores say nothing about particles")
            if mean == 1 and not self.classes:
                notes.append(f"{split} has no background: its scores say nothing about particles")
        empty = [name for name, share in self.share.items() if share == 0]
        full = [name for name, share in self.share.items() if share == 1]
        if empty:
            notes.append(f"no foreground in {len(empty)} masks: {first_of(empty)}")
        if full:
            notes.append(f"nothing but foreground in {len(full)} masks: {first_of(full)}")
        most = np.mean(list(self.share.values())) > 0.5
        if not self.classes and (most or len(self.enclosed) > len(self.share) / 2):
            notes.append(
                "most pixels are foreground, or the border is: if the masks are inverted, "
                "the foreground is --foreground=0"
            )
        if len(self.share) > 1:
            notes.append(f"least usual foreground: {self._strangest()}")
        return notes

    def _strangest(self) -> str:
        """Return the names and shares that are farthest from the median share."""
        median = float(np.median(list(self.share.values())))
        ordered = sorted(self.share, key=lambda name: (-abs(self.share[name] - median), name))
        return ", ".join(f"{name} {_percent(self.share[name])}" for name in ordered[:LISTED])

    def _listed(self) -> str:
        """Return the most frequent values and their shares."""
        known = sum(self.values.values())
        common = self.values.most_common(LISTED)
        listed = ", ".join(f"{_text(value)} ({_percent(n / known)})" for value, n in common)
        more = len(self.values) - len(common)
        return f"the values {listed}" + (f" and {more} more" if more else "")


def _text(value: Value) -> str:
    return ",".join(f"{part:g}" for part in value)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def first_of(names: Iterable[str]) -> str:
    """Return the first LISTED of `names` as text, and how many more there are."""
    listed = sorted(names)
    more = f" and {len(listed) - LISTED} more" if len(listed) > LISTED else ""
    return ", ".join(listed[:LISTED]) + more
