"""Normalisation layers, with PyTorch's running statistics."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.nn import initializers

from emjax.errors import choose


class RunningStat(nnx.Variable):
    """An array that training updates without a gradient."""


class BatchNorm(nnx.Module):
    """Normalise each channel over batch, height and width.

    Statistics are taken in float32 or wider over the global batch, on however many devices it lies.
    Differs: from nnx.BatchNorm, the running variance is unbiased, as PyTorch keeps it (3 % apart
    on a 4x4 map at batch 2), and the variance is taken around the mean.
    """

    def __init__(self, channels, *, decay=0.9, epsilon=1e-5, scale_init=initializers.ones, rngs):
        self.scale = nnx.Param(scale_init(rngs.params(), (channels,)))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.mean = RunningStat(jnp.zeros(channels))
        self.var = RunningStat(jnp.ones(channels))
        self.decay, self.epsilon = decay, epsilon

    def __call__(self, x, *, train, lacking=0, blocks=1):
        """x [b, h, w, c] normalised.

        Args:
            lacking: [c], a bias that was left out of x: it is in the running mean alone, as the
                mean of a batch takes it out again.
            blocks: of x, as in `to_blocks`.
        """
        kept = self.mean[...], self.var[...]
        options = dict(train=train, blocks=blocks, decay=self.decay, epsilon=self.epsilon)
        x, kept = batch_norm(x, self.scale[...], self.bias[...], kept, lacking, **options)
        if train:
            self.mean[...], self.var[...] = kept
        return x


@partial(jax.jit, static_argnames=("train", "blocks", "decay", "epsilon"))
def batch_norm(x, scale, bias, kept, lacking, *, train, blocks, decay, epsilon):
    """(x normalised, the running mean and variance from now on); a function that is traced once.

    A network has hundreds of these layers of a few shapes; traced one by one they would take most
    of the time from the start of a run to its first update.
    """
    if train:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean = over_blocks(wide.mean((0, 1, 2)), blocks)
        around = (wide - per_channel(mean, blocks)) ** 2
        var = over_blocks(around.mean((0, 1, 2)), blocks)
        count = x.size // mean.size
        unbiased = var * (count / max(count - 1, 1))
        now = mean + lacking, unbiased
        kept = tuple(decay * old + (1 - decay) * new for old, new in zip(kept, now, strict=True))
    else:
        mean, var = kept[0] - lacking, kept[1]
    factor = scale * lax.rsqrt(var + epsilon)
    mean, factor, bias = (per_channel(v, blocks) for v in (mean, factor, bias))
    return ((x - mean) * factor + bias).astype(x.dtype), kept


def per_channel(values, blocks=1):
    """`values` [c] beside [b, h, w, blocks * blocks * c]: [1, 1, 1, blocks * blocks * c]."""
    return jnp.tile(values, blocks**2)[None, None, None]


def over_blocks(values, blocks):
    """The means [c] of `values` [blocks * blocks * c] over the places in a block."""
    return values.reshape(blocks**2, -1).mean(0)


class GroupNorm(nnx.Module):
    """Normalise each image over height, width and the channels of a group, in float32 or wider.

    The same in training and afterwards; then a scale and a bias a channel, as BatchNorm has.
    """

    def __init__(self, channels, *, groups, epsilon=1e-5, scale_init=initializers.ones, rngs):
        self.scale = nnx.Param(scale_init(rngs.params(), (channels,)))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.groups, self.epsilon = groups, epsilon

    def __call__(self, x, *, train, lacking=0, blocks=1):
        """As BatchNorm's; what x lacks is added first where it is not taken out again."""
        b, h, w, _ = x.shape
        lacking = 0 if self.groups == self.scale.size else lacking
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32)).reshape(b, h, w, blocks**2, -1)
        wide += jnp.reshape(lacking, (1, 1, 1, 1, -1))
        grouped = wide.reshape(b, h, w, blocks**2, self.groups, -1)
        mean = grouped.mean((1, 2, 3, 5), keepdims=True)
        factor = lax.rsqrt(grouped.var((1, 2, 3, 5), keepdims=True) + self.epsilon)
        normal = ((grouped - mean) * factor).reshape(x.shape)
        scale, bias = (per_channel(v[...], blocks) for v in (self.scale, self.bias))
        return (normal * scale + bias).astype(x.dtype)


class NoNorm(nnx.Module):
    """Leaves its input as it is."""

    def __call__(self, x, *, train):
        return x


def instance_norm(channels, **options):
    """Each channel of each image on its own."""
    return GroupNorm(channels, groups=channels, **options)


def group_norm(channels, **options):
    """As many groups as divide the channels, up to 32, with two channels or more in each."""
    groups = max(g for g in range(1, min(32, max(channels // 2, 1)) + 1) if channels % g == 0)
    return GroupNorm(channels, groups=groups, **options)


NORMS = {
    "batch": BatchNorm,
    "instance": instance_norm,
    "group": group_norm,
    "none": lambda channels, **options: NoNorm(),
}


def normalisation(norm, channels, **options):
    """The layer called `norm` ("batch", "instance", "group", "none") for so many channels."""
    return choose("norm", norm, NORMS)(channels, **options)
