"""Apply a trained model: python -m emjax.predict --model=DIR --out=DIR FILE_OR_FOLDER...

DIR/<name>.tif is a mask (uint8, 0 and 255) with DIR/<name>.overlay.png beside it, or the restored
micrograph in the values and number format of the input. Size and pixel size are the input's. A
stack is predicted plane by plane, in one intensity range, and written as a stack. Large images are
predicted in tiles, with the values of the whole; where that cannot be, a note on stderr says so.
"""

import functools
import math
import sys
from pathlib import Path

import jax
import numpy as np

from emjax import cli, micrographs, tiles
from emjax.errors import InputError, UsageError, note
from emjax.files import write_atomically
from emjax.micrographs.units import amount
from emjax.models import cost, saved
from emjax.parallel import devices
from emjax.pictures import overlay, png
from emjax.tasks import TASKS


class Predictor:
    """A model as a function of a micrograph of any height and width.

    Args:
        folder: a run's workdir or its model/.
        memory: bytes the network may take on a CPU; of a device that tells its memory, half may be.
    """

    def __init__(self, folder, memory=micrographs.LIMIT):
        module, self.config = saved.load(folder)
        if reason := self.config.get("only_to_start_from"):
            raise UsageError(
                f"{folder}: not to be predicted with, {reason}; finetune it first, by "
                f"--config.initialise.workdir={folder}"
            )
        self.divisor = module.divisor
        self.task = TASKS[self.config["task"]] if self.config["task"] else None
        self.is_mask = self.task is not None and self.task.is_mask
        self.margin = tiles.margin(module)
        self.memory = devices.memory().get("bytes_limit", 2 * memory) // 2
        self.seen_whole = whole_image_seen(self.config["model"])

        def answer(images):
            output = module(images, train=False)
            return self.task.prediction(output) if self.task else output[..., :1]

        self.answer, self.apply = answer, jax.jit(answer)

    def intensity_range(self, images):
        """The (low, high) of all `images`, by the rule the model was trained with."""
        return micrographs.intensity_range(images, self.config["range_rule"])

    def __call__(self, image, intensity_range=None):
        """float32 [h, w] for `image` [h, w]: a probability, or grey values of the input.

        The intensity range is taken from this image where none is given.
        """
        intensity_range = intensity_range or self.intensity_range([image])
        h, w = image.shape
        more = ((0, -h % self.divisor), (0, -w % self.divisor))
        clip = self.config.get("clip", True)  # converted networks saw values beyond the range
        scaled = micrographs.from_range(image, intensity_range, clip=clip)
        padded = np.pad(scaled, more, mode="reflect")
        largest, margin = self.tiling(*padded.shape)
        output = tiles.apply(
            self.apply, padded, largest=largest, margin=margin, divisor=self.divisor
        )[:h, :w]
        return output if self.is_mask else micrographs.to_range(output, intensity_range)

    @functools.cached_property
    def bytes_a_pixel(self):
        return cost.bytes_per_pixel(self.answer, self.divisor)

    def tiling(self, h, w):
        """(largest side of a tile, margin) for an image of h x w; a note if it is approximate."""
        affordable = math.isqrt(self.memory // self.bytes_a_pixel) // self.divisor * self.divisor
        if not self.seen_whole and affordable >= 4 * self.margin:
            return min(affordable, tiles.largest_side(self.margin, self.divisor)), self.margin
        if h * w * self.bytes_a_pixel <= self.memory:
            return max(h, w), self.margin
        largest = max(affordable, 2 * self.divisor)
        margin = min(self.margin, largest // 4)
        needed = h * w * self.bytes_a_pixel
        note(
            f"{h} x {w} pixels",
            f"predicted in tiles of {largest} with margins of {margin}, which is approximate: "
            f"{self.seen_whole or f'an output depends on {self.margin} pixels to either side'}, "
            f"and the whole takes about {amount(needed)}; "
            + (
                f"half of the device's memory is {amount(self.memory)}"
                if devices.memory()
                else f"--memory_limit={-(-needed // 2**30)} allows it"
            ),
        )
        return largest, margin


def whole_image_seen(model):
    """Why an output of a config's `model` depends on the whole image; empty if it does not."""
    if (norm := model.get("norm")) in ("instance", "group"):
        return f"norm={norm} takes statistics over the whole image"
    if model.get("upsampling") == "bilinear_corners":
        return "upsampling=bilinear_corners stretches with the size of the image"
    return ""


def mask_of(probability):
    """uint8 [h, w]: 255 where the probability is above one half, else 0."""
    return np.where(probability > 0.5, 255, 0).astype(np.uint8)


def in_format_of(image, values):
    """`values` in the number format of `image`, rounded and cut off where they do not fit."""
    if image.dtype.kind == "f":
        return values.astype(image.dtype)
    limits = np.iinfo(image.dtype)
    return np.clip(np.rint(values), limits.min, limits.max).astype(image.dtype)


def inputs(names, out):
    """The micrograph files that `names` (files and folders) stand for.

    Raises: Usage if two have one stem, or one would be overwritten by its own result.
    """
    files, stems = [], {}
    for name in map(Path, names):
        folder = name.is_dir() and not micrographs.is_zarr(name)
        files += micrographs.find(name) if folder else [name]
    for file in files:
        other = stems.setdefault(file.stem, file)
        if other is not file:
            raise UsageError(f"{other} and {file} would both become {out / file.stem}.tif")
        if file.resolve() == (out / f"{file.stem}.tif").resolve():
            raise UsageError(f"{file} would be overwritten by its result; choose another --out")
    return files


def predicted(predictor, file, index, limit):
    """(uint8, uint16 or float32 [h, w] or [planes, h, w]: the result for `file`; its first plane).

    A stack has one intensity range, so it is read twice and never held as a whole.
    """
    values = predictor.intensity_range(
        plane.image for plane in micrographs.planes(file, index, limit)
    )
    results, first = [], None
    for plane in micrographs.planes(file, index, limit):
        first = first or plane
        output = predictor(plane.image, values)
        results.append(mask_of(output) if predictor.is_mask else in_format_of(plane.image, output))
    return results[0] if len(results) == 1 else np.stack(results), first


def pixel_size(text):
    """(y, x) in nm of one positive number, or of two: y,x."""
    try:
        sizes = [float(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if len(sizes) not in (1, 2) or not all(0 < size < np.inf for size in sizes):
        raise UsageError(f"--pixel_size={text}; nm per pixel, one positive number or y,x, were due")
    return sizes[0], sizes[-1]


def main(arguments):
    """Predict every input; returns 0, or 3 if some could not be read (they are named)."""
    parser = cli.Parser(prog="emjax.predict", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a run's workdir or its model/ folder")
    parser.add_argument("--out", required=True, type=Path, help="folder for the results")
    parser.add_argument("--index", type=int, help="which image, of files that hold several")
    parser.add_argument("--pixel_size", help="nm per pixel (or y,x), instead of what files say")
    parser.add_argument(
        "--memory_limit",
        type=float,
        default=4,
        help="GiB an image, and the network on it, may take",
    )
    parser.add_argument("inputs", nargs="+", metavar="FILE_OR_FOLDER")
    options = parser.parse_args(arguments)
    stated = pixel_size(options.pixel_size) if options.pixel_size else None
    if not options.memory_limit > 0:
        raise UsageError(f"--memory_limit={options.memory_limit}; more than 0 GiB were due")
    limit = int(options.memory_limit * 2**30)
    files = inputs(options.inputs, options.out)
    predictor = Predictor(options.model, limit)
    unread = 0
    for file in files:
        try:
            result, first = predicted(predictor, file, options.index, limit)
        except InputError as error:
            print(f"error: {file}: {error}".replace(f"{file}: {file}", str(file)), file=sys.stderr)
            unread += 1
            continue
        written = options.out / f"{file.stem}.tif"
        sizes, origin = (stated, "--pixel_size") if stated else first[1:]
        micrographs.write(written, result, sizes)
        note = f"{result.dtype}"
        if predictor.is_mask:
            mask = result if result.ndim == 2 else result[0]
            write_atomically(
                options.out / f"{file.stem}.overlay.png", png(overlay(first.image, mask))
            )
            note = f"{100 * np.mean(result > 0):.1f} % foreground"
        if np.isfinite(sizes).all():
            note += f", {' x '.join(f'{size:.6g}' for size in sizes)} nm per pixel ({origin})"
        print(f"{file} -> {written}  {' x '.join(map(str, result.shape))}, {note}")
    if unread:
        print(f"error: {unread} of {len(files)} inputs were not predicted", file=sys.stderr)
    return InputError.code if unread else 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
