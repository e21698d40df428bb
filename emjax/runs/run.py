"""Runs as their workdirs record them, finished or not, read back without the networks."""

import functools
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from emjax.errors import InputError
from emjax.runs import metrics_log
from emjax.runs.provenance import ranking, selection, versions_of

PARTS = 12  # the test score is shown after each twelfth of a run: every 5 of the paper's 60 epochs


class Run(NamedTuple):
    """A workdir as it reads back."""

    name: str  # its path below --runs
    folder: Path
    config: dict[str, Any]
    code: str  # digest of the program that last ran it, or "unknown"
    evaluations: list[dict[str, Any]]  # the rows of the metrics log that have a score
    score: str  # what chooses the best of them
    sign: int  # 1 where a higher score is better, else -1
    done: int  # steps
    planned: int | None  # steps; None before the first report
    since_best: int = 0  # evaluations without a better score, at its end
    select: str = "best"  # which network it keeps

    @property
    def finished(self) -> bool:
        """Whether the last step has been scored, or the run has stopped early."""
        scored = bool(self.evaluations) and self.evaluations[-1]["step"] >= self.steps
        return scored or self.stopped_early

    @property
    def stopped_early(self) -> bool:
        """Whether as many evaluations as the config says had no better score."""
        return 0 < self.config.get("early_stopping", 0) <= self.since_best

    @property
    def steps(self) -> int:
        """The planned steps of a run that has reported."""
        assert self.planned is not None, f"{self.folder}: no report yet"
        return self.planned

    @property
    def status(self) -> str:
        """In words, for tables."""
        if self.stopped_early and self.done < self.steps:
            return f"finished, stopped early at step {self.done} of {self.planned}"
        if self.finished:
            return "finished"
        return f"unfinished: {self.done} of {self.planned or '?'} steps"

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def pretraining(self) -> str:
        """The workdir of the weights it starts from; "" for random ones."""
        return self.config.get("initialise", {}).get("workdir", "")

    @property
    def records(self) -> int:
        """How many records it is trained on, except those of a last partial batch."""
        per_epoch = self.steps // self.config["epochs"] * self.config["data"]["batch_size"]
        return per_epoch // self.config.get("passes_per_epoch", 1)

    def epoch(self, step: int) -> float:
        """Return the epoch, a fraction included, that ends with `step`."""
        return step * self.config["epochs"] / self.steps

    def best(self, part: int = PARTS) -> dict[str, Any]:
        """Return the evaluation that represents the run after `part` twelfths of its steps, or {}.

        It has the best validation score so far; it is the last one if the run keeps that.
        """
        rows = [row for row in self.evaluations if row["step"] * PARTS <= part * self.steps]
        if self.select == "last":
            return rows[-1] if rows else {}
        return max(rows, key=lambda row: self.sign * row[self.score], default={})

    def test(self, part: int = PARTS) -> dict[str, float]:
        """Return {image: its test score in that evaluation}; {"all": mean} if only that was kept.

        Returns {} if the test split was not scored then.
        """
        metric = self.score.split("/")[1]
        name, row = f"test/{metric}", self.best(part)
        if name not in row:
            return {}
        kept = images(self.folder / "images.jsonl").get(row["step"])
        return {index: each[metric] for index, each in kept.items()} if kept else {"all": row[name]}


@functools.lru_cache(maxsize=4096)
def images(path: Path) -> Mapping[int, dict[str, dict[str, float]]]:
    """Return {step: {image: {metric: value}}} of the test split in an images.jsonl.

    Returns {} if there is no such file.
    """
    if not path.exists():
        return {}
    try:
        return {
            row["step"]: row["images"] for row in metrics_log.read(path) if row["split"] == "test"
        }
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: not the scores of a run: {error!r}") from error


def read_run(folder: Path, root: Path) -> Run:
    """Return the Run of a workdir, named by its path below `root`.

    Raises: InputError naming the file that cannot be read.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
        score, higher_is_better = ranking(config)
        path = folder / "metrics.jsonl"
        rows = metrics_log.read(path)
        if not all(isinstance(value, int | float) for row in rows for value in row.values()):
            raise ValueError("a value is not a number")
        steps = [row["step"] for row in rows]
        planned = rows[-1]["total"] if rows else None
        path = folder / "versions.json"
        versions = versions_of(folder)
        code, select = versions.get("code", "unknown"), selection(versions, config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not the record of a run: {error!r}") from error
    evaluations = [row for row in rows if math.isfinite(row.get(score, math.nan))]
    return Run(
        name=folder.name if folder == root else os.path.relpath(folder, root),
        folder=folder,
        config=config,
        code=code,
        evaluations=evaluations,
        score=score,
        sign=1 if higher_is_better else -1,
        done=max(steps, default=0),
        planned=planned,
        since_best=metrics_log.since_best(rows, score, higher_is_better=higher_is_better),
        select=select,
    )


def find_runs(root: Path) -> list[Run]:
    """Return all runs below `root`, by name.

    Raises: InputError if there is none, or naming the file that cannot be read.
    """
    folders = sorted(path.parent for path in root.rglob("metrics.jsonl"))
    runs = [read_run(folder, root) for folder in folders if (folder / "config.json").exists()]
    if not runs:
        raise InputError(f"{root}: no runs in it, no folder with config.json and metrics.jsonl")
    return runs


def read_matrix(root: Path) -> list[str]:
    """Return the names of the runs that emjax.sweep plans in `root`; [] if it has written none.

    Raises: InputError if its file cannot be read.
    """
    path = root / "matrix.json"
    try:
        return json.loads(path.read_text()) if path.exists() else []
    except ValueError as error:
        raise InputError(f"{path}: not the names of runs: {error}; delete it") from error


def missing_runs(root: Path, runs: Sequence[Run]) -> list[str]:
    """Return the names of the matrix in `root`, or of `runs`, that have no finished run."""
    finished = {run.name for run in runs if run.finished}
    return [
        name for name in read_matrix(root) or [run.name for run in runs] if name not in finished
    ]
