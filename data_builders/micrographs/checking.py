"""Read the pairs of a finetuning once, and say which can be used and what is wrong with others."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Real

from data_builders.micrographs import pairs, rows
from data_builders.micrographs.examination import KINDS, Examination, Finding, Pair
from data_builders.micrographs.listing import Listing, Source
from data_builders.micrographs.masks import Found, Tally
from data_builders.micrographs.pairs import Plane
from data_builders.micrographs.reading import ReadOptions
from emjax import micrographs
from emjax.cli import message
from emjax.errors import InputError, UsageError
from emjax.micrographs import Micrograph

EXAMINED = 8  # planes of a stack
MOST_CLASSES = 8  # values of masks that are asked about; more are the numbers of particles
NAMED = 5  # files without a partner that are named
OPPOSED = -0.4  # agreement of a mask with a prediction from which it may be inverted
AGREES = 0.3  # agreement of most others then
TOO_MANY = 0.25  # of the pairs certainly wrong: the set is not fit for training
ALONE = "no partner"
HARMLESS = (ALONE, "repeated")  # kinds that say nothing about the rest of the set
OF_IMAGES = ("constant", "saturated", "pixel size", "alike")  # kinds that need no mask

Target = Real[np.ndarray, "h w"]
Watch = Callable[[str, Micrograph, Target], float | None]


class Checked(NamedTuple):
    """The pairs that can be used, and what was found in all of them."""

    kept: list[Source]
    findings: list[Finding]
    cluster_of: pairs.Splits  # of `kept`: what looks alike or has one source has one cluster
    shapes: list[tuple[int, int]]  # of the images of `kept`
    foreground: dict[str, float] | None  # share of the pixels of their masks; None without masks


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
        root: the folder of the images.
        smallest: the shortest side that an image may have, in pixels.
        asks: whether the meaning of several values in masks is to be asked for.
        keep_all: whether what masks show leaves no pair out.
        watch: gets (name, first plane, its target) of each pair; returns how well a trained model
            agrees with the mask, from -1 to 1, or None if it cannot say.

    Raises: InputError if too many are wrong, none can be used, it cannot be known what is
        foreground, or rows of MRC files seem to run the other way; UsageError if masks may have
        several classes.
    """
    for note in rows.check(root, listing.sources, options):
        print(note)
    examination = Examination()
    tally = Tally(options.foreground, options.classes)
    found = [Finding(pairs.name_of(p, root), ALONE, why, True) for p, why in listing.skipped]
    usable: list[Source] = []
    shapes: dict[str, tuple[int, int]] = {}
    shares: dict[str, float] = {}
    held: list[list[Found]] = []  # what each mask holds
    agreement: dict[str, float] = {}
    source_of: dict[str, str] = {}  # by name of a plane
    for source in listing.sources:
        try:
            planes, masks, count = _read(source, options)
            h, w = planes[0].micrograph.image.shape
            if min(h, w) < smallest:
                raise InputError(f"{h} x {w} pixels, expected {smallest} at least per side")
            agrees = watch(source.name, planes[0].micrograph, planes[0].target)
        except InputError as error:
            text = message(error).removeprefix(f"{source.image}: ")
            found.append(Finding(source.name, "unusable", text, True))
            continue
        usable.append(source)
        shapes[source.name] = (h, w)
        if agrees is not None:
            agreement[source.name] = agrees
        if masks:
            shares[source.name] = float(np.mean([mask.share for mask in masks]))
            tally.add(source.name, masks)
            held.append(masks)
        stored = _stored(source, options) if is_mask and count == 1 else None
        for number, plane in enumerate(planes):
            name = f"{source.name}, plane {number}" if count > 1 else source.name
            source_of[name] = source.name
            image, size = plane.micrograph.image, plane.micrograph.nm_per_pixel
            mask = plane.target if is_mask else np.zeros(image.shape, np.uint8)
            examination.add(Pair(name, image, mask, stored, source.group, size))
    if is_mask and held:
        if asks:
            ask_about_classes(held)
        tally.check()
    known = _of_sources(examination.findings(), source_of)
    known = known if is_mask else [one for one in known if one.kind in OF_IMAGES]
    known += opposed(agreement, {one.name for one in known if one.kind == "inverted"})
    if keep_all:
        known = [one._replace(certain=False) for one in known]
    found = sorted([*found, *known], key=lambda one: one.name)
    tell(found)
    inverted = all_opposed(agreement)
    problem = (examination.of_the_set() or inverted) if is_mask and not keep_all else None
    problem = problem or too_many(found, len(listing.sources))
    if problem:
        by_masks = any(one.certain for one in known) or inverted
        advice = " (--keep_all takes the masks as they are)" if by_masks and not keep_all else ""
        raise InputError(f"{root}: nothing is trained: {problem}{advice}")
    wrong = {one.name for one in found if one.certain and one.kind != ALONE}
    kept = [source for source in usable if source.name not in wrong]
    if not kept:
        raise InputError(f"{root}: no pair can be used; the reasons are above")
    alike = {(source_of[a], source_of[b]) for a, b in examination.alike()}
    return Checked(
        kept,
        found,
        pairs.clusters(kept, alike),
        [shapes[source.name] for source in kept],
        {source.name: shares[source.name] for source in kept} if is_mask else None,
    )


def _read(source: Source, options: ReadOptions) -> tuple[list[Plane], list[Found], int]:
    """Return (the first planes of a pair, what all its masks hold, the number of its planes).

    Raises: InputError if it cannot be read, or its image has no intensity range.
    """
    planes: list[Plane] = []
    masks: list[Found] = []
    count = 0
    for plane in pairs.read(source, options):
        count += 1
        if len(planes) < EXAMINED:
            planes.append(plane)
        if plane.found:
            masks.append(plane.found)
    if not planes:
        raise InputError("no plane in it")
    images = [plane.micrograph.image for plane in planes]
    micrographs.intensity_range(images, "percentile", defects=lambda share: None)
    return planes, masks, count


def _stored(source: Source, options: ReadOptions) -> Real[np.ndarray, "..."]:
    """Return the mask of a source as stored."""
    (path,) = source.targets.values()
    rows = options.mrc_rows or "top"
    return next(micrographs.planes(path, None, options.limit, as_mask=True, mrc_rows=rows)).image


def _of_sources(found: Sequence[Finding], source_of: Mapping[str, str]) -> list[Finding]:
    """Return `found` as certain for planes of stacks only if it is so for most of the stack.

    Planes of one stack may repeat each other. Names and kinds come once for each stack then.
    """
    planes = Counter(source_of.values())
    wrong = Counter(
        source_of[name]
        for name in {
            one.name
            for one in found
            if one.certain and source_of.get(one.other) != source_of[one.name]
        }
    )
    kept: dict[tuple[str, str, str], Finding] = {}
    for one in found:
        name, other = source_of[one.name], source_of.get(one.other, "")
        if name == other:
            continue
        text = one.text
        if planes[name] > 1:
            text = f"{one.name.removeprefix(name).lstrip(', ')}: {text}"
        certain = one.certain and 2 * wrong[name] > planes[name]
        kept.setdefault((name, one.kind, other), Finding(name, one.kind, text, certain, other))
    return [*kept.values()]


def opposed(agreement: Mapping[str, float], known: set[str]) -> list[Finding]:
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


def all_opposed(agreement: Mapping[str, float]) -> str | None:
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
    wrong = {one.name: one for one in found if one.certain and one.kind not in HARMLESS}
    if len(wrong) <= TOO_MANY * number:
        return None
    kind, count = Counter(one.kind for one in wrong.values()).most_common(1)[0]
    first = next(one for one in wrong.values() if one.kind == kind)
    return (
        f"{len(wrong)} of {number} pairs are certainly wrong, most often because "
        f"{KINDS.get(kind, 'they cannot be used')} ({count}), such as {first.name}: {first.text}; "
        "check how the targets were exported and paired"
    )


def tell(found: Sequence[Finding]) -> None:
    """Print a line for each finding; of files without a partner for the first few."""
    alone = [one for one in found if one.kind == ALONE]
    for one in found:
        if one not in alone[NAMED:]:
            print(f"{one.name}: {'left out' if one.certain else 'doubtful'}: {one.text}")
    if len(alone) > NAMED:
        print(f"and {len(alone) - NAMED} more files without a partner")


def ask_about_classes(held: Sequence[Sequence[Found]]) -> None:
    """Raise UsageError if masks hold several values or colours that may be classes.

    The numbers of particles are no classes: masks differ in how many there are.

    Args:
        held: what the planes of each mask hold.
    """
    values = [{v for one in planes for v in one.values if any(v)} for planes in held]
    every = set[tuple[float, ...]]().union(*values)
    with_all = sum(each == every for each in values)
    with_zero = any(not any(v) for planes in held for one in planes for v in one.values)
    if not (2 <= len(every) <= MOST_CLASSES and 2 * with_all >= len(values) and with_zero):
        return
    if any(one.note for planes in held for one in planes):  # grey edges, which are cut
        return
    words = [",".join(f"{part:g}" for part in value) for value in sorted(every)]
    numbers = words == [str(number) for number in range(1, len(every) + 1)]
    classes = f"--classes={len(every) + 1} keeps all, " if numbers else ""
    raise UsageError(
        f"the masks hold the values {' and '.join(words)} besides 0, which may be classes: "
        f"{classes}--foreground={words[-1]} takes one of them, --foreground=nonzero all as one"
    )
