"""Size distributions of a sample: quantiles, fits, and how sure they are.

Intervals are 95 % percentile intervals of a bootstrap over images and particles: images are drawn
with replacement, then as many particles as they have from each (Efron and Tibshirani 1993). One
image says nothing about how images differ: then particles alone are drawn.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

DRAWS = 1000
LEVELS = (0.025, 0.975)
SEED = 0
WANTED = 0.05  # half width of the interval of the median, as a share of the median
NANO = 100.0  # nm
NUMBERS = (10, 20, 50, 100, 200, 500, 1000, 2000)  # particles, of which intervals are shown
FEWEST = 8  # particles for a test of a fit, and for saying how many are needed
NEED_TWO = ("sd", "gsd")


Statistics: TypeAlias = Callable[[np.ndarray, np.ndarray], dict[str, float]]


class Sample(NamedTuple):
    """Particles that are counted, in no order."""

    values: np.ndarray  # float [n], above 0
    weights: np.ndarray  # float [n], above 0: how many particles of the specimen each stands for
    groups: np.ndarray  # int [n]: the image of each, from 0 on


def by_number(values: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """Return statistics of ascending values; with equal weights the quantiles are NumPy's.

    Each value stands at the middle of its weight, and quantiles are interpolated between them.
    """
    middles = np.cumsum(weights) - weights / 2
    at = middles[0] + np.array([0.1, 0.5, 0.9]) * (middles[-1] - middles[0])
    d10, d50, d90 = map(float, np.interp(at, middles, values))
    mean, sd = moments(values, weights)
    gsd = math.exp(moments(np.log(values), weights)[1])
    return {"median": d50, "mean": mean, "sd": sd, "d10": d10, "d50": d50, "d90": d90, "gsd": gsd}


def by_volume(values: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """Return the ascending diameters up to which spheres have a share of the volume; their mean."""
    volume = weights * values**3
    total = np.cumsum(volume)
    d10, d50, d90 = values[np.searchsorted(total, np.array([0.1, 0.5, 0.9]) * total[-1])]
    mean = np.average(values, weights=volume)
    return {"d10": float(d10), "d50": float(d50), "d90": float(d90), "mean": float(mean)}


def moments(values: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Return (mean, standard deviation); with equal weights of 1 the latter is that with n - 1."""
    count = np.sum(weights)
    mean = np.average(values, weights=weights)
    if len(values) == 1:
        return float(mean), 0.0
    variance = np.average((values - mean) ** 2, weights=weights) * count / (count - 1)
    return float(mean), float(variance**0.5)


def draws(groups: np.ndarray) -> Iterator[np.ndarray]:
    """Yield DRAWS times the particles that are drawn, in ascending order, each as often as it is.

    A particle that is drawn twice counts as two, as two of one size do in a sample: quantiles
    interpolate between particles, and the middle of a double weight would stand between others.
    """
    rng = np.random.default_rng(SEED)
    order = np.argsort(groups, kind="stable")
    _, first, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    for _ in range(DRAWS):
        images = rng.integers(0, len(sizes), len(sizes))
        size = np.repeat(sizes[images], sizes[images])
        drawn = np.repeat(first[images], sizes[images]) + rng.integers(0, size)
        yield np.sort(order[drawn])


def describe(sample: Sample, of: Statistics = by_number) -> dict[str, Any]:
    """Return {name: value} of statistics, and `intervals`, {name: [low, high]}.

    None where there are too few particles: none at all, or one for intervals and deviations.
    """
    order = np.argsort(sample.values, kind="stable")
    values, weights, groups = (column[order] for column in sample)
    if len(values) < 2:
        known = of(values, weights) if len(values) else {}
        found = {n: None if n in NEED_TWO else known.get(n) for n in of(*np.ones((2, 1)))}
        return {**found, "intervals": dict.fromkeys(found)}
    drawn = [of(values[at], weights[at]) for at in draws(groups)]
    found = of(values, weights)
    return {**found, "intervals": {n: interval([each[n] for each in drawn]) for n in found}}


def plain(sample: Sample) -> dict[str, float | None]:
    """Return the D10, the median and the D90, without intervals; None of nothing."""
    order = np.argsort(sample.values)
    found = by_number(sample.values[order], sample.weights[order]) if len(order) else {}
    return {name: found.get(name) for name in ("d10", "median", "d90")}


def interval(drawn: Sequence[float]) -> list[float]:
    """Return [low, high] of the 95 % interval of what was drawn."""
    low, high = np.quantile(drawn, LEVELS)
    return [float(low), float(high)]


def share_up_to(sample: Sample, limit: float) -> dict[str, Any]:
    """Return the share of particles up to `limit`, `value`, and its `interval`.

    The interval is the wider of the bootstrap's and Wilson's (1927): drawn again, particles that
    are all small or all large would have one of width 0.
    """
    values, weights, groups = sample
    if not len(values):
        return {"value": None, "interval": None}
    small = values <= limit
    value = float(np.average(small, weights=weights))
    if len(values) == 1:
        return {"value": value, "interval": None}
    low, high = interval([np.average(small[at], weights=weights[at]) for at in draws(groups)])
    n, z = len(values), 1.959964
    middle = (value + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (value * (1 - value) / n + z * z / (4 * n * n)) ** 0.5
    bounds = [max(0.0, min(low, middle - half)), min(1.0, max(high, middle + half))]
    return {"value": value, "interval": bounds}


def fits(sample: Sample) -> dict[str, dict[str, float | None]]:
    """Return the normal and the lognormal distribution of the same mean and deviation.

    Each with `ks_distance`, the largest distance between its cumulative curve and that of the
    particles, and `anderson_darling_p`: how often particles of such a distribution would be as far
    from their own fit (D'Agostino and Stephens 1986, table 4.9). None for fewer than FEWEST
    particles, and with weights, for which there is no such table.
    """
    order = np.argsort(sample.values)
    values, weights = sample.values[order], sample.weights[order]
    if len(values) < 2 or values[0] == values[-1]:
        return {}
    found: dict[str, dict[str, float | None]] = {}
    for name, scaled in (("normal", values), ("lognormal", np.log(values))):
        mean, sd = moments(scaled, weights)
        standard = (scaled - mean) / sd
        plain = len(values) >= FEWEST and bool(np.all(weights == weights[0]))
        found[name] = {
            **({"mean": mean, "sd": sd} if name == "normal" else
               {"median": math.exp(mean), "gsd": math.exp(sd)}),
            "ks_distance": ks_distance(standard, weights),
            "anderson_darling_p": p_value(anderson_darling(standard), len(values))
            if plain else None,
        }  # fmt: skip
    return found


def ks_distance(standard: np.ndarray, weights: np.ndarray) -> float:
    """Return the largest distance of the weighted cumulative curve from the normal one."""
    from scipy.special import ndtr

    expected = ndtr(standard)
    above = np.cumsum(weights) / np.sum(weights)
    return float(max(np.max(above - expected), np.max(expected - above + weights / weights.sum())))


def anderson_darling(standard: np.ndarray) -> float:
    """Return the statistic A^2 of ascending standardised values against the normal distribution."""
    from scipy.special import log_ndtr

    n = len(standard)
    odd = 2 * np.arange(1, n + 1) - 1
    return float(-n - np.mean(odd * (log_ndtr(standard) + log_ndtr(-standard[::-1]))))


def p_value(statistic: float, n: int) -> float:
    """Return the p-value of A^2 where mean and deviation are those of the sample."""
    a = statistic * (1 + 0.75 / n + 2.25 / n**2)
    if a >= 0.6:
        return math.exp(1.2937 - 5.709 * a + 0.0186 * a * a) if a < 13 else 0.0
    if a >= 0.34:
        return math.exp(0.9177 - 4.279 * a - 1.38 * a * a)
    if a >= 0.2:
        return 1 - math.exp(-8.318 + 42.796 * a - 59.938 * a * a)
    return 1 - math.exp(-13.436 + 101.14 * a - 223.73 * a * a)


def precision(sample: Sample, described: Mapping[str, Any]) -> dict[str, Any]:
    """Return how the interval of the median shrinks with the number of particles.

    Args:
        described: what `describe` returned.

    Returns:
        `by_number`: [{number, half_width}], the half width of the 95 % interval of the median, as
        a share of it, of so many particles drawn from the images that a draw has, as in Wouters et
        al. 2025, and of all. `needed`: particles for a half width of WANTED, if it shrinks with the
        root of their number; `more`: how many of them are missing.
    """
    values, weights, groups = sample
    bounds, median = described["intervals"]["median"], described["median"]
    if bounds is None or len(values) < FEWEST:
        return {"by_number": [], "needed": None, "more": None}
    numbers = [number for number in NUMBERS if number < len(values)]
    rng = np.random.default_rng(SEED + 1)
    drawn: dict[int, list[float]] = {number: [] for number in numbers}
    for at in draws(groups):
        chance = np.cumsum(weights[at])
        for number in numbers:
            picked = at[np.searchsorted(chance, rng.random(number) * chance[-1], side="right")]
            drawn[number].append(float(np.median(values[picked])))
    intervals = {number: interval(each) for number, each in drawn.items()} | {len(values): bounds}
    rows = [
        {"number": number, "half_width": (high - low) / 2 / median}
        for number, (low, high) in intervals.items()
    ]
    needed = max(FEWEST, math.ceil(len(values) * (rows[-1]["half_width"] / WANTED) ** 2))
    return {"by_number": rows, "needed": needed, "more": max(0, needed - len(values))}
