"""Records from any folder of anybody's micrographs, with targets where there are some."""

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_builders.common import (
    ALL,
    SPLITS,
    TARGETS,
    About,
    Contents,
    sha256_of,
    split_by_source,
    within,
)
from data_builders.micrographs.curation import THRESHOLDS, curate
from data_builders.micrographs.listing import Source, from_folders, from_table
from data_builders.micrographs.reading import Mismatch, ReadOptions, foreground_of, planes_of, size
from data_builders.micrographs.resample import LeftOutByRule
from emjax import micrographs
from emjax.cli import message
from emjax.errors import InputError, UsageError, choose


class Scan(NamedTuple):
    """What reading an item once along an axis has shown."""

    item: Source
    axis: str  # z, y or x; z for a single image
    shape: tuple[int, int]  # of each plane of the records
    planes: int
    nm_per_pixel: tuple[float, float]  # y, x, of the records; NaN where unknown
    origin: str  # of nm_per_pixel: the table, or what in the file told it
    range: tuple[float, float] = (0.0, 0.0)


class Micrographs:
    """Records from a folder of micrographs, whole or cut into patches; stacks plane by plane.

    Targets are paired by file stem (--target mask=FOLDER) or by a table with the columns image,
    any of mask, denoised, background_removed, superresolved, and optionally source, split,
    nm_per_pixel (one number, y and x, or z, y and x; where it says nothing, the file does). Without
    a split column whole sources (default: files) go 70 % to train, 10 % to val and 20 % to test.
    """

    about = About(
        title="your own micrographs",
        licence="that of your own files",
        citation="none: your own files",
        address="the folder given as --source",
    )
    other_name = "--name"

    @staticmethod
    def add_options(parser):
        add = parser.add_argument
        add("--source", required=True, help="the folder; paths of the table are relative to it")
        add("--patch", type=int, help="cut squares of this side; default: whole images")
        add(
            "--target",
            action="append",
            default=[],
            metavar="NAME[=FOLDER]",
            help="a folder of targets with the images' stems, or a column of the table; repeatable",
        )
        add("--table", help="a CSV file that lists the images")
        add("--nm_per_pixel", type=float, help="resample to this; images of unknown size stay out")
        add("--foreground", default="nonzero", help="in masks: nonzero, a value, or R,G,B")
        add("--curate", action="store_true", help="drop what is flat, saturated, drawn or repeated")
        add("--range", default="percentile", choices=micrographs.RULES)
        add("--axes", default="z", help="slice stacks along these of z,y,x; default: %(default)s")
        add("--index", type=int, help="which image, of files that hold several")
        add("--memory_limit", type=float, default=4, help="GiB that one image may take")
        add("--name", help="builds micrographs/NAME, so that several stand side by side")

    def __init__(self, options):
        if options.patch is not None and options.patch < 1:
            raise UsageError(f"--patch={options.patch}; a side of at least one pixel was due")
        if options.name is not None and not re.fullmatch(r"\w[\w-]*", options.name):
            raise UsageError(f"--name={options.name!r}; letters, digits, _ and - were due")
        if options.nm_per_pixel is not None and not 0 < options.nm_per_pixel < np.inf:
            raise UsageError(f"--nm_per_pixel={options.nm_per_pixel}; more than 0 nm were due")
        self.axes = tuple(options.axes.split(","))
        if not set(self.axes) <= set("zyx") or len(set(self.axes)) < len(self.axes):
            raise UsageError(f"--axes={options.axes}; z, y, x or some of them, as z,y, were due")
        if not options.memory_limit > 0:
            raise UsageError(f"--memory_limit={options.memory_limit}; more than 0 GiB were due")
        self.folder = f"micrographs/{options.name}" if options.name else "micrographs"
        self.source, self.patch, self.rule = Path(options.source), options.patch, options.range
        limit = int(options.memory_limit * 2**30)
        values = foreground_of(options.foreground)
        self.how = ReadOptions(options.index, limit, values, options.nm_per_pixel)
        picked = dict(target.partition("=")[::2] for target in options.target)
        for target in picked:
            choose("target", target, dict.fromkeys(TARGETS))
        if len(picked) < len(options.target):
            raise UsageError(
                f"--target={' --target='.join(options.target)}; each at most once was due"
            )
        if not self.source.is_dir():
            raise InputError(f"--source={self.source} is no folder")
        if options.table:
            listing = from_table(self.source, options.table, picked)
        else:
            listing = from_folders(self.source, picked)
        self.targets, self.items = listing.targets, listing.items
        self.left_out = [(str(path), reason) for path, reason in listing.left_out]
        if options.foreground != "nonzero" and "mask" not in self.targets:
            raise UsageError(f"--foreground={options.foreground}, but there is no mask")
        self.files_sha256 = sha256_of(listing.files)
        self.options = {
            "patch": options.patch,
            "targets": list(self.targets),
            "foreground": options.foreground,
            "range": options.range,
            **{
                key: value
                for key in ("index", "nm_per_pixel")
                if (value := getattr(options, key)) is not None
            },
            **({"axes": options.axes} if self.axes != ("z",) else {}),
            **({"curate": THRESHOLDS} if options.curate else {}),
        }

    def prepare(self):
        """Read every file once: what can be used, its range, its size, and which split it is in."""
        self.reads, self.unusable, self.dtypes, self.foreground_seen = [], [], set(), False
        self.by_rule = []
        groups = {}
        for item in self.items:
            key = item.source if self.rule == "percentile" else item.name
            groups.setdefault(key, []).append(item)
        for items in groups.values():
            usable = []
            try:
                values = micrographs.intensity_range(self._usable(items, usable), self.rule)
            except micrographs.NoRange as error:
                for path in dict.fromkeys(read.item.image for read in usable):
                    self._leave_out(path, str(error))
            else:
                self.reads += [read._replace(range=values) for read in usable]
        if not self.reads:
            left_out = sorted([*self.left_out, *self.by_rule, *self.unusable])
            first = ": ".join(left_out[0])
            raise InputError(
                f"{self.source}: no image can be used; {len(left_out)} left out, {first}"
            )
        if "mask" in self.targets and not self.foreground_seen:
            raise InputError(
                f"{self.source}: no mask has a pixel of foreground={self.options['foreground']}"
            )

        self.reads.sort(key=lambda read: read.item.name)
        by_source = split_by_source(read.item.source for read in self.reads)
        self.split_of = {r.item.name: r.item.split or by_source[r.item.source] for r in self.reads}
        self._check_one_size_in_train()
        self.dtype = self.dtypes.pop() if len(self.dtypes) == 1 else "float32"
        shapes = {(self.patch, self.patch) if self.patch else read.shape for read in self.reads}
        everything = (one for index, read in self._indexed() for one in self._cut(read, index))
        self.curated = curate(everything) if "curate" in self.options else None
        counts = Counter()
        for index, read in self._indexed():
            places = range(index, index + read.planes * len(_corners(read.shape, self.patch)))
            counts[self.split_of[read.item.name]] += sum(map(self._is_kept, places))
        used = {str(read.item.image) for read in self.reads}
        if not counts.total():
            told = ", ".join(f"{n} of them {why}" for why, n in self.curated.dropped.items() if n)
            raise InputError(f"{self.source}: --curate drops all patches, {told}; see docs/data.md")
        return Contents(
            splits={split: counts[split] for split in SPLITS if counts[split]},
            dtype=self.dtype,
            shape=shapes.pop() if len(shapes) == 1 else None,
            targets=self.targets,
            range_rule=self.rule,
            units=len(self.reads),
            left_out=[*self.left_out, *self.by_rule],
            unusable=self.unusable,
            images=len(self.items) - len({path for path, _ in self.by_rule} - used),
            notes=_notes(self.reads),
            dropped=self.curated.dropped if self.curated else {},
            pictures=self.curated.sheets if self.curated else {},
        )

    def _usable(self, items, usable):
        """Yield the planes of each usable item, after noting its Reads in `usable`."""
        for item in items:
            try:
                found = list(self._examine_all(item))
            except Mismatch:
                raise
            except InputError as error:
                self._leave_out(item.image, message(error).removeprefix(f"{item.image}: "))
                continue
            for read, image in found:
                usable.append(read)
                if read.planes == 1:
                    yield image
                else:
                    yield from (plane.image for plane, _ in planes_of(item, read.axis, self.how))

    def _examine_all(self, item):
        """Yield what _examine finds along each axis; of a single image, of itself."""
        waiting = list(self.axes)
        while waiting:
            axis = waiting.pop(0)
            try:
                found = self._examine(item, axis)
            except LeftOutByRule as error:
                along = f"slices along {axis}: " if axis != "z" else ""
                self.by_rule.append((str(item.image), f"{along}{error}"))
                continue
            if found:
                yield found
            elif "z" not in self.axes:  # a single image, which has a plane along z alone
                waiting = ["z"]

    def _examine(self, item, axis):
        """(a Read of `item`, its last plane), from all its planes along `axis`; None without any.

        Raises: InputError if it is of no use.
        """
        extremes, dtypes, foreground = [], set(), False
        for micrograph, targets in planes_of(item, axis, self.how):
            image = micrograph.image
            extremes.append((image.min(), image.max()))
            foreground |= bool(np.any(targets.pop("mask", 0)))
            dtypes |= {str(pixels.dtype) for pixels in (image, *targets.values())}
        if not extremes:
            return None
        lowest, highest = np.min(extremes), np.max(extremes)
        if lowest == highest:
            raise InputError(f"all pixels are {lowest:g}")
        if self.patch and min(image.shape) < self.patch:
            resampled = "resampled to " if self.how.nm_per_pixel else ""
            by_rule = resampled or axis != "z"  # the planes along z may do
            error = LeftOutByRule if by_rule else InputError
            raise error(f"{resampled}{size(image.shape)}, smaller than a patch")
        self.foreground_seen |= foreground
        self.dtypes |= dtypes
        nm, origin = micrograph.nm_per_pixel, micrograph.origin
        return Scan(item, axis, image.shape, len(extremes), nm, origin), image

    def _check_one_size_in_train(self):
        train = [r for r in self.reads if self.split_of[r.item.name] == "train"]
        sizes = Counter(read.shape for read in train)
        if self.patch or len(sizes) <= 1:
            return
        told = ", ".join(f"{size(shape)} ({n})" for shape, n in sizes.most_common(5))
        more = f" and {len(sizes) - 5} more" if len(sizes) > 5 else ""
        smallest = min(min(shape) for shape in sizes)
        raise InputError(
            f"{self.source}: train has images of {len(sizes)} sizes, {told}{more}; "
            f"cut them with --patch=SIZE (the shortest side is {smallest})"
        )

    def records(self, split, units=ALL):
        """Yield the records of `split`; a record's index does not depend on the split."""
        for index, read in within(units, self._indexed()):
            if self.split_of[read.item.name] == split:
                yield from (one for one in self._cut(read, index) if self._is_kept(one["index"]))

    def _is_kept(self, index):
        return self.curated is None or self.curated.keep[index]

    def _indexed(self):
        """Yield (index of its first patch, Read) of all that was read."""
        index = 0
        for read in self.reads:
            yield index, read
            index += read.planes * len(_corners(read.shape, self.patch))

    def _cut(self, read, index):
        item, corners = read.item, _corners(read.shape, self.patch)
        h, w = (self.patch, self.patch) if self.patch else read.shape
        for plane, (micrograph, targets) in enumerate(planes_of(item, read.axis, self.how)):
            images = {"image": micrograph.image.astype(self.dtype)}
            for target, pixels in targets.items():
                images[target] = pixels.astype("uint8" if target == "mask" else self.dtype)
            name = f"{item.name}_{read.axis}{plane:04d}" if read.planes > 1 else item.name
            for y, x in corners:
                yield {
                    **{key: image[y : y + h, x : x + w, None] for key, image in images.items()},
                    "intensity_range": np.float32(read.range),
                    "nm_per_pixel": np.float32(read.nm_per_pixel),
                    "name": f"{name}_y{y:04d}x{x:04d}" if self.patch else name,
                    "source": item.source,
                    "index": index,
                }
                index += 1

    def _leave_out(self, path, reason):
        self.unusable.append((str(path), reason))


def _notes(reads):
    """Where the pixel sizes of the images are from, for the card, and where one is missing."""
    counts = Counter({read.item.name: read.origin for read in reads}.values())
    told = ", ".join(
        f"{count} unknown" if origin == "none" else f"{count} from {origin}"
        for origin, count in counts.most_common()
    )
    notes = [f"pixel sizes of {counts.total()} images: {told}"]
    along = Counter(r.axis for r in reads if r.axis != "z" and not np.isfinite(r.nm_per_pixel[0]))
    return notes + [
        f"slices along {axis} of {count} stacks: the distance of their planes is not known"
        for axis, count in along.items()
    ]


def _corners(shape, patch):
    """(y, x) of a grid of stride `patch` over `shape`, the last row and column moved inwards."""
    if patch is None:
        return [(0, 0)]
    ys, xs = ([min(at, side - patch) for at in range(0, side, patch)] for side in shape)
    return [(y, x) for y in ys for x in xs]
