"""Restoration of micrographs: three tasks that differ in the target.

L1 + L2 as loss, scored by L1. Source: Kazimi et al. (arXiv 2402.18286), section 4.3.
"""

from typing import Any

from jaxtyping import Array

from emjax import metrics
from emjax.metrics import losses
from emjax.tasks.task import Task


def loss(output: Array, target: Array) -> Array:
    """Return mean absolute plus mean squared error."""
    return losses.l1_and_l2(prediction=output, target=target)


def scores(output: Array, target: Array, valid: Array) -> dict[str, Any]:
    """Return {name: value per image}."""
    arrays = dict(prediction=output, target=target, valid=valid)
    return {
        "l1": metrics.l1(**arrays),
        "l2": metrics.l2(**arrays),
        "psnr": metrics.psnr(**arrays),
        "ssim": metrics.ssim(**arrays),
        "bias": metrics.bias(**arrays),
    }


def restoration(target: str) -> Task:
    """Return the Task with the record's field `target` as truth."""
    return Task(
        target=target,
        loss=loss,
        metrics=scores,
        best="l1",
        higher_is_better=False,
        prediction=lambda output: output,
    )


DENOISE = restoration("denoised")
BACKGROUND = restoration("background_removed")
SUPERRESOLUTION = restoration("superresolved")
