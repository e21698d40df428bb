"""Which files make up a collection: by stems in folders, or by the rows of a table."""

import csv
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_builders.common import SPLITS, TARGETS
from emjax import micrographs
from emjax.errors import InputError, UsageError, note


class Source(NamedTuple):
    """One micrograph that the records are cut from, and what belongs to it."""

    name: str
    image: Path
    targets: dict[str, Path]
    source: str
    split: str | None  # None: by source
    nm_per_pixel: tuple[float, float, float]  # z, y, x by the table; NaN where it does not say


class Listing(NamedTuple):
    """What a collection consists of, before any image is read."""

    targets: tuple[str, ...]
    items: list[Source]
    files: list[tuple[str, Path]]  # (label, path): what the records depend on
    left_out: list[tuple[Path, str]]  # path, reason


def from_folders(source, folders):
    """The Listing of the images below `source` and their partners in {target: folder}, by stem."""
    for target, folder in folders.items():
        if not folder:
            raise UsageError(f"--target={target} picks a column: give --table, or {target}=FOLDER")
    due = tuple(target for target in TARGETS if target in folders)
    roots = {target: Path(folders[target]) for target in due}
    images = [
        path
        for path in micrographs.find(source)
        if not any(path.resolve().is_relative_to(root.resolve()) for root in roots.values())
    ]
    if not images:
        raise InputError(f"{source} holds no image outside of the folders of its targets")
    partners = {t: _by_stem(micrographs.find(root)) for t, root in roots.items()}
    stems = _by_stem(images) if partners else {}
    names = _names([path.relative_to(source) for path in images])
    exports = Counter(path.relative_to(source).with_suffix("").as_posix() for path in images)
    items, files, left_out = [], [], []
    for path, name in zip(images, names, strict=True):
        missing = [t for t in due if path.stem not in partners[t]]
        if missing:
            left_out.append((path, f"no {', no '.join(missing)} of this stem"))
            continue
        targets = {t: partners[t][path.stem] for t in due}
        relative = path.relative_to(source).as_posix()
        # A micrograph and its export in another format stand side by side, and in one split.
        bare = path.relative_to(source).with_suffix("").as_posix()
        origin = bare if exports[bare] > 1 else relative
        items.append(Source(name, path, targets, origin, None, (np.nan,) * 3))
        files += _content(f"image/{relative}", path)
        for t, partner in targets.items():
            files += _content(f"{t}/{partner.relative_to(roots[t]).as_posix()}", partner)
    for target, paths in partners.items():
        for stem in sorted(paths.keys() - stems.keys()):
            left_out.append((paths[stem], f"a {target} without an image of this stem"))
    return Listing(due, items, files, left_out)


def from_table(source, table, picked):
    """The Listing of a CSV file, with the targets `picked`, or all it has if there are none."""
    for target, folder in picked.items():
        if folder:
            raise UsageError(f"--target={target}={folder} and --table: its column names the files")
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table}: {error}; a CSV file was due") from None
    if not rows:
        raise InputError(f"{table} lists no image")
    columns = [column for column in rows[0] if column]
    for column in ("image", *picked):
        if column not in columns:
            raise InputError(f"{table} has no column {column!r}; it has {', '.join(columns)}")
    unused = set(columns) - {"image", "source", "split", "nm_per_pixel", *TARGETS}
    if unused:
        note(table, f"columns not used: {', '.join(sorted(unused))}")
    due = tuple(t for t in TARGETS if t in (picked or columns))

    def cell(row, column):
        return (row.get(column) or "").strip()

    items, files, left_out, seen, split_of = [], [("table", table)], [], {}, {}
    images = [cell(row, "image") for row in rows]
    if not all(images):
        raise InputError(f"{table}, line {images.index('') + 2}: the cell image is empty")
    names = _names([Path(image) for image in images])
    for line, (row, image, name) in enumerate(zip(rows, images, names, strict=True), start=2):
        where = f"{table}, line {line}"
        if image in seen:
            raise InputError(f"{where}: {image} is in line {seen[image]} already")
        seen[image] = line
        split = cell(row, "split") if "split" in columns else None
        if split is not None and split not in SPLITS:
            raise InputError(f"{where}: split {split!r}; one of {', '.join(SPLITS)} was due")
        origin = cell(row, "source") or image
        if split_of.setdefault(origin, split) != split:
            raise InputError(f"{where}: source {origin} is in {split_of[origin]} and in {split}")
        empty = [target for target in due if not cell(row, target)]
        if empty:
            left_out.append((source / image, f"no {', no '.join(empty)} in the table"))
            continue
        nm_per_pixel = _nm_per_pixel(where, cell(row, "nm_per_pixel"))
        targets = {target: source / cell(row, target) for target in due}
        path = source / image
        items.append(Source(name, path, targets, origin, split, nm_per_pixel))
        files += _content(f"image/{image}", path)
        for t, partner in targets.items():
            files += _content(f"{t}/{cell(row, t)}", partner)
    return Listing(due, items, files, left_out)


def _content(label, path):
    """[(label, file)] of a file, or of all files of a Zarr store."""
    if not path.is_dir():
        return [(label, path)]
    files = (file for file in path.rglob("*") if file.is_file())
    return [(f"{label}/{file.relative_to(path).as_posix()}", file) for file in sorted(files)]


def _by_stem(paths):
    stems = {}
    for path in paths:
        other = stems.setdefault(path.stem, path)
        if other != path:
            raise InputError(f"{other} and {path} have one stem; pair them by a --table")
    return stems


def _names(paths):
    """One name per path: the stem, without suffix if stems repeat, else with it."""
    for name in (
        lambda path: path.stem,
        lambda path: path.with_suffix("").as_posix(),
        lambda path: path.as_posix(),
    ):
        names = [name(path) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def _nm_per_pixel(where, text):
    """(z, y, x) from one number (y and x), two (y, x) or three; NaN where `text` has none."""
    try:
        sizes = [float(part) for part in text.split()] or [np.nan]
    except ValueError:
        sizes = []
    if len(sizes) not in (1, 2, 3) or any(size <= 0 or np.isinf(size) for size in sizes):
        due = "a positive number, two (y x) or three (z y x) were due"
        raise InputError(f"{where}: nm_per_pixel {text!r}; {due}")
    return (np.nan, *sizes, *sizes)[:3] if len(sizes) < 3 else tuple(sizes)
