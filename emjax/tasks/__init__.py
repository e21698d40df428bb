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

__all__ = ["TASKS", "Task"]
