"""Particles or not, or one of several classes, pixel by pixel; scored by Dice."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
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


def class_loss(
    output: Array, target: Array, *, terms: str, foreground_weight: float | int
) -> Array:
    """Return what `total_loss` does, of several classes; the Dice is of all but the background."""
    entropy = losses.softmax_cross_entropy(
        logits=output, target=target, foreground_weight=foreground_weight
    )
    if terms == "cross_entropy":
        return entropy
    truth = jax.nn.one_hot(target[..., 0].astype(jnp.int32), output.shape[-1])
    dice = losses.soft_dice(probability=jax.nn.softmax(output)[..., 1:], target=truth[..., 1:])
    return dice if terms == "dice" else entropy + dice


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


def class_scores(output: Array, target: Array, valid: Array) -> dict[str, Any]:
    """Return {name: value per image, or (value, whether it applies)} of several classes.

    A class counts in an image if it is in the truth or predicted. `dice` and `iou` are means over
    the classes but 0 that count, and 1 if there are none.
    """
    predicted = jnp.argmax(output, -1, keepdims=True)
    entropy = optax.softmax_cross_entropy_with_integer_labels(
        output, target[..., 0].astype(jnp.int32)
    )[..., None]
    found: dict[str, Any] = {"ce": metrics.mean_over(entropy, valid)}
    per_class: dict[str, list[Array]] = {"dice": [], "iou": [], "counts": []}
    for number in range(1, output.shape[-1]):
        ours, theirs = predicted == number, target == number
        counts = ((ours | theirs) & valid).any((1, 2, 3))
        arrays = dict(logits=ours - 0.5, target=theirs.astype(jnp.float32), valid=valid)
        per_class["counts"].append(counts)
        for name, metric in (("dice", metrics.hard_dice), ("iou", metrics.iou)):
            value = metric(**arrays)
            per_class[name].append(value)
            found[f"{name}_{number}"] = value, counts
    counts = jnp.stack(per_class["counts"])
    for name in ("dice", "iou"):
        total = (jnp.stack(per_class[name]) * counts).sum(0)
        found[name] = jnp.where(counts.any(0), total / jnp.maximum(counts.sum(0), 1), 1.0)
    return found


def segmentation(
    classes: int = 2, loss: str = "cross_entropy", foreground_weight: float | int = 1.0
) -> Task:
    """Return the Task, with the fields `segmentation` of a config as arguments."""
    several = classes > 2
    total = class_loss if several else total_loss
    return Task(
        target="mask",
        loss=partial(total, terms=loss, foreground_weight=foreground_weight),
        metrics=class_scores if several else scores,
        best="dice",
        higher_is_better=True,
        prediction=jax.nn.softmax if several else prediction,
        classes=classes,
    )


SEGMENTATION = segmentation()
