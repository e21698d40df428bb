"""Scores of seeds and images to means, intervals and differences.

Intervals are 95 % percentile intervals of a bootstrap over seeds and test images at once: both are
drawn with replacement, the same images for all seeds (Efron and Tibshirani 1993). With three seeds
they are too narrow; more seeds are the remedy.
"""

import math
import statistics
from typing import NamedTuple

import numpy as np

from emjax.runs.run import PARTS

DRAWS = 2000


class Interval(NamedTuple):
    """A mean and the bounds of its 95 % interval; without bounds where there is one value."""

    mean: float
    low: float
    high: float

    def halved(self):
        return Interval(self.mean / 2, self.low / 2, self.high / 2)

    def text(self, form=".4f"):
        if math.isnan(self.mean):
            return "-"
        if math.isnan(self.low):
            return f"{self.mean:{form}}"
        return f"{self.mean:{form}} [{self.low:{form}}, {self.high:{form}}]"


NOTHING = Interval(math.nan, math.nan, math.nan)


def interval(scores):
    """The Interval of a mean over float [seeds, images]."""
    scores = np.asarray(scores, float)
    if scores.size == 0 or np.isnan(scores).any():
        return NOTHING
    if scores.size == 1:
        return NOTHING._replace(mean=float(scores.mean()))
    rng = np.random.default_rng(0)
    seeds, images = (
        rng.multinomial(count, [1 / count] * count, DRAWS) / count for count in scores.shape
    )
    low, high = np.quantile(np.einsum("ds,si,di->d", seeds, scores, images), (0.025, 0.975))
    return Interval(float(scores.mean()), float(low), float(high))


def aligned(*scores):
    """Float [seeds, images] of each {seed: {image: score}}, over the seeds and images all have."""
    seeds = sorted(set.intersection(*(set(each) for each in scores)))
    rows = [each[seed] for each in scores for seed in seeds]
    images = sorted(set.intersection(*map(set, rows))) if rows else []
    return [np.array([[each[seed][image] for image in images] for seed in seeds])
            for each in scores]  # fmt: skip


def tested(arm, part=PARTS):
    """{seed: {image: score}} of an arm's finished runs after `part` twelfths of their steps."""
    return {seed: scores for seed, run in arm.seeds.items() if (scores := run.test(part))}


def average(scores):
    """The Interval of the mean of {seed: {image: score}}, over the images that all seeds have."""
    return interval(aligned(scores)[0])


def contrast(ours, theirs):
    """The Interval of the mean of some {seed: {image: score}} minus the mean of some others.

    Pair by pair over the seeds and images that all of them have.
    """
    if not ours or not theirs:
        return NOTHING
    scores = aligned(*ours, *theirs)
    return interval(np.mean(scores[: len(ours)], 0) - np.mean(scores[len(ours) :], 0))


def by_seed(arm, number):
    """{seed: {"all": number(run)}} of an arm's finished runs, where that is a number."""
    numbers = {seed: number(run) for seed, run in arm.seeds.items()}
    return {seed: {"all": value} for seed, value in numbers.items() if math.isfinite(value)}


def volatility(run):
    """The standard deviation of the change of the validation score between evaluations; or nan."""
    scores = [row[run.score] for row in run.evaluations]
    changes = np.diff(scores)
    return float(np.std(changes)) if len(changes) > 1 else math.nan


def reached(run, level):
    """The first epoch at which the validation score of `run` is `level` or better; inf if never."""
    good = (row for row in run.evaluations if run.sign * (row[run.score] - level) >= 0)
    return min((run.epoch(row["step"]) for row in good), default=math.inf)


def epochs_to_match(arm, base):
    """{seed: (epoch at which `base` has its best val score, epoch at which `arm` reaches it)}."""
    return {
        seed: (theirs.epoch(best["step"]), reached(arm.seeds[seed], best[theirs.score]))
        for seed, theirs in base.seeds.items()
        if seed in arm.seeds and (best := theirs.best())
    }


def median(values):
    """The median, inf where half of the values are; nan of none."""
    return statistics.median(values) if values else math.nan
