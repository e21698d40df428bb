"""Tables, curves, pictures and verdicts of runs: python -m emjax.report --runs=DIR --out=DIR.

Writes OUT/report.html (one self-contained page), OUT/report.md (its tables) and OUT/curves/*.png;
there are no micrographs in the latter two. Every number comes from the runs' own files; a partial
matrix gives a partial report that names what is missing.
"""

import collections
import datetime
import json
import math
import re
import statistics
import sys
from functools import partial
from pathlib import Path

from emjax import claims, cli, comparisons, gallery, page, runs
from emjax.comparisons import average, by_seed, contrast, tested
from emjax.config import parts_of
from emjax.data.records import open_records
from emjax.errors import InputError
from emjax.files import write_atomically
from emjax.runs import PARTS

PROTOCOL = (
    "Test scores are those of the evaluation with the best validation score so far, told after "
    "each twelfth of a run (every 5 of the paper's 60 epochs). Finished runs only. In brackets: "
    "95 % intervals of a bootstrap over seeds and test images at once; over seeds alone where the "
    "scores of single images were not kept. Runs of different settings, pretrainings or versions "
    "of the program are never in one cell. Dice and L1 are between 0 and 1; * marks the best of a "
    "row. The numbers of the paper itself are not known to this project."
)
PAPER = {  # where the paper has it
    "au_nanoparticles/au5nm_v1": "Table 2, Figure 6",
    "au_nanoparticles/au2_2nm": "Table 3, Figure 7",
    "au_nanoparticles/au5nm": "Table 4, Figure 8",
    "au_nanoparticles/au10nm": "Table 5, Figure 9",
    "au_nanoparticles/au20nm": "Table 6, Figure 11",
    "temimagenet": "Table 7, Figure 19",
    "cem500k": "Figure 4",
}


def words(field):
    """A field of a config in one line: `patchgan, width 8, depth 3`; - for none."""
    words = (f"{value}" if name == "name" else f"{name} {value}"
             for name, value in (field or {}).items())  # fmt: skip
    return ", ".join(words) or "-"


def scored(arm, part=PARTS):
    """The Interval of the arm's test score after `part` twelfths."""
    return average(tested(arm, part))


def validated(arm):
    return average(claims.validation(arm))


def finetuning_row(arm):
    done = arm.seeds
    late = "".join(f"; {run.seed} unfinished" for run in arm.runs if not run.finished)
    score = arm.runs[0].score
    return {
        "network": arm.model,
        "initialisation": arm.name,
        "seeds": (", ".join(map(str, sorted(done))) or "none") + late,
        "steps": ", ".join(sorted({str(run.done) for run in done.values()})) or "-",
        f"best {score}": validated(arm).text(),
        score.replace("val/", "test "): scored(arm).text(),
        **other_metrics(arm),
    }


def other_metrics(arm):
    """Means over the seeds of the test metrics that do not choose the best."""
    rows = [run.best() for run in arm.seeds.values()]
    names = [n for n in (rows[0] if rows else {}) if n.startswith("test/")]
    chosen = arm.runs[0].score.replace("val/", "test/")
    return {
        name.replace("/", " "): page.number(statistics.fmean(row[name] for row in rows))
        for name in names if name != chosen and all(name in row for row in rows)
    }  # fmt: skip


def paper_rows(arms):
    """A row a network and twelfth of the run, a column an initialisation, as the paper has it."""
    networks = dict.fromkeys(arm.model for arm in arms)
    for network in networks:
        own = [arm for arm in arms if arm.model == network]
        for part in range(1, PARTS + 1):
            cells = {arm.name: scored(arm, part) for arm in own}
            if all(math.isnan(cell.mean) for cell in cells.values()):
                continue
            sign = own[0].runs[0].sign
            best = max(cells, key=lambda name: sign * cells[name].mean
                       if not math.isnan(cells[name].mean) else -math.inf)  # fmt: skip
            marks = {name: " *" if name == best and len(cells) > 1 else "" for name in cells}
            yield {
                "network": network,
                "epoch": f"{own[0].config['epochs'] * part / PARTS:g}",
                **{name: cell.text() + marks[name] for name, cell in cells.items()},
            }


def bases(arm, arms):
    """[(name, Arm)] that `arm` is compared with: random weights, and Sytwu et al.'s recipe."""
    found = [("random", base) for base in arms if base.recipe == arm.recipe]
    found += [("sytwu", base) for base in arms if base.config.get("select") == "last"]
    return [(name, base) for name, base in found if claims.is_random(base)]


def paired_row(arm, name, base):
    """Against a base: differences of scores, who is there first, whose curve is calmer."""
    better = claims.better
    races = comparisons.race(arm, base)
    start = statistics.fmean(epoch for epoch, _ in races.values()) if races else math.nan
    there = comparisons.median([epoch for _, epoch in races.values()])
    never = sum(math.isinf(epoch) for _, epoch in races.values())
    change = [average(by_seed(each, comparisons.unrest)) for each in (arm, base)]
    early, late = (contrast([better(arm, part)], [better(base, part)]) for part in (1, PARTS))
    return {
        "network": arm.model,
        "arm": arm.name,
        "against": base.name if name == "random" else f"{name}: {base.model}",
        "seeds": ", ".join(map(str, sorted(arm.seeds.keys() & base.seeds.keys()))),
        "better early": early.text("+.4f"),
        "better at the end": late.text("+.4f"),
        "base's best val, epoch": page.number(start, ".1f"),
        "reached at epoch": page.number(there, ".1f") + (f" ({never} never)" if never else ""),
        "change a validation": change[0].text(),
        "base's": change[1].text(),
    }


def pretraining_row(arm):
    score = arm.runs[0].score
    corrupted = [run.best().get("val/corrupted_l1", math.nan) for run in arm.seeds.values()]
    late = "".join(f"; {run.seed} {run.status}" for run in arm.runs if not run.finished)
    return {
        "network": arm.model,
        "objective, data": arm.name,
        "seeds": (", ".join(map(str, sorted(arm.seeds))) or "none") + late,
        "steps": ", ".join(sorted({str(run.done) for run in arm.seeds.values()})) or "-",
        f"best {score}": validated(arm).text(),
        "corrupted": page.number(statistics.fmean(corrupted) if corrupted else math.nan),
        "change a validation": average(by_seed(arm, comparisons.unrest)).text(),
    }


def claim_row(finding):
    claim = finding.claim
    return {
        "claim": f"{claim.name}. {claim.words}",
        "on": finding.where,
        "difference": finding.difference.text("+.4f"),
        "verdict": finding.verdict,
        "rule": claim.rule,
    }


def count_rows(found):
    """How many records each split holds of the datasets that the runs read."""
    splits = collections.defaultdict(dict)
    for run in found:
        where = run.config["data"]
        for name, split, *_ in [*parts_of(where["train"]), *where["evals"].values()]:
            splits[where["dir"], name][split] = None
    for (folder, name), each in sorted(splits.items()):
        row = {"dataset": name}
        for split in each:
            try:
                row[split] = str(len(open_records(folder, name, split).source))
            except InputError:
                row[split] = "not here"
        yield row


def run_row(run):
    best = run.best()
    test = best.get(run.score.replace("val/", "test/"), math.nan)
    return {
        "run": run.name,
        "seed": str(run.seed),
        "status": run.status,
        "step of best": str(best.get("step", "-")),
        "best": f"{run.score} {page.number(best.get(run.score, math.nan))}",
        "test": page.number(test),
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


def titled(name):
    """A dataset and task with its place in the paper before it."""
    places = [place for dataset, place in PAPER.items() if name.startswith(dataset + ":")]
    return f"{places[0]}: {name}" if places else name


def finetuning(groups):
    """{title: rows}, {title: panels} of the finetuning arms, a title a dataset and task."""
    tables, panels = {}, {}
    together = collections.defaultdict(list)
    for arms in groups.values():
        for arm in arms:
            together[titled(f"{arm.data}, {arm.config['task']}")].append(arm)
    for title, arms in together.items():
        tables[f"Finetuning: {title}"] = [finetuning_row(arm) for arm in arms]
        pretrained = [arm for arm in arms if not claims.is_random(arm)]
        pairs = [(arm, *base) for arm in pretrained for base in bases(arm, arms)
                 if arm.seeds.keys() & base[1].seeds.keys()]  # fmt: skip
        if pairs:
            tables[f"Pretrained against random, equal seeds: {title}"] = [
                paired_row(*pair) for pair in pairs
            ]
        rows = [*paper_rows(arms)]
        if rows:
            metric = arms[0].runs[0].score.split("/")[1]
            tables[f"Test {metric} by epoch: {title}"] = rows
        panels[title] = by_network(arms)
    return tables, panels


def by_network(arms):
    """{network: [(label, runs)]}, as `page.curves` draws them."""
    panels = collections.defaultdict(list)
    for arm in arms:
        panels[arm.model].append((arm.name, [*arm.seeds.values()] or arm.runs))
    return panels


def main(arguments):
    """Write the report and print its main tables; returns the exit code."""
    parser = cli.Parser(prog="emjax.report", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", required=True, type=Path, help="folder with workdirs in it")
    parser.add_argument("--out", required=True, type=Path, help="folder for the report")
    options = parser.parse_args(arguments)
    root, out = options.runs, options.out
    found = runs.find(root)
    groups = runs.arms([run for run in found if "task" in run.config], root)
    pretrained = runs.pretrainings([run for run in found if "task" not in run.config])

    tables, panels = finetuning(groups)
    if pretrained:
        tables["Pretraining"] = [pretraining_row(arm) for arm in pretrained]
        panels["Pretraining"] = by_network(pretrained)
    printed = {title: rows for title, rows in tables.items() if "by epoch" not in title}
    findings = claims.judge([arm for arms in groups.values() for arm in arms], pretrained)
    tables["Claims of the paper"] = [claim_row(finding) for finding in findings]
    tables["Table 1: records"] = [*count_rows(found)]
    versions = collections.Counter(map(versions_of, found))
    details = {
        "Runs": [run_row(run) for run in found],
        "What was run": [settings_row(run) for run in found],
        "Versions": [{"runs": str(n), "versions": text} for text, n in versions.items()],
    }
    made = f"Report made on {datetime.date.today()}; where and when each run ran is under Versions."
    lacking = runs.missing(root, found)
    missing = (
        f"Missing, {len(lacking)} runs: {', '.join(lacking)}." if lacking else "All runs done."
    )
    curves = {title: page.curves(title, each) for title, each in panels.items()}
    galleries = {f"Test records: {group}": partial(gallery.predictions, arms)
                 for group, arms in groups.items()}  # fmt: skip
    galleries |= {
        f"Pretraining: {arm.model}, {arm.name}": partial(gallery.restorations, gallery.first(arm))
        for arm in pretrained
    }

    datasets = {run.config["data"]["evals"]["val"][0]: run for run in found}
    galleries = {f"Samples: {name}": partial(gallery.samples, run)
                 for name, run in sorted(datasets.items())} | galleries  # fmt: skip

    sections = [
        f"## {title}\n\n{page.markdown(rows)}" for title, rows in (tables | details).items()
    ]
    text = "\n\n".join(["# Report", made, PROTOCOL, missing, *sections]) + "\n"
    body = [
        page.section("Figure 1: what is learned from what", page.overview()),
        *(page.table(title, rows) for title, rows in tables.items()),
        *(page.section(f"Curves: {title}", f'<div class="curves">{page.image(png, title)}</div>')
          for title, png in curves.items()),
        *(gallery.section(title, rows) for title, rows in galleries.items()),
        *(page.table(title, rows) for title, rows in details.items()),
    ]  # fmt: skip
    (out / "curves").mkdir(parents=True, exist_ok=True)
    for title, png in curves.items():
        write_atomically(out / "curves" / f"{slug(title)}.png", png)
    write_atomically(out / "report.md", text.encode())
    write_atomically(
        out / "report.html", page.whole("emjax report", [made, PROTOCOL, missing], body).encode()
    )
    for title, rows in printed.items():
        print(f"{title}\n\n{page.markdown(rows)}\n")
    print(out / "report.html")
    return 0


def slug(title):
    """A title as a file name."""
    return re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_")


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
