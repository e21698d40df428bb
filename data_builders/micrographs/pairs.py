"""Pairs of an image and a target for a finetuning: found, read one by one, split, and listed."""

import csv
import io
import itertools
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Real

from data_builders.common import by_hash, sha256_of, split_by_source
from data_builders.micrographs import listing as listings
from data_builders.micrographs import tables
from data_builders.micrographs.listing import Listing, Source
from data_builders.micrographs.masks import Found
from data_builders.micrographs.reading import ReadOptions, planes_of
from emjax.errors import InputError
from emjax.files import write_atomically
from emjax.micrographs import Micrograph

ENOUGH = 8  # sources from which some are held out; of fewer each is held out once
FOLDS = 3  # parts of so few

Splits = dict[str, str]  # by name of a source


class Plane(NamedTuple):
    """One plane of a pair."""

    micrograph: Micrograph
    target: Real[np.ndarray, "h w"]  # of a mask: 0 and 1, or its classes
    found: Found | None  # what the mask holds; None of other targets


def find(images: Path, targets: Path, table: Path | None, target: str) -> Listing:
    """Return the pairs of two folders, which may be one, or of a table.

    Each source is named by its image's path below `images`, or else by its absolute path.

    Args:
        images: also what the paths of the table are relative to.
        target: such as "mask".

    Raises: InputError as `from_folders` and `from_table`, and if there is no pair.
    """
    if table:
        found = listings.from_table(images, table, {target: ""})
    else:
        found = listings.from_folders(images, {target: str(targets)})
    if not found.sources:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in found.skipped[:3])
        raise InputError(f"{images}: no pair of an image and a target: {reasons}")
    return found._replace(
        sources=[source._replace(name=name_of(source.image, images)) for source in found.sources]
    )


def name_of(path: Path, root: Path) -> str:
    """Return a file as its owner knows it: below `root`, or else where it is."""
    whole, folder = Path(os.path.abspath(path)), Path(os.path.abspath(root))
    return whole.relative_to(folder).as_posix() if whole.is_relative_to(folder) else str(whole)


def read(source: Source, options: ReadOptions) -> Iterator[Plane]:
    """Yield the planes of a pair.

    Raises: InputError as `planes_of`.
    """
    masks: list[Found] = []
    for micrograph, targets in planes_of(source, "z", options, masks):
        (pixels,) = targets.values()
        yield Plane(micrograph, pixels, masks.pop() if masks else None)


def clusters(sources: Sequence[Source], alike: Collection[tuple[str, str]]) -> Splits:
    """Return {name: cluster}: what has one group or looks alike is in one, directly or by others.

    Args:
        alike: pairs of names.
    """
    leader: dict[str, str] = {}

    def first(one: str) -> str:
        while leader.setdefault(one, one) != one:
            one = leader[one]
        return one

    names = {source.name for source in sources}
    links = [(f"file {s.name}", f"group {s.group}") for s in sources]
    links += [(f"file {a}", f"file {b}") for a, b in alike if a in names and b in names]
    for one, other in links:
        low, high = sorted((first(one), first(other)))
        leader[high] = low
    return {source.name: first(f"file {source.name}") for source in sources}


def divide(
    sources: Sequence[Source], cluster_of: Splits, before: Splits | None = None
) -> list[Splits]:
    """Return the splits of every training: one, or those of a cross-validation and the last.

    Splits of a table are taken as they are. Of eight clusters and more some are held out, by hash.
    Of fewer, each is held out once, as `val` of one of up to three trainings; another training, the
    last, has all of them in `train`. A single cluster is only trained on.

    Args:
        before: the splits of an earlier training that held some out: what was held out stays so,
            with all that is in its cluster now; others are trained on.
    """
    if all(source.split for source in sources):
        return [{source.name: str(source.split) for source in sources}]
    names = [source.name for source in sources]
    groups = by_hash(cluster_of[name] for name in names)
    if len(groups) >= ENOUGH:
        split_of = split_by_source(groups)
        if before:
            split_of = dict.fromkeys(groups, "train")
            for held in ("val", "test"):
                split_of |= {cluster_of[n]: held for n in names if before.get(n) == held}
        return [{name: split_of[cluster_of[name]] for name in names}]
    folds = min(len(groups), FOLDS) if len(groups) > 1 else 0
    held_out = [set(groups[fold::folds]) for fold in range(folds)]
    return [
        {name: "val" if cluster_of[name] in held else "train" for name in names}
        for held in [*held_out, set()]
    ]


def across(sources: Sequence[Source], cluster_of: Splits) -> list[str]:
    """Return a line for each pair that a table divides from one that it looks like."""
    first: dict[str, Source] = {}
    found = []
    for source in sources:
        other = first.setdefault(cluster_of[source.name], source)
        if source.split != other.split:
            found.append(
                f"{source.name} looks like {other.name}, but the table has them in the splits "
                f"{source.split} and {other.split}: the score may be too good"
            )
    return found


def digests(sources: Sequence[Source]) -> Splits:
    """Return {name: what a training depends on}, of pairs.

    That is the SHA-256 of the contents of the image and the target, and then what a
    table says of them.
    """
    return {source.name: f"{_digest(source)} {_said(source)}".rstrip() for source in sources}


def _digest(source: Source) -> str:
    paths = [("image", source.image), *source.targets.items()]
    return sha256_of(itertools.chain.from_iterable(itertools.starmap(listings.content, paths)))


def _said(source: Source) -> str:
    """Return the source, split and pixel size of a table, "" of what has none of them."""
    group = source.group if source.group != source.name else ""
    return " ".join(filter(None, (group, source.split, _sizes(source))))


def _sizes(source: Source) -> str:
    """Return the nm per pixel of a source as a table has them."""
    return " ".join(f"{size:.9g}" for size in source.nm_per_pixel if np.isfinite(size))


def write_table(path: Path, sources: Sequence[Source], split_of: Splits) -> None:
    """Write the pairs and their splits to a table that `emjax build micrographs --table` reads.

    Each is a source of its own there, so that it has its own intensity range, as in a prediction;
    those of one source are in one split already.
    """
    text = io.StringIO()
    (target,) = sources[0].targets
    columns = ("image", target, "source", "split", "nm_per_pixel")
    table = csv.writer(text)
    table.writerow(columns)
    for source in sources:
        paths = [os.path.abspath(each) for each in (source.image, source.targets[target])]
        table.writerow([*paths, source.name, split_of[source.name], _sizes(source)])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.getvalue().encode())


def record_names(table: Path, root: Path) -> Splits:
    """Return {name of a record: name of its source} of what was built from a `write_table`.

    Args:
        root: the folder of the images.
    """
    paths = [Path(row["image"]) for _, row in tables.read(table)[1]]
    return dict(zip(listings.names_of(paths), [name_of(p, root) for p in paths], strict=True))
