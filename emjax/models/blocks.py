"""Layers that several networks share, with PyTorch's initial values."""

import functools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.xla_metadata import set_xla_metadata
from jax.nn import initializers
from jaxtyping import Array, Float

from emjax.errors import UsageError
from emjax.models.formulation import Formulation, counted_as, formulation
from emjax.models.initial import Initializer, draw
from emjax.models.model import KeySource
from emjax.models.norms import NoNorm, Norm, normalisation, per_channel

Images = Float[Array, "b h w c"]
Kernel = Float[Array, "k k in out"]

# The `checkpoint_name` of the outputs that rematerialisation keeps: those of residual blocks.
KEPT_OUTPUT = "kept output"


@functools.cache
def uniform_by_fan_in(fan_in: int) -> Initializer:
    """Return PyTorch's default initializer of convolution weights and biases.

    U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
    """
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32, **_: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


# torch's kaiming_normal_; Flax's he_normal is truncated and is not the same distribution.
kaiming_normal = initializers.variance_scaling(2.0, "fan_in", "normal")


class Conv(nnx.Module):
    """A size x size convolution, computed in the precision of its input.

    Attributes:
        kernel: [size, size, in, out].
        bias: [out], or None.

    Args:
        padding: pixels on all four sides; by default dilation * (size // 2).
        kernel_init, bias_init: initializers; by default PyTorch's.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        *,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        use_bias: bool = True,
        kernel_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        rngs: KeySource,
    ) -> None:
        default = uniform_by_fan_in(in_channels * size * size)
        shape = size, size, in_channels, out_channels
        self.kernel = nnx.Param(draw(kernel_init or default, shape, rngs))
        bias = None
        if use_bias:
            bias = nnx.Param(draw(bias_init or default, (out_channels,), rngs))
        self.bias = bias
        self.stride, self.dilation = stride, dilation
        self.padding = dilation * (size // 2) if padding is None else padding

    def __call__(self, x: Images, *, block_size: int = 1, shared: int = 0) -> Images:
        """Return [b, h / stride, w / stride, out] for x [b, h, w, in].

        With a `block_size` above 1, x and the result are as `space_to_depth` returns them. But the
        last `shared` channels of x have one value for all pixels of a block, and are given once.
        """
        x = self.without_bias(x, block_size=block_size, shared=shared)
        if self.bias is None:
            return x
        return x + per_channel(self.bias[...], block_size).astype(x.dtype)

    def without_bias(self, x: Images, *, block_size: int = 1, shared: int = 0) -> Images:
        """Return what `__call__` does before the bias is added."""
        kernel = self.kernel[...].astype(x.dtype)
        if block_size == 1:
            return self.convolved(x, kernel, self.padding, self.dilation)
        with counted_as(0, 1):
            blocks, padding = space_to_depth_kernel(kernel, block_size, self.dilation, shared)
        # A pixel of the output has the products of `kernel` alone; all others are with zeros.
        with counted_as(kernel[..., 0].size, blocks[..., 0].size):
            return self.convolved(x, blocks, padding, 1)

    def convolved(self, x: Images, kernel: Kernel, padding: int, dilation: int) -> Images:
        """Return the convolution of x with `kernel` in the formulation of this backend."""
        way = formulation()
        if kernel.shape[:2] == (1, 1) and self.stride == 1 and way.products:
            return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:3], -1)
        if way.strided or way.apart:
            return convolution(x, kernel, self.stride, padding, dilation, way)
        return plain_convolution(x, kernel, stride=self.stride, padding=padding, dilation=dilation)


def plain_convolution(
    x: Images, kernel: Kernel, *, stride: int, padding: int, dilation: int = 1
) -> Images:
    """Return the convolution of x with `kernel`, padded by zeros on all four sides."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def convolution(
    x: Images, kernel: Kernel, stride: int, padding: int, dilation: int, way: Formulation
) -> Images:
    """Return what `plain_convolution` does; its gradients are computed as `way` says."""
    return plain_convolution(x, kernel, stride=stride, padding=padding, dilation=dilation)


def _convolution_forward(
    x: Images, kernel: Kernel, stride: int, padding: int, dilation: int, way: Formulation
) -> tuple[Images, tuple[Images, Kernel]]:
    """Return the value of `convolution` and what its gradient needs."""
    options = dict(stride=stride, padding=padding, dilation=dilation)
    return plain_convolution(x, kernel, **options), (x, kernel)


def _convolution_backward(
    stride: int,
    padding: int,
    dilation: int,
    way: Formulation,
    residuals: tuple[Images, Kernel],
    gradient: Images,
) -> tuple[Images, Kernel]:
    """Return the gradients of `convolution` with respect to x and the kernel."""
    x, kernel = residuals
    options = dict(stride=stride, padding=padding, dilation=dilation)
    _, h, w, _ = x.shape
    halved = (stride, padding, dilation) == (2, 1, 1) and h % 2 == w % 2 == 0
    if halved and way.strided:
        of_x = gradient_by_phases((h, w), kernel, gradient)
    else:
        back = jax.linear_transpose(lambda x: plain_convolution(x, kernel, **options), x)
        (of_x,) = back(gradient)
    images = apart(x) if way.apart else x
    back = jax.linear_transpose(lambda k: plain_convolution(images, k, **options), kernel)
    (of_kernel,) = back(gradient)
    return of_x, of_kernel


convolution.defvjp(_convolution_forward, _convolution_backward)


def gradient_by_phases(size_of_x: tuple[int, int], kernel: Kernel, gradient: Images) -> Images:
    """Return the gradient of a convolution of stride 2, padded by 1, with respect to its input x.

    The kernel is 3x3 or 4x4. The usual gradient is a convolution of an image that is three quarters
    zeros. Here it is one of stride 1 with a 2x2 kernel, which returns the four phases of the
    input's pixels as channels.

    Args:
        size_of_x: its h and w, which are even.
    """
    size, _, before, after = kernel.shape
    padded_kernel = jnp.pad(kernel, ((0, 4 - size), (0, 4 - size), (0, 0), (0, 0)))
    phases = padded_kernel.reshape(2, 2, 2, 2, before, after).transpose(0, 2, 5, 1, 3, 4)
    phases = phases.reshape(2, 2, after, 4 * before)[::-1, ::-1]
    h, w = size_of_x
    with counted_as(h * w * size**2, (h + 2) * (w + 2) * 16):
        padded = depth_to_space(plain_convolution(gradient, phases, stride=1, padding=1), 2)
    return padded[:, 1:-1, 1:-1]


def apart(x: Array) -> Array:
    """Return `x`, of which XLA on a CPU takes the values instead of computing them once more.

    The gradient of a kernel needs images in another order. XLA fuses that with what made them,
    norms and sums of several blocks, and computes it all again in the order of the transposed
    array, which takes longer than the convolution. A function that it does not inline ends that.
    """
    with set_xla_metadata(inlineable="false"):
        return _as_it_is(x)


@jax.jit
def _as_it_is(x: Array) -> Array:
    return x


def space_to_depth(x: Images, block_size: int) -> Images:
    """Return x as [b, h / size, w / size, size * size * c]: blocks of pixels become channels.

    A layer of few channels at full resolution uses a vector unit badly; this way it has more.
    """
    b, h, w, c = x.shape
    size = block_size
    x = x.reshape(b, h // size, size, w // size, size, c).swapaxes(2, 3)
    return x.reshape(b, h // size, w // size, size * size * c)


def depth_to_space(x: Images, block_size: int) -> Images:
    """Return the argument of the `space_to_depth` that returned x."""
    b, h, w, c = x.shape
    size = block_size
    x = x.reshape(b, h, w, size, size, c // size**2).swapaxes(2, 3)
    return x.reshape(b, h * size, w * size, c // size**2)


def space_to_depth_kernel(
    kernel: Kernel, block_size: int, dilation: int, shared: int = 0
) -> tuple[Kernel, int]:
    """Return the kernel that does to blocks what `kernel` does to pixels, and its padding.

    Its entries are zero between pixels that `kernel` does not connect. Of the last `shared` input
    channels, which are the same for all pixels of a block, those for its pixels are summed up.
    """
    size, taps = block_size, kernel.shape[0]
    reach = -(-dilation * (taps // 2) // size)
    block, source, target, tap = np.ogrid[-reach : reach + 1, :size, :size, :taps]
    connected = size * block + source - target == dilation * (tap - taps // 2)
    connected = connected.astype(kernel.dtype)
    own, same = jnp.split(kernel, [kernel.shape[2] - shared], axis=2)
    side, out = 2 * reach + 1, size**2 * kernel.shape[3]
    blocks = jnp.einsum("astk,bxyl,klio->absxityo", connected, connected, own)
    blocks = blocks.reshape(side, side, -1, out)
    if not shared:
        return blocks, reach
    summed = connected.sum(1)  # over the pixels of a block of the input
    together = jnp.einsum("atk,byl,klio->abityo", summed, summed, same)
    return jnp.concatenate([blocks, together.reshape(side, side, shared, out)], 2), reach


def conv_norm(
    conv: Conv, norm: Norm, x: Images, *, train: bool, block_size: int = 1, shared: int = 0
) -> Images:
    """Return `norm` of `conv` of x.

    A bias between them changes the running mean alone, see BatchNorm.
    """
    if isinstance(norm, NoNorm):
        return conv(x, block_size=block_size, shared=shared)
    return norm(
        conv.without_bias(x, block_size=block_size, shared=shared),
        train=train,
        dropped_bias=0 if conv.bias is None else conv.bias[...],
        block_size=block_size,
    )


class ResidualBlock(nnx.Module):
    """Two dilated 3x3 convolutions with norms, plus a 1x1 projection of the input, then a ReLU.

    The projection has no norm. It is there even where the channels do not change.
    Source: ScottLabUCB/HRTEM-Receptive-Field, model_training/UNet_2ResidualBlock_m22.py, 36e4e73.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        dilation: int,
        norm: str = "batch",
        rngs: KeySource,
    ) -> None:
        conv = partial(Conv, kernel_init=kaiming_normal, rngs=rngs)
        self.conv1 = conv(in_channels, channels, 3, dilation=dilation)
        self.norm1 = normalisation(norm, channels, rngs=rngs)
        self.conv2 = conv(channels, channels, 3, dilation=dilation)
        self.norm2 = normalisation(norm, channels, rngs=rngs)
        self.project = conv(in_channels, channels, 1)

    def __call__(self, x: Images, *, train: bool, block_size: int = 1, shared: int = 0) -> Images:
        """Return the block's output for x, both [b, h, w, c] or as Conv takes and returns them."""
        options: dict[str, Any] = dict(train=train, block_size=block_size)
        y = nnx.relu(conv_norm(self.conv1, self.norm1, x, shared=shared, **options))
        y = conv_norm(self.conv2, self.norm2, y, **options)
        projected = self.project(x, block_size=block_size, shared=shared)
        return checkpoint_name(nnx.relu(y + projected), KEPT_OUTPUT)


def max_pool(x: Images, size: int) -> Images:
    """Return the maxima of size x size blocks of x; `size` must divide h and w."""
    return block_maxima(space_to_depth(x, size), size)


def block_maxima(x: Images, block_size: int) -> Images:
    """Return the maxima [b, h, w, c] of x, blocks of pixels [b, h, w, size * size * c].

    The gradient goes to the first maximum of a block. Selecting it by its index, not by its value,
    keeps the gradient right even if the compiler computes x twice with different rounding.
    """
    pixels = x.reshape(*x.shape[:3], block_size**2, -1)
    first = lax.stop_gradient(jnp.argmax(pixels, 3, keepdims=True))
    index = jnp.arange(block_size**2)[None, None, None, :, None]
    return jnp.where(index == first, pixels, 0).sum(3)


def upsample_nearest(x: Images, size: int) -> Images:
    """Return x with each pixel repeated size x size times."""
    return jnp.repeat(jnp.repeat(x, size, 1), size, 2)


def upsample_bilinear(x: Images, size: int, *, corners: bool = False) -> Images:
    """Return x magnified `size` times by bilinear interpolation.

    Pixels are areas, at half-integer positions, as in jax.image.resize. With `corners` they are
    points and the outermost ones stay where they are (PyTorch's align_corners=True), which makes
    every pixel depend on the size of the whole image.
    """
    h, w = (interpolation_matrix(n, size, corners).astype(x.dtype) for n in x.shape[1:3])
    return jnp.einsum("vw,bowc->bovc", w, jnp.einsum("oh,bhwc->bowc", h, x))


def interpolation_matrix(n: Any, size: int, corners: bool) -> Any:
    """Return the matrix [n * size, n] that interpolates n values linearly.

    Args:
        n: a number, or a dimension of `jax.export` that gets one when the program runs.
    """
    numpy: Any = np if isinstance(n, int) else jnp
    index = numpy.arange(n * size)
    position = index * (n - 1) / (n * size - 1) if corners else (index + 0.5) / size - 0.5
    distance = numpy.abs(numpy.clip(position, 0, n - 1)[:, None] - numpy.arange(n)[None])
    return numpy.maximum(1 - distance, 0)


UPSAMPLING: dict[str, Callable[[Images, int], Images]] = {
    "bilinear": upsample_bilinear,
    "bilinear_corners": partial(upsample_bilinear, corners=True),
    "nearest": upsample_nearest,
}


def check_divisible(x: Images, divisor: int) -> None:
    """Raise UsageError with the nearest sides unless `divisor` divides h and w of x."""
    h, w = x.shape[1:3]
    if h % divisor or w % divisor:
        nearest = ", ".join(
            f"{side} -> {' or '.join(map(str, nearest_multiples(side, divisor)))}"
            for side in dict.fromkeys((h, w))
            if side % divisor
        )
        raise UsageError(
            f"expected an image with sides divisible by {divisor}, got {h} x {w}; "
            f"change the size: {nearest}"
        )


def nearest_multiples(side: int, divisor: int) -> list[int]:
    """Return the two multiples of `divisor` around `side`, or one if the other is zero."""
    below = side // divisor * divisor
    return [below, below + divisor] if below else [divisor]
