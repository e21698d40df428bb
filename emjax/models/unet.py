"""The residual U-Net whose receptive field is set by dilation."""

import math
from functools import partial

import jax.numpy as jnp
from flax import nnx

from emjax.errors import UsageError
from emjax.models.blocks import (
    Conv,
    ResidualBlock,
    block_maxima,
    check_divisible,
    depth_to_space,
    max_pool,
    space_to_depth,
    upsample_nearest,
)
from emjax.models.formulation import formulation
from emjax.models.receptive_field import unet_dilations, unet_receptive_field


class UNet(nnx.Module):
    """Image to image: `blocks` levels of a residual block and a pooling, a bottleneck, and back.

    Level i has 4 * 2**i channels and the same dilation on the way down and up. The output is
    linear. Input and output [b, h, w, channels], h and w divisible by `divisor`.
    Source: Sytwu et al. 2022 (arXiv 2204.04250); nine variants in Kazimi et al. (arXiv 2402.18286).
    Differs: one linear output channel in place of a two-channel softmax.

    Args:
        blocks: levels above the bottleneck.
        receptive_field: pixels one output sees; chooses the dilations.
        filters: channels, one number a level and one for the bottleneck.
        pools: what each level is reduced by, 2 throughout by default.
        dilations: one a level and one for the bottleneck, in place of `receptive_field`.
        norm: batch, instance, group or none.
        input_interval: what -1 and 1 of the input become before the first layer, for weights that
            were trained on other values; None leaves the input as it is.

    Raises: UsageError for lists of another length, and for a receptive field that cannot be had or
        that is not the one of `dilations`.
    """

    def __init__(self, *, blocks, receptive_field=None, filters=None, pools=None, dilations=None,
                 in_channels=1, out_channels=1, norm="batch", input_interval=None,
                 rngs):  # fmt: skip
        if blocks < 1:
            raise UsageError(f"blocks={blocks}; at least 1 was due")
        widths = per_level("filters", filters, blocks + 1, [4 * 2**i for i in range(blocks + 1)])
        self.pools = per_level("pools", pools, blocks, (2,) * blocks)
        self.divisor = math.prod(self.pools)
        if dilations is None and receptive_field is not None:
            dilations = unet_dilations(receptive_field, self.pools)
        dilations = per_level("dilations", dilations, blocks + 1, (1,) * (blocks + 1))
        self.dilations, self.input_interval = dilations, input_interval and tuple(input_interval)
        self.norm = norm
        self.receptive_field = unet_receptive_field(dilations, self.pools)
        if receptive_field not in (None, self.receptive_field):
            raise UsageError(
                f"receptive_field={receptive_field}, but dilations={dilations} with "
                f"pools={self.pools} see {self.receptive_field} pixels; leave one of the two out"
            )
        *dilations, deepest = dilations
        block = partial(ResidualBlock, norm=norm, rngs=rngs)

        self.down = nnx.List(
            block(before, width, dilation=dilation)
            for before, width, dilation in zip(
                [in_channels, *widths], widths, dilations, strict=False
            )
        )
        self.bottleneck = block(widths[-2], widths[-1], dilation=deepest)
        self.up = nnx.List(
            block(width + below, width, dilation=dilation)
            for width, below, dilation in zip(widths, widths[1:], dilations, strict=False)
        )
        self.head = Conv(widths[0], out_channels, 1, rngs=rngs)

    def __call__(self, x, *, train):
        check_divisible(x, self.divisor)
        if self.input_interval:
            low, high = self.input_interval
            x = (x + 1) * ((high - low) / 2) + low
        size = 2 if formulation().blocked and self.pools[0] == 2 else 1
        blocks = [size] + [1] * len(self.pools)  # of each level; only the first is ever blocked
        x = space_to_depth(x, size)
        levels = list(zip(self.down, self.up, self.pools, blocks, strict=False))
        skips = []
        for block, _, pool, size in levels:
            x = block(x, train=train, blocks=size)
            skips.append(x)
            x = block_maxima(x, pool) if size == pool else max_pool(x, pool)
        x = self.bottleneck(x, train=train)
        for (_, block, pool, size), skip in zip(levels[::-1], skips[::-1], strict=True):
            repeated = jnp.tile(x, size * size) if size == pool else upsample_nearest(x, pool)
            x = joined(skip, repeated, size)
            x = block(x, train=train, blocks=size)
        return depth_to_space(self.head(x, blocks=size), size)


def joined(a, b, size):
    """The channels of a and b behind each other, both in blocks of size x size pixels."""
    pixels = (x.reshape(*x.shape[:3], size * size, -1) for x in (a, b))
    return jnp.concatenate([*pixels], -1).reshape(*a.shape[:3], -1)


def per_level(name, values, count, default):
    """`values`, or `default` if there are none, as a tuple of `count` positive whole numbers."""
    values = tuple(default if values is None else values)
    if len(values) != count or any(value != int(value) or value < 1 for value in values):
        raise UsageError(f"{name}={values}; {count} positive whole numbers were due")
    return tuple(map(int, values))
