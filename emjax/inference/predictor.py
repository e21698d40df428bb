"""A trained model as a function of a micrograph of any height and width."""

import functools
import math

import jax
import numpy as np

from emjax import micrographs
from emjax.errors import UsageError, note
from emjax.inference import tiles
from emjax.micrographs.units import amount
from emjax.models import cost, saved
from emjax.parallel import devices
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
        self.seen_whole = needs_whole_image(self.config["model"])

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


def needs_whole_image(model):
    """Why an output of a config's `model` depends on the whole image; empty if it does not."""
    if (norm := model.get("norm")) in ("instance", "group"):
        return f"norm={norm} takes statistics over the whole image"
    if model.get("upsampling") == "bilinear_corners":
        return "upsampling=bilinear_corners stretches with the size of the image"
    return ""


def mask_of(probability):
    """uint8 [h, w]: 255 where the probability is above one half, else 0."""
    return np.where(probability > 0.5, 255, 0).astype(np.uint8)


def to_dtype_of(image, values):
    """`values` in the number format of `image`, rounded and cut off where they do not fit."""
    if image.dtype.kind == "f":
        return values.astype(image.dtype)
    limits = np.iinfo(image.dtype)
    return np.clip(np.rint(values), limits.min, limits.max).astype(image.dtype)


def predict_file(predictor, file, index, limit):
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
        results.append(mask_of(output) if predictor.is_mask else to_dtype_of(plane.image, output))
    return results[0] if len(results) == 1 else np.stack(results), first
