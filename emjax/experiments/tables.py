"""Rows of a report's tables."""

import collections
import json
import math
import statistics

from emjax.config import parts_of
from emjax.data.records import open_records
from emjax.errors import InputError
from emjax.experiments import claims, intervals, page
from emjax.experiments.intervals import average, by_seed, contrast, tested
from emjax.runs.run import PARTS

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
    races = intervals.epochs_to_match(arm, base)
    start = statistics.fmean(epoch for epoch, _ in races.values()) if races else math.nan
    there = intervals.median([epoch for _, epoch in races.values()])
    never = sum(math.isinf(epoch) for _, epoch in races.values())
    change = [average(by_seed(each, intervals.volatility)) for each in (arm, base)]
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
        "change a validation": average(by_seed(arm, intervals.volatility)).text(),
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


def finetuning_tables(groups):
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
