"""The loop: what is scored when, and what of it is kept."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from emjax.objectives.nonfinite import Skips, no_skips
from emjax.parallel import sharding
from emjax.training.loop import Schedule, fit

DICE = [0.2, 0.5, 0.4, 0.5, 0.7, 0.6]  # of val, by step


class State(struct.PyTreeNode):
    step: jax.Array
    generator: jax.Array
    skips: Skips


class Counting:
    """An objective that scores its step as in the table above."""

    def train_step(self, state, batch):
        return state.replace(step=state.step + 1), {"loss": jnp.float32(0)}

    def eval_step(self, state, batch):
        dice = jnp.array(DICE)[state.step - 1] + batch["offset"]
        sizes = jnp.where(batch["offset"] > 0, dice, jnp.nan)
        real = batch["valid"]
        return {"dice": (dice, real), "size": (sizes, real & (batch["offset"] > 0))}


class Kept:
    """Checkpoints that only remember."""

    def __init__(self):
        self.best, self.saved = -1.0, []

    def is_best(self, scores):
        better = scores["val/dice"] > self.best
        self.best = max(self.best, scores["val/dice"])
        return better

    def save(self, step, state, scores=None):
        self.saved.append(step)

    def wait(self, before=None):
        pass

    hold = wait


def batch(offsets, valid, first=0):
    arrays = {"offset": np.float32(offsets), "valid": np.array(valid)}
    return {**arrays, "index": np.arange(first, first + len(valid), dtype=np.int32)}


def fit_counting(done=0, **options):
    """What `fit` did from a state after `done` steps."""
    rows, images, published, kept = {}, {}, [], Kept()
    kept.best = max(DICE[:done], default=-1.0)
    log = types.SimpleNamespace(
        train=lambda step, terms, pace: None,
        show_step=lambda step: None,
        clear_line=lambda: None,
        write=rows.__setitem__,
        write_images=lambda step, split, scores: images.__setitem__((step, split), scores),
        restart_clock=lambda step: None,
    )
    everywhere = sharding.replicated(sharding.data_mesh())
    state = State(step=jnp.int32(done), generator=jnp.float32(0), skips=no_skips())
    state = fit(
        Counting(),
        jax.device_put(state, everywhere),
        types.SimpleNamespace(
            starting_at=lambda step: iter(lambda: {}, None),
            rows=lambda batch: batch,
            examples=lambda batch: [],
        ),
        {
            "test": [batch([0.1, 0.0], [True, True]), batch([0.3, 9.0], [True, False], 2)],
            "val": [batch([0.0], [True])],
        },
        Schedule(len(DICE), log_every=1, eval_every=1, save_every=0),
        checkpoints=kept,
        log=log,
        publish=lambda generator, step, scores: published.append(step),
        **options,
    )
    return types.SimpleNamespace(
        rows=rows, images=images, published=published, kept=kept, ended=int(state.step), **options
    )


@pytest.fixture(params=["best", "last"])
def fitted(request):
    return fit_counting(select=request.param)


def test_test_is_scored_at_new_bests_and_at_the_last_step(fitted):
    assert fitted.published == ([1, 2, 5] if fitted.select == "best" else [1, 2, 3, 4, 5, 6])
    assert [step for step, row in fitted.rows.items() if "test/dice" in row] == [1, 2, 5, 6]
    assert [*fitted.images] == [(step, "test") for step in (1, 2, 5, 6)]
    assert fitted.kept.saved == [1, 2, 3, 4, 5, 6]
    assert [row["val/dice"] for row in fitted.rows.values()] == pytest.approx(DICE)


def test_a_run_ends_after_so_many_evaluations_without_a_better_score():
    """An equal score is no better one; the last evaluation scores test too."""
    for done, since in ((0, 0), (3, 1)):
        found = fit_counting(done, early_stopping=2, since_best=since)
        assert found.ended == max(found.rows) == found.kept.saved[-1] == 4
        stops = {step: row.get("train/stopped_early") for step, row in found.rows.items()}
        assert stops == {step: 2 if step == 4 else None for step in range(done + 1, 5)}
        assert "test/dice" in found.rows[4] and "test/dice" not in found.rows.get(3, {})
    again = fit_counting(4, early_stopping=2, since_best=2)
    assert again.ended == 4 and again.rows == {} and again.kept.saved == []
    assert fit_counting(early_stopping=3).ended == len(DICE)  # 0.7 came in time


def test_means_are_over_the_images_to_which_a_metric_applies(fitted):
    assert fitted.rows[5]["test/dice"] == pytest.approx(0.7 + 0.4 / 3)
    assert fitted.rows[5]["test/size"] == pytest.approx(0.9)
    assert "val/size" not in fitted.rows[5]
    scores = fitted.images[5, "test"]
    assert {index: sorted(each) for index, each in scores.items()} == {
        0: ["dice", "size"],
        1: ["dice"],
        2: ["dice", "size"],
    }


def test_a_schedule_holds_at_multiples_and_at_the_end():
    schedule = Schedule(10, log_every=3, eval_every=0, save_every=20)
    steps = range(1, 11)
    assert [step for step in steps if schedule.logs(step)] == [3, 6, 9, 10]
    assert [step for step in steps if schedule.evaluates(step)] == [10]
    assert [step for step in steps if schedule.saves(step)] == [10]
