"""The settings of a finetuning, by rules about its data and the device; each with its reason."""

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

from emjax.config import Config
from emjax.training.assemble import count_steps

EVALUATIONS = 8  # in a run
PATIENCE = 4  # evaluations without a better score
SPARSE = 0.05  # a share of foreground below which crops are aimed at it
SMALLEST = 64  # side of a patch, and the shortest side of an image that is used
WHOLE = 1024 * 1024  # pixels of an image up to which it is one record
PATCH = 512  # side of the patches of larger images, and of images of different sizes


class Data(NamedTuple):
    """What is known of the pairs of a finetuning."""

    shapes: Sequence[tuple[int, int]]  # of the images, h and w
    foreground: float | None  # mean share of the pixels of masks; None of other targets
    classes: int = 2


class Choice(NamedTuple):
    """A setting and why it has its value."""

    field: str  # of the config
    value: Any
    why: str


def patch_side(shapes: Sequence[tuple[int, int]]) -> int | None:
    """Return the side of the patches that images are cut into; None: they stay whole.

    They stay whole if they have one size, of at most a megapixel.
    """
    shortest = min(min(shape) for shape in shapes)
    if len({*shapes}) == 1 and shapes[0][0] * shapes[0][1] <= WHOLE:
        return None
    return min(PATCH, shortest // 16 * 16)


def choose(
    data: Data, *, platform: str, has_base: bool, steps: int | None, divisor: int, selects: bool
) -> list[Choice]:
    """Return the settings that depend on the data and the device.

    Args:
        platform: "cpu", or an accelerator.
        has_base: whether weights of the task's own kind are finetuned.
        steps: updates of the run, instead of the rule's.
        divisor: of the sides of images that the network accepts.
        selects: whether a validation score chooses the best network and stops the run.
    """
    accelerated = platform != "cpu"
    shortest = patch_side(data.shapes) or min(min(shape) for shape in data.shapes)
    largest = 448 if accelerated else 192
    crop = max(divisor, min(largest, shortest) // divisor * divisor)
    lr = 1e-3 if has_base else 2e-3
    choices = [
        Choice("data.batch_size", 16 if accelerated else 8, f"device: {platform}"),
        Choice("augment.crop", crop, f"at most {largest} on {platform}; shortest side {shortest}"),
        Choice(
            "optimizer.lr",
            lr,
            "weights of the same task" if has_base else "random weights, or of another task",
        ),
        Choice("optimizer.schedule", "cosine", "the last updates settle"),
        Choice("augment.turns", True, "micrographs have no up and down"),
        Choice("augment.resize", 1.25, "particles of other sizes"),
    ]
    if data.foreground is not None:
        sparse = data.foreground < SPARSE
        share = f"particles cover {100 * data.foreground:.2g} % of the pixels"
        choices += [
            Choice("segmentation.classes", data.classes, "of the masks, with the background"),
            Choice("segmentation.loss", "cross_entropy+dice", "masks"),
            Choice("augment.foreground_crops", 0.5 if sparse else 0.0, share),
            Choice("augment.noise_probability", 0.2, "noise of other micrographs"),
        ]
    else:
        choices.append(Choice("augment.gaussian", 0.0, "the images have their own noise"))
    if selects:
        choices.append(Choice("select", "best", "of the validation score"))
        choices.append(Choice("early_stopping", PATIENCE, "evaluations without a better score"))
    else:
        choices.append(Choice("select", "last", "no image is left to choose by"))
    why = "asked for" if steps else f"device: {platform}"
    return [*choices, Choice("steps", steps or updates(platform), f"{why}; in whole epochs")]


def updates(platform: str) -> int:
    """Return the updates of a run on a device."""
    return 400 if platform == "cpu" else 2000


def apply(config: Config, choices: Sequence[Choice], records: int) -> list[Choice]:
    """Set the fields of `config`; return `choices` with the updates that are made of "steps".

    A run has whole epochs of `records`, each of one pass at least, and EVALUATIONS.
    """
    fields: dict[str, Any] = {choice.field: choice.value for choice in choices}
    steps = fields.pop("steps")
    for field, value in fields.items():  # recipes may lack some
        *parts, last = field.split(".")
        functools.reduce(operator.getitem, parts, config)[last] = value
    wanted = max(1, steps // EVALUATIONS)
    config.passes_per_epoch = max(1, round(wanted * config.data.batch_size / records))
    config.epochs = 1
    config.epochs = max(1, math.ceil(steps / count_steps(config, records)[0]))
    total = count_steps(config, records)[1]
    config.eval_every = max(1, total // EVALUATIONS)
    return [c._replace(value=total) if c.field == "steps" else c for c in choices]
