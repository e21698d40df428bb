"""Tables, curves and pictures of runs: python -m emjax.report --runs=DIR --out=DIR.

Writes OUT/report.html (one self-contained page), OUT/report.md (its tables) and OUT/curves.png (no
micrographs in it). Every number comes from the runs' own config.json and metrics.jsonl.
"""

import argparse
import base64
import collections
import datetime
import functools
import html
import io
import itertools
import json
import math
import os
import platform
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from PIL import Image

from emjax import data, errors, journal, metrics, networks, predict, weights
from emjax.augment import to_network
from emjax.errors import BadInput
from emjax.main import assemble, fitting_crop, flat, ranking
from emjax.tasks import TASKS

EARLY = (0.1, 0.25, 0.5)  # shares of the steps at which the test score is shown, too
PROTOCOL = (
    "Test scores are those of the evaluation with the best validation score so far, also where "
    "they are given for the first part of the steps. Finished runs only: mean ± standard deviation "
    "where there are several seeds (the first by name if a seed was run twice). Dice and L1 are "
    "between 0 and 1."
)
UNITS = {"dice": "Dice (0 to 1)", "l1": "L1 (fraction of the full range)"}
PICTURES = 3  # records shown of a dataset
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")  # Okabe and Ito 2008
STYLE = """:root{color-scheme:light dark}img{display:block;width:100%}
body{max-width:66rem;margin:auto;padding:1rem;font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin:2.2rem 0 .3rem}p{margin:.3rem 0}
.wide{overflow-x:auto}.short{white-space:nowrap}.long{min-width:9rem}
table{border-collapse:collapse;font-size:.87rem;margin:.6rem 0}
td,th{padding:.3rem 1rem .3rem 0;text-align:left;vertical-align:top;border-bottom:1px solid #8886;
font-variant-numeric:tabular-nums}.curves{max-width:44rem;border-radius:4px}
.row{display:grid;gap:.6rem;max-width:52rem;margin:.8rem 0;grid-auto-columns:minmax(0,1fr);
grid-auto-flow:column}figure{margin:0}figcaption{font-size:.78rem;overflow-wrap:anywhere}"""

open_records = functools.lru_cache(data.open_records)


class Run(NamedTuple):
    """A workdir as it reads back."""

    name: str  # its path below --runs
    folder: Path
    config: dict
    evaluations: list  # the journal's rows that have a score
    score: str  # what chooses the best of them
    sign: int  # 1 where more of the score is better, else -1
    done: int  # steps
    planned: int | None  # steps; None where nothing tells
    patch: str  # pixels, what it is trained on

    @property
    def finished(self):
        return bool(self.evaluations) and self.evaluations[-1]["step"] >= (self.planned or 0)

    @property
    def status(self):
        if self.finished:
            return "finished" if self.planned else "planned steps not known"
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
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path}: not the record of a run: {error!r}") from error
    evaluations = [row for row in rows if math.isfinite(row.get(score, math.nan))]
    try:
        records = open_records(config["data"]["dir"], *config["data"]["train"]).source
        passes = config.get("passes_per_epoch", 1)
        epoch = passes * len(records) // config["data"]["batch_size"]
        h, w, _ = records[0]["image"].shape
        crop = fitting_crop(config["augment"]["crop"], (h, w), config["model"])
        patch = f"{crop} of {h} x {w}" if crop else f"{h} x {w}"
    except BadInput:  # the records are elsewhere; one evaluation an epoch tells as much
        epoch = evaluations[0]["step"] if evaluations and not config["eval_every"] else None
        patch = str(config["augment"]["crop"] or "whole")
    return Run(
        name=folder.name if folder == root else os.path.relpath(folder, root),
        folder=folder,
        config=config,
        evaluations=evaluations,
        score=score,
        sign=1 if higher_is_better else -1,
        done=max(steps, default=0),
        planned=epoch and epoch * config["epochs"],
        patch=patch,
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
        "patch, pixels": run.patch,
        "batch": str(config["data"]["batch_size"]),
        "discriminator": words(config.get("discriminator")),
        "epochs": str(config["epochs"]),
        "steps": str(run.planned or "?"),
        "optimizer": words(config["optimizer"]),
        "corruption": words(config["objective"].get("corruption")),
    }


def curves(panels):
    """The PNG of {title: [(label, runs)]}: validation scores over steps, thick for the mean."""
    figure = Figure(figsize=(7, 3.3 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for panel, (title, lines) in zip(axes, panels.items(), strict=True):
        for colour, (label, runs) in zip(itertools.cycle(COLOURS), lines, strict=False):
            each = [{row["step"]: row[run.score] for row in run.evaluations} for run in runs]
            steps = sorted(set.intersection(*map(set, each)))
            mean = [statistics.fmean(scores[step] for scores in each) for step in steps]
            panel.plot(steps, mean, color=colour, linewidth=2, marker=".", label=label)
            for scores in each:
                panel.plot([*scores], [*scores.values()], color=colour, linewidth=0.8, alpha=0.7)
            for run in runs:
                level = run.best().get("val/corrupted_l1", math.nan)
                if math.isfinite(level):
                    panel.axhline(level, color=colour, linestyle=":", label="corrupted, " + label)
        split, metric = lines[0][1][0].score.split("/")
        panel.set(xlabel="step (updates)", ylabel=f"{split} {UNITS.get(metric, metric)}")
        panel.set_title(title, fontsize="medium")
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def examples(run, split):
    """(name, batch of one) for the first records of a split, padded as for evaluation."""
    records = open_records(run.config["data"]["dir"], *run.config["data"]["evals"][split]).source
    divisor = networks.build_abstract(run.config["model"]).divisor
    for position in range(min(PICTURES, len(records))):
        record = data.padded(records[position], divisor)
        batch = jax.device_put({field: np.asarray(value)[None] for field, value in record.items()})
        yield records[position]["name"].decode(), batch


def trained(run):
    """The run's best network, as Network."""
    params, stats, config = weights.read(run.folder / "model")
    definition = nnx.graphdef(networks.build_abstract(config["model"]))
    return networks.Network(params=params, stats=stats, definition=definition)


def predictions(arms):
    """A gallery row a test record: input, truth, and what each arm's first seed makes of it."""
    runs = [arm.seeds[min(arm.seeds)] if arm.seeds else arm.runs[0] for arm in arms]
    task, evals = TASKS[runs[0].config["task"]], runs[0].config["data"]["evals"]
    is_mask = task.target == "mask"
    generators = [trained(run) if (run.folder / "model").is_dir() else None for run in runs]
    apply = jax.jit(lambda g, image: g.apply(g.params, g.stats, image, train=False)[0])
    for name, batch in examples(runs[0], "test" if "test" in evals else next(iter(evals))):
        example, valid = to_network(batch), batch["valid"]
        image, target = example["image"], example[task.target]
        row = [inline(image, valid, f"input: {name}"), inline(target, valid, "truth", is_mask)]
        for arm, run, generator in zip(arms, runs, generators, strict=True):
            if generator is None:
                row.append(f"<figure>{html.escape(run.name)} has no model</figure>")
                continue
            output = apply(generator, image)
            score = task.metrics(output, target, valid)[task.best][0]
            caption = f"{arm.name}, seed {run.config['seed']}: {task.best} {score:.4f}"
            prediction = task.prediction(output)
            shown = prediction > 0.5 if is_mask else prediction
            row.append(inline(shown, valid, caption, is_mask))
        yield row


def tuples(config):
    """The config as it was before it became JSON."""
    if isinstance(config, dict):
        return {name: tuples(value) for name, value in config.items()}
    return tuple(config) if isinstance(config, list) else config


def restorations(run):
    """A gallery row a validation record, corrupted as in the evaluations."""
    split, where = next(iter(run.config["data"]["evals"].items()))
    objective = assemble(
        ConfigDict(tuples(run.config)), open_records(run.config["data"]["dir"], *where)
    )
    generator, restore = trained(run), jax.jit(objective.restore)
    for name, batch in examples(run, split):
        micrograph, corrupted, restored = restore(generator, batch)
        row = []
        for kind, view in {"corrupted": corrupted, "restored": restored}.items():
            l1 = metrics.l1(prediction=view, target=micrograph, valid=batch["valid"])[0]
            row.append(inline(view, batch["valid"], f"{kind}: l1 {l1:.4f}"))
        yield [*row, inline(micrograph, batch["valid"], f"original: {name}")]


def inline(values, valid, caption, is_mask=False):
    """An HTML figure of float [1, h, w, 1] in [-1, 1], or in [0, 1] if a mask, without padding."""
    valid = np.asarray(valid)[0, :, :, 0]
    h, w = valid.any(1).sum(), valid.any(0).sum()
    unit = np.asarray(values, np.float32)[0, :h, :w, 0]
    unit = unit if is_mask else (unit + 1) / 2
    picture = Image.fromarray(np.uint8(np.rint(255 * np.clip(unit, 0, 1))))
    larger = max(1, 256 // max(picture.size))
    picture = picture.resize((larger * w, larger * h), Image.Resampling.NEAREST)
    picture.thumbnail((512, 512))
    png, text = predict.png(np.asarray(picture)), html.escape(caption)
    return f"<figure>{embedded(png, text)}<figcaption>{text}</figcaption></figure>"


def embedded(png, text):
    source = "data:image/png;base64," + base64.b64encode(png).decode()
    return f'<img alt="{text}" src="{source}">'


def gallery(title, rows):
    """The HTML of `rows` of figures, or why there are none."""
    try:
        body = "".join(f'<div class="row">{"".join(row)}</div>' for row in rows)
    except errors.EmjaxError as error:
        body = f"<p>No pictures: {html.escape(str(error))}</p>"
    return f"<h2>{html.escape(title)}</h2>{body}"


def cells(rows):
    """The heads and the texts of [{column: text}]; - where a row lacks a column."""
    heads = list(dict.fromkeys(name for row in rows for name in row))
    return [heads, *([row.get(name, "-") for name in heads] for row in rows)]


def markdown(rows):
    """A Markdown table, its columns aligned for the terminal."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in cells(rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)


def table(title, rows):
    """The same as HTML, under its title."""

    def line(tag, texts):  # short texts are not broken
        kinds = ("short" if len(text) < 24 else "long" for text in texts)
        return "".join(f'<{tag} class="{kind}">{html.escape(text)}</{tag}>'
                       for kind, text in zip(kinds, texts, strict=True))  # fmt: skip

    head, *texts = cells(rows)
    lines = [line("th", head), *(line("td", text) for text in texts)]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<h2>{html.escape(title)}</h2><div class="wide"><table>{body}</table></div>'


def made_on():
    """Date and machine of the report; where a run was trained is not in its folder."""
    devices, cpuinfo = jax.devices(), Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return (
        f"Report made {datetime.date.today()} on {len(devices)} x {devices[0].device_kind} "
        f"({devices[0].platform}), {(models or [platform.processor()])[0]}, {os.cpu_count()} cores."
    )


def versions_of(run):
    path = run.folder / "versions.json"
    return words(json.loads(path.read_text())) if path.exists() else "not recorded"


def main(arguments):
    """Write the report and print the finetuning table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="emjax.report", description=__doc__.splitlines()[0])
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
        galleries[f"Test records: {group}"] = predictions(members)
    if pretrained:
        tables["Pretraining"] = [pretraining_row(run) for run in pretrained]
        panels["pretraining"] = [(run.name, [run]) for run in pretrained]
        galleries |= {f"Pretraining: {run.name}": restorations(run) for run in pretrained}
    versions = collections.Counter(map(versions_of, runs))
    details = {
        "Runs": [run_row(run) for run in runs],
        "What was run": [settings_row(run) for run in runs],
        "Versions": [{"runs": str(n), "versions": text} for text, n in versions.items()],
    }
    made, png = made_on(), curves(panels)

    sections = [f"## {title}\n\n{markdown(rows)}" for title, rows in (tables | details).items()]
    text = "\n\n".join(["# Report", made, PROTOCOL, *sections]) + "\n"
    page = [
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>emjax report</title>',
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>',
        f"<h1>emjax report</h1><p>{html.escape(made)}</p><p>{html.escape(PROTOCOL)}</p>",
        *(table(title, rows) for title, rows in tables.items()),
        f'<h2>Curves</h2><div class="curves">{embedded(png, "validation scores")}</div>',
        *(gallery(title, rows) for title, rows in galleries.items()),
        *(table(title, rows) for title, rows in details.items()),
    ]
    out.mkdir(parents=True, exist_ok=True)
    weights.replace(out / "curves.png", png)
    weights.replace(out / "report.md", text.encode())
    weights.replace(out / "report.html", "\n".join(page).encode())
    for title, rows in tables.items():
        print(f"{title}\n\n{markdown(rows)}\n")
    print(out / "report.html")
    return 0


if __name__ == "__main__":
    errors.run(main, sys.argv[1:])
