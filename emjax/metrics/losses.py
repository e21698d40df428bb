"""Losses: a prediction and a target to one number, the mean over all their elements."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

Images = Float[Array, "b h w 1"]
Scalar = Float[Array, ""]


def adversarial(scores: Images, *, real: bool) -> Scalar:
    """Mean squared distance of the discriminator's scores to 1 (real) or 0 (fake).

    Source: least-squares GAN, Mao et al. 2016 (arXiv 1611.04076), equation 2.
    """
    return jnp.mean((scores - float(real)) ** 2)


def l1(*, prediction: Images, target: Images) -> Scalar:
    """Mean absolute error, in the units of the images."""
    return jnp.mean(jnp.abs(prediction - target))


def l1_and_l2(*, prediction: Images, target: Images) -> Scalar:
    """Mean absolute plus mean squared error, 1:1, in the units of the images."""
    error = prediction - target
    return jnp.mean(jnp.abs(error)) + jnp.mean(error**2)


def binary_cross_entropy(*, logits: Images, target: Images) -> Scalar:
    """Mean binary cross-entropy of `logits` against `target` in {0, 1}."""
    return optax.sigmoid_binary_cross_entropy(logits, target).mean()
