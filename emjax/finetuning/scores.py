"""Scores of images that did not train the network that predicts them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Real
from PIL import Image

from data_builders.micrographs import pairs
from data_builders.micrographs.listing import Source
from data_builders.micrographs.reading import ReadOptions
from emjax import pictures
from emjax.experiments.intervals import Interval, interval
from emjax.experiments.page import Picture
from emjax.inference.labels import label_particles
from emjax.inference.predictor import THRESHOLD, Predictor
from emjax.micrographs import Micrograph
from emjax.micrographs.intensity import Range

SIDE = 384  # pixels of a picture, at most


class Scored(NamedTuple):
    """An image that did not train the network that predicted it."""

    name: str
    score: float  # Dice, or L1 as a fraction of the input's range
    found: int | None  # particles of the prediction; None where it is no mask
    drawn: int | None  # particles of the labels
    row: Sequence[Picture]


class Truth(NamedTuple):
    """A plane and what is true of it."""

    micrograph: Micrograph
    target: Real[np.ndarray, "h w"]  # the mask, 0 and 1 or numbers of classes; the restored image
    numbers: int  # different values in the mask as stored, but 0: particles of label images


def dice(predicted: Real[np.ndarray, "h w"], truth: Real[np.ndarray, "h w"]) -> float:
    """Return the Dice coefficient, the mean over the classes but 0 that either one has; or 1."""
    classes = np.union1d(np.unique(predicted), np.unique(truth))
    values = []
    for number in classes[classes > 0]:
        ours, theirs = predicted == number, truth == number
        values.append(2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()))
    return float(np.mean(values)) if values else 1.0


def agreement(
    model: Predictor, micrograph: Micrograph, mask: Real[np.ndarray, "h w"]
) -> float | None:
    """Return the correlation, from -1 to 1, of a mask with what `model` predicts; None of one kind.

    Source: the phi coefficient (K. Pearson 1900), also named after Matthews.
    """
    values = model.intensity_range([micrograph.image])
    predicted, drawn = prediction(model, micrograph, values) > 0, mask > 0
    if predicted.all() or drawn.all() or not (predicted.any() and drawn.any()):
        return None
    return float(np.corrcoef(predicted.ravel(), drawn.ravel())[0, 1])


def prediction(model: Predictor, micrograph: Micrograph, values: Range) -> np.ndarray:
    """Return what `model` makes of a plane, [h, w]: 0 and 1, numbers of classes, or grey values.

    Args:
        values: the intensity range in which it is seen.
    """
    output = model(
        micrograph.image, values, model.scale(micrograph.nm_per_pixel, micrograph.image.shape)
    )
    if not model.is_mask:
        return output
    return (output > THRESHOLD if model.classes == 2 else output.argmax(-1)).astype(np.uint8)


def score(model: Predictor, name: str, planes: Callable[[], Iterable[Truth]]) -> Scored:
    """Return the score of what `model` makes of a file that did not train it.

    Its planes have one intensity range, as `emjax predict` gives them; the score is their mean.

    Args:
        planes: yields them, at each call from the first on.
    """
    values, found, drawn, row = [], 0, 0, []
    intensity_range = model.intensity_range(plane.micrograph.image for plane in planes())
    low, high = intensity_range
    for micrograph, truth, numbers in planes():
        image, predicted = micrograph.image, prediction(model, micrograph, intensity_range)
        if model.is_mask:
            values.append(dice(predicted, truth))
            found += int(label_particles(predicted.astype(np.uint8)).max())
            drawn += max(numbers, int(label_particles(truth.astype(np.uint8)).max()))
        else:
            difference = np.abs(predicted - truth.astype(np.float32))
            values.append(float(difference.mean()) / (high - low))
        if not row:
            shown = [truth, predicted]
            if model.is_mask:
                shown = [pictures.overlay(image, mask) for mask in shown]
            kind = "Dice" if model.is_mask else "L1"
            captions = ("labels" if model.is_mask else "target", f"{kind} {values[0]:.4f}")
            row = [picture(image, name), *map(picture, shown, captions)]
    counts = (found, drawn) if model.is_mask else (None, None)
    return Scored(name, float(np.mean(values)), *counts, row)


def picture(image: np.ndarray, caption: str) -> Picture:
    """Return an image, grey or in colours, as a Picture of at most SIDE pixels per side."""
    small = Image.fromarray(image if image.ndim == 3 else pictures.stretched(image))
    small.thumbnail((SIDE, SIDE))
    return Picture(pictures.png(np.asarray(small)), caption)


def interval_of(scores: Sequence[Scored]) -> Interval:
    """Return the mean score with its 95 % interval over images."""
    return interval([[each.score for each in scores]])


def open_model(folder: str | Path) -> Predictor:
    """Return the model of a folder, on the engine that every machine has."""
    return Predictor(folder, engine="jax")


def scored(folder: str | Path, held: Sequence[Source], options: ReadOptions) -> list[Scored]:
    """Return the scores of `held` by the model of `folder`; of stacks, means over their planes."""
    if not held:
        return []
    model = open_model(folder)

    def planes_of(source: Source) -> Iterator[Truth]:
        for plane in pairs.read(source, options):
            is_chosen = options.foreground or options.classes
            stored = plane.found.values if plane.found and not is_chosen else ()
            numbers = sum(map(any, stored))
            yield Truth(plane.micrograph, plane.target, numbers)

    return [score(model, each.name, lambda e=each: planes_of(e)) for each in held]
