"""Measure particles: python -m emjax.measure --masks --out=DIR FILE_OR_FOLDER...

With --masks the files are masks or label images of any program; with --model=DIR they are
micrographs, which that model segments. DIR gets particles.csv and particles.parquet (one row per
particle), summary.json (the size distribution with its intervals) and report.html. Sizes are in nm
where the files state their pixel size, else in pixels. Particles at the border are listed, and
count in no statistic. No file is replaced but results of this command that nobody has changed.
"""

import argparse
import contextlib
import hashlib
import io
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import emjax
from emjax import cli, micrographs
from emjax.errors import InputError, UsageError, note
from emjax.files import check_writable, write_atomically
from emjax.inference import options as flags
from emjax.measurement import SPLIT, label, masks, measure, page, statistics
from emjax.measurement.particles import Table
from emjax.measurement.statistics import Sample
from emjax.micrographs import made_by, names
from emjax.micrographs.units import PixelSize, is_known

FILES = ("particles.csv", "particles.parquet", "report.html")  # and summary.json, written last
SHOWN = 4  # planes in the report
DIFFER = 0.01  # of a pixel size: a mask and its image may differ by so much
TINY = 10  # pixels, below which sizes are uncertain
SHAPES = ("aspect_ratio", "ellipse_aspect_ratio", "circularity", "solidity")


class Plane(NamedTuple):
    """What is measured on one plane of a file."""

    mask: np.ndarray  # as `measurement.label` takes it
    nm_per_pixel: PixelSize
    origin: str
    image: np.ndarray | None = None
    probability: np.ndarray | None = None
    corner: tuple[int, int] = (0, 0)  # of the mask in the file's plane: y, x


def split_depth(text: str) -> float:
    """Return the depth of --split."""
    with contextlib.suppress(ValueError):
        if 0 < (depth := float(text)) < 1:
            return depth
    raise UsageError(
        f"--split={text}: expected the relative depth of a neck, above 0 and below 1; to split "
        "nothing give --no_split"
    )


def smallest(text: str) -> int:
    """Return the pixels of --min_size."""
    if text.isascii() and text.isdecimal() and 0 < int(text) < 1 << 53:
        return int(text)
    raise UsageError(f"--min_size={text}: expected a number of pixels, 1 or more")


def find_inputs(inputs: Sequence[str], kinds: Sequence[str]) -> dict[Path, str]:
    """Return {file: its name in the results} of files and folders.

    A name is the path below the folder that was named; the whole path where several are alike.

    Args:
        kinds: results of emjax that are not taken from a folder.

    Raises: InputError for a folder without any.
    """
    found: dict[Path, str] = {}
    for given in map(Path, inputs):
        if not given.is_dir() or micrographs.is_zarr(given):
            found.setdefault(given, given.name)
            continue
        files = micrographs.find(given)
        kept = [file for file in files if (made_by.read(file) or {}).get("kind") not in kinds]
        if not kept:
            raise InputError(f"{given} holds only {' and '.join(kinds)} of emjax; name other files")
        if len(kept) < len(files):
            note(given, f"{len(files) - len(kept)} results of emjax in it are left out")
        found |= {file: file.relative_to(given).as_posix() for file in kept}
    counts = Counter(found.values())
    return {file: name if counts[name] == 1 else file.as_posix() for file, name in found.items()}


def pair_images(files: Mapping[Path, str], folder: Path) -> dict[Path, Path]:
    """Return {mask: its image in `folder`}, by their names.

    Raises: InputError if no mask has one, or if several could be that of one.
    """
    images = {path: path.relative_to(folder) for path in micrographs.find(folder)}
    own = {path.resolve() for path in files}
    images = {path: place for path, place in images.items() if path.resolve() not in own}
    places = {file: Path(name) for file, name in files.items()}
    partners, _ = names.pair("mask", images, places, "rename one, or name fewer masks")
    found = {mask: image for image, mask in partners.items()}
    if not found:
        raise InputError(f"{folder} holds no image that is named like one of the masks")
    if missing := [file for file in files if file not in found]:
        note(missing[0], f"no image in {folder}, as {len(missing)} of {len(files)} masks: "
             "mean grey is empty")  # fmt: skip
    return found


class Masks:
    """Yields the planes of masks, as the options ask for it."""

    def __init__(self, options: argparse.Namespace, limit: int, files: Mapping[Path, str]) -> None:
        self.options, self.limit = options, limit
        self.images = pair_images(files, options.images) if options.images else {}

    def __call__(self, file: Path) -> Iterator[Plane]:
        options = self.options
        rows = options.mrc_rows
        pictures: Iterator[micrographs.Micrograph] | None = None
        if file in self.images:
            pictures = micrographs.planes(self.images[file], None, self.limit, mrc_rows=rows)
        for index, plane in enumerate(
            micrographs.planes(
                file, options.index, self.limit, mrc_rows=rows, as_mask=True,
                channel=options.channel,
            )
        ):  # fmt: skip
            values, remark = masks.read(file, plane.image)
            if remark:
                note(file, remark)
            size, origin, image = plane.nm_per_pixel, plane.origin, None
            if pictures:
                picture = next(pictures, None)
                if picture is None:
                    raise InputError(f"{file}: its image {self.images[file]} has {index} planes")
                image = picture.image
                size, origin = common_size(file, plane, picture)
            yield Plane(values, size, origin, image)


def common_size(
    file: Path, mask: micrographs.Micrograph, image: micrographs.Micrograph
) -> tuple[PixelSize, str]:
    """Return (nm per pixel, origin) of a mask: its own or its image's."""
    if not is_known(mask.nm_per_pixel) or not is_known(image.nm_per_pixel):
        known = image if is_known(image.nm_per_pixel) else mask
        return known.nm_per_pixel, known.origin
    if not np.allclose(mask.nm_per_pixel, image.nm_per_pixel, rtol=DIFFER):
        note(file, f"{mask.nm_per_pixel[1]:.6g} nm per pixel, its image "
             f"{image.nm_per_pixel[1]:.6g}: that of the image is taken")  # fmt: skip
    return image.nm_per_pixel, image.origin


class Segmented:
    """Yields the planes of micrographs with the mask of a model."""

    def __init__(self, options: argparse.Namespace, limit: int, files: Mapping[Path, str]) -> None:
        from emjax.inference.predictor import Predictor  # JAX, which masks do without
        from emjax.parallel import devices
        from emjax.predict import Job

        devices.keep_compiled()
        self.model = Predictor(options.model, limit)
        if not self.model.is_mask:
            raise UsageError(
                f"--model={options.model}: expected a model that segments, got one that restores "
                f"images (task {self.model.config['task']})"
            )
        self.job = Job(self.model, options, limit)
        if options.range == "shared":
            self.job.share_range(files)

    def __call__(self, file: Path) -> Iterator[Plane]:
        found = self.job.survey(file)
        if masks.find(found.first.image).kind in ("mask", "labels"):
            raise InputError(f"{file}: looks like a mask, expected a micrograph: add --masks")
        self.job.remark(file, found)
        area = found.picture if self.job.options.cut_banner else (slice(0, None), slice(0, None))
        corner = area[0].start or 0, area[1].start or 0
        for plane in self.job.planes(file):
            image = np.ascontiguousarray(plane.image[area])
            probability = self.model(image, found.intensity_range)
            size, origin = found.first.nm_per_pixel, found.first.origin
            yield Plane(probability > 0.5, size, origin, image, probability, corner)


class Results:
    """Collects what is measured, file by file."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.tables: list[Table] = []
        self.images: list[dict[str, Any]] = []  # one row per file
        self.fields: list[page.Field] = []
        self.small = self.tiny = 0
        self.unit = ""
        self.first = Path()

    def add(self, file: Path, name: str, planes: Iterator[Plane]) -> str:
        """Measure all planes of a file, or none; return a line that says what was found.

        Raises: InputError if the file is no such thing; UsageError if sizes of some files are
            known and of others not, which would mix nm and pixels in one column.
        """
        options = self.options
        split = None if options.no_split else options.split
        tables: list[Table] = []
        fields: list[page.Field] = []
        small, tiny, unit = 0, 0, self.unit
        size, origin = options.pixel_size, "--pixel_size"
        for index, plane in enumerate(planes):
            if not options.pixel_size:
                size, origin = plane.nm_per_pixel, plane.origin
            unit = "nm" if is_known(size) else "px"
            if self.unit not in ("", unit):
                known, unknown = (file, self.first) if unit == "nm" else (self.first, file)
                raise UsageError(
                    f"{known} states its pixel size, {unknown} does not: expected nm or pixels for "
                    "all; give --pixel_size=NM, or measure them apart"
                )
            labels = label(plane.mask, split)
            found = len(labels.names)
            if options.min_size:
                labels = labels.without_small(options.min_size)
            count = len(labels.names)
            small += found - count
            tiny += int((np.bincount(labels.image.ravel())[1:] < TINY).sum())
            table = measure(labels, size, image=plane.image, probability=plane.probability)
            scale = size if unit == "nm" else (1.0, 1.0)
            for axis, corner, side in zip("yx", plane.corner, scale, strict=True):
                table[f"centroid_{axis}_{unit}"] += corner * side
            place = {"image": np.full(count, name, object), "plane": np.full(count, index)}
            tables.append({**place, **table})
            if len(self.fields) + len(fields) < SHOWN:
                border = table["border"] > 0
                title = f"{name}, plane {index}" if index else name
                fields.append(page.Field(title, plane.image, labels, border, scale, unit))
        self.first, self.unit = self.first if self.unit else file, unit
        self.tables += tables
        self.fields += fields
        self.small, self.tiny = self.small + small, self.tiny + tiny
        border = sum(int(table["border"].sum()) for table in tables)
        number = sum(len(table["label"]) for table in tables) - border
        known = unit == "nm"
        row = {"image": name, "planes": len(tables), "particles": number, "at_border": border}
        row["nm_per_pixel"] = [round(side, 9) for side in size] if known else None
        self.images.append({**row, "pixel_size_from": origin})
        return f"{file}  {number} particles, {border} more at the border"

    def table(self) -> Table:
        """Return all rows; a column that some files lack is NaN there."""
        columns = dict.fromkeys(name for table in self.tables for name in table)
        return {
            name: np.concatenate(
                [
                    table[name] if name in table else np.full(len(table["label"]), np.nan)
                    for table in self.tables
                ]
            )
            for name in columns
        }

    def summary(self, table: Table) -> tuple[dict[str, Any], Sample]:
        """Return (the contents of summary.json, the particles that count by their diameter)."""
        options, unit = self.options, self.unit
        weighted = options.border_weights
        counted = table["border"] == 0
        weights = table["border_weight"] if weighted else np.ones(len(counted))
        _, groups = np.unique(table["image"].astype(str), return_inverse=True)

        def sample(column: str) -> Sample:
            return Sample(table[column][counted], weights[counted], groups[counted])

        sizes = {name: sample(f"{name}_{unit}") for name in page.WORDS}
        described = {name: statistics.describe(each) for name, each in sizes.items()}
        main = sizes["equivalent_diameter"]
        images = len(np.unique(main.groups))
        drawn = "images and particles" if images > 1 else "particles of the one image"
        split = "not split" if options.no_split else f"split at necks of depth {options.split:g}"
        border = "those at the border are not counted, "
        border += "Miles-Lantuejoul weights make up for it" if weighted else "without correction"
        share = statistics.share_up_to(sizes["feret_min"], statistics.NANO)
        at_border = int(len(counted) - counted.sum())
        remarks = [f"At the border, not counted: {at_border}."]
        if options.min_size:
            remarks.append(f"Smaller than {options.min_size} pixels, left out: {self.small}.")
        if self.tiny:
            remarks.append(f"{self.tiny} particles have fewer than {TINY} pixels; their sizes are "
                           "uncertain (--min_size leaves them out).")  # fmt: skip
        known = sorted({tuple(row["nm_per_pixel"]) for row in self.images if row["nm_per_pixel"]})
        if len(known) > 1:
            remarks.append(f"Pixel sizes differ, {known[0][1]:.4g} to {known[-1][1]:.4g} nm: so do "
                           "the smallest particles that can be seen.")  # fmt: skip
        if unit != "nm":
            remarks.append("No file states its pixel size: all sizes are in pixels.")
        if len(main.values) == 1:
            remarks.append("One particle: no interval can be stated.")
        summary = {
            "number": len(main.values),
            "measurand": "equivalent_diameter",
            "unit": unit,
            **described["equivalent_diameter"],
            **described,
            "volume_weighted": statistics.describe(main, statistics.by_volume),
            "shape": {name: statistics.plain(sample(name)) for name in SHAPES},
            "fits": statistics.fits(main),
            "precision": statistics.precision(main, described["equivalent_diameter"]),
            **({"share_below_100_nm": share} if unit == "nm" else {}),
            "counting_rule": "Counting rule: all particles that lie wholly in the image, touching "
            f"ones included ({split}; labels of a label image stay); {border}.",
            "split": None if options.no_split else options.split,
            "border_weights": weighted,
            "min_size": options.min_size,
            "at_border": at_border,
            "interval": f"95 % intervals, percentiles of {statistics.DRAWS} draws of {drawn}",
            "remarks": remarks,
            "images": self.images,
            "version": emjax.__version__,
        }
        return summary, main


def table_bytes(table: Table) -> tuple[bytes, bytes]:
    """Return the bytes of a CSV and of a Parquet file."""
    import pyarrow
    from pyarrow import csv, parquet

    rows = pyarrow.table(
        {
            name: pyarrow.array(column, pyarrow.string() if column.dtype == object else None,
                                from_pandas=True)
            for name, column in table.items()
        }
    )  # fmt: skip
    text, binary = io.BytesIO(), io.BytesIO()
    csv.write_csv(rows, text, csv.WriteOptions(quoting_style="needed"))
    parquet.write_table(rows, binary)
    return text.getvalue(), binary.getvalue()


def sealed(summary: Mapping[str, Any], written: Mapping[str, bytes]) -> bytes:
    """Return summary.json, with digests of itself and of the other results."""
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in written.items()}
    whole = {**summary, "files": digests}
    return (json.dumps({**whole, "digest": digest(whole)}, indent=1) + "\n").encode()


def digest(summary: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a summary, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(summary, sort_keys=True).encode()).hexdigest()


def check_replaceable(out: Path) -> None:
    """Raise UsageError if a file in `out` would be replaced that is no unchanged result."""
    there = [out / name for name in (*FILES, "summary.json") if (out / name).exists()]
    if not there:
        return
    try:
        summary = json.loads((out / "summary.json").read_bytes())
        own = summary.pop("digest") == digest(summary)
        files = summary["files"]
        changed = [
            path for path in there
            if path.name in FILES
            and hashlib.sha256(path.read_bytes()).hexdigest() != files[path.name]
        ]  # fmt: skip
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        own, changed = False, there
    if not own or changed:
        raise UsageError(
            f"{(changed or [out / 'summary.json'])[0]} would be overwritten: expected nothing or "
            "results of emjax measure, got another file, or one that was changed since; choose "
            "another --out, or --overwrite"
        )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options.

    Raises: UsageError for those that do not go together.
    """
    parser = cli.Parser(prog="emjax measure", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--masks", action="store_true", help="the files are masks or label images")
    add("--model", help="segment micrographs: a run's workdir or its model/ folder")
    add("--out", required=True, type=Path, help="folder for the results")
    add("--images", type=Path, help="folder with the micrographs of the masks, for mean grey")
    add("--split", type=split_depth, default=SPLIT, metavar="DEPTH", help="split touching "
        "particles where the neck is narrower than 1 - DEPTH times the smaller one")  # fmt: skip
    add("--no_split", action="store_true", help="particles that touch are one")
    add("--border_weights", action="store_true", help="Miles-Lantuejoul weights: correct for large "
        "particles being at the border more often")  # fmt: skip
    add("--min_size", type=smallest, metavar="PIXELS", help="leave out smaller particles")
    flags.add(parser)
    add("--overwrite", action="store_true", help="replace files that are not results, too")
    add("inputs", nargs="+", metavar="FILE_OR_FOLDER")
    options = parser.parse_args(arguments)
    if options.masks == bool(options.model):
        raise UsageError(
            "expected one of --model=DIR, to segment micrographs, and --masks, to measure masks; "
            f"got {'both' if options.masks else 'neither'}"
        )
    useless = {"--images": options.images} if options.model else {
        "--range": options.range, "--cut_banner": options.cut_banner,
    }  # fmt: skip
    for flag, value in useless.items():
        if value:
            raise UsageError(f"{flag}: only {'--masks' if options.model else '--model'} takes it")
    return options


@cli.command
def main(arguments: Sequence[str]) -> int:
    """Measure every input; returns 0, or 3 if some could not be read (they are named)."""
    options = parse(arguments)
    limit = flags.limit(options)
    check_writable(options.out)
    if not options.overwrite:
        check_replaceable(options.out)
    files = find_inputs(options.inputs, ("overlay",) if options.masks else ("mask", "overlay"))
    planes = (Masks if options.masks else Segmented)(options, limit, files)
    results = Results(options)
    unread = 0
    for file, name in files.items():
        try:
            print(results.add(file, name, planes(file)))
        except InputError as error:
            line = f"error: {file}: {cli.message(error)}"
            print(line.replace(f"{file}: {file}", str(file)), file=sys.stderr)
            unread += 1
    if isinstance(planes, Segmented):
        planes.job.sum_up()
    if results.tables:
        write(options.out, results)
    if unread:
        print(f"error: {unread} of {len(files)} inputs were not measured", file=sys.stderr)
    return InputError.code if unread else 0


def write(out: Path, results: Results) -> None:
    """Write the four results and print the main ones."""
    table = results.table()
    summary, sample = results.summary(table)
    html = page.render(summary, sample, results.fields)
    written = dict(zip(FILES, (*table_bytes(table), html.encode()), strict=True))
    out.mkdir(parents=True, exist_ok=True)
    for name, content in {**written, "summary.json": sealed(summary, written)}.items():
        write_atomically(out / name, content)
    for remark in summary["remarks"]:
        note(out, remark.rstrip("."))
    median, bounds = summary["median"], summary["intervals"]["median"]
    size = f", median diameter {page.number(median, bounds)} {summary['unit']}" if median else ""
    print(f"{summary['number']} particles{size}\n{out / 'report.html'}")


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
