"""Particles or not, pixel by pixel: binary cross-entropy, scored by Dice."""

import jax

from emjax import metrics
from emjax.metrics import losses
from emjax.tasks.task import Task


def logit(output):
    """The output [..., 1] as it is, or of two channels, background and particle, their difference.

    The softmax over two channels is the sigmoid of that.
    """
    return output if output.shape[-1] == 1 else output[..., 1:] - output[..., :1]


def loss(output, target):
    return losses.binary_cross_entropy(logits=logit(output), target=target)


def prediction(output):
    return jax.nn.sigmoid(logit(output))


def scores(output, target, valid):
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
