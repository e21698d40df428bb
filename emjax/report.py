"""Tables, curves and pictures of runs: python -m emjax.report --runs=DIR --out=DIR.

Writes OUT/report.html (one self-contained page), OUT/report.md (its tables) and OUT/curves.png (no
micrographs in it). Every number comes from the runs' own config.json and metrics.jsonl.
"""

import collections
import datetime
import json
import math
import statistics
import sys
from pathlib import Path

from emjax import errors, gallery, page, runs, weights

PROTOCOL = (
    "Test scores are those of the evaluation with the best validation score so far, also where "
    "they are given for the first part of the steps. Finished runs only: mean ± standard deviation "
    "where there are several seeds (the first by name if a seed was run twice). Dice and L1 are "
    "between 0 and 1."
)


def words(field):
    """A field of a config in one line: `patchgan, width 8, depth 3`; - for none."""
    words = (f"{value}" if name == "name" else f"{name} {value}"
             for name, value in (field or {}).items())  # fmt: skip
    return ", ".join(words) or "-"


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
        "model": runs.model_of(run),
        "corpus": runs.data_of(run.config),
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
    found = runs.find(root)
    groups = runs.arms([run for run in found if "task" in run.config], root)
    pretrained = [run for run in found if "task" not in run.config]

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
    versions = collections.Counter(map(versions_of, found))
    details = {
        "Runs": [run_row(run) for run in found],
        "What was run": [settings_row(run) for run in found],
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
