"""Tables, curves and pictures of runs: python -m emjax.report --runs=DIR --out=DIR.

Writes OUT/report.html (one self-contained page), OUT/report.md (its tables) and OUT/curves.png (no
micrographs in it). Every number comes from the runs' own config.json and metrics.jsonl.
"""

import collections
import datetime
import json
import math
import os
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

from emjax import errors, gallery, journal, page, weights
from emjax.errors import BadInput
from emjax.main import flat, ranking

EARLY = (0.1, 0.25, 0.5)  # shares of the steps at which the test score is shown, too
PROTOCOL = (
    "Test scores are those of the evaluation with the best validation score so far, also where "
    "they are given for the first part of the steps. Finished runs only: mean ± standard deviation "
    "where there are several seeds (the first by name if a seed was run twice). Dice and L1 are "
    "between 0 and 1."
)


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
        group = f"{':'.join(config['data']['train'])}, {config['task']}, {model_of(same[0])}"
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
    corpus, objective = ":".join(source.config["data"]["train"]), source.config["objective"]["name"]
    return f"pretrained ({name})", f"{objective}, {corpus}, {source.done} steps"


def words(field):
    """A field of a config in one line: `patchgan, width 8, depth 3`; - for none."""
    words = (f"{value}" if name == "name" else f"{name} {value}"
             for name, value in (field or {}).items())  # fmt: skip
    return ", ".join(words) or "-"


def model_of(run):
    """Its short name, `unet 2 44`."""
    return " ".join(map(str, run.config["model"].values()))


def spread(values, form=".4f"):
    """Mean and, over several values, standard deviation; - where one is missing."""
    if not values or any(map(math.isnan, values)):
        return "-"
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{form}}{deviation}"


def columns(scores, form=".4f"):
    """{column: mean and deviation} of a list of {column: score}."""
    return {name: spread([s[name] for s in scores], form) for name in (scores[0] if scores else ())}


def finetuning_row(arm):
    done = arm.seeds
    late = "".join(f"; {run.config['seed']} unfinished" for run in arm.runs if not run.finished)
    return {
        "initialisation": arm.name,
        "seeds": (", ".join(map(str, sorted(done))) or "none") + late,
        "steps": ", ".join(sorted({str(run.done) for run in done.values()})) or "-",
        **columns([run.scores() for run in done.values()]),
        "pretraining": arm.origin,
    }


def paired_row(arm, base):
    """Pretrained minus random, over the seeds that both have."""
    seeds = sorted(arm.seeds.keys() & base.seeds.keys())
    pairs = [(arm.seeds[seed].scores(), base.seeds[seed].scores()) for seed in seeds]
    gains = [{name: ours[name] - theirs[name] for name in ours} for ours, theirs in pairs]
    test = [spread([[*gain.values()][1]], "+.4f") for gain in gains]
    each = ", ".join(f"{seed}: {gain}" for seed, gain in zip(seeds, test, strict=True))
    return {"arm": arm.name, **columns(gains, "+.4f"), "test, seed by seed": each}


def pretraining_row(run):
    corrupted, best = run.score.split("/")[0] + "/corrupted_l1", run.best()
    return {
        "run": run.name,
        "model": model_of(run),
        "corpus": ":".join(run.config["data"]["train"]),
        "steps": str(run.done),
        "status": run.status,
        f"best {run.score}": spread([best.get(run.score, math.nan)]),
        corrupted: spread([best.get(corrupted, math.nan)]),
    }


def run_row(run):
    val, test, *_ = run.scores().values()
    return {
        "run": run.name,
        "seed": str(run.config["seed"]),
        "status": run.status,
        "step of best": str(run.best().get("step", "-")),
        "best": f"{run.score} {spread([val])}",
        "test": spread([test]),
    }


def settings_row(run):
    """What decides with whom a run may be compared."""
    config = run.config
    return {
        "run": run.name,
        "model": words(config["model"]),
        "crop, pixels": str(config["augment"]["crop"] or "whole"),
        "batch": str(config["data"]["batch_size"]),
        "discriminator": words(config.get("discriminator")),
        "epochs": str(config["epochs"]),
        "steps": str(run.planned or "?"),
        "optimizer": words(config["optimizer"]),
        "corruption": words(config["objective"].get("corruption")),
    }


def versions_of(run):
    path = run.folder / "versions.json"
    return words(json.loads(path.read_text())) if path.exists() else "not recorded"


def main(arguments):
    """Write the report and print the finetuning table; returns the exit code."""
    parser = errors.Parser(prog="emjax.report", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", required=True, type=Path, help="folder with workdirs in it")
    parser.add_argument("--out", required=True, type=Path, help="folder for the report")
    options = parser.parse_args(arguments)
    root, out = options.runs, options.out
    runs = find(root)
    groups = arms([run for run in runs if "task" in run.config], root)
    pretrained = [run for run in runs if "task" not in run.config]

    tables, panels, galleries = {}, {}, {}
    for group, members in groups.items():
        random = [arm for arm in members if not arm.runs[0].pretraining]
        pairs = [(arm, base) for arm in members if arm not in random for base in random
                 if arm.recipe == base.recipe and arm.seeds.keys() & base.seeds.keys()]  # fmt: skip
        tables[f"Finetuning: {group}"] = [finetuning_row(arm) for arm in members]
        if pairs:
            title = f"Pretrained minus random, equal seeds: {group}"
            tables[title] = [paired_row(*pair) for pair in pairs]
        panels[group] = [(arm.name, [*arm.seeds.values()] or arm.runs) for arm in members]
        galleries[f"Test records: {group}"] = gallery.predictions(members)
    if pretrained:
        tables["Pretraining"] = [pretraining_row(run) for run in pretrained]
        panels["pretraining"] = [(run.name, [run]) for run in pretrained]
        galleries |= {f"Pretraining: {run.name}": gallery.restorations(run) for run in pretrained}
    versions = collections.Counter(map(versions_of, runs))
    details = {
        "Runs": [run_row(run) for run in runs],
        "What was run": [settings_row(run) for run in runs],
        "Versions": [{"runs": str(n), "versions": text} for text, n in versions.items()],
    }
    made = f"Report made on {datetime.date.today()}; where and when each run ran is under Versions."
    png = page.curves(panels)

    sections = [
        f"## {title}\n\n{page.markdown(rows)}" for title, rows in (tables | details).items()
    ]
    text = "\n\n".join(["# Report", made, PROTOCOL, *sections]) + "\n"
    body = [
        *(page.table(title, rows) for title, rows in tables.items()),
        page.section("Curves", f'<div class="curves">{page.image(png, "validation scores")}</div>'),
        *(gallery.section(title, rows) for title, rows in galleries.items()),
        *(page.table(title, rows) for title, rows in details.items()),
    ]
    out.mkdir(parents=True, exist_ok=True)
    weights.replace(out / "curves.png", png)
    weights.replace(out / "report.md", text.encode())
    weights.replace(
        out / "report.html", page.whole("emjax report", [made, PROTOCOL], body).encode()
    )
    for title, rows in tables.items():
        print(f"{title}\n\n{page.markdown(rows)}\n")
    print(out / "report.html")
    return 0


if __name__ == "__main__":
    errors.run(main, sys.argv[1:])
