"""The first section of a report's page: what a finetuned network does, in pictures and a sentence.

Which arm is shown does not depend on scores: the first one by name that is pretrained, else the one
from random weights. The sentence has the scores of the other arms that can be compared.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from emjax.config import parts_of
from emjax.data.records import open_records, without_slices
from emjax.errors import InputError
from emjax.experiments import claims, gallery
from emjax.experiments.arms import Arm, RunConfig, read_pretraining
from emjax.experiments.intervals import align, average, image_scores
from emjax.experiments.page import Section
from emjax.runs import metrics_log
from emjax.runs.run import Run

ABILITIES = {
    "segmentation": "finds the particles",
    "denoise": "removes the noise",
    "background": "removes the background",
    "superresolution": "restores the superresolved image",
}
SCORES = {"dice": "Dice {:.2f}", "l1": "L1 {:.3f}"}


def opening(groups: Mapping[str, Sequence[Arm]], root: Path) -> list[Section]:
    """Return a section per task: a sentence and the first test records of one arm.

    Of several datasets and networks, the first by name is shown; none without finished runs and
    test scores.

    Args:
        groups: {group: [Arm]}, as `group_arms` returns them.
        root: the folder of the runs.
    """
    tasks: dict[str, list[tuple[str, Arm]]] = {}
    for group in sorted(groups):
        if arm := arm_to_show(groups[group]):
            tasks.setdefault(arm.config["task"], []).append((group, arm))
    sections = []
    for (group, arm), *others in tasks.values():
        text = sentence(arm, comparable(arm, groups[group]), root)
        if others:
            text += f" Shown is the first by name of {len(others) + 1} datasets and networks."
        rows = partial(gallery.predictions, [arm])
        sections.append(gallery.section(f"Result: {group}", rows, text))
    return sections


def arm_to_show(arms: Sequence[Arm]) -> Arm | None:
    """Return the first scored arm that is pretrained, else the first scored one; None without."""
    ready = [arm for arm in arms if is_scored(arm)]
    return next((arm for arm in ready if not claims.is_random(arm)), next(iter(ready), None))


def is_scored(arm: Arm) -> bool:
    """Return whether an arm has finished runs with test scores."""
    scores = image_scores(arm)
    return bool(scores) and math.isfinite(average(scores).mean)


def comparable(arm: Arm, arms: Sequence[Arm]) -> list[Arm]:
    """Return the other arms of a group with the same seeds, steps and test images as `arm`."""

    def conditions(arm: Arm) -> tuple:
        steps = {seed: run.done for seed, run in arm.seeds.items()}
        return steps, arm.config["data"]["evals"]

    return [
        other
        for other in arms
        if other is not arm and is_scored(other) and conditions(other) == conditions(arm)
    ]


def sentence(arm: Arm, others: Sequence[Arm], root: Path) -> str:
    """Return what the arm achieved and what it was trained on, with numbers of the runs' files."""
    run, seeds = gallery.first_run(arm), arm.seeds.values()
    task = arm.config["task"]
    stage, trained = ("finetuning", "finetuned") if run.pretraining else ("training", "trained")
    unseen = f" kept out of {stage}" if is_held_out(arm.config) else ""
    over_seeds = f" over {len(seeds)} seeds" if len(seeds) > 1 else ""
    text = (
        f"On {scored_images(arm)}{unseen}, {arm.model} ({label(arm)}) "
        f"{ABILITIES.get(task, f'does the task {task}')} with {score(arm)} (mean{over_seeds}; "
        f"{1 if run.sign > 0 else 0} is perfect), {trained}{training(list(seeds))}"
    )
    sources = [read_pretraining(each.pretraining, root) for each in seeds if each.pretraining]
    pretrainings = [source for source in sources if source is not None]
    if len(pretrainings) == len(seeds):
        text += f" after pretraining{training(pretrainings)}"
    if others:
        scores = ", ".join(f"{label(other)} {score(other)}" for other in others)
        text += f"; with the same seeds and steps: {scores}"
    return text + "."


def label(arm: Arm) -> str:
    """Return an arm's name as part of a sentence."""
    if not claims.is_random(arm):
        return arm.name
    return "; ".join(filter(None, ["from random weights", arm.setting]))


def score(arm: Arm) -> str:
    """Return the mean test score with the name of its metric."""
    metric = arm.runs[0].score.split("/")[1]
    return SCORES.get(metric, metric + " {:.3f}").format(average(image_scores(arm)).mean)


def scored_images(arm: Arm) -> str:
    """Return `N test images`; without the number where only means were kept."""
    scores = image_scores(arm)
    if "all" in next(iter(scores.values())):
        return "test images"
    return counted(align(scores)[0].shape[1], "test image")


def is_held_out(config: RunConfig) -> bool:
    """Return whether the test split is another one than those trained on, by its name."""

    def whole(name: str, split: str) -> tuple[str, str]:
        return name, split.partition("[")[0]

    trained = {whole(name, split) for name, split, _ in parts_of(config["data"]["train"])}
    return whole(*config["data"]["evals"]["test"]) not in trained


def training(runs: Sequence[Run]) -> str:
    """Return ` on N labelled images in S s`; without the images where the records are absent."""
    config = runs[0].config
    kind = "labelled image" if "task" in config else "unlabelled image"
    count = count_records(config)
    on_images = f" on {counted(count, kind)}" if count else ""
    return f"{on_images} in {duration(runs)}"


def count_records(config: RunConfig) -> int | None:
    """Return how many records a run is trained on; None where they are not built here."""
    data = config["data"]
    try:
        parts = [open_records(data["dir"], n, split) for n, split, _ in parts_of(data["train"])]
        return sum(len(records.source) for records in without_slices(parts))
    except InputError:
        return None


def counted(count: int, what: str) -> str:
    """Return a number and what it counts, in the plural where needed."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def duration(runs: Sequence[Run]) -> str:
    """Return the mean time that training took, as text."""
    seconds = statistics.fmean(map(training_seconds, runs))
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def training_seconds(run: Run) -> float:
    """Return the seconds in a run's log, evaluations included, of all its starts.

    The log's clock begins anew at each start, which shows as a step back.
    """
    total = before = 0.0
    for row in metrics_log.read(run.folder / "metrics.jsonl"):
        seconds = row.get("seconds", before)
        total += seconds - before if seconds >= before else seconds
        before = seconds
    return total
