"""Scores of seeds and images to means, intervals and differences.

Intervals are 95 % percentile intervals of a bootstrap over seeds and test images at once: both are
drawn with replacement, the same images for all seeds (Efron and Tibshirani 1993). With three seeds
they are too narrow; use more seeds.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from emjax.experiments.arms import Arm
from emjax.runs.run import PARTS, Run

DRAWS = 2000

Scores = Mapping[int, Mapping[str, float]]  # {seed: {image: score}}


class Interval(NamedTuple):
    """A mean and the bounds of its 95 % interval; without bounds where there is one value."""

    mean: float
    low: float
    high: float

    def halved(self) -> "Interval":
        """Return the interval of half the quantity."""
        return Interval(self.mean / 2, self.low / 2, self.high / 2)

    def text(self, form: str = ".4f") -> str:
        """Return `mean [low, high]`; `mean` without bounds, - without a mean."""
        if math.isnan(self.mean):
            return "-"
        if math.isnan(self.low):
            return f"{self.mean:{form}}"
        return f"{self.mean:{form}} [{self.low:{form}}, {self.high:{form}}]"


NOTHING = Interval(math.nan, math.nan, math.nan)


def interval(scores: ArrayLike) -> Interval:
    """Return the Interval of the mean of float [seeds, images]."""
    values = np.asarray(scores, float)
    if values.size == 0 or np.isnan(values).any():
        return NOTHING
    if values.size == 1:
        return NOTHING._replace(mean=float(values.mean()))
    rng = np.random.default_rng(0)
    seeds, images = (
        rng.multinomial(count, [1 / count] * count, DRAWS) / count for count in values.shape
    )
    low, high = np.quantile(np.einsum("ds,si,di->d", seeds, values, images), (0.025, 0.975))
    return Interval(float(values.mean()), float(low), float(high))


def align(*scores: Scores) -> list[np.ndarray]:
    """Return float [seeds, images] of each of `scores`, over the seeds and images all of them have.

    Both are in ascending order.
    """
    seeds = sorted(set.intersection(*(set(each) for each in scores)))
    rows = [each[seed] for each in scores for seed in seeds]
    images = sorted(set.intersection(*map(set, rows))) if rows else []
    return [
        np.array([[each[seed][image] for image in images] for seed in seeds]) for each in scores
    ]


def image_scores(arm: Arm, part: int = PARTS) -> dict[int, dict[str, float]]:
    """Return {seed: {image: score}} of the finished runs after `part` twelfths of their steps."""
    return {seed: scores for seed, run in arm.seeds.items() if (scores := run.test(part))}


def average(scores: Scores) -> Interval:
    """Return the Interval of the mean over all seeds and the images that all seeds have."""
    return interval(align(scores)[0])


def contrast(ours: Sequence[Scores], theirs: Sequence[Scores]) -> Interval:
    """Return the Interval of the mean of `ours` minus the mean of `theirs`.

    Pair by pair over the seeds and images that all of them have.
    """
    if not ours or not theirs:
        return NOTHING
    scores = align(*ours, *theirs)
    return interval(np.mean(scores[: len(ours)], 0) - np.mean(scores[len(ours) :], 0))


def by_seed(arm: Arm, number: Callable[[Run], float]) -> dict[int, dict[str, float]]:
    """Return {seed: {"all": number(run)}} of an arm's finished runs where that is finite."""
    numbers = {seed: number(run) for seed, run in arm.seeds.items()}
    return {seed: {"all": value} for seed, value in numbers.items() if math.isfinite(value)}


def volatility(run: Run) -> float:
    """Return the standard deviation of the validation score's change between evaluations.

    NaN with fewer than two changes.
    """
    scores = [row[run.score] for row in run.evaluations]
    changes = np.diff(scores)
    return float(np.std(changes)) if len(changes) > 1 else math.nan


def epoch_reached(run: Run, level: float) -> float:
    """Return the first epoch at which the validation score is `level` or better; inf if never."""
    good = (row for row in run.evaluations if run.sign * (row[run.score] - level) >= 0)
    return min((run.epoch(row["step"]) for row in good), default=math.inf)


def epochs_to_match(arm: Arm, base: Arm) -> dict[int, tuple[float, float]]:
    """Return, by seed, the epoch of the base's best validation score and when `arm` reaches it."""
    return {
        seed: (theirs.epoch(best["step"]), epoch_reached(arm.seeds[seed], best[theirs.score]))
        for seed, theirs in base.seeds.items()
        if seed in arm.seeds and (best := theirs.best())
    }


def median(values: Sequence[float]) -> float:
    """Return the median; inf if half of the values are, NaN of none."""
    return statistics.median(values) if values else math.nan
