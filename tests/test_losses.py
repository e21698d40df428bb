"""Losses against closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest

from emjax.metrics import losses


def test_adversarial_at_one_half():
    """With D = 0.5 everywhere: 0.25 for the generator, 0.25 for half the discriminator's sum."""
    half = jnp.full((2, 3, 3, 1), 0.5)
    real, fake = losses.adversarial(half, real=True), losses.adversarial(half, real=False)
    assert float(real) == 0.25 and float(0.5 * (real + fake)) == 0.25
    assert float(losses.adversarial(jnp.ones((1, 2, 2, 1)), real=True)) == 0


def test_l1():
    image = jnp.array([1.0, -1, 0.5, 0]).reshape(1, 2, 2, 1)
    assert float(losses.l1(prediction=image, target=jnp.zeros((1, 2, 2, 1)))) == 0.625


def test_binary_cross_entropy():
    logits = np.array([-30.0, -1, 0.5, 30]).reshape(1, 2, 2, 1)
    target = np.array([0.0, 1, 1, 0]).reshape(1, 2, 2, 1)
    expected = (np.logaddexp(0, logits) - target * logits).mean()
    loss = losses.binary_cross_entropy(logits=jnp.array(logits), target=jnp.array(target))
    assert float(loss) == pytest.approx(expected, rel=1e-5)
