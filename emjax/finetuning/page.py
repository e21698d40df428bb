"""What a finetuning says at its end: in a sentence, and on its page."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from emjax.experiments import page
from emjax.experiments.curves import curves_png
from emjax.experiments.page import Picture, Row, Section
from emjax.finetuning.scores import Scored, interval_of
from emjax.runs.run import Run

FEW = 5  # images whose bootstrap is too narrow
SHOWN = 3  # images of the best and of the worst scores
LATE = 0.9  # of the steps: a best score after them asks for more


class Facts(NamedTuple):
    """What the page says about a finetuning."""

    title: str
    base: str
    task: str
    pairs: int
    settings: Sequence[Row]
    labels: Sequence[tuple[Row, Sequence[Picture]]]  # what was found in the pairs
    notes: Sequence[str]
    corrections: Sequence[Row] = ()  # what changed since an earlier finetuning


def in_words(
    scores: Sequence[Scored],
    *,
    is_mask: bool,
    folds: int,
    before: Mapping[str, Sequence[Scored]],
    chose_the_base: Collection[str] = (),
) -> str:
    """Return the score of the held-out images in a sentence or two.

    Args:
        folds: networks of a cross-validation; 0 without one.
        before: {base: its scores on the same images, without finetuning}, or {}.
        chose_the_base: names of the images by which the base was chosen among several.
    """
    if not scores:
        return "There is no score: no image was held out."
    name = "Dice" if is_mask else "L1 (fraction of the input's range; less is better)"
    how = f"each predicted by one of {folds} networks that did not see it" if folds else "held out"
    text = f"{name} {interval_of(scores).text('.3f')} of {len(scores)} images, {how}"
    if 1 < len(scores) <= FEW:
        text += " (an interval of so few is too narrow)"
    if is_mask:
        found = sum(each.found or 0 for each in scores)
        drawn = sum(each.drawn or 0 for each in scores)
        text += f"; {found} particles found, {drawn} in the labels"
    if used := sum(each.name in chose_the_base for each in scores):
        text += f"; {used} of them also chose the base, which favours the score a little"
    earlier, ours = "", round(interval_of(scores).mean, 3)
    for base, untrained in before.items():
        theirs = round(interval_of(untrained).mean, 3)
        earlier += f" Without this training, {base} has {theirs:.3f}."
        if theirs > ours if is_mask else theirs < ours:
            earlier += f" That is better: predict with {base}, or label more images."
    return f"{text}.{earlier}"


def divided_in_words(splits: Sequence[Mapping[str, str]]) -> str:
    """Return what is trained on what, for the terminal."""
    if len(splits) > 1:
        held = {name for each in splits for name, split in each.items() if split == "val"}
        never = sorted(set(splits[0]) - held)
        but = f"; without a score, as no training is left without them: {', '.join(never)}"
        return (
            f"{len(splits[0])} pairs are of few sources: each is held out once, by "
            f"{len(splits) - 1} trainings; one more, on all of them, is the model"
            f"{but if never else ''}"
        )
    names = [*splits[0].values()]
    uses = {"train": "to train on", "val": "to choose by", "test": "held out for the score"}
    if "test" not in names:
        uses["val"] = uses["test"]
    counts = [f"{names.count(split)} {use}" for split, use in uses.items() if split in names]
    alone = "; none is held out, so there will be no score" if {*names} == {"train"} else ""
    return f"{', '.join(counts)}{alone}"


def remarks(runs: Sequence[Run], scores: Sequence[Scored], *, is_mask: bool) -> list[str]:
    """Return what the curves and the scores advise."""
    found = []
    late = [run for run in runs if run.best().get("step", 0) > LATE * run.steps]
    if late and all(run.select == "best" for run in late):
        found.append("The best score came at the end: longer training (--steps) may give a better.")
    if scores and is_mask:
        worst = min(scores, key=lambda each: each.score)
        middle = float(np.median([each.score for each in scores]))
        if worst.score < middle - 0.15:
            found.append(
                f"{worst.name} is far below the others (Dice {worst.score:.3f}, median "
                f"{middle:.3f}): look whether its labels are right, or label more images like it."
            )
        found_in = sum(each.found or 0 for each in scores)
        drawn = sum(each.drawn or 0 for each in scores)
        if found_in > 1.25 * drawn:
            found.append(
                f"{found_in} particles are found where the labels have {drawn}: for counts, leave "
                "out small ones by emjax measure --min_size."
            )
        elif found_in < 0.8 * drawn:
            found.append(
                f"{found_in} particles are found where the labels have {drawn}: some are missed, "
                "or touch in the prediction; emjax measure --split divides those that touch."
            )
    return found


def table(scores: Sequence[Scored], *, is_mask: bool) -> list[dict[str, str]]:
    """Return a row per image, the worst score first."""
    rows = []
    for each in sorted(scores, key=lambda each: each.score, reverse=not is_mask):
        row = {"image": each.name, "Dice" if is_mask else "L1": f"{each.score:.4f}"}
        if is_mask:
            row |= {"particles found": str(each.found), "in the labels": str(each.drawn)}
        rows.append(row)
    return rows


def render(facts: Facts, runs: Mapping[str, Run], scores: Sequence[Scored], *, summary: str) -> str:
    """Return the page of a finetuning as HTML that needs no other file.

    Args:
        runs: by name, those whose curves are shown.
        summary: what `in_words` returns.
    """
    is_mask = facts.task == "segmentation"
    ranked = sorted(scores, key=lambda each: each.score, reverse=not is_mask)
    chosen = ranked if len(ranked) <= 2 * SHOWN else [*ranked[:SHOWN], *ranked[-SHOWN:]]
    title = "score on val; on the training images where none is held out"
    curves = curves_png(title, {"": [(name, [run]) for name, run in runs.items()]})
    problems = [row for row, _ in facts.labels]
    sections = [
        Section("Scores", table=table(scores, is_mask=is_mask)),
        Section("Worst and best", pictures=[each.row for each in chosen]),
        Section(
            "Labels",
            text="" if problems else "Nothing was found that looks wrong.",
            table=problems,
            pictures=[shown for _, shown in facts.labels if shown],
        ),
        Section("Corrected since", table=facts.corrections),
        Section("Curves", curves=Picture(curves, "validation scores over epochs")),
        Section("Settings", table=facts.settings),
        Section("Data", table=[{"": note} for note in facts.notes]),
    ]
    sections = [each for each in sections if each.title != "Corrected since" or each.table]
    paragraphs = [
        summary,
        f"{facts.pairs} pairs; task {facts.task}; started from "
        f"{'random weights' if facts.base == 'none' else facts.base}.",
        *remarks([*runs.values()], scores, is_mask=is_mask),
    ]
    return page.render(facts.title, paragraphs, sections)
