"""Particles or not, pixel by pixel: binary cross-entropy, scored by Dice."""

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


def loss(output: Array, target: Array) -> Array:
    """Return the mean binary cross-entropy."""
    return losses.binary_cross_entropy(logits=logit(output), target=target)


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


SEGMENTATION = Task(
    target="mask",
    loss=loss,
    metrics=scores,
    best="dice",
    higher_is_better=True,
    prediction=prediction,
)
