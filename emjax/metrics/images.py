"""Scores of single images over their real pixels, where `valid` is True; False on padding.

Each returns float32 [b], or a pair of that and bool [b], whether it applies to the image; `counted`
adds which of them count. Means are taken once, over all images of a split. Arrays are [b, h, w, 1].
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from emjax.metrics.particles import match

Images = Float[Array, "b h w 1"]
Valid = Bool[Array, "b h w 1"]
PerImage = Float[Array, " b"]
Applies = Bool[Array, " b"]
Counts = Float[Array, " b"] | Int[Array, " b"]
AXES = (1, 2, 3)


def l1(*, prediction: Images, target: Images, valid: Valid) -> PerImage:
    """Return the mean absolute error in [0, 1] units, half of that in the networks' [-1, 1]."""
    return mean_over(jnp.abs(prediction - target), valid) / 2


def l2(*, prediction: Images, target: Images, valid: Valid) -> PerImage:
    """Return the mean squared error in [0, 1] units, a quarter of that in the networks' [-1, 1]."""
    return mean_over((prediction - target) ** 2, valid) / 4


def psnr(*, prediction: Images, target: Images, valid: Valid) -> PerImage:
    """Return the peak signal-to-noise ratio in dB; the peak is the full range, the most is 100."""
    squared = l2(prediction=prediction, target=target, valid=valid)
    return -10 * jnp.log10(jnp.maximum(squared, 1e-10))


def bias(*, prediction: Images, target: Images, valid: Valid) -> PerImage:
    """Return the mean of prediction minus target in [0, 1] units: the offset of all grey values."""
    return mean_over(prediction - target, valid) / 2


def ssim(*, prediction: Images, target: Images, valid: Valid) -> PerImage:
    """Return the structural similarity over 11 x 11 windows with Gaussian weights, sigma 1.5.

    It is averaged over the pixels with windows that hold no padding; 0 for an image without any.
    Source: Wang et al. 2004 (doi 10.1109/TIP.2003.819861), K1 = 0.01, K2 = 0.03.
    """
    if min(target.shape[1:3]) < 11:
        return jnp.zeros(len(target))
    a, b = (prediction + 1) / 2, (target + 1) / 2
    gaussian = jnp.exp(-(jnp.arange(-5, 6) ** 2) / (2 * 1.5**2))

    def windowed(x: Array, window: Array | None = None) -> Array:
        weights = gaussian / gaussian.sum() if window is None else window
        for axis in (1, 2):
            reach = x.shape[axis] - 10
            shifted = [lax.slice_in_dim(x, i, reach + i, axis=axis) for i in range(11)]
            x = sum((w * part for w, part in zip(weights, shifted, strict=True)), jnp.zeros(()))
        return x

    mean_a, mean_b = windowed(a), windowed(b)
    var_a, var_b = windowed(a * a) - mean_a**2, windowed(b * b) - mean_b**2
    covariance = windowed(a * b) - mean_a * mean_b
    similarity = ((2 * mean_a * mean_b + 1e-4) * (2 * covariance + 9e-4)) / (
        (mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)
    )
    whole = windowed(valid.astype(jnp.float32), jnp.ones(11)) > 120.5
    return mean_over(similarity, whole)


def binary_cross_entropy(*, logits: Images, target: Images, valid: Valid) -> PerImage:
    """Return the mean binary cross-entropy, in nats."""
    return mean_over(optax.sigmoid_binary_cross_entropy(logits, target), valid)


def hard_dice(*, logits: Images, target: Images, valid: Valid) -> PerImage:
    """Return the Dice score of the mask of probabilities above one half; 1 if both masks are empty.

    Source: Sytwu et al. 2022, compute_dice with smooth = 1: (2 overlap + 1) / (both areas + 1).
    """
    return dice((logits > 0).astype(jnp.float32), target, valid)


def soft_dice(*, logits: Images, target: Images, valid: Valid) -> PerImage:
    """Return the Dice score of the probabilities, with the same smoothing as `hard_dice`."""
    return dice(jax.nn.sigmoid(logits), target, valid)


def dice(mask: Images, target: Images, valid: Valid) -> PerImage:
    """Return the smoothed Dice score of a mask with values in [0, 1]."""
    overlap, predicted, true = areas(mask, target, valid)
    return (2 * overlap + 1) / (predicted + true + 1)


def iou(*, logits: Images, target: Images, valid: Valid) -> PerImage:
    """Return the intersection over union of the masks; 1 if both are empty."""
    overlap, predicted, true = areas(logits > 0, target, valid)
    return share(overlap, predicted + true - overlap)


def precision(*, logits: Images, target: Images, valid: Valid) -> PerImage:
    """Return the share of the predicted mask that is true; 1 if nothing is predicted."""
    overlap, predicted, _ = areas(logits > 0, target, valid)
    return share(overlap, predicted)


def recall(*, logits: Images, target: Images, valid: Valid) -> PerImage:
    """Return the share of the true mask that is predicted; 1 if the true mask is empty."""
    overlap, _, true = areas(logits > 0, target, valid)
    return share(overlap, true)


def particle_scores(
    *, logits: Images, target: Images, valid: Valid
) -> dict[str, PerImage | tuple[PerImage, Applies]]:
    """Return how well whole particles are found and sized; see `emjax.metrics.particles`.

    particle_f1: twice the pairs over the predicted plus the true particles; 1 if there are none.
    particle_count_error: |predicted - true| / true number of particles; applies to images with one.
    particle_size_error: |predicted - true| / true diameter of a circle of the particle's area,
        mean over the pairs; applies to images with a pair.
    """
    masks = dict(predicted=(logits > 0) & valid, true=(target > 0.5) & valid)
    found = match(**{name: mask[..., 0] for name, mask in masks.items()})
    size_error = found.size_error / jnp.maximum(found.pairs, 1)
    count_error = jnp.abs(found.predicted - found.true) / jnp.maximum(found.true, 1)
    return {
        "particle_f1": share(2.0 * found.pairs, found.predicted + found.true),
        "particle_count_error": (count_error, found.true > 0),
        "particle_size_error": (size_error, found.pairs > 0),
    }


def areas(mask: Images | Valid, target: Images, valid: Valid) -> tuple[Counts, Counts, Counts]:
    """Return the areas of the overlap, the mask and the target, in real pixels."""
    overlap, predicted, true = ((x * valid).sum(AXES) for x in (mask * target, mask, target))
    return overlap, predicted, true


def share(part: Counts, whole: Counts) -> PerImage:
    """Return part / whole, and 1 where the whole is 0."""
    return jnp.where(whole == 0, 1, part / jnp.maximum(whole, 1))


def mean_over(error: Images, valid: Valid) -> PerImage:
    """Return the mean of `error` over the real pixels of each image; 0 for one without any."""
    return (error * valid).sum(AXES) / jnp.maximum(valid.sum(AXES), 1)


def counted(
    values: Mapping[str, PerImage | tuple[PerImage, Applies]], valid: Valid
) -> dict[str, tuple[PerImage, Applies]]:
    """Return {name: (value [b], whether it counts [b])} of `values` {name: [b]}.

    Images that are all padding do not count. A value may be a pair; its second entry is True for
    the images to which it applies, and the others do not count either. NaN counts, so that nothing
    hides it.
    """
    real = valid.any(AXES)
    pairs = {name: v if isinstance(v, tuple) else (v, real) for name, v in values.items()}
    return {name: (value, applies & real) for name, (value, applies) in pairs.items()}
