"""Normalisation layers, with PyTorch's running statistics."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.nn import initializers
from jaxtyping import Array, Float

from emjax.errors import choose
from emjax.models.initial import Initializer, draw
from emjax.models.model import KeySource

Images = Float[Array, "b h w c"]
Channels = Float[Array, " c"]


class RunningStat(nnx.Variable):
    """An array that training updates without a gradient."""


class BatchNorm(nnx.Module):
    """Normalise each channel over batch, height and width.

    Statistics are computed in float32 or wider over the global batch, on any number of devices.
    Differs: from nnx.BatchNorm, the running variance is unbiased, as in PyTorch (3 % larger on a
    4x4 map at batch 2), and the variance is taken around the mean.
    """

    def __init__(
        self,
        channels: int,
        *,
        decay: float = 0.9,
        epsilon: float = 1e-5,
        scale_init: Initializer = initializers.ones,
        rngs: KeySource,
    ) -> None:
        self.scale = nnx.Param(draw(scale_init, (channels,), rngs))
        self.bias = nnx.Param(np.zeros(channels, jnp.float32))
        self.mean = RunningStat(np.zeros(channels, jnp.float32))
        self.var = RunningStat(np.ones(channels, jnp.float32))
        self.decay, self.epsilon = decay, epsilon

    def __call__(
        self, x: Images, *, train: bool, dropped_bias: Channels | int = 0, block_size: int = 1
    ) -> Images:
        """Return x normalised.

        Args:
            dropped_bias: [c], a bias that was not added to x. It changes the running mean alone,
                because subtracting the mean of a batch removes it.
            block_size: that of `space_to_depth`, if x is from there.
        """
        running = self.mean[...], self.var[...]
        options = dict(train=train, block_size=block_size, decay=self.decay, epsilon=self.epsilon)
        x, running = batch_norm(
            x, self.scale[...], self.bias[...], running, dropped_bias, **options
        )
        if train:
            self.mean[...], self.var[...] = running
        return x


@partial(jax.jit, static_argnames=("train", "block_size", "decay", "epsilon"))
def batch_norm(
    x: Images,
    scale: Channels,
    bias: Channels,
    running: tuple[Channels, Channels],
    dropped_bias: Channels | int,
    *,
    train: bool,
    block_size: int,
    decay: float,
    epsilon: float,
) -> tuple[Images, tuple[Channels, Channels]]:
    """Return x normalised and the new running mean and variance.

    It is jitted so that it is traced once per shape: a network has hundreds of these layers of a
    few shapes, and tracing each would take most of the time before a run's first update.
    """
    if train:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean = mean_over_block(wide.mean((0, 1, 2)), block_size)
        squared = (wide - per_channel(mean, block_size)) ** 2
        var = mean_over_block(squared.mean((0, 1, 2)), block_size)
        count = x.size // mean.size
        unbiased = var * (count / max(count - 1, 1))
        new = mean + dropped_bias, unbiased
        running = (
            decay * running[0] + (1 - decay) * new[0],
            decay * running[1] + (1 - decay) * new[1],
        )
    else:
        mean, var = running[0] - dropped_bias, running[1]
    factor = scale * lax.rsqrt(var + epsilon)
    mean, factor, bias = (per_channel(v, block_size) for v in (mean, factor, bias))
    return ((x - mean) * factor + bias).astype(x.dtype), running


def per_channel(values: Channels, block_size: int = 1) -> Float[Array, "1 1 1 d"]:
    """Return [1, 1, 1, size * size * c] of `values` [c], to broadcast against `space_to_depth`."""
    return jnp.tile(values, block_size**2)[None, None, None]


def mean_over_block(values: Float[Array, " d"], block_size: int) -> Channels:
    """Return the means [c] of `values` [size * size * c] over the pixels of a block."""
    return values.reshape(block_size**2, -1).mean(0)


class GroupNorm(nnx.Module):
    """Normalise each image over height, width and the channels of a group, in float32 or wider.

    The same in training and afterwards. Then one scale and one bias per channel, as in BatchNorm.
    """

    def __init__(
        self,
        channels: int,
        *,
        groups: int,
        epsilon: float = 1e-5,
        scale_init: Initializer = initializers.ones,
        rngs: KeySource,
    ) -> None:
        self.scale = nnx.Param(draw(scale_init, (channels,), rngs))
        self.bias = nnx.Param(np.zeros(channels, jnp.float32))
        self.groups, self.epsilon = groups, epsilon

    def __call__(
        self, x: Images, *, train: bool, dropped_bias: Channels | int = 0, block_size: int = 1
    ) -> Images:
        """Return x normalised; arguments as BatchNorm's.

        A dropped bias is added first, unless the group is one channel: then the mean removes it.
        """
        b, h, w, _ = x.shape
        if self.groups == self.scale.size:
            dropped_bias = 0
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        wide = wide.reshape(b, h, w, block_size**2, -1)
        wide += jnp.reshape(dropped_bias, (1, 1, 1, 1, -1))
        grouped = wide.reshape(b, h, w, block_size**2, self.groups, -1)
        mean = grouped.mean((1, 2, 3, 5), keepdims=True)
        factor = lax.rsqrt(grouped.var((1, 2, 3, 5), keepdims=True) + self.epsilon)
        normal = ((grouped - mean) * factor).reshape(x.shape)
        scale, bias = (per_channel(v[...], block_size) for v in (self.scale, self.bias))
        return (normal * scale + bias).astype(x.dtype)


class NoNorm(nnx.Module):
    """Leave the input unchanged."""

    def __call__(self, x: Images, *, train: bool) -> Images:
        """Return x."""
        return x


Norm = BatchNorm | GroupNorm | NoNorm


def instance_norm(channels: int, **options: Any) -> GroupNorm:
    """Return the layer that normalises each channel of each image by itself."""
    return GroupNorm(channels, groups=channels, **options)


def group_norm(channels: int, **options: Any) -> GroupNorm:
    """Return a GroupNorm of as many groups as possible: up to 32, of two channels or more each."""
    groups = max(g for g in range(1, min(32, max(channels // 2, 1)) + 1) if channels % g == 0)
    return GroupNorm(channels, groups=groups, **options)


NORMS: dict[str, Callable[..., Norm]] = {
    "batch": BatchNorm,
    "instance": instance_norm,
    "group": group_norm,
    "none": lambda channels, **options: NoNorm(),
}


def normalisation(norm: str, channels: int, **options: Any) -> Norm:
    """Return the layer called `norm`: "batch", "instance", "group" or "none".

    Args:
        options: `rngs`, and `scale_init` if the scales do not start at 1.

    Raises: UsageError for another name.
    """
    return choose("norm", norm, NORMS)(channels, **options)
