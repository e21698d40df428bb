"""Finetuning tasks: the target, loss and metrics of each. TASKS has all of them by name."""

from emjax.tasks.restoration import BACKGROUND, DENOISE, SUPERRESOLUTION
from emjax.tasks.segmentation import SEGMENTATION
from emjax.tasks.task import Task

TASKS: dict[str, Task] = {
    "segmentation": SEGMENTATION,
    "denoise": DENOISE,
    "background": BACKGROUND,
    "superresolution": SUPERRESOLUTION,
}

# How objectives without a task choose the best checkpoint: (metric, higher is better). Not defined
# with the objectives, so that reading a run's logs does not import the networks.
PRETRAINING_SCORE = ("l1", False)

__all__ = ["PRETRAINING_SCORE", "TASKS", "Task"]
