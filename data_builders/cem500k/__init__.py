"""CEM500K and CEM1.5M: unlabelled cellular EM patches, from trees of small TIFF files."""

import argparse
import array
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from data_builders.common import ALL, About, Contents, by_hash, within
from data_builders.writer import Count, Record, Skipped
from emjax import micrographs
from emjax.errors import InputError

SIDE = 224  # pixels, of a patch
SMALLEST = 112  # pixels, of the shorter side of a patch at the edge of its volume: half a patch
VAL = 5_000  # patches at most, and never more than a tenth
LICENCE = "stated on the page of its files; look there before you pass them on"
DATASETS = {
    "cem500k": About(
        "CEM500K: 0.5 million patches of cellular EM from over 100 projects, 25 GB",
        LICENCE,
        "R. Conrad, K. Narayan, CEM500K, a large-scale heterogeneous unlabeled cellular electron "
        "microscopy image dataset for deep learning, eLife 10:e65894 (2021)",
        "https://www.ebi.ac.uk/empiar/EMPIAR-10592/",
    ),
    "cem1_5m": About(
        "CEM1.5M: 1.6 million patches of cellular EM, the successor of CEM500K",
        LICENCE,
        "R. Conrad, K. Narayan, Instance segmentation of mitochondria in electron microscopy "
        "images with a generalist deep learning model trained on a diverse dataset, Cell Systems "
        "14 (2023)",
        "https://www.ebi.ac.uk/empiar/EMPIAR-11035/",
    ),
}


class Listing(NamedTuple):
    """The TIFF files of a tree, some 150 bytes per file."""

    paths: list[str]  # below the root, folder by folder, in order
    source_of: array.array  # of each, the index of its source in `sources`
    sources: list[str]
    sha256: str  # over paths and sizes


class Cem500k:
    """Patches of 224 x 224 pixels, 8 bits, from the folder of TIFF files that EMPIAR holds.

    A source is a sub-directory; of files in --source itself, or all in one folder, it is the part
    of their names before -LOC-, or else each file. Patches from the edge of a volume, down
    to 112 pixels, are mirrored to 224; smaller ones are dropped. val is whole sources with 5,000
    patches at most (in a small tree a tenth); the rest is train, and there is no test. Whether
    files have changed is judged by their names and sizes, so that each is read once.
    """

    about = DATASETS["cem500k"]
    other_name = "--data_dir"

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        """Add the flags of this dataset to `parser`."""
        parser.add_argument("--source", required=True, help="the folder of the TIFF files")

    def __init__(self, options: argparse.Namespace) -> None:
        """List the files; read none.

        Raises: InputError if there is none.
        """
        self.folder, self.root = options.dataset, Path(options.source)
        self.about = DATASETS[options.dataset]
        what = f"{self.about.title.split(':')[0]}: download {self.about.address} (Aspera or Globus)"
        if not self.root.is_dir():
            raise InputError(f"--source={self.root} is not a folder; it is for {what} into it")
        self.listing = list_tiffs(self.root)
        if not self.listing.paths:
            raise InputError(f"{self.root} holds no TIFF file; it is for {what} into it")
        self.files_sha256 = self.listing.sha256
        self.options: dict[str, Any] = {"side": SIDE, "smallest": SMALLEST, "val": VAL}

    def prepare(self) -> Contents:
        """Choose the sources of val; read no file."""
        sizes = Counter(self.listing.source_of)
        in_val = val_sources({self.listing.sources[key]: n for key, n in sizes.items()})
        self.in_val = np.array([source in in_val for source in self.listing.sources])
        val = sum(n for key, n in sizes.items() if self.in_val[key])
        splits = {"train": len(self.listing.paths) - val, "val": val}
        return Contents(
            splits={split: count for split, count in splits.items() if count},
            dtype="uint8",
            shape=(SIDE, SIDE),
            targets=(),
            range_rule="fixed",
            units=len(self.listing.paths),
            left_out=[],
            images=len(self.listing.paths),
        )

    def records(self, split: str, units: range = ALL) -> Iterator[Record | Skipped | Count]:
        """Yield the records of `split`; a record's index is that of its file in the tree.

        Files that cannot be used come as Skipped; small and mirrored patches are Counts.
        """
        for index, path in within(units, enumerate(self.listing.paths)):
            source = self.listing.source_of[index]
            if self.in_val[source] != (split == "val"):
                continue
            try:
                patch = read(self.root / path)
            except InputError as error:
                reason = str(error).removeprefix(f"{self.root / path}: ")
                yield Skipped(str(self.root / path), reason)
                continue
            if min(patch.shape) < SMALLEST:
                yield Count("dropped")
                continue
            if patch.shape != (SIDE, SIDE):
                yield Count("mirrored")
            yield {
                "image": mirrored(patch)[..., None],
                "intensity_range": np.array((0, 255), np.float32),
                "nm_per_pixel": np.full(2, np.nan, np.float32),
                "name": os.path.splitext(path)[0],
                "source": self.listing.sources[source],
                "index": index,
            }

    def notes(self, counts: Counter[str], records: int) -> list[str]:
        """Return, for the card, how many patches were mirrored or dropped and the sources of val.

        Args: as common.Counting.
        """
        files, mirrored, dropped = len(self.listing.paths), counts["mirrored"], counts["dropped"]
        return [
            f"{mirrored} of {records} patches ({mirrored / records:.2%}) were mirrored to "
            f"{SIDE}x{SIDE}",
            f"{dropped} of {files} files ({dropped / files:.2%}) were dropped, "
            f"a side below {SMALLEST} pixels",
            f"{int(self.in_val.sum())} of {len(self.in_val)} sources are in val",
            "files_sha256 is over the names and sizes of the files, not their content",
        ]


def list_tiffs(root: Path) -> Listing:
    """Return the Listing of all *.tif and *.tiff below `root`; nothing hidden, no linked folder."""
    paths: list[str] = []
    folders: set[str] = set()
    digest = hashlib.sha256()
    waiting = [""]
    while waiting:
        folder, below = waiting.pop(), []
        with os.scandir(os.path.join(root, folder)) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        for entry in entries:
            path = os.path.join(folder, entry.name)
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                below.append(path)
            elif entry.name.lower().endswith((".tif", ".tiff")) and entry.is_file():
                folders.add(folder)
                paths.append(path)
                digest.update(os.fsencode(f"{path}\0{entry.stat().st_size}\0"))
        waiting += reversed(below)
    by_name = folders if len(folders) == 1 else {""}
    indices: dict[str, int] = {}
    source_of = array.array("i")
    for path in paths:
        folder, name = os.path.split(path)
        stem = os.path.splitext(name)[0]
        source = stem.split("-LOC-")[0] if folder in by_name else folder
        source_of.append(indices.setdefault(source, len(indices)))
    return Listing(paths, source_of, list(indices), digest.hexdigest())


def val_sources(sizes: Mapping[str, int]) -> set[str]:
    """Return the names of the sources of val.

    In the order by_hash, each that keeps val at VAL files or fewer and at a tenth of all; if there
    is none such, the smallest. A single source goes to train.

    Args:
        sizes: {source: files}.
    """
    limit = min(VAL, sum(sizes.values()) // 10)
    chosen: set[str] = set()
    total = 0
    for source in by_hash(sizes):
        if total + sizes[source] <= limit:
            chosen.add(source)
            total += sizes[source]
    if not chosen and len(sizes) > 1:
        chosen = {min(by_hash(sizes), key=lambda source: sizes[source])}
    return chosen


def read(path: Path) -> UInt8[np.ndarray, "h w"]:
    """Return the patch in the TIFF file at `path`.

    Raises: InputError for anything but one channel of 8 bits, at most SIDE pixels high and wide and
        not all the same.
    """
    patch = micrographs.read_pixels(path)
    if patch.dtype != np.uint8 or patch.ndim != 2:
        kind = "in colours" if patch.ndim == 3 else f"{patch.dtype}"
        raise InputError(f"{path}: {kind}, expected one channel of 8 bits")
    if max(patch.shape) > SIDE:
        h, w = patch.shape
        raise InputError(f"{path}: {h}x{w}, expected at most {SIDE}x{SIDE}")
    if patch.min() == patch.max():
        raise InputError(f"{path}: all pixels are {patch.flat[0]}")
    return patch


def mirrored(patch: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "224 224"]:
    """Return `patch`, of at least half of SIDE, mirrored at both ends to SIDE x SIDE."""
    padding = [((SIDE - side) // 2, SIDE - side - (SIDE - side) // 2) for side in patch.shape]
    return np.pad(patch, padding, mode="reflect")
