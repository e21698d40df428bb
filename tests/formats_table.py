"""Compare what emjax reads of a folder of sample files with what another reader found.

python -m tests.formats_table FOLDER prints the table of docs/background/evidence/real_files.md.
FOLDER/MANIFEST.csv has the columns file, shape, dtype, min, max, mean, axes_or_error, one row per
signal of each file.
"""

import collections
import csv
import math
import sys
from pathlib import Path

import numpy as np

from emjax import micrographs
from emjax.errors import InputError

NM = {"pm": 1e-3, "A": 0.1, "nm": 1.0, "µm": 1e3, "cm": 1e7, "m": 1e9}


def manifest(folder):
    """Return {file: its rows}, from FOLDER/MANIFEST.csv."""
    rows = {}
    with open(Path(folder) / "MANIFEST.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rows.setdefault(row["file"], []).append(row)
    return rows


def nm_per_pixel(axes):
    """Return (y, x) by the text of the manifest, NaN where it states no positive length."""
    sizes = []
    for axis in axes.split("; ")[-2:]:
        size, _, unit = axis.partition(":")[2].partition(" ")
        known = NM.get(unit, math.nan) * float(size or math.nan) if ":" in axis else math.nan
        sizes.append(known if known > 0 else math.nan)
    return tuple(sizes) if len(sizes) == 2 and np.isfinite(sizes).all() else (math.nan, math.nan)


def differences(signal, row):
    """Return how the pixels and the pixel size of `signal` differ from `row`, as texts."""
    different = []
    values = np.stack([signal.raw(index) for index in range(signal.planes)])
    shape = "x".join(row["shape"].strip("()").replace(" ", "").rstrip(",").split(","))
    sides = [signal.shape] if signal.samples == 1 else []
    if signal.samples > 1:
        sides = [signal.shape, (*signal.shape, signal.samples), (signal.samples, *signal.shape)]
    if shape not in ["x".join(map(str, each)) for each in sides]:
        different.append(f"shape {shape}")
    structured = row["dtype"].startswith("[")
    if row["dtype"] != signal.dtype.name and not (structured and signal.samples > 1):
        different.append(f"dtype {row['dtype']}")
    finite = values[np.isfinite(values)].astype(np.float64)
    if row["min"]:
        expected = [float(row[key]) for key in ("min", "max", "mean")]
        found = [finite.min(), finite.max(), finite.mean()]
        if not np.allclose(found, expected, rtol=1e-5, atol=1e-6 * np.ptp(finite)):
            different.append(f"min, max, mean {expected}")
    expected = nm_per_pixel(row["axes_or_error"])
    if not np.allclose(signal.nm_per_pixel, expected, rtol=1e-6, equal_nan=True):
        different.append(f"nm per pixel {expected}")
    return different


def examine(path, rows):
    """Return (descriptions of the signals of a file, their differences to `rows`), as texts."""
    try:
        with micrographs.open_all(path) as signals:
            described = [_described(signal) for signal in signals]
            read = [signal for signal in signals if not signal.refused]
            try:
                for index in range(len(read)):
                    for _ in micrographs.planes(path, index):
                        pass
            except InputError as error:
                described.append("refused: " + str(error).removeprefix(f"{path}: "))
                read = []
            if len(rows) != len(signals) and read:
                return described, ["not read" if rows[0]["dtype"] == "" else f"{len(rows)} signals"]
            found = [
                text
                for signal, row in zip(signals, rows, strict=False)
                if signal in read
                for text in (differences(signal, row) if row["dtype"] else ["not read"])
            ]
            return described, found
    except InputError as error:
        return ["refused: " + str(error).removeprefix(f"{path}: ")], []


def _described(signal):
    sides = " x ".join(map(str, signal.shape))
    colours = f" x {signal.samples} colours" if signal.samples > 1 else ""
    if signal.refused:
        return f"{sides} refused: {signal.refused}".strip()
    y, x = signal.nm_per_pixel
    size = "" if math.isnan(y) else f", {y:.6g} nm" if y == x else f", {y:.6g}, {x:.6g} nm"
    return f"{sides}{colours} {signal.dtype.name}{size} ({signal.origin})".replace(" (none)", "")


def main(folder):
    print("| file | emjax | the other reader says |\n|---|---|---|")
    for file, rows in manifest(folder).items():
        described, found = examine(Path(folder) / file, rows)
        times = collections.Counter(described).items()
        described = [f"{count} times {text}" if count > 1 else text for text, count in times]
        cells = [file.rpartition("/")[2], "; ".join(described), "; ".join(dict.fromkeys(found))]
        print("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")


if __name__ == "__main__":
    main(sys.argv[1])
