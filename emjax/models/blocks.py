"""Layers that several networks share, with PyTorch's initial values."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.nn import initializers

from emjax.errors import UsageError
from emjax.models.formulation import formulation
from emjax.models.norms import NoNorm, normalisation, per_channel

BLOCK = "block"  # what rematerialisation keeps: `checkpoint_name` of a block's output


def uniform_by_fan_in(fan_in):
    """PyTorch's default for convolution weights and biases: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32, **_: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


# torch's kaiming_normal_; Flax's he_normal is truncated and is not the same distribution.
kaiming_normal = initializers.variance_scaling(2.0, "fan_in", "normal")


class Conv(nnx.Module):
    """A size x size convolution, computed in the precision of its input.

    Padded by dilation * (size // 2) on all sides unless told otherwise, as PyTorch's are. Kernel
    [size, size, in, out] and bias start as PyTorch's unless told otherwise.
    """

    def __init__(self, in_channels, out_channels, size, *, stride=1, padding=None, dilation=1,
                 use_bias=True, kernel_init=None, bias_init=None, rngs):  # fmt: skip
        default = uniform_by_fan_in(in_channels * size * size)
        shape = size, size, in_channels, out_channels
        self.kernel = nnx.Param((kernel_init or default)(rngs.params(), shape, jnp.float32))
        if use_bias:
            bias = (bias_init or default)(rngs.params(), (out_channels,), jnp.float32)
        self.bias = nnx.Param(bias) if use_bias else None
        self.stride, self.dilation = stride, dilation
        self.padding = dilation * (size // 2) if padding is None else padding

    def __call__(self, x, *, blocks=1):
        """x [b, h, w, in], or in blocks, to [b, h / stride, w / stride, out], or in blocks."""
        x = self.without_bias(x, blocks=blocks)
        if self.bias is None:
            return x
        return x + per_channel(self.bias[...], blocks).astype(x.dtype)

    def without_bias(self, x, *, blocks=1):
        kernel, dilation, padding = self.kernel[...].astype(x.dtype), self.dilation, self.padding
        if blocks > 1:
            kernel, padding = blocked_kernel(kernel, blocks, dilation)
            dilation = 1
        if kernel.shape[:2] == (1, 1) and self.stride == 1 and formulation().products:
            return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:3], -1)
        halved = self.stride == 2 and padding == 1 and x.shape[1] % 2 == x.shape[2] % 2 == 0
        if halved and formulation().strided:
            return strided_conv(x, kernel)
        return convolution(x, kernel, self.stride, padding, dilation)


def convolution(x, kernel, stride, padding, dilation=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@jax.custom_vjp
def strided_conv(x, kernel):
    """x [b, h, w, c], h and w even, by a 3x3 or 4x4 kernel: stride 2, padded by 1.

    Its input gradient is a convolution of an image that is three quarters zeros. Here it is one of
    stride 1 with a 2x2 kernel, to the four phases of the input's pixels as channels.
    """
    return convolution(x, kernel, 2, 1)


def strided_conv_forward(x, kernel):
    return strided_conv(x, kernel), (x, kernel)


def strided_conv_backward(saved, gradient):
    x, kernel = saved
    size, _, before, after = kernel.shape
    four = jnp.pad(kernel, ((0, 4 - size), (0, 4 - size), (0, 0), (0, 0)))
    phases = four.reshape(2, 2, 2, 2, before, after).transpose(0, 2, 5, 1, 3, 4)
    phases = phases.reshape(2, 2, after, 4 * before)[::-1, ::-1]
    of_padded = depth_to_space(convolution(gradient, phases, 1, 1), 2)
    _, to_kernel = jax.vjp(lambda kernel: convolution(x, kernel, 2, 1), kernel)
    return of_padded[:, 1:-1, 1:-1], *to_kernel(gradient)


strided_conv.defvjp(strided_conv_forward, strided_conv_backward)


def space_to_depth(x, size):
    """x [b, h, w, c] as [b, h / size, w / size, size * size * c]: a pixel is a block of pixels.

    A layer of few channels at full resolution uses a vector unit badly; like this it has more.
    """
    b, h, w, c = x.shape
    x = x.reshape(b, h // size, size, w // size, size, c).swapaxes(2, 3)
    return x.reshape(b, h // size, w // size, size * size * c)


def depth_to_space(x, size):
    """What `to_blocks` was given."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, size, size, c // size**2).swapaxes(2, 3)
    return x.reshape(b, h * size, w * size, c // size**2)


def blocked_kernel(kernel, size, dilation):
    """(the kernel that does on blocks what `kernel` [k, k, in, out] does on pixels, its padding).

    Entries between pixels that `kernel` does not join are zero.
    """
    taps = kernel.shape[0]
    reach = -(-dilation * (taps // 2) // size)
    block, source, place, tap = np.ogrid[-reach : reach + 1, :size, :size, :taps]
    joins = (size * block + source - place == dilation * (tap - taps // 2)).astype(kernel.dtype)
    blocked = jnp.einsum("astk,bxyl,klio->absxityo", joins, joins, kernel)
    sides = 2 * reach + 1, 2 * reach + 1
    return blocked.reshape(*sides, *(size**2 * n for n in kernel.shape[2:])), reach


def conv_norm(conv, norm, x, *, train, blocks=1):
    """`norm` of `conv` of x. A bias between them goes to the running mean alone, see BatchNorm."""
    if isinstance(norm, NoNorm):
        return conv(x, blocks=blocks)
    lacking = 0 if conv.bias is None else conv.bias[...]
    return norm(conv.without_bias(x, blocks=blocks), train=train, lacking=lacking, blocks=blocks)


class ResidualBlock(nnx.Module):
    """Two dilated 3x3 convolutions, normalised, beside a 1x1 projection, added before the ReLU.

    The projection is there even where the channels do not change, and has no norm.
    Source: ScottLabUCB/HRTEM-Receptive-Field, model_training/UNet_2ResidualBlock_m22.py, 36e4e73.
    """

    def __init__(self, in_channels, channels, *, dilation, norm="batch", rngs):
        options = dict(dilation=dilation, kernel_init=kaiming_normal, rngs=rngs)
        self.conv1 = Conv(in_channels, channels, 3, **options)
        self.norm1 = normalisation(norm, channels, rngs=rngs)
        self.conv2 = Conv(channels, channels, 3, **options)
        self.norm2 = normalisation(norm, channels, rngs=rngs)
        self.project = Conv(in_channels, channels, 1, kernel_init=kaiming_normal, rngs=rngs)

    def __call__(self, x, *, train, blocks=1):
        """x [b, h, w, c], or in blocks, as `to_blocks` makes them."""
        how = dict(train=train, blocks=blocks)
        y = nnx.relu(conv_norm(self.conv1, self.norm1, x, **how))
        y = conv_norm(self.conv2, self.norm2, y, **how)
        return checkpoint_name(nnx.relu(y + self.project(x, blocks=blocks)), BLOCK)


def max_pool(x, size):
    """Maxima of the size x size blocks of x [b, h, w, c]; h and w must be divisible by `size`."""
    return block_maxima(space_to_depth(x, size), size)


def block_maxima(x, size):
    """Maxima [b, h, w, c] of x, in blocks [b, h, w, size * size * c].

    The gradient goes to the first maximum of a block. Picking it by its place, not by its value,
    keeps the gradient right even if the compiler computes x twice with different rounding.
    """
    pixels = x.reshape(*x.shape[:3], size * size, -1)
    first = lax.stop_gradient(jnp.argmax(pixels, 3, keepdims=True))
    place = jnp.arange(size * size)[None, None, None, :, None]
    return jnp.where(place == first, pixels, 0).sum(3)


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
    """Raise UsageError naming the nearest sides unless `divisor` divides h and w of x."""
    h, w = x.shape[1:3]
    if h % divisor or w % divisor:
        near = ", ".join(
            f"{side} -> {' or '.join(map(str, multiples(side, divisor)))}"
            for side in dict.fromkeys((h, w))
            if side % divisor
        )
        raise UsageError(
            f"an image of {h} x {w}: this network takes sides divisible by {divisor}: {near}"
        )


def multiples(side, divisor):
    """The two multiples of `divisor` around `side`, or the one above it if the other is zero."""
    below = side // divisor * divisor
    return [below, below + divisor] if below else [divisor]
