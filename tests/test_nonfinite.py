"""Batches with a non-finite loss or gradient: not applied, named, and not endlessly."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from emjax.data.batches import TrainBatches
from emjax.data.records import Records
from emjax.errors import Interrupted, NonFiniteError
from emjax.objectives.nonfinite import Skips, apply_if_finite, no_skips
from emjax.parallel import sharding
from emjax.runs.checkpoints import Checkpoints
from emjax.runs.metrics_log import MetricsLog, read
from emjax.training.loop import Schedule, fit
from tests.test_objectives import OBJECTIVES, uneven_batch


def leaves(state):
    """Every array of the networks, as bytes."""
    networks = jax.device_get((state.generator, getattr(state, "discriminator", None)))
    return [leaf.tobytes() for leaf in jax.tree.leaves(networks)]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_nonfinite_batch_changes_nothing(name):
    step = jax.jit(OBJECTIVES[name].train_step)
    good = uneven_batch()
    bad = {**good, "intensity_range": good["intensity_range"].copy()}
    bad["intensity_range"][3] = np.nan
    first, _ = step(OBJECTIVES[name].init(0), good)
    skipped, terms = step(first, bad)
    assert not all(np.isfinite(term) for term in terms.values())
    assert leaves(skipped) == leaves(first) and int(skipped.step) == 2
    skipped, _ = step(skipped, bad)
    after, terms = step(skipped, good)
    assert leaves(after) != leaves(first) and int(after.step) == 4
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.generator.params))
    assert after.skips.last.tolist() == [3, 2] + 8 * [0]
    assert (int(after.skips.since), int(after.skips.count)) == (2, 2)


def test_neither_network_changes_if_one_cannot():
    objective = dataclasses.replace(OBJECTIVES["pix2pix"], l1_weight=float("inf"))
    state = objective.init(0)
    step = jax.jit(objective.train_step)
    after, terms = step(state, uneven_batch())
    assert np.isfinite(terms["d_real"]) and np.isfinite(terms["d_fake"])
    assert leaves(after) == leaves(state) and int(after.skips.count) == 1


class State(struct.PyTreeNode):
    step: jax.Array
    generator: jax.Array
    skips: Skips


class Line:
    """One number that is trained to be the mean of the images."""

    def init(self):
        return State(jnp.zeros((), jnp.int32), jnp.zeros(()), no_skips())

    def train_step(self, state, batch):
        loss, slope = jax.value_and_grad(lambda w: jnp.square(w - batch["image"]).mean())(
            state.generator
        )
        after = state.replace(step=state.step + 1, generator=state.generator - 0.1 * slope)
        return apply_if_finite(state, after, (loss, slope)), {"loss": loss}

    def eval_step(self, state, batch):
        return {"l1": (jnp.abs(state.generator)[None], jnp.ones(1, bool))}


class Poisoned(TrainBatches):
    """Some batches are not finite."""

    def __init__(self, bad, source=None):
        self.bad = bad
        records = [
            dict(image=np.full((4, 4, 1), i, np.float32), index=i, source=b"film%d.tif" % (i % 2))
            for i in range(6)
        ]
        mesh = sharding.data_mesh(devices=jax.devices()[:1])
        super().__init__([Records(records, {})], batch_size=2, seed=0, mesh=mesh)

    def starting_at(self, step):
        for number, batch in enumerate(super().starting_at(step), start=step + 1):
            factor = np.float32(np.nan if number in self.bad else 1)
            yield {**batch, "image": batch["image"] * factor}


def run(folder, bad, stop_at=None):
    """The state after 60 steps and the batches."""
    batches = Poisoned(bad)
    state = jax.device_put(Line().init(), sharding.replicated(batches.mesh))
    checkpoints = Checkpoints(folder / "checkpoints", score="val/l1", higher_is_better=False)
    state = checkpoints.restore(state)
    log = MetricsLog(folder / "metrics.jsonl", done=int(state.step), total=60, images=2)
    calls = iter(range(int(state.step) + 1, 61))
    state = fit(
        Line(),
        state,
        batches,
        {"val": [{"index": np.zeros(1, np.int32)}]},
        Schedule(60, log_every=5, eval_every=30, save_every=10),
        checkpoints=checkpoints,
        log=log,
        publish=lambda *_: None,
        stop=lambda: next(calls) == stop_at,
    )
    checkpoints.close()
    return state, batches


def test_examples_of_a_skipped_batch_are_named(tmp_path, caplog):
    state, batches = run(tmp_path, {7, 33})
    assert [line.split(": ")[0] for line in caplog.messages] == ["step 7", "step 33"]
    for line, step in zip(caplog.messages, (7, 33), strict=True):
        reader = TrainBatches.starting_at(batches, step - 1)
        for index in np.array(next(reader)["index"]):
            assert f"film{index % 2}.tif" in line and str(index) in line.split("source: ")[1]
    assert int(state.skips.count) == 2 and np.isfinite(state.generator)
    rows = [row for row in read(tmp_path / "metrics.jsonl") if "train/loss" in row]
    assert [row.get("train/skipped") for row in rows] == [None] + 5 * [1] + 6 * [2]


def test_back_to_a_checkpoint_once(tmp_path, caplog):
    """Twelve bad batches; a run that is stopped and resumed among them ends in the same state."""
    bad = set(range(25, 37))
    (tmp_path / "whole").mkdir(), (tmp_path / "parts").mkdir()
    state, _ = run(tmp_path / "whole", bad)
    (note,) = [line for line in caplog.messages if line.startswith("steps 25 to 35: the loss")]
    assert note.endswith("the run goes back to the checkpoint of step 20, once")
    rows = read(tmp_path / "whole" / "metrics.jsonl")
    assert [row["step"] for row in rows if row.get("train/back_to") == 20] == [35]
    assert (
        int(state.step) == 60 and int(state.skips.rollbacks) == 1 and np.isfinite(state.generator)
    )
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", bad, stop_at=28)
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", bad, stop_at=41)
    parts, _ = run(tmp_path / "parts", bad)
    assert leaves(parts) == leaves(state)
    assert jax.tree.all(jax.tree.map(np.array_equal, parts.skips, state.skips))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (range(25, 61), "steps 36 to 45: .* has gone back to a checkpoint before"),
        (range(3, 61), "steps 3 to 15: .* no good checkpoint from before"),
    ],
)
def test_then_the_run_stops(tmp_path, bad, words):
    with pytest.raises(NonFiniteError, match=words):
        run(tmp_path, set(bad))
