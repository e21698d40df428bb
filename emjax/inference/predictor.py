"""A trained model as a function of a micrograph of any height and width."""

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, UInt8

from emjax import micrographs
from emjax.errors import InputError, UsageError, note
from emjax.inference import tiles
from emjax.micrographs import Micrograph, banner
from emjax.micrographs.reading import Grey
from emjax.micrographs.units import AnyPixelSize, amount, pixel_size
from emjax.micrographs.writers import Planes
from emjax.models import cost, saved
from emjax.parallel import devices
from emjax.tasks import TASKS

DTYPES = ("uint8", "uint16", "float32")

Mask = UInt8[np.ndarray, "h w"]
Range = tuple[float, float]  # the grey values that become -1 and 1


def load_model(folder: str | Path, memory: int = micrographs.LIMIT) -> "Predictor":
    """Return the trained model in `folder`, ready for `model.predict(image)`.

    Args:
        folder: the workdir of a run, its model/, or a folder that `emjax.convert` wrote.
        memory: bytes that the network may take for an image, if it runs on the CPU; larger images
            are predicted in tiles. A GPU or TPU gives half of its own memory instead.

    Raises: InputError if there is no readable model; UsageError if it cannot predict yet.
    """
    return Predictor(folder, memory)


class Predictor:
    """A trained model as a function of a micrograph of any height and width.

    Several threads may use one Predictor at once.

    Attributes:
        config: what the model's config.json says.
        is_mask: whether the model segments; if not, it restores micrographs.
        memory_for_whole: the `memory` that would have avoided all approximate predictions so far,
            in bytes; 0 if there was none.

    Args:
        folder, memory: as `load_model` takes them.
    """

    def __init__(self, folder: str | Path, memory: int = micrographs.LIMIT) -> None:
        module, self.config = saved.load(folder)
        if reason := self.config.get("only_to_start_from"):
            raise UsageError(
                f"{folder}: this model cannot predict, {reason}; finetune it first, from "
                f"initialise.workdir={folder}"
            )
        task = TASKS[self.config["task"]] if self.config["task"] else None
        self.is_mask = task is not None and task.is_mask
        self.divisor = module.divisor
        self.margin = tiles.margin(module)
        self.device_memory = devices.memory().get("bytes_limit", 0)
        self.memory = self.device_memory // 2 or memory
        self.memory_for_whole = 0
        self.whole_image_reason = needs_whole_image(self.config["model"])

        def forward(images: jax.Array) -> jax.Array:
            output = module(images, train=False)
            return task.prediction(output) if task else output[..., :1]

        self.forward, self.apply = forward, jax.jit(forward)

    def intensity_range(self, images: Iterable[Grey]) -> Range:
        """Return the (low, high) of all `images`, by the rule that the model was trained with.

        Raises: NoRange, an InputError, if there is no image or (nearly) all pixels are the same.
        """
        return micrographs.intensity_range(images, self.config["range_rule"])

    def predict(
        self,
        image: Grey,
        nm_per_pixel: AnyPixelSize = None,
        *,
        intensity_range: Range | None = None,
    ) -> Float32[np.ndarray, "h w"]:
        """Return float32 [h, w] for `image`: probabilities, or grey values as in the input.

        Args:
            image: uint8, uint16 or float32 [h, w] of finite values, of any height and width.
            nm_per_pixel: one number or (y, x). It is checked but does not change the result: today
                no network takes the pixel size into account, so an image whose pixels are much
                larger or smaller than those of the training data is better resampled first.
            intensity_range: the (low, high) that become -1 and 1; by default that of this image.
                Give all planes of a stack one range: `model.intensity_range(stack.image)`.

        Raises: InputError for another shape, dtype or non-finite values, or if all pixels are the
            same; UsageError for a pixel size that is not positive.
        """
        check_image(image)
        if nm_per_pixel is not None:
            pixel_size(nm_per_pixel)
        return self(image, intensity_range)

    def mask(self, image: Grey, *, intensity_range: Range | None = None) -> Mask:
        """Return uint8 [h, w] for `image`: 255 where a particle is more likely than not, else 0.

        Args:
            image, intensity_range: as `predict` takes them.

        Raises: UsageError if the model restores images; else as `predict` does.
        """
        if not self.is_mask:
            raise UsageError(
                f"expected a model of the task segmentation, got one that restores images (task "
                f"{self.config['task']}); use predict"
            )
        return mask_of(self.predict(image, intensity_range=intensity_range))

    def __call__(
        self, image: Grey, intensity_range: Range | None = None
    ) -> Float32[np.ndarray, "h w"]:
        """Return what `predict` returns, without a check: for what `micrographs.read` returns."""
        intensity_range = intensity_range or self.intensity_range([image])
        h, w = image.shape
        padding = ((0, -h % self.divisor), (0, -w % self.divisor))
        clip = self.config.get("clip", True)  # converted networks saw values beyond the range
        scaled = micrographs.from_range(image, intensity_range, clip=clip)
        padded = np.pad(scaled, padding, mode="reflect")
        largest, margin = self.tiling(*padded.shape)
        output = tiles.apply(
            self.apply, padded, largest=largest, margin=margin, divisor=self.divisor
        )[:h, :w]
        return output if self.is_mask else micrographs.to_range(output, intensity_range)

    @functools.cached_property
    def bytes_per_pixel(self) -> int:
        """Memory that the network takes per pixel of an image, roughly."""
        return cost.bytes_per_pixel(self.forward, self.divisor)

    def tiling(self, h: int, w: int) -> tuple[int, int]:
        """Return (largest side of a tile, margin) for an image of h x w, multiples of the divisor.

        Logs a warning if the tiles will not have the values of the whole image.
        """
        side = math.isqrt(self.memory // self.bytes_per_pixel) // self.divisor * self.divisor
        if not self.whole_image_reason and side >= 4 * self.margin:
            return min(side, tiles.largest_side(self.margin, self.divisor)), self.margin
        needed = h * w * self.bytes_per_pixel
        if needed <= self.memory:
            return max(h, w), self.margin
        largest = max(side, 2 * self.divisor)
        margin = min(self.margin, largest // 4)
        reason = self.whole_image_reason or f"an output depends on pixels {self.margin} away"
        if self.device_memory:
            available = f"half of the device's memory is {amount(self.memory)}"
        else:
            available = f"{amount(self.memory)} may be used"
            self.memory_for_whole = max(needed, self.memory_for_whole)
        note(
            f"{h} x {w} pixels",
            f"predicted in tiles of {largest} with margins of {margin}, which is approximate: "
            f"{reason}, and the whole image takes about {amount(needed)}; {available}",
        )
        return largest, margin


def check_image(image: Any) -> None:
    """Raise InputError unless `image` is uint8, uint16 or float32 [h, w] of finite values."""
    expected = f"expected one image [h, w] of {DTYPES[0]}, {DTYPES[1]} or {DTYPES[2]}"
    if not isinstance(image, np.ndarray):
        advice = "its .image" if isinstance(image, Micrograph) else "numpy.asarray of it"
        raise InputError(f"{expected}, got a {type(image).__name__}; pass {advice}")
    if image.dtype not in DTYPES:
        raise InputError(f"{expected}, got {image.dtype}; convert it, e.g. by astype('float32')")
    if image.ndim != 2 or not image.size:
        advice = "pass the planes of a stack one by one" if image.ndim == 3 else "reshape it"
        raise InputError(f"{expected}, got the shape {image.shape}; {advice}")
    if image.dtype != np.float32:
        return
    with np.errstate(invalid="ignore"):
        extremes = image.min(), image.max()  # not finite if any value is not
    if not np.isfinite(extremes).all():
        bad = image.size - int(np.isfinite(image).sum())
        raise InputError(
            f"expected finite values, got NaN or infinity in {bad} of {image.size} pixels; "
            "replace them"
        )


def needs_whole_image(model: Mapping[str, Any]) -> str:
    """Return why outputs of a config's `model` depend on the whole image; empty if they do not."""
    if (norm := model.get("norm")) in ("instance", "group"):
        return f"norm={norm} takes statistics over the whole image"
    if model.get("upsampling") == "bilinear_corners":
        return "upsampling=bilinear_corners stretches with the size of the image"
    return ""


def mask_of(probability: Float32[np.ndarray, "h w"]) -> Mask:
    """Return uint8 [h, w]: 255 where the probability is above one half, else 0."""
    return np.where(probability > 0.5, 255, 0).astype(np.uint8)


def to_dtype_of(image: Grey, values: Float32[np.ndarray, "h w"]) -> Grey:
    """Return `values` in the dtype of `image`, rounded and clipped where they do not fit."""
    if image.dtype.kind == "f":
        return values.astype(image.dtype)
    limits = np.iinfo(image.dtype)
    return np.clip(np.rint(values), limits.min, limits.max).astype(image.dtype)


def predict_file(
    predictor: Predictor,
    file: str | Path,
    index: int | None = None,
    limit: int = micrographs.LIMIT,
    mrc_rows: str | None = None,
    channel: str | None = None,
    *,
    cut_banner: bool = False,
) -> tuple[Planes, Micrograph]:
    """Return (the result for `file`, its first plane as read).

    The result is [h, w] or [planes, h, w]: a mask, uint8, or images in the dtype of the input.
    A stack has one intensity range; it is read twice, so that it is never held as a whole.

    Args:
        index, limit, mrc_rows, channel: as `micrographs.planes` takes them.
        cut_banner: leave out banners, borders and scale bars: there the mask is empty, and a
            restored micrograph is as it was. Otherwise a note names them.

    Raises: InputError as `micrographs.planes` does; NoRange if all pixels are the same.
    """
    areas: list[banner.Area] = []  # of all planes, that of the first

    def planes() -> Iterator[Micrograph]:
        return micrographs.planes(file, index, limit, mrc_rows=mrc_rows, channel=channel)

    def part(plane: Micrograph) -> Grey:
        if not areas:
            areas.append(banner.picture(plane.image))
        return plane.image[areas[0]] if cut_banner else plane.image

    def result(plane: Micrograph) -> Grey:
        image = part(plane)
        output = predictor(image, values)
        output = mask_of(output) if predictor.is_mask else to_dtype_of(image, output)
        if not cut_banner:
            return output
        whole = np.zeros_like(plane.image, np.uint8) if predictor.is_mask else plane.image.copy()
        whole[areas[0]] = output
        return whole

    values = predictor.intensity_range(map(part, planes()))
    stack = planes()
    first = next(stack)
    drawn = banner.described(first.image.shape, areas[0])
    if drawn and not cut_banner:
        note(file, f"a banner, border or scale bar is in {drawn}; --cut_banner leaves it out")
    results = [result(first), *map(result, stack)]
    return results[0] if len(results) == 1 else np.stack(results), first
