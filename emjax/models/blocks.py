"""Layers that several networks share, with PyTorch's initial values and running statistics."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.nn import initializers

from emjax.choose import choose
from emjax.errors import Usage

BLOCK = "block"  # what rematerialisation keeps: `checkpoint_name` of a block's output


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


class GroupNorm(nnx.Module):
    """Normalise each image over height, width and the channels of a group, in float32 or wider.

    The same in training and afterwards; then a scale and a bias a channel, as BatchNorm has.
    """

    def __init__(self, channels, *, groups, epsilon=1e-5, scale_init=initializers.ones, rngs):
        self.scale = nnx.Param(scale_init(rngs.params(), (channels,)))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.groups, self.epsilon = groups, epsilon

    def __call__(self, x, *, train):
        b, h, w, c = x.shape
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        grouped = wide.reshape(b, h, w, self.groups, c // self.groups)
        mean = grouped.mean((1, 2, 4), keepdims=True)
        factor = lax.rsqrt(grouped.var((1, 2, 4), keepdims=True) + self.epsilon)
        normal = ((grouped - mean) * factor).reshape(x.shape)
        scale, bias = (v[...][None, None, None] for v in (self.scale, self.bias))
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


def uniform_by_fan_in(fan_in):
    """PyTorch's default for convolution weights and biases: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32, **_: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


# torch's kaiming_normal_; Flax's he_normal is truncated and is not the same distribution.
kaiming_normal = initializers.variance_scaling(2.0, "fan_in", "normal")


def in_precision_of_input(arrays, **_):
    """A layer's input and its parameters, in the input's number format."""
    x, *parameters = arrays
    return x, *(p if p is None else p.astype(x.dtype) for p in parameters)


def conv(in_channels, out_channels, size, *, stride=1, padding=None, dilation=1, use_bias=True,
         kernel_init=None, bias_init=None, rngs):  # fmt: skip
    """A size x size convolution, computed in the precision of its input.

    Padded by dilation * (size // 2) on all sides unless told otherwise, as PyTorch's are; Flax's
    "SAME" pads strided ones on one side only. Kernel and bias start as PyTorch's unless told
    otherwise (Flax's defaults are a truncated normal and zero).
    """
    default = uniform_by_fan_in(in_channels * size * size)
    return nnx.Conv(
        in_channels,
        out_channels,
        (size, size),
        strides=stride,
        padding=dilation * (size // 2) if padding is None else padding,
        kernel_dilation=dilation,
        use_bias=use_bias,
        kernel_init=kernel_init or default,
        bias_init=bias_init or default,
        promote_dtype=in_precision_of_input,
        rngs=rngs,
    )


class ResidualBlock(nnx.Module):
    """Two dilated 3x3 convolutions, normalised, beside a 1x1 projection, added before the ReLU.

    The projection is there even where the channels do not change, and has no norm.
    Source: ScottLabUCB/HRTEM-Receptive-Field, model_training/UNet_2ResidualBlock_m22.py, 36e4e73.
    """

    def __init__(self, in_channels, channels, *, dilation, norm="batch", rngs):
        options = dict(dilation=dilation, kernel_init=kaiming_normal, rngs=rngs)
        self.conv1 = conv(in_channels, channels, 3, **options)
        self.norm1 = normalisation(norm, channels, rngs=rngs)
        self.conv2 = conv(channels, channels, 3, **options)
        self.norm2 = normalisation(norm, channels, rngs=rngs)
        self.project = conv(in_channels, channels, 1, kernel_init=kaiming_normal, rngs=rngs)

    def __call__(self, x, *, train):
        y = nnx.relu(self.norm1(self.conv1(x), train=train))
        y = self.norm2(self.conv2(y), train=train)
        return checkpoint_name(nnx.relu(y + self.project(x)), BLOCK)


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


def upsample_bilinear(x, size, *, corners=False):
    """x [b, h, w, c] magnified `size` times, each value a mixture of its four neighbours.

    Pixels are areas, at half-integer positions, as jax.image.resize has them; with `corners` they
    are points and the outermost ones stay in place (PyTorch's align_corners=True), which ties
    every pixel to the size of the whole image.
    """
    h, w = (interpolation(n, size, corners).astype(x.dtype) for n in x.shape[1:3])
    return jnp.einsum("vw,bowc->bovc", w, jnp.einsum("oh,bhwc->bowc", h, x))


def interpolation(n, size, corners):
    """The matrix [n * size, n] that interpolates n values linearly."""
    place = np.arange(n * size)
    at = place * (n - 1) / (n * size - 1) if corners else (place + 0.5) / size - 0.5
    distance = np.abs(np.clip(at, 0, n - 1)[:, None] - np.arange(n))
    return np.maximum(1 - distance, 0)


UPSAMPLING = {
    "bilinear": upsample_bilinear,
    "bilinear_corners": partial(upsample_bilinear, corners=True),
    "nearest": upsample_nearest,
}


def check_divisible(x, divisor):
    """Raise Usage naming the nearest sides unless `divisor` divides those of x [b, h, w, c]."""
    h, w = x.shape[1:3]
    if h % divisor or w % divisor:
        near = ", ".join(
            f"{side} -> {' or '.join(map(str, multiples(side, divisor)))}"
            for side in dict.fromkeys((h, w))
            if side % divisor
        )
        raise Usage(
            f"an image of {h} x {w}: this network takes sides divisible by {divisor}: {near}"
        )


def multiples(side, divisor):
    """The two multiples of `divisor` around `side`, or the one above it if the other is zero."""
    below = side // divisor * divisor
    return [below, below + divisor] if below else [divisor]
