"""Clipping and learning-rate schedules, against their formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from emjax.errors import UsageError
from emjax.training import optimizers


def sgd(monkeypatch):
    """An optimizer that subtracts the rate times the gradient."""
    monkeypatch.setitem(optimizers.OPTIMIZERS, "sgd", lambda *, lr: optax.sgd(lr))


def rates(optimizer, updates):
    """The learning rate of each update."""
    opt_state, found = optimizer.init(jnp.zeros(())), []
    for _ in range(updates):
        update, opt_state = optimizer.update(jnp.ones(()), opt_state)
        found.append(-float(update))
    return found


RATES = {
    "constant": lambda done: 1,
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
}


@pytest.mark.parametrize("schedule", RATES)
@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_learning_rates(schedule, warmup, monkeypatch):
    """lr / warmup, 2 lr / warmup, ..., lr; then from lr down to one update before zero."""
    sgd(monkeypatch)
    given = dict(name="sgd", lr=0.3, schedule=schedule, warmup=warmup)
    rise = [0.3 * (step + 1) / warmup for step in range(warmup)]
    rest = [0.3 * RATES[schedule](step / (20 - warmup)) for step in range(20 - warmup)]
    np.testing.assert_allclose(rates(optimizers.build(given, 20), 20), rise + rest, rtol=1e-5)


def test_gradients_are_clipped_by_the_norm_of_all(monkeypatch):
    sgd(monkeypatch)
    optimizer = optimizers.build(dict(name="sgd", lr=1.0, clip=2.0), 5)
    grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]])}  # of norm 5
    update, opt_state = optimizer.update(grads, optimizer.init(grads))
    np.testing.assert_allclose(update["a"], [-1.2, 0], rtol=1e-6)
    np.testing.assert_allclose(update["b"], [[-1.6]], rtol=1e-6)
    small = jax.tree.map(lambda x: x / 10, grads)
    update, _ = optimizer.update(small, opt_state)
    np.testing.assert_allclose(update["b"], [[-0.4]], rtol=1e-6)


def test_without_them_it_is_plain_adam():
    """The same optimizer state, too, so that old checkpoints fit."""
    params = {"a": jnp.ones(3)}
    given = dict(name="adam", lr=1e-3, b1=0.5, clip=0.0, schedule="constant", warmup=0)
    ours, plain = optimizers.build(given, 100), optax.adam(1e-3, b1=0.5)
    opt_state, expected = ours.init(params), plain.init(params)
    assert jax.tree.structure(opt_state) == jax.tree.structure(expected)
    np.testing.assert_array_equal(
        ours.update(params, opt_state)[0]["a"], plain.update(params, expected)[0]["a"]
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(schedule="cosin"), "no optimizer.schedule 'cosin'; there are: const.*cosine, linear"),
        (dict(clip=-1.0), "optimizer.clip=-1.0, expected a norm above 0, or 0 for no"),
        (dict(warmup=10), "optimizer.warmup=10, expected 0 to 9 updates"),
        (dict(warmup=-1), "optimizer.warmup=-1, expected 0 to 9"),
    ],
)
def test_impossible_values_are_refused(changes, words):
    with pytest.raises(UsageError, match=words):
        optimizers.build(dict(name="adam", lr=1e-3, **changes), 10)
