"""Particles or not, pixel by pixel: cross-entropy or Dice as loss, scored by Dice."""

from functools import partial
from typing import Any

import jax
from jaxtyping import Array, Float

from emjax import metrics
from emjax.metrics import losses
from emjax.tasks.task import Task


def logit(output: Float[Array, "b h w c"]) -> Float[Array, "b h w 1"]:
    """Return the output of one channel, or the difference of two, particle minus background.

    The softmax over two channels is the sigmoid of their difference.
    """
    return output if output.shape[-1] == 1 else output[..., 1:] - output[..., :1]


def total_loss(
    output: Array, target: Array, *, terms: str, foreground_weight: float | int
) -> Array:
    """Return the sum of the `terms`, of "cross_entropy", "dice" or "cross_entropy+dice"."""
    if terms == "dice":
        return losses.soft_dice(probability=prediction(output), target=target)
    entropy = losses.binary_cross_entropy(
        logits=logit(output), target=target, foreground_weight=foreground_weight
    )
    if terms == "cross_entropy":
        return entropy
    return entropy + losses.soft_dice(probability=prediction(output), target=target)


def prediction(output: Array) -> Array:
    """Return the probability of a particle, [b, h, w, 1]."""
    return jax.nn.sigmoid(logit(output))


def scores(output: Array, target: Array, valid: Array) -> dict[str, Any]:
    """Return {name: value per image, or (value, whether it applies)}."""
    arrays = dict(logits=logit(output), target=target, valid=valid)
    return {
        "dice": metrics.hard_dice(**arrays),
        "soft_dice": metrics.soft_dice(**arrays),
        "iou": metrics.iou(**arrays),
        "precision": metrics.precision(**arrays),
        "recall": metrics.recall(**arrays),
        "bce": metrics.binary_cross_entropy(**arrays),
        **metrics.particle_scores(**arrays),
    }


def segmentation(loss: str = "cross_entropy", foreground_weight: float | int = 1.0) -> Task:
    """Return the Task, with the fields `segmentation` of a config as arguments."""
    return Task(
        target="mask",
        loss=partial(total_loss, terms=loss, foreground_weight=foreground_weight),
        metrics=scores,
        best="dice",
        higher_is_better=True,
        prediction=prediction,
    )


SEGMENTATION = segmentation()
