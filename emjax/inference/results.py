"""Where the results of prediction lie, and which of them are finished."""

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from emjax import micrographs
from emjax.errors import InputError, UsageError, note
from emjax.files import LONGEST_NAME
from emjax.micrographs import made_by

SUFFIXES = {"overlay": ".png", "check": ".html"}  # of all others .tif


def default_folder(names: Sequence[str]) -> Path:
    """Return where results go if nothing is said: made_by.RESULTS beside the inputs.

    Of the current folder, in it.

    Raises: UsageError if the inputs lie in several folders.
    """
    here = os.getcwd()
    folders = {
        os.path.abspath(name): Path(name)
        for name in (
            name if os.path.abspath(name) == here else os.path.dirname(name.rstrip(os.sep))
            for name in names
        )
    }
    if len(folders) > 1:
        listed = ", ".join(map(str, folders.values()))
        raise UsageError(f"--out=DIR is missing: the inputs lie in several folders, {listed}")
    return next(iter(folders.values())) / made_by.RESULTS


def find_inputs(
    names: Iterable[str], out: Path, kinds: Sequence[str] = ("mask", "overlay")
) -> dict[Path, Path]:
    """Return {micrograph: the TIFF that it becomes below `out`} for files and folders `names`.

    A folder keeps its tree. Where files of several folders would become the same TIFF, each keeps
    its path below the folder that all have in common. Where files of one folder would, as x.tif and
    x.png, each keeps its suffix: x.tif.tif and x.png.tif. A file that is named twice counts once.
    What is below `out`, and masks that emjax made with the files next to them, are not taken from a
    folder.

    Args:
        kinds: of the files that each micrograph becomes, as `files_of` takes them.

    Raises: InputError for a folder without micrographs; UsageError if a result would overwrite an
        input.
    """
    typed: dict[Path, Path] = {}
    below: dict[Path, Path] = {}  # from its folder's place in `out`, by absolute path
    for name in names:
        for file, place in _named(Path(name), out):
            key = Path(os.path.abspath(file))
            typed.setdefault(key, file)
            if key not in below or len(place.parts) > len(below[key].parts):
                below[key] = place
    folders: dict[Path, set[Path]] = {}
    for key, place in below.items():
        folders.setdefault(place.parent / place.stem, set()).add(key.parent)
    if any(len(parents) > 1 for parents in folders.values()):
        root = os.path.commonpath([key.parent for key in below])
        below = {key: key.relative_to(root) for key in below}
    whole: set[Path] = set()  # that keep their suffix
    while True:
        results = {
            key: out / place.parent / f"{place.name if key in whole else place.stem}.tif"
            for key, place in below.items()
        }
        written = {key: files_of(result, kinds) for key, result in results.items()}
        counts = Counter(path for files in written.values() for path in files)
        longest = max((p for each in written.values() for p in each), key=lambda p: len(p.name))
        if len(os.fsencode(longest.name)) > LONGEST_NAME:
            raise UsageError(
                f"{longest.name}, a result, has more than {LONGEST_NAME} bytes in its name; rename "
                "its micrograph"
            )
        alike = {key for key, files in written.items() if any(counts[f] > 1 for f in files)} - whole
        if not alike:
            break
        whole |= alike
    inputs = {key.resolve(): file for key, file in typed.items()}
    for result in results.values():
        for path in files_of(result, kinds):
            if input := inputs.get(path.resolve()):
                raise UsageError(f"{input} would be overwritten by a result; choose another --out")
    return {typed[key]: result for key, result in results.items()}


def _named(name: Path, out: Path) -> Iterator[tuple[Path, Path]]:
    """Yield (file, its path below `name`) of each micrograph of a file or a folder."""
    if not name.is_dir() or micrographs.is_zarr(name):
        yield name, Path(name.name)
        return
    folder, results = name.resolve(), out.resolve()
    inside = results != folder and results.is_relative_to(folder)
    kinds = (*made_by.OF_MASKS, *(["restored"] if results == folder else []))
    left_out = found = 0
    for file in micrographs.find(name):
        place = file.relative_to(name)
        if inside and (folder / place).is_relative_to(results):
            continue
        kind = made_by.kind(file)
        if kind in kinds or made_by.RESULTS in place.parts:
            left_out += 1
            continue
        found += 1
        yield file, place
    if left_out:
        note(name, f"{left_out} results of emjax in it are left out; name them to predict them")
    if not found:
        raise InputError(f"{name} holds no micrograph but results of emjax; expected micrographs")


def files_of(result: Path, kinds: Sequence[str]) -> dict[Path, str]:
    """Return {file: its kind} of what one micrograph becomes.

    Args:
        result: the first of them.
        kinds: that of `result`, and those of the files next to it.
    """
    first, *others = kinds
    endings = {kind: f".{kind}{SUFFIXES.get(kind, '.tif')}" for kind in others}
    return {result: first} | {result.with_suffix(end): kind for kind, end in endings.items()}


def left_from_before(result: Path, kinds: Sequence[str]) -> list[Path]:
    """Return what is next to a result, of an earlier prediction, that is not of `kinds`."""
    there = [*made_by.NEXT_TO_MASKS, "check"]
    for number in itertools.count(1):
        kind = f"probability_{number}"
        if kind not in kinds and not result.with_suffix(f".{kind}.tif").exists():
            break
        there.append(kind)
    others = [kind for kind in there if kind not in kinds]
    files = files_of(result, [kinds[0], *others])
    return [
        path
        for path, kind in files.items()
        if path != result and (made_by.read(path) or {}).get("kind") == kind
    ]


def is_finished(result: Path, made: Mapping[str, Any], kinds: Sequence[str]) -> bool:
    """Return whether all `files_of` a result are there and were made as `made`."""
    for path, kind in files_of(result, kinds).items():
        facts = made_by.read(path)
        if facts is None or facts != {**made, "kind": kind, "result": facts["result"]}:
            return False
    return True
