"""Layers that several networks share, with PyTorch's initial values and running statistics."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.nn import initializers


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

    def __call__(self, x, *, train):
        if train:
            wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
            mean, var = wide.mean((0, 1, 2)), wide.var((0, 1, 2))
            count = x.size // x.shape[-1]
            self.mean[...] = self.decay * self.mean[...] + (1 - self.decay) * mean
            unbiased = var * (count / max(count - 1, 1))
            self.var[...] = self.decay * self.var[...] + (1 - self.decay) * unbiased
        else:
            mean, var = self.mean[...], self.var[...]
        factor = self.scale[...] * lax.rsqrt(var + self.epsilon)
        mean, factor, bias = (v[None, None, None] for v in (mean, factor, self.bias[...]))
        return ((x - mean) * factor + bias).astype(x.dtype)


def uniform_by_fan_in(fan_in):
    """PyTorch's default for convolution weights and biases: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32, **_: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


# torch's kaiming_normal_; Flax's he_normal is truncated and is not the same distribution.
kaiming_normal = initializers.variance_scaling(2.0, "fan_in", "normal")


def conv(in_channels, out_channels, size, *, dilation=1, kernel_init=None, rngs):
    """A convolution with bias that keeps height and width; `kernel_init=None` is PyTorch's."""
    default = uniform_by_fan_in(in_channels * size * size)
    return nnx.Conv(
        in_channels,
        out_channels,
        (size, size),
        padding=dilation * (size // 2),
        kernel_dilation=dilation,
        kernel_init=kernel_init or default,
        bias_init=default,
        rngs=rngs,
    )


class ResidualBlock(nnx.Module):
    """Two dilated 3x3 convolutions with BatchNorm beside a 1x1 projection, added before the ReLU.

    The projection is there even where the channels do not change, and has no norm.
    Source: ScottLabUCB/HRTEM-Receptive-Field, model_training/UNet_2ResidualBlock_m22.py, 36e4e73.
    """

    def __init__(self, in_channels, channels, *, dilation, rngs):
        options = dict(dilation=dilation, kernel_init=kaiming_normal, rngs=rngs)
        self.conv1 = conv(in_channels, channels, 3, **options)
        self.norm1 = BatchNorm(channels, rngs=rngs)
        self.conv2 = conv(channels, channels, 3, **options)
        self.norm2 = BatchNorm(channels, rngs=rngs)
        self.project = conv(in_channels, channels, 1, kernel_init=kaiming_normal, rngs=rngs)

    def __call__(self, x, *, train):
        y = nnx.relu(self.norm1(self.conv1(x), train=train))
        y = self.norm2(self.conv2(y), train=train)
        return nnx.relu(y + self.project(x))


def max_pool(x, size):
    """Maxima of the size x size blocks of x [b, h, w, c]; h and w must be divisible by `size`.

    The gradient goes to the first maximum of a block. Picking it by its place, not by its value,
    keeps the gradient right even if the compiler computes x twice with different rounding.
    """
    b, h, w, c = x.shape
    blocks = x.reshape(b, h // size, size, w // size, size, c).swapaxes(2, 3)
    blocks = blocks.reshape(b, h // size, w // size, size * size, c)
    first = lax.stop_gradient(jnp.argmax(blocks, 3, keepdims=True))
    place = jnp.arange(size * size)[None, None, None, :, None]
    return jnp.where(place == first, blocks, 0).sum(3)


def upsample_nearest(x, size):
    """Each pixel of x [b, h, w, c] repeated size x size times."""
    return jnp.repeat(jnp.repeat(x, size, 1), size, 2)
