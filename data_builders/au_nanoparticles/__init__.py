"""Au nanoparticles on carbon in high-resolution TEM, with masks, from the authors' h5 files."""

import hashlib
import json
from itertools import pairwise
from typing import NamedTuple

import numpy as np

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
from emjax.errors import InputError

NAMES = [f"au_nanoparticles/{name}{by}" for name in DATASETS for by in ("", "_by_source")]


class Part(NamedTuple):
    """An image of a file that can be used, and the corners (y, x) of its patches."""

    pair: files.Pair
    place: int
    corners: list[tuple[int, int]]


class AuNanoparticles:
    """Patches of 512 x 512 pixels and their masks, from the authors' h5 files in --source.

    From the micrographs as published on Zenodo: negative counts and X-ray hits are removed, each
    micrograph is standardised and cut, patches with more than 400 particle pixels are kept. Files
    that the authors' notebook has prepared are taken as they are, and so are the patches of
    au5nm_v1, which their authors have filtered and scaled to 0 ... 1.

    The first 70 % of the patches are train, the next 10 % val, the rest test, as in Sytwu et al.
    2022: neighbouring patches of one micrograph may stand on both sides. NAME_by_source splits
    by micrograph instead.
    """

    about = About("Au nanoparticles", LICENCE, SYTWU, DATASETS["au5nm"].address)
    other_name = "--data_dir"
    side, more_than = 512, 400  # of a patch: pixels, and particle pixels that are too few

    @staticmethod
    def add_options(parser):
        parser.add_argument("--source", required=True, help="the folder of the h5 files")
        parser.add_argument(
            "--fetch",
            action="store_true",
            help="download from Zenodo what the folder lacks, and check it",
        )

    def __init__(self, options):
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
            due = (self.facts.images, self.facts.labels)
            fetch.from_zenodo(ZENODO_RECORD, due, options.source)
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
        self.options = {"layout": self.layout, "by_source": self.by_source}
        if self.layout == "raw":
            self.options |= {
                "xray_threshold": self.facts.xray_threshold,
                "patch": self.side,
                "particle_pixels_over": self.more_than,
            }

    def prepare(self):
        """Look at every image and its labels once: which patches there are, and in which split."""
        parts, unusable, images = [], [], 0
        for pair in self.pairs:
            with files.opened(pair) as (stack, labels):
                self._check_sizes(stack)
                images += stack.shape[0]
                for place in range(stack.shape[0]):
                    try:
                        self._check(files.read_image(stack, place))
                        corners = self._corners(files.read_mask(labels, place))
                    except files.Unusable as error:
                        unusable.append((f"{pair.images}[{place}]", str(error)))
                    else:
                        parts.append(Part(pair, place, corners))
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

    def _check_sizes(self, stack):
        n, h, w = stack.shape
        if self.layout == "raw" and min(h, w) < self.side:
            due = f"micrographs of at least {self.side}x{self.side}"
        elif self.layout != "raw" and (h, w) != (self.side, self.side):
            due = f"patches of {self.side}x{self.side}"
        else:
            return
        raise InputError(f"{stack.path}: {n} images of {h}x{w}; {due} were due")

    def _check(self, image):
        if self.layout == "raw" and image.max() <= 0:
            raise files.Unusable(f"no pixel is above 0, the largest is {image.max():g}")
        if self.rule == "fixed" and (image.min() < 0 or image.max() > 1):
            raise files.Unusable(f"values {image.min():g} to {image.max():g}; 0 to 1 were due")

    def _corners(self, mask):
        if self.layout != "raw":
            return [(0, 0)]
        return preprocessing.corners_with_particles(mask, side=self.side, more_than=self.more_than)

    def _source(self, part):
        """The micrograph that `part` is, or the whole dataset where that is not known."""
        return f"{self.name}/{part.place:02d}" if self.layout == "raw" else self.name

    def _splits(self):
        """The split of each patch, in the order of the parts."""
        if self.layout == "split":
            return [part.pair.split for part in self.parts]
        if not self.by_source:
            counts = preprocessing.sequential_split(sum(len(part.corners) for part in self.parts))
            return [split for split in SPLITS for _ in range(counts[split])]
        sources = by_hash(self._source(part) for part in self.parts)
        if len(sources) < 3:
            raise InputError(
                f"{self.pairs[0].images} has {len(sources)} micrographs with particles; at least "
                f"3 were due for {self.folder}: one a split"
            )
        val, test = max(1, len(sources) // 10), max(1, len(sources) // 5)
        counts = {"val": val, "test": test, "train": len(sources) - val - test}
        where = dict(zip(sources, [s for s in counts for _ in range(counts[s])], strict=True))
        return [where[self._source(part)] for part in self.parts for _ in part.corners]

    def _notes(self, counts):
        patches, due = sum(counts.values()), preprocessing.sequential_split(self.facts.patches)
        notes = []
        if self.layout == "split":
            notes.append("the splits are those of the files")
            if counts == {split: 8 * count for split, count in due.items()}:
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

    def _in_two_splits(self):
        origins = [self._source(part) for part in self.parts for _ in part.corners]
        placed = list(zip(origins, self.split_of, strict=True))
        return sorted({a[0] for a, b in pairwise(placed) if a[0] == b[0] and a[1] != b[1]})

    def records(self, split, units=ALL):
        """Yield the records of `split`; a record's index does not depend on the split."""
        index = 0
        for pair in self.pairs:
            with files.opened(pair) as (images, labels):
                for number, part in enumerate(self.parts):
                    if part.pair != pair:
                        continue
                    places = range(index, index + len(part.corners))
                    index = places.stop
                    if number in units and split in self.split_of[places.start : places.stop]:
                        image = self._image(images, part.place)
                        mask = files.read_mask(labels, part.place)
                        for corner, place in zip(part.corners, places, strict=True):
                            if self.split_of[place] == split:
                                yield self._record(part, image, mask, corner, place)

    def _image(self, images, place):
        image = files.read_image(images, place)
        if self.layout != "raw":
            return image
        return preprocessing.standardised(
            preprocessing.without_xrays(image, self.facts.xray_threshold)
        )

    def _record(self, part, image, mask, corner, index):
        (y, x), side = corner, self.side
        where = {
            "raw": f"{part.place:02d}_y{y:04d}x{x:04d}",
            "cut": f"{part.place:03d}",
            "split": f"{part.pair.split}_{part.place:04d}",
        }
        return {
            "image": image[y : y + side, x : x + side, None],
            "mask": mask[y : y + side, x : x + side, None],
            # In standard deviations of the whole micrograph, mean -+ 4 of them is -4 and 4.
            "intensity_range": np.float32((0, 1) if self.rule == "fixed" else (-4, 4)),
            "nm_per_pixel": np.full(2, self.facts.nm_per_pixel, np.float32),
            "name": f"{self.name}_{where[self.layout]}",
            "source": self._source(part),
            "index": index,
        }
