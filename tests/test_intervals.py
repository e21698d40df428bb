"""Intervals against closed forms, and what is paired with what."""

import math

import numpy as np
import pytest

from emjax.experiments import intervals
from emjax.experiments.intervals import NOTHING, contrast, interval
from tests.test_claims import run_of


def test_the_interval_is_that_of_a_normal_mean():
    """400 images of one seed: 1.96 standard errors on either side, within a tenth of that."""
    scores = np.random.default_rng(1).normal(0.5, 0.1, (1, 400))
    found = interval(scores)
    reach = 1.96 * scores.std() / 20
    assert found.mean == pytest.approx(scores.mean())
    assert found.low == pytest.approx(scores.mean() - reach, abs=reach / 10)
    assert found.high == pytest.approx(scores.mean() + reach, abs=reach / 10)


def test_seeds_and_images_both_widen_it():
    """Variance of a mean over two crossed factors: the sum of both parts'."""
    rng = np.random.default_rng(2)
    seeds, images = rng.normal(0, 0.1, (40, 1)), rng.normal(0, 0.1, (1, 60))
    reach = 1.96 * math.hypot(seeds.std() / math.sqrt(40), images.std() / math.sqrt(60))
    found = interval(seeds + images)
    assert (found.high - found.low) / 2 == pytest.approx(reach, rel=0.1)


def test_one_value_has_no_interval_and_none_no_mean():
    assert interval([[0.25]])[0] == 0.25 and math.isnan(interval([[0.25]]).low)
    assert interval(np.zeros((0, 0))) is NOTHING and interval([[0.1, math.nan]]) is NOTHING
    assert interval([[0.25]]).text() == "0.2500" and NOTHING.text() == "-"
    assert interval([[0.5, 0.5], [0.5, 0.5]]).text("+.2f") == "+0.50 [+0.50, +0.50]"


def test_a_contrast_is_over_what_all_have():
    ours = {0: {"a": 0.5, "b": 0.7}, 1: {"a": 0.6, "b": 0.8}, 2: {"a": 9.0, "b": 9.0}}
    theirs = {0: {"a": 0.4, "b": 0.6, "c": 0.0}, 1: {"a": 0.5, "b": 0.7, "c": 0.0}}
    assert contrast([ours], [theirs]).text() == "0.1000 [0.1000, 0.1000]"
    assert contrast([ours, ours], [theirs, ours]).mean == pytest.approx(0.05)
    assert contrast([ours], []) is NOTHING and contrast([ours], [{}]) is NOTHING


def test_who_reaches_what_when():
    base, arm = run_of(val=[0.2, 0.9, 0.5, 0.8]), run_of(val=[0.3, 0.5, 0.95, 0.9])
    assert base.best()["step"] == 20
    assert intervals.epoch_reached(arm, 0.9) == 3.0 and intervals.epoch_reached(arm, 0.3) == 1.0
    assert intervals.epoch_reached(arm, 0.96) == math.inf
    assert intervals.volatility(base) == pytest.approx(np.std([0.7, -0.4, 0.3]))
    assert math.isnan(intervals.volatility(run_of(val=[0.1, 0.2])))
