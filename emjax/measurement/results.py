"""The results of a measurement: a table, its summary, a page; and which of them may be replaced."""

import contextlib
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

import emjax
from emjax.errors import InputError, UsageError, counted
from emjax.files import write_atomically
from emjax.measurement import page, statistics
from emjax.measurement.particles import SURE, Table, label, measure
from emjax.measurement.statistics import Sample
from emjax.micrographs.units import UNKNOWN, PixelSize, is_known

JOURNAL = ".emjax-measure.json"  # while results are replaced: digests of the new ones
SHOWN = 4  # planes in the report
TINY = 10  # pixels, below which sizes are uncertain
SHAPES = ("aspect_ratio", "ellipse_aspect_ratio", "circularity", "solidity")


class Settings(NamedTuple):
    """How particles are measured and counted."""

    split: float | None  # depth of necks
    min_size: int | None = None  # pixels
    pixel_size: PixelSize | None = None  # nm, instead of what files say
    border_weights: bool = False


class Plane(NamedTuple):
    """What is measured on one plane of a file."""

    mask: np.ndarray  # as `measurement.label` takes it
    nm_per_pixel: PixelSize
    origin: str
    image: np.ndarray | None = None
    probability: np.ndarray | None = None
    corner: tuple[int, int] = (0, 0)  # of the mask in the file's plane: y, x
    as_labels: bool = False  # also of one value


def unit_of(file: Path, size: PixelSize, before: str, first: Path) -> str:
    """Return "nm" if a pixel size is known, else "px".

    Args:
        before: the unit of the files measured before, of which `first` is one; "" without any.

    Raises: InputError as `check_unit`.
    """
    unit = "nm" if is_known(size) else "px"
    check_unit(file, unit, before, first)
    return unit


def check_unit(file: Path, unit: str, before: str, first: Path) -> None:
    """Raise InputError for a file whose sizes are known if those before were not, or the reverse.

    That would mix nm and pixels in one column.
    """
    if before not in ("", unit):
        own, theirs = ("states", "does not") if unit == "nm" else ("does not state", "does")
        raise InputError(
            f"{file}: {own} its pixel size, but {first} {theirs}: expected nm or pixels for all; "
            "give --pixel_size=NM, or measure it apart"
        )


def joined(tables: Sequence[Table]) -> Table:
    """Return the rows of all tables; a column that some lack is NaN there."""
    columns = dict.fromkeys(name for table in tables for name in table)
    lengths = [len(next(iter(table.values()))) for table in tables]
    return {
        name: np.concatenate(
            [
                table[name] if name in table else np.full(length, np.nan)
                for table, length in zip(tables, lengths, strict=True)
            ]
        )
        for name in columns
    }


class Collected:
    """What is measured, file by file.

    Attributes:
        name: of the tables.
        images: one row per file, or per plane.
        fields: the planes in the report, at most `shown`.
        unit: of all files; "" before the first, which is `first`.
    """

    name: str

    def __init__(self) -> None:
        self.tables: list[Table] = []
        self.images: list[dict[str, Any]] = []
        self.fields: list[Any] = []
        self.shown = SHOWN
        self.unit = ""
        self.first = Path()

    def keep(
        self,
        file: Path,
        unit: str,
        tables: Sequence[Table],
        images: Sequence[dict[str, Any]],
        fields: Sequence[Any] = (),
    ) -> None:
        """Add what was measured of a file, whose unit `check_unit` has passed."""
        self.first, self.unit = self.first if self.unit else file, unit
        self.tables += tables
        self.images += images
        self.fields += fields

    def join(self, other: Self) -> None:
        """Add what another has measured of one file, but no pictures.

        Raises: InputError as `check_unit`.
        """
        unit = other.unit or self.unit  # it has none where its file has no plane
        check_unit(other.first, unit, self.unit, self.first)
        self.keep(other.first, unit, other.tables, other.images)

    def table(self) -> Table:
        """Return all rows; a column that some files lack is NaN there."""
        return joined(self.tables)

    def report(self, table: Table) -> tuple[dict[str, Any], str]:
        """Return (the contents of summary.json, the page as HTML)."""
        raise NotImplementedError


class Results(Collected):
    """What is measured of particles."""

    name = "particles"

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.small = self.tiny = self.unsure = 0

    def add(self, file: Path, name: str, planes: Iterator[Plane]) -> str:
        """Measure all planes of a file, or none; return a line that says what was found.

        Raises: InputError if the file is no such thing, or as `unit_of`.
        """
        split, min_size, given, _ = self.settings
        tables: list[Table] = []
        fields: list[page.Field] = []
        small, tiny, unsure, unit = 0, 0, 0, self.unit
        size, origin = given or UNKNOWN, "--pixel_size"
        for index, plane in enumerate(planes):
            if not given:
                size, origin = plane.nm_per_pixel, plane.origin
            unit = unit_of(file, size, self.unit, self.first)
            labels = label(plane.mask, split, as_labels=plane.as_labels)
            if plane.probability is not None:
                likely = labels.without_unsure(plane.probability)
                unsure += len(labels.names) - len(likely.names)
                labels = likely
            found = len(labels.names)
            if min_size:
                labels = labels.without_small(min_size)
            count = len(labels.names)
            small += found - count
            tiny += int((np.bincount(labels.image.ravel())[1:] < TINY).sum())
            table = measure(labels, size, image=plane.image, probability=plane.probability)
            scale = size if unit == "nm" else (1.0, 1.0)
            for axis, corner, side in zip("yx", plane.corner, scale, strict=True):
                table[f"centroid_{axis}_{unit}"] += corner * side
            place = {"image": np.full(count, name, object), "plane": np.full(count, index)}
            tables.append({**place, **table})
            if len(self.fields) + len(fields) < self.shown:
                border = table["border"] > 0
                title = f"{name}, plane {index}" if index else name
                fields.append(page.Field(title, plane.image, labels, border, scale, unit))
        self.small, self.tiny = self.small + small, self.tiny + tiny
        self.unsure += unsure
        border = sum(int(table["border"].sum()) for table in tables)
        number = sum(len(table["label"]) for table in tables) - border
        known = unit == "nm"
        row = {"image": name, "planes": len(tables), "particles": number, "at_border": border}
        row["nm_per_pixel"] = [round(side, 9) for side in size] if known else None
        self.keep(file, unit, tables, [{**row, "pixel_size_from": origin}], fields)
        return f"{file}  {counted(number)}, {border} more at the border"

    def join(self, other: Self) -> None:
        """As `Collected.join`."""
        super().join(other)
        self.small, self.tiny = self.small + other.small, self.tiny + other.tiny
        self.unsure += other.unsure

    def report(self, table: Table) -> tuple[dict[str, Any], str]:
        """Return (the contents of summary.json, the page as HTML)."""
        summary, sample = self.summary(table)
        return summary, page.render(summary, sample, self.fields)

    def repeated(self) -> list[tuple[str, str]]:
        """Return each (file, another one) in which a plane has the very particles of the first."""
        seen: dict[str, str] = {}
        found: dict[tuple[str, str], None] = {}
        for table in self.tables:
            if len(table["label"]):
                columns = ("centroid_y", "centroid_x", "equivalent_diameter")
                values = np.stack([table[f"{column}_{self.unit}"] for column in columns])
                name = str(table["image"][0])
                first = seen.setdefault(sha256(values.tobytes()), name)
                if first != name:
                    found[first, name] = None
        return [*found]

    def summary(self, table: Table) -> tuple[dict[str, Any], Sample]:
        """Return (the contents of summary.json, the particles that count by their diameter)."""
        (depth, min_size, _, weighted), unit = self.settings, self.unit
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
        split = "not split" if depth is None else f"split at necks of depth {depth:g}"
        border = "those at the border are not counted, "
        border += "Miles-Lantuejoul weights make up for it" if weighted else "without correction"
        share = statistics.share_up_to(sizes["feret_min"], statistics.NANO)
        at_border = int(len(counted) - counted.sum())
        remarks = [f"At the border, not counted: {at_border}."]
        if self.unsure:
            remarks.append(f"Nowhere {SURE:g} or more likely, left out as noise: {self.unsure}.")
        if min_size:
            remarks.append(f"Smaller than {min_size} pixels, left out: {self.small}.")
        if self.tiny:
            remarks.append(f"{self.tiny} particles have fewer than {TINY} pixels; their sizes are "
                           "uncertain (--min_size leaves them out).")  # fmt: skip
        known = sorted({tuple(row["nm_per_pixel"]) for row in self.images if row["nm_per_pixel"]})
        if known and known[-1][1] > 1.001 * known[0][1]:
            remarks.append(f"Pixel sizes differ, {known[0][1]:.4g} to {known[-1][1]:.4g} nm: so do "
                           "the smallest particles that can be seen.")  # fmt: skip
        if twice := self.repeated():
            first, second = twice[0]
            more = f", and so for {len(twice) - 1} more" if len(twice) > 1 else ""
            remarks.append(f"The particles of {second} are those of {first}{more}: if these are "
                           "copies, they count twice; name one of each.")  # fmt: skip
        if unit != "nm":
            remarks.append(
                "No file states its pixel size: all sizes are in pixels (--pixel_size=NM gives nm)."
            )
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
            "split": depth,
            "border_weights": weighted,
            "min_size": min_size,
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


def sealed(summary: Mapping[str, Any], files: Mapping[str, str]) -> bytes:
    """Return summary.json, with digests of itself and of the other results."""
    whole = {**summary, "files": files}
    return (json.dumps({**whole, "digest": digest(whole)}, indent=1) + "\n").encode()


def digest(summary: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a summary, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(summary, sort_keys=True).encode()).hexdigest()


def sha256(content: bytes) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def files_of(out: Path) -> dict[str, str]:
    """Return {name: SHA-256} of the results in `out` by their summary, which is one of them.

    Nothing if there is none, or it was changed since.
    """
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        content = (out / "summary.json").read_bytes()
        summary = json.loads(content)
        if summary.pop("digest") == digest(summary):
            return {**summary["files"], "summary.json": sha256(content)}
    return {}


def check_replaceable(out: Path, name: str) -> None:
    """Raise UsageError if a file in `out` would be replaced that is no unchanged result.

    Args:
        name: of the tables that are to be written, without a suffix.

    Results of which some were replaced when the command was stopped are results still.
    """
    known = set(files_of(out).values())
    with contextlib.suppress(OSError, ValueError, TypeError):
        known |= set(json.loads((out / JOURNAL).read_bytes()))
    tables = [f"{name}{end}" for end in (".csv", ".parquet")]
    for path in (out / name for name in ("summary.json", *tables, "report.html")):
        if path.exists() and (not path.is_file() or sha256(path.read_bytes()) not in known):
            raise UsageError(
                f"{path} would be overwritten: expected nothing or results of emjax measure, got "
                "another file, or one that was changed since; choose another --out, or --overwrite"
            )


def write(out: Path, results: Collected, options: Mapping[str, Any]) -> dict[str, Any]:
    """Write the four results; returns the contents of summary.json.

    A table of another kind stays, particles beside atoms, and is known as a result still.

    Args:
        options: JSON values: what files were read and segmented with.
    """
    table = results.table()
    summary, html = results.report(table)
    summary["options"] = dict(options)
    names = (f"{results.name}.csv", f"{results.name}.parquet", "report.html")
    written = dict(zip(names, (*table_bytes(table), html.encode()), strict=True))
    out.mkdir(parents=True, exist_ok=True)
    others = {n: found for n, found in files_of(out).items() if n not in (*names, "summary.json")}
    files = {**others, **{name: sha256(content) for name, content in written.items()}}
    whole = {**written, "summary.json": sealed(summary, files)}
    there = [out / name for name in whole if (out / name).exists()]
    digests = [sha256(content) for content in (*whole.values(), *(p.read_bytes() for p in there))]
    write_atomically(out / JOURNAL, json.dumps(digests).encode())
    for name, content in whole.items():
        write_atomically(out / name, content)
    (out / JOURNAL).unlink(missing_ok=True)  # another measurement into `out` may have ended
    return summary
