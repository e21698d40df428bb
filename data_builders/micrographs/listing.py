"""Which files make up a collection: by stems in folders, or by the rows of a table."""

import os
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np

from data_builders.common import SPLITS, TARGETS
from data_builders.micrographs import tables
from data_builders.micrographs.curation import DROPPED_SHEET, KEPT_SHEET
from emjax import micrographs
from emjax.errors import InputError, UsageError, note
from emjax.micrographs import made_by, names

UNKNOWN = (np.nan, np.nan, np.nan)  # nm per pixel


class Source(NamedTuple):
    """One file that records are cut from, and what belongs to it."""

    name: str
    image: Path
    targets: dict[str, Path]
    group: str  # the field `source` of its records: a split has all of a group or none
    split: str | None  # None: by group
    nm_per_pixel: tuple[float, float, float]  # z, y, x by the table; NaN where it has none


class Listing(NamedTuple):
    """The files of a collection, before any image is read."""

    targets: tuple[str, ...]
    sources: list[Source]
    files: list[tuple[str, Path]]  # (label, path): what the records depend on
    skipped: list[tuple[Path, str]]  # path, reason
    notes: Sequence[str] = ()  # for the card


def from_folders(root: Path, folders: Mapping[str, str]) -> Listing:
    """Return the Listing of the images below `root` and their partners, by name: see names.py.

    Where the folder of a target holds the images, too, the words in the names tell them apart.

    Args:
        folders: {target: its folder}.

    Raises: UsageError for a target without a folder; InputError if there is no image, if no image
        has a target, or if several could be the target of one.
    """
    for target, folder in folders.items():
        if not folder:
            raise UsageError(f"--target={target} picks a column: give --table, or {target}=FOLDER")
    wanted = tuple(target for target in TARGETS if target in folders)
    roots = {target: Path(folders[target]) for target in wanted}
    found: dict[str, dict[Path, PurePath]] = {}
    kinds = {path: made_by.kind(path) for path in micrographs.find(root)}
    ours = made_by.restored_of(kinds) | {
        path
        for path, kind in kinds.items()
        if made_by.RESULTS in path.relative_to(root).parts
        or kind in made_by.OF_MASKS
        or (path.name in (KEPT_SHEET, DROPPED_SHEET) and (path.parent / "card.json").exists())
    }
    images = [path for path in kinds if path not in ours]
    for target, folder in roots.items():
        paths = {path: path.relative_to(folder) for path in micrographs.find(folder)}
        found[target] = {path: r for path, r in paths.items() if made_by.RESULTS not in r.parts}
        own = {path for path in images if path.resolve().is_relative_to(folder.resolve())}
        if root.resolve().is_relative_to(folder.resolve()):
            named = names.targets_among(found[target].values(), target)
            if not named:
                raise InputError(
                    f"{folder} holds images and targets, but no name of a {target}; expected names "
                    f"such as a_{target}.tif for the {target} of a.tif, or another folder"
                )
            found[target] = {p: r for p, r in found[target].items() if r in named}
            resolved = {path.resolve() for path in found[target]}
            own = {path for path in images if path.resolve() in resolved}
        images = [path for path in images if path not in own]
    if not images:
        where = " outside of the folders of its targets" if wanted else " but results of emjax"
        raise InputError(f"{root} holds no image{where}")
    known = {path.resolve() for theirs in found.values() for path in theirs}
    if left_out := [path for path in ours if path.resolve() not in known]:
        note(root, f"{len(left_out)} results of emjax in it are left out")
    relative = {path: path.relative_to(root) for path in images}
    partners: dict[str, dict[Path, Path]] = {}
    notes = []
    for target, theirs in found.items():
        partners[target], loose = names.pair(target, relative, theirs)
        if not partners[target]:
            raise InputError(
                f"{root}: none of its {len(images)} images has a {target} in {roots[target]}: "
                f"they are named like {images[0].name}, and there like {next(iter(theirs)).name}; "
                "name both alike, or list the pairs in a --table"
            )
        drawn = partners[target].values()
        predicted = sum(made_by.kind(path) in ("mask", "labels", "restored") for path in drawn)
        if predicted:
            notes.append(
                f"{predicted} of {len(drawn)} targets are as emjax predicted them: nobody has "
                f"changed the {target} of these images"
            )
        if loose:
            notes.append(
                f"{len(loose)} of {len(partners[target])} images have a {target} of another name, "
                f"such as {relative[loose[0]]} and {theirs[partners[target][loose[0]]]}"
            )
    if "mask" not in wanted:
        masks = names.targets_among(relative.values(), "mask", alone=False)
        if masks:
            notes.append(
                f"{len(masks)} of {len(images)} images are named as masks of others, such as "
                f"{min(masks)}; to pair them: --target mask={root}"
            )
    sources, files, skipped = [], [], []
    called = names_of(list(relative.values()))
    exports = names.exported(relative.values())
    for path, name in zip(images, called, strict=True):
        missing = [t for t in wanted if path not in partners[t]]
        if missing:
            skipped.append((path, f"no {', no '.join(missing)} of this stem"))
            continue
        targets = {t: partners[t][path] for t in wanted}
        group = exports.get(relative[path], relative[path].as_posix())
        sources.append(Source(name, path, targets, group, None, UNKNOWN))
        files += content(f"image/{relative[path].as_posix()}", path)
        for t, partner in targets.items():
            files += content(f"{t}/{found[t][partner].as_posix()}", partner)
    for target, theirs in found.items():
        for path in sorted(theirs.keys() - partners[target].values()):
            skipped.append((path, f"a {target} without an image of this stem"))
    return Listing(wanted, sources, files, skipped, notes)


def from_table(root: Path, table: str | Path, picked: Mapping[str, str]) -> Listing:
    """Return the Listing of a CSV file with paths relative to `root`.

    Commas, semicolons or tabs divide the cells; the headers may have capitals and blanks.

    Args:
        picked: its keys are the targets to read; all that the table has if there are none.

    Raises: UsageError for a target with a folder; InputError if the table cannot be read, or a
        column or cell is missing or wrong.
    """
    for target, folder in picked.items():
        if folder:
            raise UsageError(f"--target={target}={folder} and --table: its column names the files")
    columns, rows, decimal_comma = tables.read(table)
    for column in ("image", *picked):
        if column not in columns:
            raise InputError(f"{table} has no column {column!r}; it has {', '.join(columns)}")
    unused = set(columns) - {"image", "source", "split", "nm_per_pixel", *TARGETS}
    if unused:
        note(table, f"columns not used: {', '.join(sorted(unused))}")
    available: Collection[str] = picked or columns
    wanted = tuple(t for t in TARGETS if t in available)
    sources, skipped = [], []
    files: list[tuple[str, Path]] = [("table", Path(table))]
    line_of: dict[Path, int] = {}
    split_of: dict[str, str | None] = {}
    groups: dict[Path, set[str]] = defaultdict(set)  # of each target
    for line, row in rows:
        if not row["image"]:
            raise InputError(f"{table}, line {line}: the cell image is empty")
    file_at = tables.Finder(root)
    paths = [file_at(row["image"]) for _, row in rows]
    if not any(path.exists() for path in paths):
        raise InputError(
            f"{table}, line {rows[0][0]}: there is no {root / rows[0][1]['image']}, and none of "
            f"the others; expected paths below --source={root}"
        )
    places = [Path(row["image"].replace("\\", "/")) for _, row in rows]
    called, exports = names_of(places), names.exported(places)
    for (line, row), path, place, name in zip(rows, paths, places, called, strict=True):
        where, image = f"{table}, line {line}", row["image"]
        if path in line_of:
            raise InputError(f"{where}: {image} is in line {line_of[path]} already")
        line_of[path] = line
        split = row["split"].casefold() if "split" in columns else None
        if split is not None and split not in SPLITS:
            raise InputError(
                f"{where}: split {row['split']!r}, expected one of {', '.join(SPLITS)}"
            )
        group = row.get("source") or exports.get(place, image)
        if split_of.setdefault(group, split) != split:
            raise InputError(f"{where}: source {group} is in {split_of[group]} and in {split}")
        empty = [target for target in wanted if not row[target]]
        if empty:
            skipped.append((path, f"no {', no '.join(empty)} in the table"))
            continue
        size = row.get("nm_per_pixel", "")
        nm_per_pixel = _nm_per_pixel(where, size.replace(",", ".") if decimal_comma else size)
        targets = {target: file_at(row[target]) for target in wanted}
        sources.append(Source(name, path, targets, group, split, nm_per_pixel))
        files += content(f"image/{image}", path)
        for t, partner in targets.items():
            files += content(f"{t}/{row[t]}", partner)
            groups[partner].add(group)
    if several := sorted(partner for partner, found in groups.items() if len(found) > 1):
        note(table, f"{several[0]} is the target of {len(groups[several[0]])} sources, as are "
             f"{len(several)} of {len(groups)} targets: images of one place need one `source`, so "
             "that none is in test and another in train")  # fmt: skip
    return Listing(wanted, sources, files, skipped)


def content(label: str, path: Path) -> list[tuple[str, Path]]:
    """Return [(label, file)] of a file and of those that it is read with, or of a Zarr store."""
    files = micrographs.parts_of(path)
    if path.is_dir():
        return [(f"{label}/{file.relative_to(path).as_posix()}", file) for file in files]
    beside = [(f"{label}/{file.name}", file) for file in files[1:]]
    return [(label, path), *beside]


def names_of(paths: Sequence[Path]) -> list[str]:
    """Return one name per path: the stem; if stems repeat the path, with its suffix if need be.

    A name is a path below any folder: of absolute paths, or such with "..", what is below the
    folder of all.
    """
    called = [path.stem for path in paths]
    if len(set(called)) < len(called) and any(p.is_absolute() or ".." in p.parts for p in paths):
        whole = [os.path.abspath(path) for path in paths]
        above = os.path.commonpath([os.path.dirname(path) for path in whole])
        paths = [Path(os.path.relpath(path, above)) for path in whole]
    if len(set(called)) < len(called):
        called = [path.with_suffix("").as_posix() for path in paths]
    if len(set(called)) < len(called):
        called = [path.as_posix() for path in paths]
    return called


def _nm_per_pixel(where: str, text: str) -> tuple[float, float, float]:
    """Return (z, y, x) of one number (y and x), two (y, x) or three; NaN where `text` has none.

    Raises: InputError, which begins with `where`, for anything else.
    """
    try:
        sizes = [float(part) for part in text.split()] or [np.nan]
    except ValueError:
        sizes = []
    if len(sizes) not in (1, 2, 3) or any(size <= 0 or np.isinf(size) for size in sizes):
        expected = "expected a positive number, two (y x) or three (z y x)"
        raise InputError(f"{where}: nm_per_pixel {text!r}, {expected}")
    if len(sizes) == 3:
        return sizes[0], sizes[1], sizes[2]
    return np.nan, sizes[0], sizes[-1]
