"""How near exports and engines are to predict, as the table of docs/reference/exports.md.

    make test-handon
    BIOIMAGEIO_PYTHON=.venv-bioimageio/bin/python .venv-handon/bin/python -m tests.compare_exports

Every model that comes with emjax and has a task, on three real micrographs of $EMJAX_REAL_DATA: of
odd sides, of 16 bits, and one that exports get in tiles (of TILE pixels, by a limit of memory) and
predict as a whole. A cell is the largest difference in standard deviations of what predict gives,
and for masks how many of a million pixels differ. bioimageio.core gets whole images.
"""

import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np

import emjax
from emjax.errors import InputError
from emjax.models import pretrained
from tests.test_bioimageio import CORE

MICROGRAPHS = {  # pattern: the smallest side, and the format, of the first file that is taken
    "au/au_hrtem_750C/images/*": (0, "uint8"),
    "formats/tiff_microscope/*": (600, "uint16"),
    "formats/tiff_microscope/*.*": (1024, "uint8"),
}
TILE = 960
ENGINES = {
    "StableHLO": (".stablehlo", None),
    "ONNX, onnxruntime": (".onnx", "onnxruntime"),
    "ONNX, OpenVINO": (".onnx", "openvino"),
}


def micrographs(root):
    """Return {name: Micrograph}."""
    found = {}
    for pattern, (side, dtype) in MICROGRAPHS.items():
        for path in sorted(root.glob(pattern)):
            try:
                read = emjax.read(path)
            except InputError:  # a stack
                continue
            h, w = read.image.shape
            if min(h, w) >= side and read.image.dtype == dtype:
                tiled = ", in tiles" if side > TILE else ""
                found[f"{path.parent.parent.name}, {h} x {w}, {dtype}{tiled}"] = read
                break
    return found


def cell(found, expected, is_mask):
    """Return the text of a cell."""
    text = f"{np.abs(found - expected).max() / expected.std(dtype=np.float64):.0e}"
    if not is_mask:
        return text
    differ = np.mean((found > 0.5) != (expected > 0.5))
    return f"{text}, {1e6 * differ:.3g}"


def by_core(package, image):
    """Return what bioimageio.core makes of an image; None if it is not there."""
    python = os.environ.get("BIOIMAGEIO_PYTHON")
    if not python:
        return None
    with tempfile.TemporaryDirectory() as name:
        np.save(Path(name) / "a.image.npy", image)
        subprocess.run([python, "-c", CORE, package, name], check=True, capture_output=True)
        return np.load(Path(name) / "a.found.npy")[0]


def main():
    """Print the table."""
    columns = ["model", "micrograph", *ENGINES, "bioimage.io, bioimageio.core"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    shown = micrographs(Path(os.environ["EMJAX_REAL_DATA"]))
    with tempfile.TemporaryDirectory() as name:
        for model in pretrained.for_use():
            ours = emjax.load_model(model, engine="jax")
            for suffix in (".stablehlo", ".onnx", ".zip"):
                ours.export(Path(name) / f"{model}{suffix}")
            for title, (image, *_) in shown.items():
                values = ours.intensity_range([image])
                expected = ours(image, values)
                cells = []
                limit = {"memory": ours.bytes_per_pixel * TILE**2} if "tiles" in title else {}
                for suffix, engine in ENGINES.values():
                    path = Path(name) / f"{model}{suffix}"
                    theirs = emjax.load_model(path, engine=engine, **limit)
                    cells.append(cell(theirs(image, values), expected, ours.is_mask))
                found = by_core(Path(name) / f"{model}.zip", image)
                if found is not None and not ours.is_mask:
                    found = emjax.micrographs.to_range(found, values)
                cells.append("-" if found is None else cell(found, expected, ours.is_mask))
                print(f"| `{model}` | {title} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
