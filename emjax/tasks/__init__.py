"""What a finetuned network must say: one Task a file, all of them in TASKS."""

from emjax.tasks.segmentation import SEGMENTATION
from emjax.tasks.task import Task

TASKS = {"segmentation": SEGMENTATION}

__all__ = ["TASKS", "Task"]
