"""Rows of a report's tables."""

import collections
import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from emjax.config import parts_of
from emjax.data.records import open_records
from emjax.errors import InputError
from emjax.experiments import claims, intervals
from emjax.experiments.arms import Arm
from emjax.experiments.claims import Finding
from emjax.experiments.intervals import Interval, average, contrast, image_scores
from emjax.runs.run import PARTS, Run

Row = dict[str, str]  # {column: text}
Panels = dict[str, list[tuple[str, list[Run]]]]  # {network: [(label, runs)]}, as curves draws them


def format_number(value: float, form: str = ".4f") -> str:
    """Return a number as text: - for NaN, `never` for infinity."""
    if math.isnan(value):
        return "-"
    return "never" if math.isinf(value) else f"{value:{form}}"


def one_line(field: Mapping[str, Any] | None) -> str:
    """Return a field of a config in one line: `patchgan, width 8, depth 3`; - for none."""
    parts = (
        f"{value}" if name == "name" else f"{name} {value}" for name, value in (field or {}).items()
    )
    return ", ".join(parts) or "-"


def seeds_of(arm: Arm) -> str:
    """Return the finished seeds of an arm, joined by commas."""
    return ", ".join(map(str, sorted(arm.seeds))) or "none"


def steps_of(arm: Arm) -> str:
    """Return the steps of an arm's finished runs, joined by commas."""
    return ", ".join(sorted({str(run.done) for run in arm.seeds.values()})) or "-"


def tested(arm: Arm, part: int = PARTS) -> Interval:
    """Return the Interval of the arm's test score after `part` twelfths."""
    return average(image_scores(arm, part))


def validated(arm: Arm) -> Interval:
    """Return the Interval of the arm's best validation score."""
    return average(claims.validation(arm))


def finetuning_row(arm: Arm) -> Row:
    """Return the scores of a finetuning arm."""
    unfinished = "".join(f"; {run.seed} unfinished" for run in arm.runs if not run.finished)
    score = arm.runs[0].score
    return {
        "network": arm.model,
        "initialisation": arm.name,
        "seeds": seeds_of(arm) + unfinished,
        "steps": steps_of(arm),
        f"best {score}": validated(arm).text(),
        score.replace("val/", "test "): tested(arm).text(),
        **other_metrics(arm),
    }


def other_metrics(arm: Arm) -> Row:
    """Return means over the seeds of the test metrics that do not choose the best."""
    rows = [run.best() for run in arm.seeds.values()]
    names = [n for n in (rows[0] if rows else {}) if n.startswith("test/")]
    chosen = arm.runs[0].score.replace("val/", "test/")
    return {
        name.replace("/", " "): format_number(statistics.fmean(row[name] for row in rows))
        for name in names
        if name != chosen and all(name in row for row in rows)
    }


def paper_rows(arms: Sequence[Arm]) -> Iterator[Row]:
    """Yield a row per network and twelfth of a run, with a column per initialisation."""
    networks = dict.fromkeys(arm.model for arm in arms)
    for network in networks:
        own = [arm for arm in arms if arm.model == network]
        sign = own[0].runs[0].sign
        for part in range(1, PARTS + 1):
            cells = {arm.name: tested(arm, part) for arm in own}
            means = {n: cell.mean for n, cell in cells.items() if not math.isnan(cell.mean)}
            if not means:
                continue
            best = max(means, key=lambda name: sign * means[name])
            marks = {name: " *" if name == best and len(cells) > 1 else "" for name in cells}
            yield {
                "network": network,
                "epoch": f"{own[0].config['epochs'] * part / PARTS:g}",
                **{name: cell.text() + marks[name] for name, cell in cells.items()},
            }


def bases(arm: Arm, arms: Iterable[Arm]) -> list[tuple[str, Arm]]:
    """Return [(name, Arm)] that `arm` is compared with: random weights, and Sytwu et al.'s recipe.

    All of them start from random weights.
    """
    every = list(arms)
    found = [("random", base) for base in every if base.recipe == arm.recipe]
    found += [("sytwu", base) for base in every if is_sytwu(base) and base.data == arm.data]
    return [(name, base) for name, base in found if claims.is_random(base)]


def is_sytwu(arm: Arm) -> bool:
    """Return whether an arm is of the recipe of Sytwu et al.: configs/segment_au.py:sytwu."""
    return arm.config.get("select") == "last" and arm.config["optimizer"]["lr"] == 1e-4


def paired_row(arm: Arm, name: str, base: Arm) -> Row:
    """Return `arm` against a base: differences of scores, epochs to match it, volatility."""
    oriented = claims.oriented
    matches = intervals.epochs_to_match(arm, base)
    best = statistics.fmean(epoch for epoch, _ in matches.values()) if matches else math.nan
    matched = intervals.median([epoch for _, epoch in matches.values()])
    never = sum(math.isinf(epoch) for _, epoch in matches.values())
    ours, theirs = (average(claims.volatilities(each)) for each in (arm, base))
    early, late = (contrast([oriented(arm, part)], [oriented(base, part)]) for part in (1, PARTS))
    return {
        "network": arm.model,
        "arm": arm.name,
        "against": base.name if name == "random" else f"{name}: {base.model}",
        "seeds": ", ".join(map(str, sorted(arm.seeds.keys() & base.seeds.keys()))),
        "better early": early.text("+.4f"),
        "better at the end": late.text("+.4f"),
        "base's best val, epoch": format_number(best, ".1f"),
        "reached at epoch": format_number(matched, ".1f") + (f" ({never} never)" if never else ""),
        "volatility of val": ours.text(),
        "base's": theirs.text(),
    }


def pretraining_row(arm: Arm) -> Row:
    """Return the scores of a pretraining arm."""
    score = arm.runs[0].score
    corrupted = [run.best().get("val/corrupted_l1", math.nan) for run in arm.seeds.values()]
    unfinished = "".join(f"; {run.seed} {run.status}" for run in arm.runs if not run.finished)
    return {
        "network": arm.model,
        "objective, data": arm.name,
        "seeds": seeds_of(arm) + unfinished,
        "steps": steps_of(arm),
        f"best {score}": validated(arm).text(),
        "corrupted": format_number(statistics.fmean(corrupted) if corrupted else math.nan),
        "volatility of val": average(claims.volatilities(arm)).text(),
    }


def claim_row(finding: Finding) -> Row:
    """Return a claim, what was found and the verdict."""
    claim = finding.claim
    return {
        "claim": f"{claim.name}. {claim.words}",
        "on": finding.where,
        "difference": finding.difference.text("+.4f"),
        "verdict": finding.verdict,
        "rule": claim.rule,
    }


def count_rows(runs: Iterable[Run]) -> Iterator[Row]:
    """Yield the number of records in each split of the datasets that the runs read."""
    splits: dict[tuple[str, str], dict[str, None]] = collections.defaultdict(dict)
    for run in runs:
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


def run_row(run: Run) -> Row:
    """Return the state and the best scores of a run."""
    best = run.best()
    test = best.get(run.score.replace("val/", "test/"), math.nan)
    return {
        "run": run.name,
        "seed": str(run.seed),
        "status": run.status,
        "step of best": str(best.get("step", "-")),
        "best": f"{run.score} {format_number(best.get(run.score, math.nan))}",
        "test": format_number(test),
    }


def settings_row(run: Run) -> Row:
    """Return the settings that decide with which runs it may be compared."""
    config = run.config
    return {
        "run": run.name,
        "model": one_line(config["model"]),
        "crop, pixels": str(config["augment"]["crop"] or "whole"),
        "batch": str(config["data"]["batch_size"]),
        "discriminator": one_line(config.get("discriminator")),
        "epochs": str(config["epochs"]),
        "steps": str(run.planned or "?"),
        "optimizer": one_line(config["optimizer"]),
        "corruption": one_line(config["objective"].get("corruption")),
    }


def versions_of(run: Run) -> str:
    """Return a run's versions.json in one line."""
    path = run.folder / "versions.json"
    return one_line(json.loads(path.read_text())) if path.exists() else "not recorded"


def finetuning_tables(
    groups: Mapping[str, Sequence[Arm]],
) -> tuple[dict[str, list[Row]], dict[str, Panels]]:
    """Return {title: rows}, {title: panels} of finetuning arms, a title per dataset and task.

    Args:
        groups: {group: [Arm]}, as `group_arms` returns them.
    """
    tables: dict[str, list[Row]] = {}
    panels: dict[str, Panels] = {}
    together: dict[str, list[Arm]] = collections.defaultdict(list)
    for arms in groups.values():
        for arm in arms:
            name = f"{arm.data}, {arm.config['task']}"
            together[claims.with_paper_table(name)].append(arm)
    for title, arms in together.items():
        tables[f"Finetuning: {title}"] = [finetuning_row(arm) for arm in arms]
        pairs = [
            (arm, name, base)
            for arm in arms
            if not claims.is_random(arm)
            for name, base in bases(arm, arms)
            if arm.seeds.keys() & base.seeds.keys()
        ]
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


def by_network(arms: Iterable[Arm]) -> Panels:
    """Return {network: [(label, runs)]}: finished runs, or all where none is finished."""
    panels: Panels = collections.defaultdict(list)
    for arm in arms:
        panels[arm.model].append((arm.name, [*arm.seeds.values()] or arm.runs))
    return panels
