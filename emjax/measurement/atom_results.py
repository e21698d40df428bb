"""The results of measuring atomic columns: a table, its summary, a page."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import emjax
from emjax.errors import InputError, counted
from emjax.experiments.page import Picture, Section
from emjax.experiments.page import render as render_page
from emjax.measurement import atoms, page
from emjax.measurement.particles import Table
from emjax.measurement.results import Collected, unit_of
from emjax.micrographs import Micrograph
from emjax.micrographs.units import PixelSize
from emjax.pictures import OUTLINES, png, stretched

SCALE = 1000.0  # pixels of the longer side of a picture


class Field(NamedTuple):
    """One measured plane, for its picture."""

    name: str
    image: np.ndarray
    position: atoms.Points
    sublattice: np.ndarray


class AtomResults(Collected):
    """What is measured of atomic columns.

    Args:
        pixel_size: nm (y, x), instead of what files say.
    """

    name = "atoms"

    def __init__(self, pixel_size: PixelSize | None) -> None:
        super().__init__()
        self.pixel_size = pixel_size

    def add(self, file: Path, name: str, planes: Iterator[Micrograph]) -> str:
        """Measure all planes of a file, or none; return a line that says what was found.

        Raises: InputError as `atoms.columns` and `results.unit_of`, and for pixels that are not
            square.
        """
        tables: list[Table] = []
        rows: list[dict[str, Any]] = []
        fields: list[Field] = []
        unit = self.unit
        for index, plane in enumerate(planes):
            size = self.pixel_size or plane.nm_per_pixel
            origin = "--pixel_size" if self.pixel_size else plane.origin
            unit = unit_of(file, size, self.unit, self.first)
            if unit == "nm" and abs(size[0] / size[1] - 1) > 1e-3:
                raise InputError(
                    f"{file}: pixels of {size[0]:.4g} x {size[1]:.4g} nm, expected square ones: "
                    "resample it first"
                )
            scale = size[0] if unit == "nm" else 1.0
            distance = atoms.spacing(plane.image.astype(np.float64))
            found = atoms.columns(plane.image, distance)
            lattice = atoms.lattice(found.position, distance)
            count = len(found.position)
            table = columns_of(found, lattice, scale, unit)
            place = {"image": np.full(count, name, object), "plane": np.full(count, index)}
            tables.append({**place, "column": np.arange(1, count + 1), **table})
            row = {"image": name, "plane": index, "columns": count,
                   "nm_per_pixel": round(scale, 9) if unit == "nm" else None,
                   "pixel_size_from": origin}  # fmt: skip
            rows.append({**row, **described(table, lattice, scale, unit)})
            if len(self.fields) + len(fields) < self.shown:
                on = lattice.sublattice if lattice else np.zeros(count, int)
                title = f"{name}, plane {index}" if index else name
                fields.append(Field(title, plane.image, found.position, on))
        self.keep(file, unit, tables, rows, fields)
        total = sum(row["columns"] for row in rows)
        return f"{file}  {counted(total, 'atomic column')}"

    def report(self, table: Table) -> tuple[dict[str, Any], str]:
        """Return (the contents of summary.json, the page as HTML)."""
        unit = self.unit
        near = table[f"neighbour_{unit}"]
        near = near[np.isfinite(near)]
        remarks = [
            f"{row['image']}, plane {row['plane']}: {row['columns']} columns, no lattice was found."
            for row in self.images
            if row["lattice"] is None
        ]
        if unit != "nm":
            remarks.append(
                "No file states its pixel size: all sizes are in pixels (--pixel_size=NM gives nm)."
            )
        errors = np.column_stack([table[f"{axis}_error_{unit}"] for axis in "yx"])
        summary = {
            "number": len(near),
            "measurand": "neighbour",
            "unit": unit,
            **quantiles(near),
            "position_error": float(np.sqrt(np.mean(errors**2))) if len(errors) else None,
            "remarks": remarks,
            "images": self.images,
            "version": emjax.__version__,
        }
        return summary, self.page(summary)

    def page(self, summary: Mapping[str, Any]) -> str:
        """Return the page as one HTML file."""
        unit = summary["unit"]
        median = page.number(summary["median"])
        paragraphs = [
            f"Atomic columns: {len(self.table()['column'])}. Distance to the nearest one, median: "
            f"{median} {unit}. Standard error of a position, root mean square: "
            f"{page.number(summary['position_error'])} {unit}.",
            *summary["remarks"],
        ]
        sections = [
            Section(
                "Columns",
                text="Each colour is a sublattice; white: on no lattice.",
                pictures=[[picture(field)] for field in self.fields],
            ),
            Section(
                "Lattice of each plane",
                text="a and b are the two shortest translations that map most columns to columns, "
                "whatever their brightness. Strains are against them.",
                table=[in_words(row, unit) for row in self.images],
            ),
        ]
        return render_page("emjax measure --atoms", paragraphs, sections)


def columns_of(
    found: atoms.Columns, lattice: atoms.Lattice | None, scale: float, unit: str
) -> Table:
    """Return the table of one plane, its lengths times `scale`."""
    count = len(found.position)
    (y, x), (y_error, x_error) = scale * found.position.T, scale * found.error.T
    table = {
        f"y_{unit}": y,
        f"x_{unit}": x,
        f"y_error_{unit}": y_error,
        f"x_error_{unit}": x_error,
        "height": found.amplitude,
        f"sigma_{unit}": scale * found.sigma,
        "background": found.background,
        f"neighbour_{unit}": scale * atoms.nearest(found.position),
    }
    nothing = np.full((count, 4), np.nan)
    strains = atoms.strain(found.position, lattice) if lattice else nothing
    index = lattice.index if lattice else np.zeros((count, 2), int)
    off = scale * lattice.residual if lattice else nothing[:, :2]
    return {
        **table,
        "sublattice": lattice.sublattice if lattice else np.zeros(count, int),
        "h": index[:, 0],
        "k": index[:, 1],
        f"off_y_{unit}": off[:, 0],
        f"off_x_{unit}": off[:, 1],
        "strain_yy": strains[:, 0],
        "strain_xx": strains[:, 1],
        "strain_yx": strains[:, 2],
        "rotation_deg": np.degrees(strains[:, 3]),
    }


def described(
    table: Table, lattice: atoms.Lattice | None, scale: float, unit: str
) -> dict[str, Any]:
    """Return what summary.json says of one plane."""
    facts: dict[str, Any] = quantiles(table[f"neighbour_{unit}"])
    if lattice is None:
        return {**facts, "lattice": None}
    a, b = scale * lattice.vectors
    cosine = float(a @ b / (np.hypot(*a) * np.hypot(*b)))
    strains = {
        name: float(np.nanstd(table[name])) if np.isfinite(table[name]).any() else None
        for name in ("strain_yy", "strain_xx", "strain_yx")
    }
    off = scale * lattice.residual[lattice.sublattice > 0]
    facts["lattice"] = {
        "a": a.tolist(),
        "b": b.tolist(),
        "a_length": float(np.hypot(*a)),
        "b_length": float(np.hypot(*b)),
        "angle_deg": float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))),
        "sublattices": int(lattice.sublattice.max()),
        "on_no_lattice": int((lattice.sublattice == 0).sum()),
        "rms_off": float(np.sqrt(np.mean(off**2))),
        "standard_deviation": strains,
    }
    return facts


def quantiles(values: np.ndarray) -> dict[str, float | None]:
    """Return the D10, the median and the D90 of distances; None of nothing."""
    values = values[np.isfinite(values)]
    found = np.quantile(values, [0.1, 0.5, 0.9]) if len(values) else [None] * 3
    names = ("d10", "median", "d90")
    return {n: None if v is None else float(v) for n, v in zip(names, found, strict=True)}


def in_words(row: Mapping[str, Any], unit: str) -> dict[str, str]:
    """Return the row of a plane in the table of lattices."""
    cells = {"image": str(row["image"]), "plane": str(row["plane"]), "columns": str(row["columns"])}
    lattice = row["lattice"]
    if lattice is None:
        return cells
    deviation = lattice["standard_deviation"]
    return {
        **cells,
        f"a, {unit}": f"{lattice['a_length']:.5g}",
        f"b, {unit}": f"{lattice['b_length']:.5g}",
        "angle, degrees": f"{lattice['angle_deg']:.2f}",
        "sublattices": str(lattice["sublattices"]),
        f"off their places, rms, {unit}": f"{lattice['rms_off']:.3g}",
        **{f"{name.replace('_', ' ')}, SD": page.number(v) for name, v in deviation.items()},
    }


def picture(field: Field) -> Picture:
    """Return the plane in grey, enlarged, with a dot on each column."""
    from PIL import Image, ImageDraw

    h, w = field.image.shape
    factor = max(1.0, SCALE / max(h, w))
    shape = round(w * factor), round(h * factor)
    grey = Image.fromarray(stretched(field.image)).resize(shape, Image.Resampling.BILINEAR)
    canvas = grey.convert("RGB")
    draw = ImageDraw.Draw(canvas)
    for (y, x), number in zip((field.position + 0.5) * factor, field.sublattice, strict=True):
        colour = OUTLINES[(number - 1) % len(OUTLINES)] if number else (255, 255, 255)
        draw.ellipse([x - 3, y - 3, x + 3, y + 3], outline=colour)
    return Picture(png(np.asarray(canvas)), field.name)
