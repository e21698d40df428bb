"""Pairs of an image and a target for a finetuning: found, read one by one, split, and listed."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Real

from data_builders.common import by_hash, sha256_of, split_by_source
from data_builders.micrographs.listing import Listing, Source, from_folders, from_table
from data_builders.micrographs.masks import Found
from data_builders.micrographs.reading import ReadOptions, planes_of
from emjax.errors import InputError
from emjax.files import write_atomically
from emjax.micrographs import Micrograph

ENOUGH = 8  # sources from which some are held out; of fewer each is held out once
FOLDS = 3  # parts of so few
PLANES = 8  # of a stack that are examined


class Plane(NamedTuple):
    """One plane of a pair."""

    micrograph: Micrograph
    target: Real[np.ndarray, "h w"]  # of a mask: 0 and 1, or its classes
    found: Found | None  # what the mask holds; None of other targets


def find(images: Path, targets: Path, table: Path | None, target: str) -> Listing:
    """Return the pairs of two folders, which may be one, or of a table.

    Args:
        images: also what the paths of the table are relative to.
        target: such as "mask".

    Raises: InputError as `from_folders` and `from_table`.
    """
    if table:
        return from_table(images, table, {target: ""})
    return from_folders(images, {target: str(targets)})


def read(source: Source, options: ReadOptions) -> Iterator[Plane]:
    """Yield the first planes of a pair.

    Raises: InputError as `planes_of`.
    """
    masks: list[Found] = []
    for number, (micrograph, targets) in enumerate(planes_of(source, "z", options, masks)):
        if number == PLANES:
            return
        (pixels,) = targets.values()
        yield Plane(micrograph, pixels, masks[-1] if masks else None)


def with_groups(sources: Sequence[Source], alike: Mapping[str, str]) -> list[Source]:
    """Return `sources` with one group for all that are alike, so that they stay in one split.

    Args:
        alike: {name: the name of one that looks the same}.
    """
    leader = {source.group: source.group for source in sources}

    def first(group: str) -> str:
        while leader[group] != group:
            group = leader[group]
        return group

    group_of = {source.name: source.group for source in sources}
    for one, other in alike.items():
        if one in group_of and other in group_of:
            low, high = sorted((first(group_of[one]), first(group_of[other])))
            leader[high] = low
    return [source._replace(group=first(source.group)) for source in sources]


def divide(
    sources: Sequence[Source], before: Mapping[str, str] | None = None
) -> list[dict[str, str]]:
    """Return {name: split} of every training: one, or those of a cross-validation and the last.

    Splits of a table are taken as they are. Of eight groups and more some are held out, by hash. Of
    fewer, each is held out once, as `val` of one of up to three trainings; another training, the
    last, has all of them in `train`. A single group is only trained on.

    Args:
        before: the splits of an earlier training, if it held some out: its sources stay where they
            are, others are trained on unless their group is held out.
    """
    if all(source.split for source in sources):
        return [{source.name: str(source.split) for source in sources}]
    groups = by_hash(source.group for source in sources)
    if len(groups) >= ENOUGH:
        split_of = split_by_source(groups)
        if before:
            held = {
                s.group: before[s.name] for s in sources if before.get(s.name, "train") != "train"
            }
            split_of = {group: held.get(group, "train") for group in groups}
        return [{source.name: split_of[source.group] for source in sources}]
    folds = min(len(groups), FOLDS) if len(groups) > 1 else 0
    held_out = [set(groups[fold::folds]) for fold in range(folds)]
    return [
        {source.name: "val" if source.group in held else "train" for source in sources}
        for held in [*held_out, set()]
    ]


def target_digests(sources: Sequence[Source]) -> dict[str, str]:
    """Return {name: the SHA-256 of its target's file}."""
    return {
        source.name: sha256_of([(target, path)])
        for source in sources
        for target, path in source.targets.items()
    }


def write_table(path: Path, sources: Sequence[Source], split_of: Mapping[str, str]) -> None:
    """Write the pairs and their splits to a table that `emjax build micrographs --table` reads."""
    text = io.StringIO()
    (target,) = sources[0].targets
    columns = ("image", target, "source", "split", "nm_per_pixel")
    table = csv.writer(text)
    table.writerow(columns)
    for source in sources:
        sizes = [f"{size:.9g}" for size in source.nm_per_pixel if np.isfinite(size)]
        paths = [source.image.resolve(), source.targets[target].resolve()]
        table.writerow([*paths, source.group, split_of[source.name], " ".join(sizes)])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.getvalue().encode())


def check_some(listing: Listing, images: Path) -> None:
    """Raise InputError if a listing has no pair."""
    if not listing.sources:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in listing.skipped[:3])
        raise InputError(f"{images}: no pair of an image and a target: {reasons}")
