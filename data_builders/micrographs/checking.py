"""Read the pairs of a finetuning once, and say which can be used and what is wrong with others."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Real

from data_builders.micrographs import pairs
from data_builders.micrographs.examination import TOO_MANY, Examination, Finding, Pair
from data_builders.micrographs.listing import Listing, Source
from data_builders.micrographs.reading import ReadOptions
from emjax import micrographs
from emjax.cli import message
from emjax.errors import InputError, UsageError
from emjax.micrographs import Micrograph

MOST_CLASSES = 8  # values of masks that are asked about; more are the numbers of particles
NAMED = 5  # files without a partner that are named
OPPOSED = -0.5  # agreement of a mask with a prediction from which it may be inverted
AGREES = 0.3  # agreement of most others then
WRONG_BUT = ("no partner", "repeated")  # kinds that say nothing about the rest of the set

Target = Real[np.ndarray, "h w"]
Watch = Callable[[str, Micrograph, Target], float | None]


class Checked(NamedTuple):
    """The pairs that can be used, and what was found in all of them."""

    kept: list[Source]
    findings: list[Finding]
    shapes: list[tuple[int, int]]  # of the images of `kept`
    foreground: float | None  # mean share of the pixels of their masks; None of other targets


def check(
    listing: Listing,
    options: ReadOptions,
    root: Path,
    *,
    is_mask: bool,
    smallest: int,
    asks: bool,
    keep_all: bool,
    watch: Watch,
) -> Checked:
    """Read all pairs once, print what is wrong with them, and return what can be used.

    Args:
        root: the folder of the images, for their names.
        smallest: the shortest side that an image may have, in pixels.
        asks: whether the meaning of several values in masks is to be asked for.
        keep_all: whether what masks show leaves no pair out.
        watch: gets (name, first plane, its target) of each pair; returns how well a trained model
            agrees with the mask, from -1 to 1, or None if it cannot say.

    Raises: InputError if too many are wrong, or none can be used; UsageError if masks may have
        several classes.
    """
    names = names_of(listing.sources, root)
    examination = Examination()
    found = [Finding(path.name, "no partner", why, True) for path, why in listing.skipped]
    usable: list[Source] = []
    shapes: dict[str, tuple[int, int]] = {}
    shares: dict[str, float] = {}
    values: list[set[float]] = []  # of each mask
    agreement: dict[str, float] = {}
    for source in listing.sources:
        name = names[source.name]
        try:
            planes = [*pairs.read(source, options)]
        except InputError as error:
            found.append(Finding(name, "unusable", message(error), True))
            continue
        first = planes[0]
        h, w = first.micrograph.image.shape
        if min(h, w) < smallest:
            text = f"{h} x {w} pixels, expected {smallest} at least per side"
            found.append(Finding(name, "too small", text, True))
            continue
        usable.append(source)
        shapes[source.name] = (h, w)
        agrees = watch(name, first.micrograph, first.target)
        if agrees is not None:
            agreement[name] = agrees
        if is_mask:
            shares[source.name] = float(np.mean([(plane.target > 0).mean() for plane in planes]))
            stored = _stored(source, options) if len(planes) == 1 else None
            for plane in planes:
                if plane.found:
                    values.append({v[0] for v in plane.found.values if len(v) == 1 and v[0]})
                size = plane.micrograph.nm_per_pixel
                examination.add(
                    Pair(name, plane.micrograph.image, plane.target, stored, source.group, size)
                )
    if asks:
        ask_about_classes(values)
    known = examination.findings()
    known += opposed(agreement, {one.name for one in known if one.kind == "inverted"})
    if keep_all:
        known = [one._replace(certain=False) for one in known]
    found = sorted([*found, *known], key=lambda one: one.name)
    tell(found)
    problem = None
    if not keep_all:
        problem = examination.of_the_set() or all_opposed(agreement)
    problem = problem or too_many(found, len(listing.sources))
    if problem:
        by_masks = not keep_all and (agreement or any(one.certain for one in known))
        advice = " (--keep_all takes the masks as they are)" if by_masks else ""
        raise InputError(f"{root}: nothing is trained: {problem}{advice}")
    wrong = {one.name for one in found if one.certain}
    kept = [source for source in usable if names[source.name] not in wrong]
    if not kept:
        raise InputError(f"{root}: no pair can be used; the reasons are above")
    called = {names[source.name]: source.name for source in kept}
    alike = {called.get(one.name, ""): called.get(one.other, "") for one in found if one.other}
    return Checked(
        pairs.with_groups(kept, alike),
        found,
        [shapes[source.name] for source in kept],
        float(np.mean([shares[source.name] for source in kept])) if is_mask else None,
    )


def _stored(source: Source, options: ReadOptions) -> Real[np.ndarray, "..."]:
    """Return the mask of a source as stored."""
    (path,) = source.targets.values()
    rows = options.mrc_rows or "top"
    return next(micrographs.planes(path, None, options.limit, as_mask=True, mrc_rows=rows)).image


def names_of(sources: Sequence[Source], root: Path) -> dict[str, str]:
    """Return {name of a source: its file as the user knows it}, below `root` where it is."""
    paths = {source.name: source.image.resolve() for source in sources}
    folder = root.resolve()
    return {
        name: path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
        for name, path in paths.items()
    }


def opposed(agreement: dict[str, float], known: set[str]) -> list[Finding]:
    """Return the masks that a trained model, which agrees with most others, takes for inverted.

    Args:
        agreement: of each pair by name, from -1 to 1.
        known: names of those that are found already.
    """
    found = []
    for name, value in agreement.items():
        others = [each for other, each in agreement.items() if other != name]
        if value <= OPPOSED and others and np.median(others) >= AGREES and name not in known:
            text = (
                "mask labels what a trained model takes for background, and it agrees with most "
                "other masks: the mask seems to be inverted"
            )
            found.append(Finding(name, "inverted", text, True))
    return found


def all_opposed(agreement: dict[str, float]) -> str | None:
    """Return the fault if a trained model takes most masks for inverted."""
    values = [*agreement.values()]
    count = sum(value <= OPPOSED for value in values)
    if not values or 2 * count <= len(values):
        return None
    return (
        f"{count} of {len(values)} masks label what a trained model takes for background: they "
        "seem to be inverted; invert them, or name the foreground, as by --foreground=0"
    )


def too_many(found: Sequence[Finding], number: int) -> str | None:
    """Return the fault if more than a quarter of the pairs are certainly wrong.

    Args:
        number: of pairs.
    """
    wrong = {one.name: one.kind for one in found if one.certain and one.kind not in WRONG_BUT}
    if len(wrong) <= TOO_MANY * number:
        return None
    kind, count = Counter(wrong.values()).most_common(1)[0]
    return f"{len(wrong)} of {number} pairs are certainly wrong, {count} of them {kind}"


def tell(found: Sequence[Finding]) -> None:
    """Print a line for each finding; of files without a partner for the first few."""
    alone = [one for one in found if one.kind == "no partner"]
    for one in found:
        if one not in alone[NAMED:]:
            print(f"{one.name}: {'left out' if one.certain else 'doubtful'}: {one.text}")
    if len(alone) > NAMED:
        print(f"and {len(alone) - NAMED} more files without a partner")


def ask_about_classes(values: Sequence[set[float]]) -> None:
    """Raise UsageError if masks hold several values that may be classes.

    The numbers of particles are no classes: masks differ in how many there are.

    Args:
        values: of each mask, but 0.
    """
    every = set[float]().union(*values)
    with_all = sum(each == every for each in values)
    if 2 <= len(every) <= MOST_CLASSES and 2 * with_all >= len(values):
        listed = ", ".join(f"{value:g}" for value in sorted(every))
        classes = f"--classes={max(every) + 1:g} keeps all, "
        classes = classes if sorted(every) == [*range(1, len(every) + 1)] else ""
        raise UsageError(
            f"the masks hold the values {listed} besides 0, which may be classes: {classes}"
            f"--foreground={max(every):g} takes one of them, --foreground=nonzero all as one"
        )
