"""Particles or not, pixel by pixel: binary cross-entropy, scored by Dice."""

import jax

from emjax import losses, metrics
from emjax.tasks.task import Task


def loss(logits, target):
    return losses.binary_cross_entropy(logits=logits, target=target)


def scores(logits, target, valid):
    arrays = dict(logits=logits, target=target, valid=valid)
    return {
        "dice": metrics.hard_dice(**arrays),
        "soft_dice": metrics.soft_dice(**arrays),
        "bce": metrics.binary_cross_entropy(**arrays),
    }


SEGMENTATION = Task(
    target="mask",
    loss=loss,
    metrics=scores,
    best="dice",
    higher_is_better=True,
    prediction=jax.nn.sigmoid,
)
