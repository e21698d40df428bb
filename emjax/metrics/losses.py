"""Losses: a prediction and a target to one number, the mean over all their elements."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

Images = Float[Array, "b h w 1"]
Channels = Float[Array, "b h w c"]
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


def binary_cross_entropy(
    *, logits: Images, target: Images, foreground_weight: float | int = 1.0
) -> Scalar:
    """Mean binary cross-entropy of `logits` against `target` in {0, 1}.

    Each pixel of the foreground counts `foreground_weight` times, as `pos_weight` of PyTorch's
    BCEWithLogitsLoss does; the sum is divided by the number of pixels.
    """
    entropy = optax.sigmoid_binary_cross_entropy(logits, target)
    if foreground_weight != 1:
        entropy *= jnp.where(target > 0, foreground_weight, 1.0)
    return entropy.mean()


def softmax_cross_entropy(
    *, logits: Channels, target: Images, foreground_weight: float | int = 1.0
) -> Scalar:
    """Mean cross-entropy of the softmax of `logits` against class numbers from 0 on.

    Pixels of all classes but 0 count `foreground_weight` times, as in `binary_cross_entropy`.
    """
    classes = target[..., 0].astype(jnp.int32)
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, classes)
    if foreground_weight != 1:
        entropy *= jnp.where(classes > 0, foreground_weight, 1.0)
    return entropy.mean()


def soft_dice(*, probability: Channels, target: Channels) -> Scalar:
    """One minus the mean over images and channels of (2 overlap + 1) / (both areas + 1).

    That is the metric `soft_dice`, so an image without foreground has a loss of 0 if nothing is
    predicted. Source: Milletari et al. 2016, V-Net (arXiv 1606.04797). Differs: areas are sums of
    probabilities, not of their squares, as in nnU-Net (Isensee et al. 2021, doi
    10.1038/s41592-020-01008-z), and both are smoothed by 1.
    """
    overlap, predicted, true = (x.sum((1, 2)) for x in (probability * target, probability, target))
    return 1 - jnp.mean((2 * overlap + 1) / (predicted + true + 1))
