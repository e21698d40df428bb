"""Records from any folder of anybody's micrographs, with targets where there are some."""

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_builders.common import SPLITS, TARGETS, About, Contents, sha256_of, split_by_source
from data_builders.micrographs.listing import Item, from_folders, from_table
from emjax import micrographs
from emjax.choose import choose
from emjax.errors import BadInput, Usage


class Read(NamedTuple):
    """What reading an item once has shown."""

    item: Item
    shape: tuple[int, int]
    range: tuple[float, float]


class Micrographs:
    """Records from a folder of micrographs (TIFF, PNG, JPEG), whole or cut into patches.

    Targets are paired by file stem (--target mask=FOLDER) or by a table with the columns image,
    any of mask, denoised, background_removed, superresolved, and optionally source, split,
    nm_per_pixel (one number, or y and x). Without a split column whole sources (default: files)
    go 70 % to train, 10 % to val and 20 % to test.
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
        add("--foreground", default="nonzero", help="in masks: nonzero, a value, or R,G,B")
        add("--range", default="percentile", choices=micrographs.RULES)
        add("--name", help="builds micrographs/NAME, so that several stand side by side")

    def __init__(self, options):
        if options.patch is not None and options.patch < 1:
            raise Usage(f"--patch={options.patch}; a side of at least one pixel was due")
        if options.name is not None and not re.fullmatch(r"\w[\w-]*", options.name):
            raise Usage(f"--name={options.name!r}; letters, digits, _ and - were due")
        self.folder = f"micrographs/{options.name}" if options.name else "micrographs"
        self.source, self.patch, self.rule = Path(options.source), options.patch, options.range
        self.foreground = _foreground(options.foreground)
        picked = dict(target.partition("=")[::2] for target in options.target)
        for target in picked:
            choose("target", target, dict.fromkeys(TARGETS))
        if len(picked) < len(options.target):
            raise Usage(f"--target={' --target='.join(options.target)}; each at most once was due")
        if not self.source.is_dir():
            raise BadInput(f"--source={self.source} is no folder")
        if options.table:
            listing = from_table(self.source, options.table, picked)
        else:
            listing = from_folders(self.source, picked)
        self.targets, self.items = listing.targets, listing.items
        self.left_out = [(str(path), reason) for path, reason in listing.left_out]
        if options.foreground != "nonzero" and "mask" not in self.targets:
            raise Usage(f"--foreground={options.foreground}, but there is no mask")
        self.files_sha256 = sha256_of(listing.files)
        self.options = {
            "patch": options.patch,
            "targets": list(self.targets),
            "foreground": options.foreground,
            "range": options.range,
        }

    def prepare(self):
        """Read every file once: what can be used, its range, its size, and which split it is in."""
        self.reads, self.unusable, self.dtypes, self.foreground_seen = [], [], set(), False
        groups = {}
        for item in self.items:
            key = item.source if self.rule == "percentile" else item.name
            groups.setdefault(key, []).append(item)
        for items in groups.values():
            usable = []
            try:
                values = micrographs.intensity_range(self._usable(items, usable), self.rule)
            except micrographs.NoRange as error:
                for item, _ in usable:
                    self._leave_out(item.image, str(error))
            else:
                self.reads += [Read(item, shape, values) for item, shape in usable]
        if not self.reads:
            left_out = sorted([*self.left_out, *self.unusable])
            first = ": ".join(left_out[0])
            raise BadInput(
                f"{self.source}: no image can be used; {len(left_out)} left out, {first}"
            )
        if "mask" in self.targets and not self.foreground_seen:
            raise BadInput(
                f"{self.source}: no mask has a pixel of foreground={self.options['foreground']}"
            )

        self.reads.sort(key=lambda read: read.item.name)
        by_source = split_by_source(read.item.source for read in self.reads)
        self.split_of = {r.item.name: r.item.split or by_source[r.item.source] for r in self.reads}
        self._refuse_mixed_sizes_in_train()
        self.dtype = self.dtypes.pop() if len(self.dtypes) == 1 else "float32"
        shapes = {(self.patch, self.patch) if self.patch else read.shape for read in self.reads}
        counts = Counter()
        for read in self.reads:
            counts[self.split_of[read.item.name]] += len(_corners(read.shape, self.patch))
        return Contents(
            splits={split: counts[split] for split in SPLITS if counts[split]},
            dtype=self.dtype,
            shape=shapes.pop() if len(shapes) == 1 else None,
            targets=self.targets,
            range_rule=self.rule,
            left_out=self.left_out,
            unusable=self.unusable,
            images=len(self.items),
        )

    def _usable(self, items, usable):
        """Yield the image of each usable item, after noting (item, shape) in `usable`."""
        for item in items:
            try:
                image = micrographs.read(item.image).image
                targets = {t: self._target(t, path) for t, path in item.targets.items()}
            except BadInput as error:
                self._leave_out(item.image, str(error).removeprefix(f"{item.image}: "))
                continue
            for target, pixels in targets.items():
                if pixels.shape != image.shape:
                    raise BadInput(
                        f"{item.targets[target]} is {_size(pixels.shape)}, but its image "
                        f"{item.image} is {_size(image.shape)}; one size was due"
                    )
            if image.min() == image.max():
                self._leave_out(item.image, f"all pixels are {image.flat[0]:g}")
            elif self.patch and min(image.shape) < self.patch:
                self._leave_out(item.image, f"{_size(image.shape)}, smaller than a patch")
            else:
                self.foreground_seen |= bool(np.any(targets.pop("mask", 0)))
                self.dtypes |= {str(pixels.dtype) for pixels in (image, *targets.values())}
                usable.append((item, image.shape))
                yield image

    def _target(self, target, path):
        """uint8 [h, w] in {0, 1} for a mask, otherwise the micrograph that is due."""
        if target != "mask":
            return micrographs.read(path).image
        pixels = micrographs.read_pixels(path)
        if self.foreground is None:
            return (pixels if pixels.ndim == 2 else pixels.any(axis=-1)).astype(bool).astype("u1")
        if pixels.ndim == 2:
            pixels = pixels[..., None]
        if len(self.foreground) == 1 and np.any(pixels != pixels[..., :1]):
            raise BadInput(f"{path}: a mask in colours; --foreground=R,G,B was due")
        return np.all(pixels == self.foreground, axis=-1).astype("u1")

    def _refuse_mixed_sizes_in_train(self):
        train = [r for r in self.reads if self.split_of[r.item.name] == "train"]
        sizes = Counter(read.shape for read in train)
        if self.patch or len(sizes) <= 1:
            return
        told = ", ".join(f"{_size(shape)} ({n})" for shape, n in sizes.most_common(5))
        more = f" and {len(sizes) - 5} more" if len(sizes) > 5 else ""
        smallest = min(min(shape) for shape in sizes)
        raise BadInput(
            f"{self.source}: train has images of {len(sizes)} sizes, {told}{more}; "
            f"cut them with --patch=SIZE (the shortest side is {smallest})"
        )

    def records(self, split):
        """Yield the records of `split`; a record's index does not depend on the split."""
        index = 0
        for read in self.reads:
            corners = _corners(read.shape, self.patch)
            if self.split_of[read.item.name] == split:
                yield from self._cut(read, corners, index)
            index += len(corners)

    def _cut(self, read, corners, index):
        item = read.item
        images = {"image": micrographs.read(item.image).image.astype(self.dtype)}
        for target, path in item.targets.items():
            dtype = "uint8" if target == "mask" else self.dtype
            images[target] = self._target(target, path).astype(dtype)
        h, w = (self.patch, self.patch) if self.patch else read.shape
        for place, (y, x) in enumerate(corners):
            yield {
                **{key: image[y : y + h, x : x + w, None] for key, image in images.items()},
                "intensity_range": np.float32(read.range),
                "nm_per_pixel": np.float32(item.nm_per_pixel),
                "name": f"{item.name}_y{y:04d}x{x:04d}" if self.patch else item.name,
                "source": item.source,
                "index": index + place,
            }

    def _leave_out(self, path, reason):
        self.unusable.append((str(path), reason))


def _corners(shape, patch):
    """(y, x) of a grid of stride `patch` over `shape`, the last row and column moved inwards."""
    if patch is None:
        return [(0, 0)]
    ys, xs = ([min(at, side - patch) for at in range(0, side, patch)] for side in shape)
    return [(y, x) for y in ys for x in xs]


def _foreground(text):
    """What --foreground says: None for nonzero, or a tuple of one value or three."""
    if text == "nonzero":
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in (1, 3):
        raise Usage(f"--foreground={text}; nonzero, a value, or a colour R,G,B was due")
    return values


def _size(shape):
    return "x".join(str(side) for side in shape)
