"""Records from any folder of micrographs, with targets where there are some."""

import argparse
import contextlib
import functools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Real

from data_builders.common import (
    ALL,
    SPLITS,
    TARGETS,
    About,
    Contents,
    few_sources,
    sha256_of,
    split_by_source,
    within,
)
from data_builders.micrographs import rows
from data_builders.micrographs.curation import THRESHOLDS, Curated, curate
from data_builders.micrographs.listing import Source, from_folders, from_table
from data_builders.micrographs.masks import Found, Tally, first_of
from data_builders.micrographs.reading import Mismatch, ReadOptions, foreground_of, planes_of, size
from data_builders.micrographs.resample import SkippedByRule
from data_builders.writer import Record
from emjax import micrographs
from emjax.cli import memory, message
from emjax.errors import InputError, UsageError, choose
from emjax.micrographs import banner

MEMORY_LIMIT = 4  # GiB


class Scan(NamedTuple):
    """What reading a source once along an axis has shown."""

    source: Source
    axis: str  # z, y or x; z for a single image
    shape: tuple[int, int]  # of each plane of the records
    planes: int
    nm_per_pixel: tuple[float, float]  # y, x, of the records; NaN where unknown
    origin: str  # of nm_per_pixel: the table, or a part of the file
    range: tuple[float, float] = (0.0, 0.0)


class Micrographs:
    """Records from a folder of micrographs, whole or cut into patches; stacks plane by plane.

    Targets are paired by file stem (--target mask=FOLDER) or by a table with the columns image,
    any of mask, denoised, background_removed, superresolved, and optionally source, split,
    nm_per_pixel (one number, y and x, or z, y and x; where it is empty, the file's). Without
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
    def add_options(parser: argparse.ArgumentParser) -> None:
        """Add the flags of this dataset to `parser`."""
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
        add("--classes", type=int, help="masks hold the numbers of so many classes, 0 to N - 1")
        add("--curate", action="store_true", help="drop what is flat, saturated, drawn or repeated")
        add("--cut_banner", action="store_true", help="leave out banners, borders and scale bars")
        add("--range", default="percentile", choices=micrographs.RULES)
        add("--axes", default="z", help="slice stacks along these of z,y,x; default: %(default)s")
        add("--index", type=int, help="which image, of files that hold several")
        add("--channel", help="which channel, by name or number, of images that have several")
        add("--mrc_rows", choices=micrographs.MRC_ROWS, help="where the first row of MRCs belongs")
        add("--memory_limit", type=float, default=MEMORY_LIMIT, help="GiB that one image may take")
        add("--name", help="build micrographs/NAME, to have several next to each other")

    def __init__(self, options: argparse.Namespace) -> None:
        """List and hash the files; read none.

        Raises: UsageError or InputError for what cannot be built.
        """
        if options.patch is not None and options.patch < 1:
            raise UsageError(f"--patch={options.patch}, expected a side of at least 1 pixel")
        if options.name is not None and not re.fullmatch(r"\w[\w-]*", options.name):
            raise UsageError(f"--name={options.name!r}, expected letters, digits, _ and -")
        if options.nm_per_pixel is not None and not 0 < options.nm_per_pixel < np.inf:
            raise UsageError(f"--nm_per_pixel={options.nm_per_pixel}, expected more than 0 nm")
        self.axes = tuple(options.axes.split(","))
        if not set(self.axes) <= set("zyx") or len(set(self.axes)) < len(self.axes):
            raise UsageError(f"--axes={options.axes}, expected some of z, y, x, such as z,y")
        self.folder = f"micrographs/{options.name}" if options.name else "micrographs"
        self.root, self.patch, self.rule = Path(options.source), options.patch, options.range
        limit = memory(options.memory_limit)
        values = foreground_of(options.foreground)
        self.read_options = ReadOptions(
            options.index,
            limit,
            values,
            options.nm_per_pixel,
            options.mrc_rows,
            options.channel,
            options.cut_banner,
            options.classes,
        )
        picked: dict[str, str] = dict(target.partition("=")[::2] for target in options.target)
        for target in picked:
            choose("target", target, dict.fromkeys(TARGETS))
        if len(picked) < len(options.target):
            raise UsageError(
                f"--target={' --target='.join(options.target)}, expected each at most once"
            )
        if not self.root.is_dir():
            raise InputError(f"--source={self.root} is not a folder")
        if options.table:
            listing = from_table(self.root, options.table, picked)
        else:
            listing = from_folders(self.root, picked)
        self.targets, self.sources = listing.targets, listing.sources
        self.listing_notes = listing.notes
        self.skipped = [(str(path), reason) for path, reason in listing.skipped]
        if options.foreground != "nonzero" and "mask" not in self.targets:
            raise UsageError(
                f"--foreground={options.foreground}, but there is no mask; add --target=mask=FOLDER"
            )
        if options.classes is not None:
            self._check_classes(options)
        self.files_sha256 = sha256_of(listing.files)
        self.options: dict[str, Any] = {
            "patch": options.patch,
            "targets": list(self.targets),
            "foreground": options.foreground,
            "range": options.range,
            **{
                key: value
                for key in ("index", "channel", "nm_per_pixel", "mrc_rows", "classes")
                if (value := getattr(options, key)) is not None
            },
            **({"axes": options.axes} if self.axes != ("z",) else {}),
            **({"curate": THRESHOLDS} if options.curate else {}),
            **({"cut_banner": True} if options.cut_banner else {}),
            **(
                {"memory_limit": options.memory_limit}
                if options.memory_limit != MEMORY_LIMIT
                else {}
            ),
        }

    def _check_classes(self, options: argparse.Namespace) -> None:
        """Raise UsageError for --classes that there cannot be."""
        if not 2 <= options.classes <= 255:
            raise UsageError(f"--classes={options.classes}, expected 2 to 255, the background too")
        if "mask" not in self.targets:
            raise UsageError(
                f"--classes={options.classes}, but there is no mask; add --target=mask=FOLDER"
            )
        if options.foreground != "nonzero":
            raise UsageError(
                f"--classes={options.classes} and --foreground={options.foreground}: expected one "
                "of them, either all classes or one foreground"
            )

    def prepare(self) -> Contents:
        """Read every file once; return which can be used, their sizes and their splits.

        Raises: InputError if no image can be used, no mask has the foreground, the sizes in train
            differ without --patch, --curate leaves nothing, or rows of MRC files seem to
            run the other way.
        """
        about_rows = rows.check(self.root, self.sources, self.read_options)
        self.scans: list[Scan] = []
        self.unusable: list[tuple[str, str]] = []
        self.skipped_by_rule: list[tuple[str, str]] = []
        self.dtypes: set[str] = set()
        self.masks = Tally(self.read_options.foreground, self.read_options.classes)
        defects: dict[str, float] = {}
        self.banners: dict[str, str] = {}
        groups: dict[str, list[Source]] = {}
        for source in self.sources:
            key = source.group if self.rule == "percentile" else source.name
            groups.setdefault(key, []).append(source)
        for key, sources in groups.items():
            usable: list[Scan] = []
            try:
                values = micrographs.intensity_range(
                    map(_in_fixed, self._usable(sources, usable))
                    if self.rule == "fixed"
                    else self._usable(sources, usable),
                    self.rule,
                    defects=functools.partial(defects.__setitem__, key),
                )
            except micrographs.NoRange as error:
                for path in dict.fromkeys(scan.source.image for scan in usable):
                    self.unusable.append((str(path), str(error)))
            else:
                self.scans += [scan._replace(range=values) for scan in usable]
        if not self.scans:
            skipped = sorted([*self.skipped, *self.skipped_by_rule, *self.unusable])
            first = ": ".join(skipped[0])
            raise InputError(f"{self.root}: no image can be used; {len(skipped)} left out, {first}")
        self.scans.sort(key=lambda scan: scan.source.name)
        unsplit = [scan.source.group for scan in self.scans if not scan.source.split]
        split_of_group = split_by_source(unsplit)
        self.split_of = {
            source.name: source.split or split_of_group[source.group]
            for source in (scan.source for scan in self.scans)
        }
        about_masks: list[str] = []
        if "mask" in self.targets:
            with _naming(self.root):
                self.masks.check()
                about_masks = self.masks.describe(self.split_of)
        self._check_one_size_in_train()
        self.dtype = self.dtypes.pop() if len(self.dtypes) == 1 else "float32"
        shapes = {(self.patch, self.patch) if self.patch else scan.shape for scan in self.scans}
        everything = (one for index, scan in self._indexed() for one in self._cut(scan, index))
        self.curated: Curated | None = curate(everything) if "curate" in self.options else None
        counts: Counter[str] = Counter()
        for index, scan in self._indexed():
            indices = range(index, index + scan.planes * len(_corners(scan.shape, self.patch)))
            counts[self.split_of[scan.source.name]] += sum(map(self._is_kept, indices))
        used = {str(scan.source.image) for scan in self.scans}
        dropped = self.curated.dropped if self.curated else {}
        if not counts.total():
            reasons = ", ".join(f"{n} of them {reason}" for reason, n in dropped.items() if n)
            raise InputError(
                f"{self.root}: --curate drops all patches, {reasons}; see "
                "docs/reference/micrographs.md"
            )
        return Contents(
            splits={split: counts[split] for split in SPLITS if counts[split]},
            dtype=self.dtype,
            shape=shapes.pop() if len(shapes) == 1 else None,
            targets=self.targets,
            range_rule=self.rule,
            units=len(self.scans),
            left_out=[*self.skipped, *self.skipped_by_rule],
            unusable=self.unusable,
            images=len(self.sources) - len({path for path, _ in self.skipped_by_rule} - used),
            notes=[
                *_notes(self.scans),
                *about_rows,
                *self.listing_notes,
                *(few_sources(split_of_group) if unsplit else []),
                *_about_defects(defects, len(groups)),
                *_about_banners(self.banners, len(self.scans)),
                *about_masks,
            ],
            dropped=dropped,
            pictures=self.curated.sheets if self.curated else {},
        )

    def _usable(
        self, sources: Sequence[Source], usable: list[Scan]
    ) -> Iterator[Real[np.ndarray, "h w"]]:
        """Yield the planes of each usable source, after adding its Scans to `usable`."""
        for source in sources:
            try:
                found = list(self._scan_axes(source))
            except Mismatch:
                raise
            except InputError as error:
                reason = message(error).removeprefix(f"{source.image}: ")
                self.unusable.append((str(source.image), reason))
                continue
            for scan, image in found:
                usable.append(scan)
                if scan.planes == 1:
                    yield image
                else:
                    planes = planes_of(source, scan.axis, self.read_options)
                    yield from (plane.image for plane, _ in planes)

    def _scan_axes(self, source: Source) -> Iterator[tuple[Scan, Real[np.ndarray, "h w"]]]:
        """Yield what _scan finds along each axis; of a single image, of itself."""
        waiting = list(self.axes)
        while waiting:
            axis = waiting.pop(0)
            try:
                found = self._scan(source, axis)
            except SkippedByRule as error:
                along = f"slices along {axis}: " if axis != "z" else ""
                self.skipped_by_rule.append((str(source.image), f"{along}{error}"))
                continue
            if found:
                yield found
            elif "z" not in self.axes:  # a single image, which has a plane along z alone
                waiting = ["z"]

    def _scan(self, source: Source, axis: str) -> tuple[Scan, Real[np.ndarray, "h w"]] | None:
        """Return (the Scan, the last plane) of all planes of `source` along `axis`; None without.

        Raises: InputError if it cannot be used, SkippedByRule if only an option forbids it.
        """
        extremes: list[tuple[Any, Any]] = []
        dtypes: set[str] = set()
        masks: list[Found] = []
        micrograph = None
        for micrograph, targets in planes_of(source, axis, self.read_options, masks):
            image = micrograph.image
            if axis == "z" and not extremes and not self.read_options.cut_banner:
                drawn = banner.described(image.shape, banner.picture(image))
                self.banners |= {source.name: drawn} if drawn else {}
            extremes.append((image.min(), image.max()))
            targets.pop("mask", None)
            dtypes |= {str(pixels.dtype) for pixels in (image, *targets.values())}
        if micrograph is None:
            return None
        lowest, highest = np.min(extremes), np.max(extremes)
        if lowest == highest:
            raise InputError(f"all pixels are {lowest:g}")
        h, w = micrograph.image.shape
        if self.patch and min(h, w) < self.patch:
            resampled = "resampled to " if self.read_options.nm_per_pixel else ""
            by_rule = resampled or axis != "z"  # the planes along z may do
            error = SkippedByRule if by_rule else InputError
            raise error(f"{resampled}{size((h, w))}, smaller than a patch")
        if masks and source.name not in self.masks.share:  # of several axes, the first
            self.masks.add(source.name, masks)
        self.dtypes |= dtypes
        nm, origin = micrograph.nm_per_pixel, micrograph.origin
        return Scan(source, axis, (h, w), len(extremes), nm, origin), micrograph.image

    def _check_one_size_in_train(self) -> None:
        """Raise InputError if whole images of train differ in size."""
        train = [scan for scan in self.scans if self.split_of[scan.source.name] == "train"]
        sizes = Counter(scan.shape for scan in train)
        if self.patch or len(sizes) <= 1:
            return
        first = ", ".join(f"{size(shape)} ({n})" for shape, n in sizes.most_common(5))
        rest = f" and {len(sizes) - 5} more" if len(sizes) > 5 else ""
        smallest = min(min(shape) for shape in sizes)
        raise InputError(
            f"{self.root}: train has images of {len(sizes)} sizes, {first}{rest}; "
            f"cut them with --patch=SIZE (the shortest side is {smallest})"
        )

    def records(self, split: str, units: range = ALL) -> Iterator[Record]:
        """Yield the records of `split`; a record's index does not depend on the split."""
        for index, scan in within(units, self._indexed()):
            if self.split_of[scan.source.name] == split:
                yield from (one for one in self._cut(scan, index) if self._is_kept(one["index"]))

    def _is_kept(self, index: int) -> bool:
        return self.curated is None or bool(self.curated.keep[index])

    def _indexed(self) -> Iterator[tuple[int, Scan]]:
        """Yield (index of its first patch, Scan) of all that was read."""
        index = 0
        for scan in self.scans:
            yield index, scan
            index += scan.planes * len(_corners(scan.shape, self.patch))

    def _cut(self, scan: Scan, index: int) -> Iterator[Record]:
        """Yield the records of all patches of `scan`, the first with the index `index`."""
        source, corners = scan.source, _corners(scan.shape, self.patch)
        h, w = (self.patch, self.patch) if self.patch else scan.shape
        planes = planes_of(source, scan.axis, self.read_options)
        for number, (micrograph, targets) in enumerate(planes):
            images = {"image": micrograph.image.astype(self.dtype)}
            for target, pixels in targets.items():
                images[target] = pixels.astype("uint8" if target == "mask" else self.dtype)
            name = f"{source.name}_{scan.axis}{number:04d}" if scan.planes > 1 else source.name
            for y, x in corners:
                yield {
                    **{key: image[y : y + h, x : x + w, None] for key, image in images.items()},
                    "intensity_range": np.array(scan.range, np.float32),
                    "nm_per_pixel": np.array(scan.nm_per_pixel, np.float32),
                    "name": f"{name}_y{y:04d}x{x:04d}" if self.patch else name,
                    "source": source.group,
                    "index": index,
                }
                index += 1


@contextlib.contextmanager
def _naming(root: Path) -> Iterator[None]:
    """Put `root` before the message of an InputError."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{root}: {error}") from None


def _in_fixed(image: Real[np.ndarray, "h w"]) -> Real[np.ndarray, "h w"]:
    """Return an image.

    Raises: micrographs.NoRange if most of its pixels are far outside of the fixed range.
    """
    if reason := micrographs.beyond_fixed(image):
        raise micrographs.NoRange(f"{reason}; take --range=percentile")
    return image


def _notes(scans: Sequence[Scan]) -> list[str]:
    """Return notes for the card: where the pixel sizes are from, and where one is missing."""
    counts = Counter({scan.source.name: scan.origin for scan in scans}.values())
    origins = ", ".join(
        f"{count} unknown" if origin == "none" else f"{count} from {origin}"
        for origin, count in counts.most_common()
    )
    notes = [f"pixel sizes of {counts.total()} images: {origins}"]
    along = Counter(
        scan.axis for scan in scans if scan.axis != "z" and not np.isfinite(scan.nm_per_pixel[0])
    )
    return notes + [
        f"slices along {axis} of {count} stacks: the distance of their planes is not known"
        for axis, count in along.items()
    ]


def _about_defects(defects: Mapping[str, float], groups: int) -> list[str]:
    """Return a note on the ranges that hot and dead pixels do not count in, if there are any.

    Args:
        defects: {what has a range of its own: share of its pixels}.
        groups: their number, with those without defects.
    """
    if not defects:
        return []
    most = max(defects.values())
    return [
        f"hot or dead pixels, up to {100 * most:.2g} %, do not count in {len(defects)} of {groups} "
        f"intensity ranges: {first_of(defects)}"
    ]


def _about_banners(banners: Mapping[str, str], images: int) -> list[str]:
    """Return a note on images that something is drawn into, if there are any.

    Args:
        banners: {name: where}.
        images: their number, with the others.
    """
    if not banners:
        return []
    listed = first_of(f"{name} ({where})" for name, where in banners.items())
    return [
        f"a banner, border or scale bar is in {len(banners)} of {images} images; --cut_banner "
        f"leaves it out: {listed}"
    ]


def _corners(shape: tuple[int, int], patch: int | None) -> list[tuple[int, int]]:
    """Return (y, x) of a grid of stride `patch` over `shape`; the last ones are moved inwards."""
    if patch is None:
        return [(0, 0)]
    ys, xs = ([min(start, side - patch) for start in range(0, side, patch)] for side in shape)
    return [(y, x) for y in ys for x in xs]
