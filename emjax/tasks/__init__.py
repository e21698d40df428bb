"""Finetuning tasks: the target, loss and metrics of each. TASKS has all of them by name."""

from collections.abc import Mapping
from typing import Any

from emjax.tasks.restoration import BACKGROUND, DENOISE, SUPERRESOLUTION
from emjax.tasks.segmentation import SEGMENTATION, segmentation
from emjax.tasks.task import Task

TASKS: dict[str, Task] = {
    "segmentation": SEGMENTATION,
    "denoise": DENOISE,
    "background": BACKGROUND,
    "superresolution": SUPERRESOLUTION,
}


def task_of(name: str, model: Mapping[str, Any]) -> Task:
    """Return the Task `name` for a network of a config's `model`, which has an output per class."""
    task, outputs = TASKS[name], model.get("out_channels") or 1
    return segmentation(outputs) if task.is_mask and outputs > 2 else task


# How objectives without a task choose the best checkpoint: (metric, higher is better). Not defined
# with the objectives, so that reading a run's logs does not import the networks.
PRETRAINING_SCORE = ("l1", False)

__all__ = ["PRETRAINING_SCORE", "TASKS", "Task", "task_of"]
