"""Apply a trained model: python -m emjax.predict --model=DIR --out=DIR FILE_OR_FOLDER...

DIR/<name>.tif is a mask (uint8, 0 and 255) with DIR/<name>.overlay.png beside it, or the restored
micrograph in the values and number format of the input. Size and pixel size are the input's.
"""

import io
import sys
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from emjax import errors, micrographs, weights
from emjax.errors import BadInput, Usage
from emjax.tasks import TASKS

OUTLINE = (255, 64, 0)  # red, green, blue


class Predictor:
    """A model as a function of a micrograph of any height and width.

    Args:
        folder: a run's workdir or its model/.
    """

    def __init__(self, folder):
        module, self.config = weights.load(folder)
        if reason := self.config.get("only_to_start_from"):
            raise Usage(
                f"{folder}: not to be predicted with, {reason}; finetune it first, by "
                f"--config.initialise.workdir={folder}"
            )
        self.divisor = module.divisor
        self.task = TASKS[self.config["task"]] if self.config["task"] else None
        self.apply = jax.jit(lambda images: module(images, train=False))

    def __call__(self, image):
        """float32 [h, w] for `image` [h, w]: a probability, or grey values of the input.

        The intensity range is taken from this image by the rule the model was trained with.
        """
        intensity_range = micrographs.intensity_range([image], self.config["range_rule"])
        h, w = image.shape
        more = ((0, -h % self.divisor), (0, -w % self.divisor))
        clip = self.config.get("clip", True)  # converted networks saw values beyond the range
        scaled = micrographs.from_range(image, intensity_range, clip=clip)
        padded = np.pad(scaled, more, mode="reflect")
        output = self.apply(padded[None, :, :, None])
        if self.task:
            output = self.task.prediction(output)
        output = np.asarray(output)[0, :h, :w, 0]
        return output if self.task else micrographs.to_range(output, intensity_range)


def mask_of(probability):
    """uint8 [h, w]: 255 where the probability is above one half, else 0."""
    return np.where(probability > 0.5, 255, 0).astype(np.uint8)


def overlay(image, mask):
    """uint8 [h, w, 3]: the image in grey, the border of the mask in colour."""
    low, high = np.percentile(image, [0.1, 99.9])
    grey = np.clip((image - low) / max(high - low, 1e-9), 0, 1)
    picture = np.repeat(np.uint8(255 * grey)[..., None], 3, axis=2)
    inside = np.pad(mask > 0, 1, mode="edge")
    eroded = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    picture[(mask > 0) & ~eroded] = OUTLINE
    return picture


def png(picture):
    """The bytes of a PNG of uint8 [h, w, 3] or [h, w]."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


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
        files += micrographs.find(name) if name.is_dir() else [name]
    for file in files:
        other = stems.setdefault(file.stem, file)
        if other is not file:
            raise Usage(f"{other} and {file} would both become {out / file.stem}.tif")
        if file.resolve() == (out / f"{file.stem}.tif").resolve():
            raise Usage(f"{file} would be overwritten by its result; choose another --out")
    return files


def main(arguments):
    """Predict every input; returns 0, or 3 if some could not be read (they are named)."""
    parser = errors.Parser(prog="emjax.predict", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a run's workdir or its model/ folder")
    parser.add_argument("--out", required=True, type=Path, help="folder for the results")
    parser.add_argument("inputs", nargs="+", metavar="FILE_OR_FOLDER")
    options = parser.parse_args(arguments)
    files = inputs(options.inputs, options.out)
    predictor = Predictor(options.model)
    unread = 0
    for file in files:
        try:
            micrograph = micrographs.read(file)
            prediction = predictor(micrograph.image)
        except BadInput as error:
            print(f"error: {file}: {error}".replace(f"{file}: {file}", str(file)), file=sys.stderr)
            unread += 1
            continue
        written = options.out / f"{file.stem}.tif"
        if predictor.task:
            mask = mask_of(prediction)
            micrographs.write(written, mask, micrograph.nm_per_pixel)
            picture = png(overlay(micrograph.image, mask))
            weights.replace(options.out / f"{file.stem}.overlay.png", picture)
            note = f"{100 * np.mean(mask > 0):.1f} % foreground"
        else:
            result = in_format_of(micrograph.image, prediction)
            micrographs.write(written, result, micrograph.nm_per_pixel)
            note = f"{result.dtype}"
        print(f"{file} -> {written}  {' x '.join(map(str, prediction.shape))}, {note}")
    if unread:
        print(f"error: {unread} of {len(files)} inputs were not predicted", file=sys.stderr)
    return BadInput.code if unread else 0


if __name__ == "__main__":
    errors.run(main, sys.argv[1:])
