"""Au nanoparticles on carbon in high-resolution TEM, with masks, from the authors' h5 files."""

import argparse
import hashlib
import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple, cast

import numpy as np
from jaxtyping import Float32, UInt8

from data_builders import fetch
from data_builders.au_nanoparticles import files, preprocessing
from data_builders.au_nanoparticles.facts import (
    DATASETS,
    GROSCHNER,
    LICENCE,
    SYTWU,
    ZENODO_RECORD,
)
from data_builders.common import ALL, SPLITS, About, Contents, by_hash, file_sha256
from data_builders.writer import Record
from emjax.errors import InputError

NAMES = [f"au_nanoparticles/{name}{by}" for name in DATASETS for by in ("", "_by_source")]


class Part(NamedTuple):
    """An image of a file that can be used, and the corners (y, x) of its patches."""

    pair: files.Pair
    index: int  # in the file
    corners: list[tuple[int, int]]


class AuNanoparticles:
    """Patches of 512 x 512 pixels and their masks, from the authors' h5 files in --source.

    From the micrographs as published on Zenodo: negative counts and X-ray hits are removed, each
    micrograph is standardised and cut, patches with more than 400 particle pixels are kept. Files
    that the authors' notebook has prepared are taken as they are, and so are the patches of
    au5nm_v1, which their authors have filtered and scaled to 0 ... 1.

    The first 70 % of the patches are train, the next 10 % val, the rest test, as in Sytwu et al.
    2022: neighbouring patches of one micrograph may be in two splits. NAME_by_source splits by
    micrograph instead.
    """

    about = About("Au nanoparticles", LICENCE, SYTWU, DATASETS["au5nm"].address)
    other_name = "--data_dir"
    side, more_than = 512, 400  # of a patch: pixels, and particle pixels that are too few

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        """Add the flags of this dataset to `parser`."""
        parser.add_argument("--source", required=True, help="the folder of the h5 files")
        parser.add_argument(
            "--fetch",
            action="store_true",
            help="download from Zenodo what the folder lacks, and check it",
        )

    def __init__(self, options: argparse.Namespace) -> None:
        """Find and hash the files, after fetching them if asked to.

        Raises: InputError if they are missing or cannot be built this way, or the download fails.
        """
        name = options.dataset.removeprefix("au_nanoparticles/")
        self.folder, self.by_source = options.dataset, name.endswith("_by_source")
        self.name = name.removesuffix("_by_source")
        self.facts = DATASETS[self.name]
        self.about = About(
            self.facts.what,
            LICENCE,
            GROSCHNER if self.name == "au5nm_v1" else SYTWU,
            self.facts.address,
        )
        if options.fetch:
            names = (self.facts.images, self.facts.labels)
            fetch.from_zenodo(ZENODO_RECORD, names, options.source)
        self.layout, self.pairs = files.find(options.source, self.facts)
        if self.by_source and self.layout != "raw":
            raise InputError(
                f"{self.pairs[0].images} holds patches and does not say which micrograph each was "
                f"cut from, so {self.folder} cannot be built from it; build {self.folder[:-10]}, "
                "or give the raw micrographs"
            )
        self.rule = "fixed" if self.facts.xray_threshold is None else "sigma"
        self.digests = {path.name: file_sha256(path) for pair in self.pairs for path in pair[:2]}
        listed = json.dumps(self.digests, sort_keys=True)
        self.files_sha256 = hashlib.sha256(listed.encode()).hexdigest()
        self.options: dict[str, Any] = {"layout": self.layout, "by_source": self.by_source}
        if self.layout == "raw":
            self.options |= {
                "xray_threshold": self.facts.xray_threshold,
                "patch": self.side,
                "particle_pixels_over": self.more_than,
            }

    def prepare(self) -> Contents:
        """Read every image and its labels once; return the patches and their splits.

        Raises: InputError if no patch has enough particle pixels, or images or labels are wrong.
        """
        parts, unusable, images = [], [], 0
        for pair in self.pairs:
            with files.opened(pair) as (stack, labels):
                self._check_sizes(stack)
                images += stack.shape[0]
                for index in range(stack.shape[0]):
                    try:
                        self._check(files.read_image(stack, index))
                        corners = self._corners(files.read_mask(labels, index))
                    except files.Unusable as error:
                        unusable.append((f"{pair.images}[{index}]", str(error)))
                    else:
                        parts.append(Part(pair, index, corners))
        self.parts = [part for part in parts if part.corners]
        if not self.parts:
            first = f"; {': '.join(unusable[0])}" if unusable else ""
            raise InputError(
                f"{self.pairs[0].images}: none of {images} images has a patch with more than "
                f"{self.more_than} particle pixels{first}"
            )
        self.split_of = self._splits()
        counts = {split: self.split_of.count(split) for split in SPLITS}
        return Contents(
            splits={split: count for split, count in counts.items() if count},
            dtype="float32",
            shape=(self.side, self.side),
            targets=("mask",),
            range_rule=self.rule,
            units=len(self.parts),
            left_out=[],
            unusable=unusable,
            images=images,
            notes=self._notes(counts),
        )

    def _check_sizes(self, stack: files.Stack) -> None:
        n, h, w = stack.shape
        if self.layout == "raw" and min(h, w) < self.side:
            expected = f"micrographs of at least {self.side}x{self.side}"
        elif self.layout != "raw" and (h, w) != (self.side, self.side):
            expected = f"patches of {self.side}x{self.side}"
        else:
            return
        raise InputError(f"{stack.path}: {n} images of {h}x{w}, expected {expected}")

    def _check(self, image: Float32[np.ndarray, "h w"]) -> None:
        """Raise Unusable if the values of `image` cannot be right."""
        if self.layout == "raw" and image.max() <= 0:
            raise files.Unusable(f"no pixel is above 0, the largest is {image.max():g}")
        if self.rule == "fixed" and (image.min() < 0 or image.max() > 1):
            raise files.Unusable(f"values {image.min():g} to {image.max():g}, expected 0 to 1")

    def _corners(self, mask: UInt8[np.ndarray, "h w"]) -> list[tuple[int, int]]:
        if self.layout != "raw":
            return [(0, 0)]
        return preprocessing.corners_with_particles(mask, side=self.side, more_than=self.more_than)

    def _source(self, part: Part) -> str:
        """Return the micrograph that `part` is, or the whole dataset where that is not known."""
        return f"{self.name}/{part.index:02d}" if self.layout == "raw" else self.name

    def _splits(self) -> list[str]:
        """Return the split of each patch, in the order of the parts."""
        if self.layout == "split":
            return [cast(str, part.pair.split) for part in self.parts]
        if not self.by_source:
            counts = preprocessing.sequential_split(sum(len(part.corners) for part in self.parts))
            return [split for split in SPLITS for _ in range(counts[split])]
        sources = by_hash(self._source(part) for part in self.parts)
        if len(sources) < 3:
            raise InputError(
                f"{self.pairs[0].images} has {len(sources)} micrographs with particles, "
                f"expected at least 3 for {self.folder}: one per split"
            )
        val, test = max(1, len(sources) // 10), max(1, len(sources) // 5)
        counts = {"val": val, "test": test, "train": len(sources) - val - test}
        where = dict(zip(sources, [s for s in counts for _ in range(counts[s])], strict=True))
        return [where[self._source(part)] for part in self.parts for _ in part.corners]

    def _notes(self, counts: dict[str, int]) -> list[str]:
        patches = sum(counts.values())
        expected = preprocessing.sequential_split(self.facts.patches)
        notes = []
        if self.layout == "split":
            notes.append("the splits are those of the files")
            if counts == {split: 8 * count for split, count in expected.items()}:
                notes.append(
                    "the files hold every patch in its eight turns and flips: one pass over these "
                    "records is eight over the patches, so train with --config.passes_per_epoch=1"
                )
        elif patches != self.facts.patches:
            notes.append(f"{patches} patches; the authors have {self.facts.patches}")
        if self.layout != "raw":
            notes.append("which micrograph a patch was cut from is not known: source says nothing")
        elif not self.by_source:
            both = self._in_two_splits()
            notes.append(f"in two splits, as in the paper: patches of {', '.join(both) or 'none'}")
        if self.layout == "cut" and self.facts.xray_threshold is not None:
            notes.append("standardised by its authors; not preprocessed here")
        return notes + [f"{name}: SHA-256 {digest}" for name, digest in self.digests.items()]

    def _in_two_splits(self) -> list[str]:
        """Return the micrographs with patches in two splits."""
        origins = [self._source(part) for part in self.parts for _ in part.corners]
        placed = list(zip(origins, self.split_of, strict=True))
        return sorted({a[0] for a, b in pairwise(placed) if a[0] == b[0] and a[1] != b[1]})

    def records(self, split: str, units: range = ALL) -> Iterator[Record]:
        """Yield the records of `split`; a record's index does not depend on the split."""
        index = 0
        for pair in self.pairs:
            with files.opened(pair) as (images, labels):
                for number, part in enumerate(self.parts):
                    if part.pair != pair:
                        continue
                    indices = range(index, index + len(part.corners))
                    index = indices.stop
                    if number in units and split in self.split_of[indices.start : indices.stop]:
                        image = self._image(images, part.index)
                        mask = files.read_mask(labels, part.index)
                        for corner, of_patch in zip(part.corners, indices, strict=True):
                            if self.split_of[of_patch] == split:
                                yield self._record(part, image, mask, corner, of_patch)

    def _image(self, images: files.Stack, index: int) -> Float32[np.ndarray, "h w"]:
        image = files.read_image(images, index)
        if self.layout != "raw" or self.facts.xray_threshold is None:
            return image
        return preprocessing.standardised(
            preprocessing.without_xrays(image, self.facts.xray_threshold)
        )

    def _record(
        self,
        part: Part,
        image: Float32[np.ndarray, "h w"],
        mask: UInt8[np.ndarray, "h w"],
        corner: tuple[int, int],
        index: int,
    ) -> Record:
        (y, x), side = corner, self.side
        where = {
            "raw": f"{part.index:02d}_y{y:04d}x{x:04d}",
            "cut": f"{part.index:03d}",
            "split": f"{part.pair.split}_{part.index:04d}",
        }
        return {
            "image": image[y : y + side, x : x + side, None],
            "mask": mask[y : y + side, x : x + side, None],
            # In standard deviations of the whole micrograph: its mean -+ 4 of them is -4 and 4.
            "intensity_range": np.array((0, 1) if self.rule == "fixed" else (-4, 4), np.float32),
            "nm_per_pixel": np.full(2, self.facts.nm_per_pixel, np.float32),
            "name": f"{self.name}_{where[self.layout]}",
            "source": self._source(part),
            "index": index,
        }
