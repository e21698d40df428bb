"""Metrics, image by image over real pixels: `valid` is True there, False on padding.

Each returns float32 [b]; `summed` turns them into (sum, count) pairs, which are added over a whole
split and divided once. Arrays are [b, h, w, 1].
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

Images = Float[Array, "b h w 1"]
Valid = Bool[Array, "b h w 1"]
PerImage = Float[Array, " b"]
AXES = (1, 2, 3)


def l1(*, prediction: Images, target: Images, valid: Valid) -> PerImage:
    """Mean absolute error in [0, 1] units: half of what it is in the networks' [-1, 1]."""
    return mean_over(jnp.abs(prediction - target), valid) / 2


def binary_cross_entropy(*, logits: Images, target: Images, valid: Valid) -> PerImage:
    """Mean binary cross-entropy over the real pixels."""
    return mean_over(optax.sigmoid_binary_cross_entropy(logits, target), valid)


def hard_dice(*, logits: Images, target: Images, valid: Valid) -> PerImage:
    """Dice of the mask where the probability is above one half; 1 if both masks are empty.

    Source: Sytwu et al. 2022, compute_dice with smooth = 1: (2 overlap + 1) / (both areas + 1).
    """
    return dice((logits > 0).astype(jnp.float32), target, valid)


def soft_dice(*, logits: Images, target: Images, valid: Valid) -> PerImage:
    """Dice of the probabilities themselves, with the same smoothing as `hard_dice`."""
    return dice(jax.nn.sigmoid(logits), target, valid)


def dice(mask, target, valid):
    overlap = (mask * target * valid).sum(AXES)
    areas = (mask * valid).sum(AXES) + (target * valid).sum(AXES)
    return (2 * overlap + 1) / (areas + 1)


def mean_over(error, valid):
    return (error * valid).sum(AXES) / jnp.maximum(valid.sum(AXES), 1)


def summed(values, valid):
    """`values` {name: [b]} to {name: (sum, count)} over the images that have real pixels."""
    real = valid.any(AXES).astype(jnp.float32)
    return {name: (jnp.sum(value * real), jnp.sum(real)) for name, value in values.items()}
