"""Which files make up a collection: by stems in folders, or by the rows of a table."""

import csv
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_builders.common import SPLITS, TARGETS
from emjax import micrographs
from emjax.errors import InputError, UsageError, note

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


def from_folders(root: Path, folders: Mapping[str, str]) -> Listing:
    """Return the Listing of the images below `root` and their partners in other folders, by stem.

    Args:
        folders: {target: its folder}.

    Raises: UsageError for a target without a folder; InputError if there is no image, or two files
        of a folder have one stem.
    """
    for target, folder in folders.items():
        if not folder:
            raise UsageError(f"--target={target} picks a column: give --table, or {target}=FOLDER")
    wanted = tuple(target for target in TARGETS if target in folders)
    roots = {target: Path(folders[target]) for target in wanted}
    images: list[Path] = [
        path
        for path in micrographs.find(root)
        if not any(path.resolve().is_relative_to(other.resolve()) for other in roots.values())
    ]
    if not images:
        raise InputError(f"{root} holds no image outside of the folders of its targets")
    partners = {t: _by_stem(micrographs.find(other)) for t, other in roots.items()}
    stems = _by_stem(images) if partners else {}
    names = _names([path.relative_to(root) for path in images])
    exports = Counter(path.relative_to(root).with_suffix("").as_posix() for path in images)
    sources, files, skipped = [], [], []
    for path, name in zip(images, names, strict=True):
        missing = [t for t in wanted if path.stem not in partners[t]]
        if missing:
            skipped.append((path, f"no {', no '.join(missing)} of this stem"))
            continue
        targets = {t: partners[t][path.stem] for t in wanted}
        relative = path.relative_to(root).as_posix()
        # A micrograph and its export in another format belong to one split.
        bare = path.relative_to(root).with_suffix("").as_posix()
        group = bare if exports[bare] > 1 else relative
        sources.append(Source(name, path, targets, group, None, UNKNOWN))
        files += _content(f"image/{relative}", path)
        for t, partner in targets.items():
            files += _content(f"{t}/{partner.relative_to(roots[t]).as_posix()}", partner)
    for target, paths in partners.items():
        for stem in sorted(paths.keys() - stems.keys()):
            skipped.append((paths[stem], f"a {target} without an image of this stem"))
    return Listing(wanted, sources, files, skipped)


def from_table(root: Path, table: str | Path, picked: Mapping[str, str]) -> Listing:
    """Return the Listing of a CSV file with paths relative to `root`.

    Args:
        picked: its keys are the targets to read; all that the table has if there are none.

    Raises: UsageError for a target with a folder; InputError if the table cannot be read, or a
        column or cell is missing or wrong.
    """
    for target, folder in picked.items():
        if folder:
            raise UsageError(f"--target={target}={folder} and --table: its column names the files")
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table}: {error}; expected a CSV file") from None
    if not rows:
        raise InputError(f"{table} lists no image")
    columns = [column for column in rows[0] if column]
    for column in ("image", *picked):
        if column not in columns:
            raise InputError(f"{table} has no column {column!r}; it has {', '.join(columns)}")
    unused = set(columns) - {"image", "source", "split", "nm_per_pixel", *TARGETS}
    if unused:
        note(table, f"columns not used: {', '.join(sorted(unused))}")
    available: Collection[str] = picked or columns
    wanted = tuple(t for t in TARGETS if t in available)

    def cell(row: Mapping[str, str], column: str) -> str:
        return (row.get(column) or "").strip()

    sources, skipped = [], []
    files: list[tuple[str, Path]] = [("table", Path(table))]
    line_of: dict[str, int] = {}
    split_of: dict[str, str | None] = {}
    images = [cell(row, "image") for row in rows]
    if not all(images):
        raise InputError(f"{table}, line {images.index('') + 2}: the cell image is empty")
    names = _names([Path(image) for image in images])
    for line, (row, image, name) in enumerate(zip(rows, images, names, strict=True), start=2):
        where = f"{table}, line {line}"
        if image in line_of:
            raise InputError(f"{where}: {image} is in line {line_of[image]} already")
        line_of[image] = line
        split = cell(row, "split") if "split" in columns else None
        if split is not None and split not in SPLITS:
            raise InputError(f"{where}: split {split!r}, expected one of {', '.join(SPLITS)}")
        group = cell(row, "source") or image
        if split_of.setdefault(group, split) != split:
            raise InputError(f"{where}: source {group} is in {split_of[group]} and in {split}")
        empty = [target for target in wanted if not cell(row, target)]
        if empty:
            skipped.append((root / image, f"no {', no '.join(empty)} in the table"))
            continue
        nm_per_pixel = _nm_per_pixel(where, cell(row, "nm_per_pixel"))
        targets = {target: root / cell(row, target) for target in wanted}
        path = root / image
        sources.append(Source(name, path, targets, group, split, nm_per_pixel))
        files += _content(f"image/{image}", path)
        for t, partner in targets.items():
            files += _content(f"{t}/{cell(row, t)}", partner)
    return Listing(wanted, sources, files, skipped)


def _content(label: str, path: Path) -> list[tuple[str, Path]]:
    """Return [(label, file)] of a file, or of all files of a Zarr store."""
    if not path.is_dir():
        return [(label, path)]
    files = (file for file in path.rglob("*") if file.is_file())
    return [(f"{label}/{file.relative_to(path).as_posix()}", file) for file in sorted(files)]


def _by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    """Return {stem: path}; raise InputError for two paths of one stem."""
    stems: dict[str, Path] = {}
    for path in paths:
        other = stems.setdefault(path.stem, path)
        if other != path:
            raise InputError(f"{other} and {path} have one stem; pair them by a --table")
    return stems


def _names(paths: Sequence[Path]) -> list[str]:
    """Return one name per path: the stem; if stems repeat the path, with its suffix if need be."""
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        names = [path.with_suffix("").as_posix() for path in paths]
    if len(set(names)) < len(names):
        names = [path.as_posix() for path in paths]
    return names


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
