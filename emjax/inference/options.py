"""The flags that say how micrographs are read and shown to a network, for predict and measure."""

import argparse
import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from emjax import micrographs
from emjax.errors import UsageError, note
from emjax.inference.engines import ENGINES
from emjax.micrographs import units
from emjax.micrographs.intensity import Range, is_range
from emjax.models import pretrained

if TYPE_CHECKING:
    from emjax.inference.predictor import Predictor

MEMORY = 4  # GiB for an image, and the network on it
SMALLEST, LARGEST = 1e-12, 1e12  # nm per pixel: their squares and cubes are numbers, too
MODEL = "particles"  # of those that come with emjax, where none is named


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add --model and --engine to a parser; without --model, a command takes MODEL."""
    names = ", ".join(pretrained.DIGESTS)
    parser.add_argument("--model", help="a run's workdir, its model/ folder, a .stablehlo or .onnx "
        "file of emjax export, hf:OWNER/NAME of a hub, or a model that comes with emjax: "
        f"{names}; default: {MODEL}")  # fmt: skip
    parser.add_argument("--engine", choices=ENGINES, help="what runs the network; default: "
        "openvino on a CPU where the extra is installed, else jax; of ONNX files openvino or "
        "onnxruntime")  # fmt: skip


def add_model_to_hand_on(parser: argparse.ArgumentParser) -> None:
    """Add MODEL, a folder or a name, to the parser of export or publish."""
    parser.add_argument("model", metavar="MODEL", help="a run's workdir, its model/ folder, or a "
        f"model that comes with emjax: {', '.join(pretrained.DIGESTS)}")  # fmt: skip


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags to a parser."""
    add = parser.add_argument
    add("--index", type=int, help="which image, of files that hold several")
    add("--channel", help="which channel, by name or number, of images that have several")
    add("--cut_banner", action="store_true", help="leave out banners, borders and scale bars")
    add("--pixel_size", "--nm_per_pixel", type=pixel_size, help="nm per pixel (or y,x), instead "
        "of what files say")  # fmt: skip
    add("--no_resample", action="store_true", help="show the network images at their own pixel "
        "size, also where it is far from that of the training images")  # fmt: skip
    add("--range", type=given_range, help="LOW,HIGH: grey values that the network sees as darkest "
        "and brightest; shared: one range for all inputs")  # fmt: skip
    add("--mrc_rows", choices=micrographs.MRC_ROWS, help="where the first row of MRC files belongs")
    add("--memory_limit", type=float, default=MEMORY, help="GiB for an image and the network")


def model(options: argparse.Namespace) -> str | Path:
    """Return --model, or the folder of MODEL."""
    return options.model or pretrained.BOX / MODEL


def predictor(options: argparse.Namespace, limit: int) -> "Predictor":
    """Return the Predictor of the flags of `add_model`; what JAX compiles for it is kept on disk.

    Args:
        limit: bytes that an image may take.
    """
    from emjax.inference.predictor import Predictor

    found = Predictor(model(options), limit, options.engine)
    if found.engine == "jax":
        from emjax.parallel import devices  # which loads JAX

        devices.keep_compiled()
    return found


def pixel_size(text: str) -> tuple[float, float]:
    """Return (y, x) in nm of --pixel_size: one positive number, or y,x."""
    with contextlib.suppress(ValueError, UsageError):
        sizes = units.pixel_size([float(part) for part in text.split(",")])
        if np.greater(sizes, SMALLEST).all() and np.less(sizes, LARGEST).all():
            if re.fullmatch(r"\d+,\d+", text) and sizes[0] != sizes[1]:
                read = f"{sizes[0]:g} nm along y and {sizes[1]:g} nm along x"
                one = text.replace(",", ".")
                note(f"--pixel_size={text}", f"{read}; if that is one number, write {one}")
            return sizes
    raise UsageError(
        f"--pixel_size={text}: expected nm per pixel, one number with a decimal point or y,x, each "
        f"between {SMALLEST:g} and {LARGEST:g}"
    )


def given_range(text: str) -> Range | str:
    """Return (low, high) of --range=LOW,HIGH, or "shared"."""
    if text == "shared":
        return text
    with contextlib.suppress(ValueError):
        low, high = map(float, text.split(","))
        if is_range(low, high):
            return low, high
    raise UsageError(
        f"--range={text}: expected LOW,HIGH, two grey values such as 90,410, which differ in "
        "32 bits, or shared"
    )
