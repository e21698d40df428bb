"""Losses against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from emjax.config import LOSSES
from emjax.metrics import losses
from emjax.tasks import TASKS
from emjax.tasks.segmentation import segmentation


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


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def dice_by_hand(p, g):
    """(mean Dice over the images, its derivative by p) of [b, h, w, c] in float64."""
    axes = (1, 2)
    overlap, areas = (p * g).sum(axes, keepdims=True), (p + g).sum(axes, keepdims=True) + 1
    dice = (2 * overlap + 1) / areas
    return dice.mean(), (2 * g * areas - (2 * overlap + 1)) / areas**2 / dice.size


def drawn(classes=2):
    """(logits, target) of three images, the last without foreground."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 6, 5, 1 if classes == 2 else classes))
    target = rng.integers(0, classes, (3, 6, 5, 1)).astype(np.float64)
    target[2] = 0
    return logits, target


WEIGHT = 3.0


def entropy_by_hand(z, g):
    weight = np.where(g > 0, WEIGHT, 1)
    return (weight * (np.logaddexp(0, z) - g * z)).mean(), weight * (sigmoid(z) - g) / z.size


@pytest.mark.parametrize("terms", LOSSES)
def test_losses_of_segmentation_and_their_gradients(terms, float64):
    """Against formulas of values and derivatives, written down by hand."""
    z, g = drawn()
    p = sigmoid(z)
    dice, slope = dice_by_hand(p, g)
    value, gradient = entropy_by_hand(z, g) if "cross_entropy" in terms else (0.0, 0.0)
    if "dice" in terms:
        value, gradient = value + 1 - dice, gradient - slope * p * (1 - p)
    weight = 1.0 if terms == "dice" else WEIGHT
    loss = segmentation(loss=terms, foreground_weight=weight).loss
    found, slopes = jax.value_and_grad(loss)(jnp.array(z), jnp.array(g))
    assert float(found) == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(slopes, gradient, rtol=1e-10, atol=1e-15)
    two = jnp.concatenate([jnp.array(z) * 0.25, jnp.array(z) * 1.25], -1)  # background, particle
    assert float(loss(two, jnp.array(g))) == pytest.approx(value, rel=1e-12)


def test_an_image_without_foreground_costs_nothing_if_nothing_is_predicted():
    empty = jnp.zeros((1, 4, 4, 1))
    assert float(losses.soft_dice(probability=empty, target=empty)) == 0
    some = empty.at[0, 0].set(0.5)
    assert float(losses.soft_dice(probability=some, target=empty)) == pytest.approx(1 - 1 / 3)


def test_the_loss_of_today_is_the_default():
    z, g = (jnp.array(each, jnp.float32) for each in drawn())
    today = jax.make_jaxpr(lambda z, g: losses.binary_cross_entropy(logits=z, target=g))(z, g)
    assert str(jax.make_jaxpr(TASKS["segmentation"].loss)(z, g)) == str(today)
    plain = jax.make_jaxpr(lambda z, g: optax.sigmoid_binary_cross_entropy(z, g).mean())(z, g)
    assert str(plain) == str(today)


@pytest.mark.parametrize("terms", LOSSES)
def test_losses_of_several_classes_and_their_gradients(terms, float64):
    """Against formulas of values and derivatives, written down by hand."""
    z, classes = drawn(classes=4)
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    g = (classes == np.arange(4)).astype(float)
    dice, slope = dice_by_hand(p[..., 1:], g[..., 1:])
    value, gradient = 0.0, np.zeros_like(z)
    if "cross_entropy" in terms:
        weight = np.where(classes > 0, WEIGHT, 1)
        value += -(weight * np.log((p * g).sum(-1, keepdims=True))).mean()
        gradient += weight * (p - g) / classes.size
    if "dice" in terms:
        value += 1 - dice
        slope = np.concatenate([np.zeros_like(classes), slope], -1)
        gradient -= p * (slope - (slope * p).sum(-1, keepdims=True))  # through the softmax
    task = segmentation(4, terms, 1.0 if terms == "dice" else WEIGHT)
    found, slopes = jax.value_and_grad(task.loss)(jnp.array(z), jnp.array(classes))
    assert float(found) == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(slopes, gradient, rtol=1e-9, atol=1e-14)
