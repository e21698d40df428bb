"""What a finetuned network must say: one Task each, all of them in TASKS."""

from emjax.tasks.restoration import BACKGROUND, DENOISE, SUPERRESOLUTION
from emjax.tasks.segmentation import SEGMENTATION
from emjax.tasks.task import Task

TASKS = {
    "segmentation": SEGMENTATION,
    "denoise": DENOISE,
    "background": BACKGROUND,
    "superresolution": SUPERRESOLUTION,
}

# How objectives without a task choose the best checkpoint: (metric, higher is better). Here and not
# beside the objectives, so that reading a run's logs does not load the networks.
PRETRAINING_SCORE = ("l1", False)

__all__ = ["PRETRAINING_SCORE", "TASKS", "Task"]
