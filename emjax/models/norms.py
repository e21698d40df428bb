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
from emjax.models.formulation import counted_as, formulation
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
        x, running = batch_norm(
            x,
            self.scale[...],
            self.bias[...],
            running,
            dropped_bias,
            train=train,
            block_size=block_size,
            decay=self.decay,
            epsilon=self.epsilon,
            in_rows=formulation().sums,
        )
        if train:
            self.mean[...], self.var[...] = running
        return x


@partial(jax.jit, static_argnames=("train", "block_size", "decay", "epsilon", "in_rows"))
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
    in_rows: bool,
) -> tuple[Images, tuple[Channels, Channels]]:
    """Return x normalised and the new running mean and variance.

    It is jitted so that it is traced once per shape: a network has hundreds of these layers of a
    few shapes, and tracing each would take most of the time before a run's first update.
    """
    if not train:
        mean, var = running[0] - dropped_bias, running[1]
        factor = scale * lax.rsqrt(var + epsilon)
        mean, factor, bias = (per_channel(v, block_size) for v in (mean, factor, bias))
        return ((x - mean) * factor + bias).astype(x.dtype), running
    b, h, w, _ = x.shape
    pixels = x.reshape(b, h, w * block_size**2, -1)
    normalised: Any = normalise_batch(pixels, scale, bias, epsilon, in_rows)
    normal, mean, var = normalised
    count = x.size // mean.size
    unbiased = var * (count / max(count - 1, 1))
    running = (
        decay * running[0] + (1 - decay) * (mean + dropped_bias),
        decay * running[1] + (1 - decay) * unbiased,
    )
    return normal.reshape(x.shape), running


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalise_batch(
    x: Images, scale: Channels, bias: Channels, epsilon: float, in_rows: bool
) -> tuple[Images, Channels, Channels]:
    """Return (x normalised by its own statistics, mean, biased variance).

    Its gradient is that of the first: what comes back to the mean and the variance is dropped.

    Args:
        in_rows: as `total` takes it.
    """
    return _normalised(x, scale, bias, epsilon, in_rows)[0]


def _normalised(
    x: Images, scale: Channels, bias: Channels, epsilon: float, in_rows: bool
) -> tuple[tuple[Images, Channels, Channels], tuple[Images, Channels, Channels, Channels]]:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    count = x.size // x.shape[-1]
    mean = total(wide, in_rows) / count
    centred = wide - per_channel(mean)
    var = total(centred**2, in_rows) / count
    inverse = lax.rsqrt(var + epsilon)
    normal = centred * per_channel(scale * inverse) + per_channel(bias)
    return (normal.astype(x.dtype), mean, var), (x, mean, inverse, scale)


def _normalised_gradients(
    epsilon: float,
    in_rows: bool,
    kept: tuple[Images, Channels, Channels, Channels],
    gradients: tuple[Images, Channels, Channels],
) -> tuple[Images, Channels, Channels]:
    """Return the gradients of x, scale and bias.

    Written out so that sums go through `total`; those that JAX derives would not. Source: Ioffe and
    Szegedy, "Batch Normalization" (arXiv 1502.03167), section 3.
    """
    x, mean, inverse, scale = kept
    gradient = gradients[0].astype(mean.dtype)
    normal = (x.astype(mean.dtype) - per_channel(mean)) * per_channel(inverse)
    count = x.size // x.shape[-1]
    of_bias, of_scale = total(gradient, in_rows), total(gradient * normal, in_rows)
    rest = gradient - per_channel(of_bias / count) - normal * per_channel(of_scale / count)
    of_x = (per_channel(scale * inverse) * rest).astype(x.dtype)
    return of_x, of_scale.astype(scale.dtype), of_bias.astype(scale.dtype)


normalise_batch.defvjp(_normalised, _normalised_gradients)


def total(x: Images, in_rows: bool) -> Channels:
    """Return the sum of `x` over batch, height and width.

    Args:
        in_rows: sum each row by itself, then all rows by a product, which is faster on CPUs. XLA
            would join two sums to one.
    """
    if not in_rows:
        return x.sum((0, 1, 2))
    rows = x.sum(2).reshape(-1, x.shape[-1])
    with counted_as(0, 1):
        return jnp.matmul(jnp.ones(len(rows), x.dtype), rows, precision="highest")


def per_channel(values: Channels, block_size: int = 1) -> Float[Array, "1 1 1 d"]:
    """Return [1, 1, 1, size * size * c] of `values` [c], to broadcast against `space_to_depth`."""
    return jnp.tile(values, block_size**2)[None, None, None]


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
