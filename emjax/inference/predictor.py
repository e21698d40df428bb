"""A trained model as a function of a micrograph of any height and width."""

import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from emjax import micrographs
from emjax.errors import InputError, UsageError, choose, note
from emjax.inference import tiles, training_data
from emjax.inference.engines import ENGINES, default_engine, default_onnx_engine
from emjax.inference.network import Network, classes_of, from_folder, needs_whole_image
from emjax.inference.training_data import Levels, Watch
from emjax.micrographs import Micrograph, banner
from emjax.micrographs.intensity import is_range
from emjax.micrographs.reading import Grey
from emjax.micrographs.resampling import resample
from emjax.micrographs.units import UNKNOWN, AnyPixelSize, PixelSize, amount, pixel_size
from emjax.micrographs.writers import Planes

DTYPES = ("uint8", "uint16", "float32")
RESAMPLING = 26  # bytes for each pixel that the network sees resampled
SMALLEST = 16  # pixels per side that are left, at least, where an image is to have fewer
MAX_MAGNIFICATION = 8.0  # times; beyond it, particles that small are hardly seen
SAME = (1.0, 1.0)
WHOLE = 8  # shapes of tiles that have a program each
THRESHOLD = 0.5  # the probability above which a pixel is part of a particle

Mask = UInt8[np.ndarray, "h w"]
Outputs = dict[str, Planes]  # by kind, as predict_planes returns them
Scale = tuple[float, float]  # pixels per length (y, x), in those of the image
Range = tuple[float, float]  # the grey values that become -1 and 1


class Predictor:
    """A trained model as a function of a micrograph of any height and width.

    Several threads may use one Predictor at once.

    Attributes:
        config: what the model's config.json says.
        is_mask: whether the model segments; if not, it restores micrographs.
        classes: how many it tells apart, the background among them; 0 if it restores.
        engine: what runs the network, one of ENGINES.
        memory_for_whole: the `memory` that would have avoided all approximate predictions so far,
            in bytes; 0 if there was none.

    Args:
        folder, memory, engine: as `emjax.load_model` takes them.
    """

    def __init__(
        self, folder: str | Path, memory: int = micrographs.LIMIT, engine: str | None = None
    ) -> None:
        self.folder, self.limit = folder, memory
        self.network = open_network(folder, engine)
        self.config, self.engine = self.network.config, self.network.engine
        self.classes = classes_of(self.config)
        self.is_mask = self.classes > 0
        self.divisor, self.margin = self.network.divisor, self.network.margin
        self.device_memory, self.in_flight = 0, 1  # of engines that run on the CPU
        if self.engine == "jax":
            from emjax.parallel import devices  # which loads JAX

            self.device_memory = devices.memory().get("bytes_limit", 0)
            self.in_flight = devices.in_flight()
        self.memory = self.device_memory // 2 or memory
        self.memory_for_whole = 0
        self.whole_image_reason = needs_whole_image(self.config["model"])
        self.shapes: set[tuple[int, ...]] = set()  # of tiles, which have programs of their own
        self.apply = self.network.apply

    def check_finds_particles(self, name: object) -> None:
        """Raise UsageError, with the model's `name`, unless it tells particles from background."""
        if not self.is_mask:
            raise UsageError(
                f"{name}: expected a model that segments, got one that restores images "
                f"(task {self.config['task']})"
            )
        if self.classes > 2:
            raise UsageError(
                f"{name}: expected a model of particles and background, got one of "
                f"{self.classes} classes; predict, then measure --masks --foreground=CLASS"
            )

    def intensity_range(self, images: Iterable[Grey]) -> Range:
        """Return the (low, high) of all `images`, by the rule that the model was trained with.

        A model that segments gives a field that is hardly more than noise, because it has no
        particle or few, the range in which its noise is that of the background in training.

        Raises: NoRange, an InputError, if there is no image or (nearly) all pixels are the same.
        """
        return self.range_and_levels(images)[0]

    def range_and_levels(
        self, images: Iterable[Grey], given: Range | None = None
    ) -> tuple[Range, Levels, str]:
        """Return the range of all `images`, their grey levels, and a remark on the range or "".

        Args:
            given: the range, instead of their `intensity_range`.
        """
        watch, rule = Watch(), self.config["range_rule"]
        if given:
            for _ in watch.over(images):
                pass
            return given, watch.levels(), ""
        values = micrographs.intensity_range(watch.over(images), rule)
        levels, facts = watch.levels(), self.config.get("intensity")
        if rule == "fixed":
            return values, levels, training_data.fixed_remark(values, levels)
        if not facts:
            return values, levels, ""
        wider = training_data.sparse_range(facts, values, levels)
        if wider is None:
            return values, levels, ""
        return wider, levels, training_data.sparse_remark(values, wider)

    def scale(self, nm_per_pixel: PixelSize, shape: tuple[int, ...]) -> Scale:
        """Return how many times as many pixels per length (y, x) the network is to see.

        That is 1 where an image has the pixel size of the training images, or none that is known;
        else what brings it to the nearest one of them, if it is then held in memory and SMALLEST
        pixels of each side are left. Only models that segment see images at another scale than
        their own.

        Args:
            shape: h, w of the image.
        """
        factors = training_data.resampling(self.config.get("nm_per_pixel"), nm_per_pixel)
        needed = math.prod((*shape, *factors)) * RESAMPLING
        left = min(side * factor for side, factor in zip(shape, factors, strict=True))
        is_left = left >= SMALLEST or min(factors) >= 1
        fits = max(factors) <= MAX_MAGNIFICATION and needed <= self.limit and is_left
        return factors if self.is_mask and fits else SAME

    def remarks(
        self, values: Range, levels: Levels, nm_per_pixel: PixelSize = UNKNOWN
    ) -> Iterator[tuple[str, str]]:
        """Yield (kind, words) for each way in which an input is far from the training images.

        Args:
            values: the intensity range in which it is seen.
            nm_per_pixel: as the network sees it.
        """
        if remark := training_data.pixel_size_remark(self.config.get("nm_per_pixel"), nm_per_pixel):
            yield "pixels of another size than in the training images", remark
        if facts := self.config.get("intensity"):
            yield from training_data.remarks(facts, values, levels)

    def predict(
        self,
        image: Grey,
        nm_per_pixel: AnyPixelSize = None,
        *,
        intensity_range: Range | None = None,
    ) -> tiles.Output:
        """Return float32 [h, w] for `image`: probabilities, or grey values as in the input.

        A model of more than two classes returns [h, w, classes], the probability of each; class 0
        is the background.

        Args:
            image: uint8, uint16 or float32 [h, w] of finite values, of any height and width.
            nm_per_pixel: one number or (y, x). If it is far from those of the training images, a
                model that segments sees the image at the nearest of them, and the result is brought
                back; one that restores images says so in a note.
            intensity_range: the (low, high) that become -1 and 1; by default that of this image.
                Give all planes of a stack, or all parts of an image, one range:
                `model.intensity_range(stack.image)`.

        Raises: InputError for another shape, dtype or non-finite values, if all pixels are the
            same, or if a model that sees fixed values sees hardly any of these; UsageError for a
            pixel size that is not positive, or a range that is none.
        """
        check_image(image)
        if intensity_range and not is_range(*intensity_range):
            raise UsageError(
                f"intensity_range={intensity_range}: expected (low, high), two grey values that "
                "differ in 32 bits, the lower one first"
            )
        sizes = pixel_size(nm_per_pixel)
        scale = self.scale(sizes, image.shape)
        sizes = training_data.scaled(sizes, scale)
        values, levels, remark = self.range_and_levels([image], intensity_range)
        for text in (remark, *(words for _, words in self.remarks(values, levels, sizes))):
            if text:
                note("the image", text)
        return self(image, values, scale)

    def mask(
        self,
        image: Grey,
        nm_per_pixel: AnyPixelSize = None,
        *,
        intensity_range: Range | None = None,
        threshold: float = THRESHOLD,
    ) -> Mask:
        """Return uint8 [h, w] for `image`: 255 where a particle is more likely than not, else 0.

        A model of more than two classes returns the number of the most likely one, from 0 on.

        Args:
            image, nm_per_pixel, intensity_range: as `predict` takes them.
            threshold: the probability above which a pixel is part of a particle.

        Raises: UsageError if the model restores images, for a threshold of more than two classes,
            or one that is no probability; else as `predict` does.
        """
        if not self.is_mask:
            raise UsageError(
                f"expected a model of the task segmentation, got one that restores images (task "
                f"{self.config['task']}); use predict"
            )
        if self.classes > 2 and threshold != THRESHOLD:
            raise UsageError(
                f"threshold={threshold}: the model has {self.classes} classes, of which the most "
                "likely one is taken, expected two; leave it out"
            )
        if not 0 < threshold < 1:
            raise UsageError(f"threshold={threshold}: expected a probability between 0 and 1")
        output = self.predict(image, nm_per_pixel, intensity_range=intensity_range)
        return mask_of(output, threshold)

    def __call__(
        self, image: Grey, intensity_range: Range | None = None, scale: Scale = SAME
    ) -> tiles.Output:
        """Return what `predict` returns, without a check: for what `micrographs.read` returns.

        Args:
            scale: times as many pixels per length (y, x) as the image has, for the network.
        """
        intensity_range = intensity_range or self.intensity_range([image])
        if scale != SAME:
            return resampled(lambda image: self(image, intensity_range), image, scale)
        h, w = image.shape
        padding = ((0, -h % self.divisor), (0, -w % self.divisor))
        padded = np.pad(image, padding, mode="reflect") if np.any(padding) else image
        largest, margin = self.tiling(*padded.shape)
        geometry = dict(largest=largest, margin=margin, divisor=self.divisor)
        compiles = self.engine == "jax"  # for each shape
        square = self.square_tile(padded.shape, **geometry) if compiles else None
        clip = self.config.get("clip", True)  # converted networks saw values beyond the range

        def predict(tile: tiles.Batch) -> Any:
            return self.apply(micrographs.from_range(tile, intensity_range, clip=clip))

        ahead = self.in_flight
        output = tiles.apply(predict, padded, **geometry, square=square, in_flight=ahead)[:h, :w]
        return output if self.is_mask else micrographs.to_range(output, intensity_range)

    def spread(
        self,
        image: Grey,
        intensity_range: Range,
        scale: Scale = SAME,
        untouched: tiles.Output | None = None,
    ) -> Float32[np.ndarray, "h w"]:
        """Return the standard deviation of what `self` returns for the eight flips and turns.

        Each is turned back into place. A network that knew the answer would give the same eight
        times; where it does not, it guesses. Of a model of several classes, that of the class where
        it is largest.

        Args:
            untouched: what `self` returns for the image, if that is known.
        """
        outputs: list[np.ndarray] = [] if untouched is None else [untouched]
        for flipped in (False, True):
            for turns in range(4):
                if untouched is not None and not (flipped or turns):
                    continue
                seen = np.rot90(image[:, ::-1] if flipped else image, turns)
                turned = scale if turns % 2 == 0 else (scale[1], scale[0])
                output = self(np.ascontiguousarray(seen), intensity_range, turned)
                output = np.rot90(output, -turns)
                outputs.append(output[:, ::-1] if flipped else output)
        deviation = np.std(np.stack(outputs), axis=0, dtype=np.float64).astype(np.float32)
        return deviation if deviation.ndim == 2 else deviation.max(axis=-1)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of all that determines the predictions, in hexadecimal digits."""
        return self.network.digest()

    @functools.cached_property
    def bytes_per_pixel(self) -> int:
        """Memory that the network takes per pixel of an image, roughly."""
        return self.network.bytes_per_pixel()

    def square_tile(
        self, shape: tuple[int, ...], *, largest: int, margin: int, divisor: int
    ) -> int | None:
        """Return the side of the square tiles for an image of `shape`; None for tiles of any shape.

        Each shape of a tile is compiled, and its program kept. The first WHOLE shapes are as they
        come; further images get square tiles of few sides, which have the values of the whole image
        too. Where there are none that do, all programs are dropped.
        """
        tile = tuple(tiles.split_axis(side, largest, margin, divisor)[0] for side in shape)
        if tile in self.shapes:
            return None
        if len(self.shapes) >= WHOLE:
            exact = margin == self.margin and not self.whole_image_reason
            if exact and (square := tiles.square(shape, largest, margin, divisor)):
                return square
            self.network.forget()
            self.shapes.clear()
        self.shapes.add(tile)
        return None

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


def resampled(predict: Callable[[Grey], tiles.Output], image: Grey, scale: Scale) -> tiles.Output:
    """Return what `predict` returns for `image` at another `scale`, in the pixels of `image`."""
    h, w = image.shape
    # Beyond the last row and column the image goes on, so that the new pixels cover all of it.
    padding = [(0, math.ceil(1 / factor) + 1) for factor in scale]
    seen = resample(np.pad(image.astype(np.float32), padding, mode="edge"), scale)
    back = 1 / scale[0], 1 / scale[1]
    output = predict(seen)
    if output.ndim == 2:
        return resample(output, back)[:h, :w]
    return np.stack([resample(each, back)[:h, :w] for each in np.moveaxis(output, -1, 0)], -1)


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


def open_network(model: str | Path, engine: str | None = None) -> Network:
    """Return the network of a folder, of a model that comes with the package, or of an export.

    Raises: InputError, UsageError as `emjax.load_model`.
    """
    if engine is not None:
        choose("engine", engine, dict.fromkeys(ENGINES))
    suffix = "" if str(model).startswith("hf:") else Path(model).suffix.lower()
    if suffix not in (".stablehlo", ".onnx") or Path(model).is_dir():
        engine = engine or default_engine()
        if engine == "jax":
            return from_folder(model)
        from emjax.interchange import onnx

        return onnx.in_engine(model, engine)
    possible = ["jax"] if suffix == ".stablehlo" else ENGINES[1:]
    if engine is not None and engine not in possible:
        raise UsageError(
            f"engine={engine}: {model} runs in {' or '.join(possible)}; leave the engine out, or "
            "give the folder of the model"
        )
    if suffix == ".onnx":
        from emjax.interchange import onnx

        return onnx.read(Path(model), engine or default_onnx_engine())
    from emjax.interchange import stablehlo

    return stablehlo.read(Path(model))


def mask_of(probability: tiles.Output, threshold: float = THRESHOLD) -> Mask:
    """Return uint8 [h, w]: 255 where the probability is above the threshold, else 0.

    Of [h, w, classes], the number of the most likely class.
    """
    if probability.ndim == 3:
        return probability.argmax(-1).astype(np.uint8)
    return np.uint8(255) * (probability > threshold)


def as_grey(image: Planes) -> Grey:
    """Return `image` in a number format of DTYPES, as `micrographs.read` does."""
    return image if image.dtype in DTYPES else image.astype(np.float32)


def to_dtype_of(image: Planes, values: Float32[np.ndarray, "h w"]) -> Planes:
    """Return `values` in the dtype of `image`, rounded and clipped where they do not fit."""
    if image.dtype.kind == "f":
        return values.astype(image.dtype)
    limits = np.iinfo(image.dtype)  # float32 has not those of 32 bits
    return np.clip(np.rint(values.astype(np.float64)), limits.min, limits.max).astype(image.dtype)


def probabilities(output: tiles.Output) -> Outputs:
    """Return {"probability": [h, w]}, or of [h, w, classes] one for each class but 0."""
    if output.ndim == 2:
        return {"probability": output}
    return {f"probability_{k}": output[..., k] for k in range(1, output.shape[-1])}


class Survey(NamedTuple):
    """What reading a file once has shown."""

    intensity_range: Range
    levels: Levels
    remark: str  # on how its range was found; mostly empty
    first: Micrograph  # its first plane, with the pixel size
    digest: str  # SHA-256 of its pixels and their size, in hexadecimal digits
    picture: banner.Area  # what is no banner, border or scale bar, of all planes that of the first


def survey(
    predictor: Predictor,
    planes: Iterable[Micrograph],
    *,
    cut_banner: bool = False,
    intensity_range: Range | None = None,
) -> Survey:
    """Return the Survey of an image or stack, with one intensity range for all its planes.

    Args:
        planes: as `micrographs.planes` yields them, also with `whole_numbers`.
        cut_banner: leave banners, borders and scale bars out of the range.
        intensity_range: the range, if it is known.

    Raises: NoRange if all pixels are the same.
    """
    first: list[Micrograph] = []
    pictures: list[banner.Area] = []
    total = hashlib.sha256()

    def images() -> Iterator[Grey]:
        for plane in planes:
            stored, *facts = plane
            image = as_grey(stored)
            if not first:
                first.append(plane._replace(image=image))
                pictures.append(banner.picture(image))
            total.update(f"{stored.dtype.name} {image.shape} {facts} ".encode())
            total.update(np.ascontiguousarray(stored).data)
            yield image[pictures[0]] if cut_banner else image

    found = predictor.range_and_levels(images(), intensity_range)
    return Survey(*found, first[0], total.hexdigest(), pictures[0])


def predict_planes(
    predictor: Predictor,
    planes: Iterable[Micrograph],
    *,
    intensity_range: Range,
    picture: banner.Area | None = None,
    scale: Scale = SAME,
    threshold: float = THRESHOLD,
    with_probability: bool = False,
    with_spread: bool = False,
    watch: Callable[[Grey, tiles.Output], None] | None = None,
) -> Outputs:
    """Return what an image or stack becomes, by kind: [h, w] or [planes, h, w].

    That is "mask", uint8, and if asked for "probability", float32, of several classes
    "probability_1" and so on; or "restored", images in the dtype of the input. With `with_spread`
    also "spread", float32, as `Predictor.spread` returns it.

    Args:
        planes: as `micrographs.planes` yields them, also with `whole_numbers`, so that a stack is
            never held as a whole.
        intensity_range: the (low, high) of all planes.
        picture: the part to predict, the whole by default; elsewhere a mask is empty and a
            probability 0, and a restored micrograph is as it was.
        scale: as `Predictor` takes it.
        watch: is called with what is predicted of each plane, and what it becomes.
        threshold: as `Predictor.mask` takes it.
    """
    results: dict[str, list[Planes]] = {}
    for plane in planes:
        image = plane.image if picture is None else plane.image[picture]
        output = predictor(as_grey(image), intensity_range, scale)
        if watch:
            watch(as_grey(image), output)
        if predictor.is_mask:
            found = {"mask": mask_of(output, threshold)}
            found |= probabilities(output) if with_probability else {}
        else:
            found = {"restored": to_dtype_of(image, output)}
        if with_spread:
            found["spread"] = predictor.spread(as_grey(image), intensity_range, scale, output)
        for kind, result in found.items():
            if picture is not None:
                untouched = plane.image.copy()
                whole = untouched if kind == "restored" else np.zeros_like(untouched, result.dtype)
                whole[picture] = result
                result = whole
            results.setdefault(kind, []).append(result)
    return {kind: each[0] if len(each) == 1 else np.stack(each) for kind, each in results.items()}
