"""What a finetuning is asked for."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from data_builders.micrographs.reading import ReadOptions
from emjax.tasks import TASKS

NONE, AUTO = "none", "auto"  # values of `base`


class Options(NamedTuple):
    """The options of `emjax finetune`, which explains them.

    Attributes:
        by_default: whether `base` was chosen by default or is AUTO, so that it is a model of the
            package, whatever is called so here.
        reading: how files are read.
    """

    images: Path
    targets: Path | None
    table: Path | None
    out: Path
    task: str
    base: str
    foreground: str | None
    classes: int | None
    keep_all: bool
    steps: int | None
    seed: int
    index: int | None
    channel: str | None
    cut_banner: bool
    mrc_rows: str | None
    by_default: bool
    reading: ReadOptions

    def told(self) -> dict[str, Any]:
        """Return what a run was asked for, as it reads back from JSON."""
        values = self._asdict()
        del values["out"], values["by_default"], values["reading"]
        return {n: os.path.abspath(v) if isinstance(v, Path) else v for n, v in values.items()}

    @property
    def target(self) -> str:
        """Name of what is paired with images, such as "mask"."""
        return TASKS[self.task].target

    @property
    def is_mask(self) -> bool:
        """Whether targets are masks."""
        return self.task == "segmentation"
