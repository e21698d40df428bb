"""The loop: which network of a run is published."""

import jax
import jax.numpy as jnp
import pytest
from flax import struct

from emjax.train import fit


class State(struct.PyTreeNode):
    step: jax.Array
    generator: jax.Array


class Counting:
    """Its network is the number of updates; the score is the better the nearer to the third."""

    def train_step(self, state, batch):
        return state.replace(step=state.step + 1, generator=state.generator + 1), {"loss": 0.0}

    def eval_step(self, state, batch):
        return {"score": (-jnp.abs(state.generator - 3.0), 1.0)}


class Nothing:
    """Stands in for the reader, the journal and the checkpoints."""

    best = -100.0

    def starting_at(self, step):
        while True:
            yield {}

    def is_best(self, scores):
        better, self.best = scores["val/score"] > self.best, max(self.best, scores["val/score"])
        return better

    def ignore(self, *_):
        pass

    train = write = resume = save = wait = ignore


@pytest.mark.parametrize(("select", "due"), [("best", [1, 2, 3]), ("last", [1, 2, 3, 4, 5])])
def test_the_best_or_the_last_is_published(select, due):
    published = []
    state = jax.device_put(State(jnp.array(0), jnp.array(0.0)), jax.devices()[0])

    def publish(generator, step, scores):
        assert int(generator) == step and scores == {"val/score": -abs(step - 3.0)}
        published.append(step)

    fit(Counting(), state, Nothing(), {"val": [{}]}, total_steps=5, log_every=1, eval_every=1,
        save_every=0, checkpoints=Nothing(), journal=Nothing(), publish=publish,
        select=select)  # fmt: skip
    assert published == due
