"""Finished and unfinished runs as their workdirs tell of them, and which may be compared."""

import json
import math
import os
from pathlib import Path
from typing import NamedTuple

from emjax import journal
from emjax.data import parts_of
from emjax.errors import BadInput
from emjax.main import flat, ranking

EARLY = (0.1, 0.25, 0.5)  # shares of the steps at which the test score is shown, too


class Run(NamedTuple):
    """A workdir as it reads back."""

    name: str  # its path below --runs
    folder: Path
    config: dict
    evaluations: list  # the journal's rows that have a score
    score: str  # what chooses the best of them
    sign: int  # 1 where more of the score is better, else -1
    done: int  # steps
    planned: int | None  # steps; None before the first report

    @property
    def finished(self):
        return bool(self.evaluations) and self.evaluations[-1]["step"] >= self.planned

    @property
    def status(self):
        if self.finished:
            return "finished"
        return f"unfinished: {self.done} of {self.planned or '?'} steps"

    @property
    def pretraining(self):
        return self.config.get("initialise", {}).get("workdir", "")

    def best(self, share=1.0):
        """The evaluation with the best score in the first `share` of the steps, or {}."""
        rows = [row for row in self.evaluations if row["step"] <= share * self.done]
        return max(rows, key=lambda row: self.sign * row[self.score], default={})

    def scores(self):
        """{column: score}: the best val, and test where val was the best so far; nan for none."""
        metric = self.score.split("/")[1]
        shares = {f"test {metric}": 1.0, **{f"test at {share:.0%}": share for share in EARLY}}
        test = {name: self.best(share).get(f"test/{metric}") for name, share in shares.items()}
        found = {f"best {self.score}": self.best().get(self.score), **test}
        return {name: math.nan if value is None else value for name, value in found.items()}


def read(folder, root):
    """The Run of a workdir, named by its path below `root`.

    Raises: BadInput naming the file that does not read.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
        score, higher_is_better = ranking(config)
        path = folder / "metrics.jsonl"
        rows = journal.read(path)
        if not all(isinstance(value, int | float) for row in rows for value in row.values()):
            raise ValueError("a value that is no number")
        steps = [row["step"] for row in rows]
        planned = rows[-1]["total"] if rows else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path}: not the record of a run: {error!r}") from error
    evaluations = [row for row in rows if math.isfinite(row.get(score, math.nan))]
    return Run(
        name=folder.name if folder == root else os.path.relpath(folder, root),
        folder=folder,
        config=config,
        evaluations=evaluations,
        score=score,
        sign=1 if higher_is_better else -1,
        done=max(steps, default=0),
        planned=planned,
    )


def find(root):
    """All runs below `root`, by name.

    Raises: BadInput if there is none, or naming the file that does not read.
    """
    folders = sorted(path.parent for path in root.rglob("metrics.jsonl"))
    runs = [read(folder, root) for folder in folders if (folder / "config.json").exists()]
    if not runs:
        raise BadInput(f"{root}: no runs in it, no folder with config.json and metrics.jsonl")
    return runs


class Arm(NamedTuple):
    """Finetuning runs that differ in nothing but the seed."""

    name: str  # the initialisation, and the settings in which arms of one group differ
    origin: str  # what the pretraining run was
    runs: list

    @property
    def seeds(self):
        """{seed: run} of the finished runs; where a seed was run twice, the first by name."""
        return {run.config["seed"]: run for run in reversed(self.runs) if run.finished}

    @property
    def recipe(self):
        """What an arm shares with the one from random weights it is compared with."""
        return {**self.runs[0].config, "seed": None, "initialise": None}


def arms(runs, root):
    """{dataset, task and model: [Arm]}, arms from random weights first."""
    alike, groups = {}, {}
    for run in runs:
        start = run.config["initialise"] if run.pretraining else None
        key = json.dumps({**run.config, "seed": None, "initialise": start}, sort_keys=True)
        alike.setdefault(key, []).append(run)
    for same in sorted(alike.values(), key=lambda same: bool(same[0].pretraining)):
        config = same[0].config
        group = f"{data_of(config)}, {config['task']}, {model_of(same[0])}"
        groups.setdefault(group, []).append(same)
    for group, members in groups.items():
        settings = [dict(flat(same[0].config)) for same in members]
        names = set().union(*settings) - {"seed", "initialise.workdir"}
        differ = [n for n in sorted(names) if len({str(s.get(n)) for s in settings}) > 1]
        groups[group] = []
        for same, fields in zip(members, settings, strict=True):
            name, origin = initialisation(same[0], root)
            for field in differ:
                name += f"; {field} {fields.get(field)}"
            groups[group].append(Arm(name, origin, same))
    return groups


def initialisation(run, root):
    """Where `run` started from, and what can be read of that pretraining run."""
    if not run.pretraining:
        return "random", "-"
    try:
        source = read(Path(run.pretraining), root)
    except BadInput:
        return f"pretrained ({run.pretraining})", "not readable here"
    name = run.pretraining if source.name.startswith("..") else source.name
    corpus, objective = data_of(source.config), source.config["objective"]["name"]
    return f"pretrained ({name})", f"{objective}, {corpus}, {source.done} steps"


def model_of(run):
    """Its short name, `unet 2 44`: the values that are set, but for the usual ones."""
    values = (run.config["model"][name] for name in sorted(run.config["model"], key=order))
    return " ".join(str(value) for value in values if value not in (None, "batch", "bilinear"))


def order(field):
    return field != "name", field


def data_of(config):
    """What a run is trained on, `cem500k:train`, or several such."""
    parts = parts_of(config["data"]["train"])
    weights = [f":{weight}" if len(parts) > 1 else "" for *_, weight in parts]
    return " + ".join(f"{n}:{s}{w}" for (n, s, _), w in zip(parts, weights, strict=True))
