"""How near all ways to predict are to emjax predict, as the table of docs/reference/exports.md.

    make test-handon
    BIOIMAGEIO_PYTHON=.venv-bioimageio/bin/python .venv-handon/bin/python -m tests.compare_exports

Every model that comes with emjax, on four real micrographs of $EMJAX_REAL_DATA: of odd sides, of
even ones, of 16 bits, and one that exports and the page get in tiles (of TILE pixels, by a limit of
memory) and predict as a whole. A cell is the largest difference in standard deviations of what
predict gives, and for masks how many of a million pixels differ. The page and napari show no
probabilities, and the page writes whole grey values: there it is the pixels alone. bioimageio.core
and napari get whole images. Nothing is resampled.
"""

import contextlib
import io
import os
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from napari.components import ViewerModel
from qtpy import QtWidgets

import emjax
from emjax import predict
from emjax.apps.napari.widget import Particles
from emjax.errors import InputError
from emjax.inference.predictor import mask_of, to_dtype_of
from emjax.models import pretrained
from tests.test_bioimageio import CORE
from tests.test_serve import Visitor, served

MICROGRAPHS = [  # name, pattern, the smallest side, and the format, of the first file that is taken
    ("au_hrtem_750C", "au/au_hrtem_750C/images/*", 0, "uint8"),
    ("np_sintering", "au/np_sintering_bftem/images/*", 0, "uint8"),
    ("TIFF of a microscope", "formats/tiff_microscope/*", 600, "uint16"),
    ("TIFF of a microscope", "formats/tiff_microscope/*", 1024, "uint8"),
]
TILE = 960
ENGINES = {
    "StableHLO": (".stablehlo", "jax"),
    "ONNX, onnxruntime": (".onnx", "onnxruntime"),
    "ONNX, OpenVINO": (".onnx", "openvino"),
}
OTHERS = ["bioimage.io, bioimageio.core", "`emjax serve`", "napari"]


def micrographs(root):
    """Return {name: (path, image)}."""
    found = {}
    for name, pattern, side, dtype in MICROGRAPHS:
        for path in sorted(root.glob(pattern)):
            try:
                image = emjax.read(path).image
            except InputError:  # a stack
                continue
            h, w = image.shape
            if min(h, w) >= side and image.dtype == dtype:
                tiled = ", in tiles" if side > TILE else ""
                found[f"{name}, {h} x {w}, {dtype}{tiled}"] = path, image
                break
    return found


def cell(found, expected, is_mask):
    """Return the text of a cell."""
    text = f"{np.abs(found - expected).max() / expected.std(dtype=np.float64):.0e}"
    return f"{text}, {differing(found > 0.5, expected > 0.5)}" if is_mask else text


def differing(found, expected):
    """Return how many of a million pixels differ."""
    return f"{1e6 * np.mean(found != expected):.3g}"


def by_core(package, image):
    """Return what bioimageio.core makes of an image; None if it is not there."""
    python = os.environ.get("BIOIMAGEIO_PYTHON")
    if not python:
        return None
    with tempfile.TemporaryDirectory() as name:
        np.save(Path(name) / "a.image.npy", image)
        subprocess.run([python, "-c", CORE, package, name], check=True, capture_output=True)
        return np.load(Path(name) / "a.found.npy")[0]


def by_command(model, path):
    """Return the file that emjax predict writes."""
    flags = [f"--model={model}", "--engine=jax", "--no_resample"]
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        assert predict.main([*flags, f"--out={name}", str(path)]) == 0
        return tifffile.imread(Path(name) / f"{path.stem}.tif")


def by_page(model, path, memory):
    """Return the file that the page gives."""
    with (
        tempfile.TemporaryDirectory() as name,
        served(Path(name), f"--memory_limit={memory / 2**30}") as (_, port),
    ):
        visitor = Visitor(port)
        number, _ = visitor.send(path.name, path.read_bytes())
        work, found = visitor.run([number], model=model, no_resample=True)
        (result,) = (n for n in found["result"]["files"][str(number)] if n.endswith(".tif"))
        return tifffile.imread(io.BytesIO(visitor.ask("GET", f"/work/{work}/{result}")[2]))


def by_napari(application, model, image):
    """Return the layer that the widget adds: labels, or a restored image."""
    widget = Particles(ViewerModel())
    widget.viewer.add_image(image, name="a")
    widget.name.setCurrentText(model)
    widget.split.setChecked(False)
    widget.start()
    while widget.worker is not None:
        application.processEvents()
        time.sleep(0.01)
    return widget.viewer.layers[-1].data


def main():
    """Print the table."""
    columns = ["model", "micrograph", *ENGINES, *OTHERS]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    shown = micrographs(Path(os.environ["EMJAX_REAL_DATA"]))
    application = QtWidgets.QApplication([])
    with tempfile.TemporaryDirectory() as name:
        for model in sorted(pretrained.DIGESTS):
            ours = emjax.load_model(model, engine="jax")
            for suffix in (".stablehlo", ".onnx", ".zip"):
                ours.export(Path(name) / f"{model}{suffix}")
            for title, (path, image) in shown.items():
                values = ours.intensity_range([image])
                expected = ours(image, values)
                written = mask_of(expected) if ours.is_mask else to_dtype_of(image, expected)
                assert (by_command(model, path) == written).all()
                cells = []
                memory = ours.bytes_per_pixel * TILE**2 if "tiles" in title else 2**32
                for suffix, engine in ENGINES.values():
                    export = Path(name) / f"{model}{suffix}"
                    theirs = emjax.load_model(export, memory, engine)
                    cells.append(cell(theirs(image, values), expected, ours.is_mask))
                found = by_core(Path(name) / f"{model}.zip", image)
                if found is not None and not ours.is_mask:
                    found = emjax.micrographs.to_range(found, values)
                cells.append("-" if found is None else cell(found, expected, ours.is_mask))
                if model in pretrained.for_use():
                    cells.append(differing(by_page(model, path, memory), written))
                    layer = by_napari(application, model, image)
                    shows = differing(layer > 0, written > 0) if ours.is_mask else ""
                    cells.append(shows or cell(layer, expected, is_mask=False))
                else:
                    cells += ["not offered"] * 2
                print(f"| `{model}` | {title} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
