"""Metrics against hand cases and numpy, with padding that must not count."""

import jax.numpy as jnp
import numpy as np
import pytest

from emjax import metrics


def images(*rows):
    return jnp.array(rows, jnp.float32).reshape(len(rows), 2, 2, 1)


def test_hard_dice_by_hand():
    logits = images([9, 9, -9, -9], [-9, -9, -9, -9], [9, -9, -9, -9])
    target = images([1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1])
    valid = jnp.ones((3, 2, 2, 1), bool)
    dice = metrics.hard_dice(logits=logits, target=target, valid=valid)
    assert dice.tolist() == pytest.approx([(2 * 1 + 1) / (2 + 2 + 1), 1.0, 1 / 3])


def test_soft_dice_is_the_formula():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 8, 8, 1)).astype(np.float32)
    target = (rng.random((4, 8, 8, 1)) < 0.3).astype(np.float32)
    q = 1 / (1 + np.exp(-logits))
    expected = (2 * (q * target).sum((1, 2, 3)) + 1) / ((q + target).sum((1, 2, 3)) + 1)
    dice = metrics.soft_dice(
        logits=jnp.array(logits), target=jnp.array(target), valid=jnp.ones((4, 8, 8, 1), bool)
    )
    np.testing.assert_allclose(dice, expected, rtol=1e-5)


@pytest.mark.parametrize("metric", ["hard_dice", "soft_dice", "binary_cross_entropy", "l1"])
def test_padding_does_not_count(metric):
    rng = np.random.default_rng(1)
    output = rng.normal(size=(2, 5, 7, 1)).astype(np.float32)
    target = (rng.random((2, 5, 7, 1)) < 0.4).astype(np.float32)
    more = ((0, 0), (0, 3), (0, 1), (0, 0))
    name = "prediction" if metric == "l1" else "logits"

    def score(pad):
        arrays = {name: np.pad(output, pad, constant_values=5.0), "target": np.pad(target, pad)}
        valid = np.pad(np.ones(output.shape, bool), pad)
        arrays = {key: jnp.array(value) for key, value in arrays.items()}
        return getattr(metrics, metric)(**arrays, valid=jnp.array(valid))

    np.testing.assert_allclose(score(more), score(((0, 0),) * 4), rtol=1e-6)


def test_l1_is_in_unit_range():
    both = dict(prediction=images([1, 1, 1, 1]), target=images([-1, -1, -1, 1]))
    assert float(metrics.l1(**both, valid=jnp.ones((1, 2, 2, 1), bool))[0]) == 0.75


def test_summed_leaves_padded_rows_out():
    valid = jnp.array([True, True, False]).reshape(3, 1, 1, 1)
    total, count = metrics.summed({"dice": jnp.array([0.5, 1.0, 0.9])}, valid)["dice"]
    assert (float(total), float(count)) == (1.5, 2.0)
