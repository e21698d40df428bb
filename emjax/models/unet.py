"""The residual U-Net whose receptive field is set by dilation."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx

from emjax.errors import UsageError
from emjax.models.blocks import (
    Conv,
    Images,
    ResidualBlock,
    block_maxima,
    check_divisible,
    depth_to_space,
    max_pool,
    space_to_depth,
    upsample_nearest,
)
from emjax.models.formulation import formulation
from emjax.models.model import KeySource
from emjax.models.receptive_field import unet_dilations, unet_receptive_field

# Channels of a first level that is computed on blocks of pixels. Wider ones are quicker pixel by
# pixel: a training step of a U-Net 4 424 with filters 8 to 128, 16 images of 192 x 192, takes 1.98
# s so and 4.62 s on blocks, with the filters 4 to 64 of the paper 1.06 s and 0.86 s (two CPU cores,
# 2026-11-29).
WIDEST_IN_BLOCKS = 4


class UNet(nnx.Module):
    """Image to image: `blocks` levels of a residual block and a pooling, a bottleneck, and back.

    Level i has 4 * 2**i channels and the same dilation on the way down and up. The output is
    linear. Input and output [b, h, w, channels], h and w divisible by `divisor`.
    Source: Sytwu et al. 2022 (arXiv 2204.04250); nine variants in Kazimi et al. (arXiv 2402.18286).
    Differs: one linear output channel in place of a two-channel softmax.

    Args:
        blocks: levels above the bottleneck.
        receptive_field: pixels that one output pixel sees along an axis; sets the dilations.
        filters: channels, one number per level and one for the bottleneck.
        pools: pooling factors, one per level; by default 2.
        dilations: one per level and one for the bottleneck, instead of `receptive_field`.
        norm: batch, instance, group or none.
        input_interval: what -1 and 1 of the input become before the first layer, for weights that
            were trained on other values; None leaves the input as it is.

    Raises: UsageError for lists of the wrong length, and for a receptive field that is impossible
        or is not that of `dilations`.
    """

    inputs = 1

    def __init__(
        self,
        *,
        blocks: int,
        receptive_field: int | None = None,
        filters: Sequence[int] | None = None,
        pools: Sequence[int] | None = None,
        dilations: Sequence[int] | None = None,
        in_channels: int = 1,
        out_channels: int = 1,
        norm: str = "batch",
        input_interval: Sequence[float] | None = None,
        rngs: KeySource,
    ) -> None:
        if blocks < 1:
            raise UsageError(f"blocks={blocks}, expected at least 1")
        widths = per_level("filters", filters, blocks + 1, [4 * 2**i for i in range(blocks + 1)])
        self.width = widths[0]
        self.pools = per_level("pools", pools, blocks, (2,) * blocks)
        self.divisor = math.prod(self.pools)
        if dilations is None and receptive_field is not None:
            dilations = unet_dilations(receptive_field, self.pools)
        self.dilations = per_level("dilations", dilations, blocks + 1, (1,) * (blocks + 1))
        self.input_interval = input_interval and tuple(input_interval)
        self.norm = norm
        self.receptive_field = unet_receptive_field(self.dilations, self.pools)
        if receptive_field not in (None, self.receptive_field):
            raise UsageError(
                f"receptive_field={receptive_field}, but dilations={self.dilations} with "
                f"pools={self.pools} see {self.receptive_field} pixels; leave one of the two out"
            )
        *level_dilations, deepest = self.dilations
        block = partial(ResidualBlock, norm=norm, rngs=rngs)

        self.down = nnx.List(
            block(before, width, dilation=dilation)
            for before, width, dilation in zip(
                [in_channels, *widths], widths, level_dilations, strict=False
            )
        )
        self.bottleneck = block(widths[-2], widths[-1], dilation=deepest)
        self.up = nnx.List(
            block(width + below, width, dilation=dilation)
            for width, below, dilation in zip(widths, widths[1:], level_dilations, strict=False)
        )
        self.head = Conv(widths[0], out_channels, 1, rngs=rngs)

    @property
    def wiring(self) -> dict[str, Any]:
        """The settings that change what the same arrays compute."""
        return {
            "pools": self.pools,
            "dilations": self.dilations,
            "input_interval": self.input_interval,
            "norm": self.norm,
        }

    def __call__(self, x: Images, *, train: bool) -> Images:
        """Return the output for x; in training, the norms' running statistics are updated."""
        check_divisible(x, self.divisor)
        if self.input_interval:
            low, high = self.input_interval
            x = (x + 1) * ((high - low) / 2) + low
        block_sizes = self.block_sizes()
        x = space_to_depth(x, block_sizes[0])
        skips = []
        for block, factor, size in zip(self.down, self.pools, block_sizes, strict=True):
            x = block(x, train=train, block_size=size)
            skips.append(x)
            x = pool(x, factor, size)
        x = self.bottleneck(x, train=train)
        levels = list(zip(self.up, self.pools, block_sizes, skips, strict=True))
        for block, factor, size, skip in reversed(levels):
            # All pixels of a block have the same pixel of the lower level above them.
            shared = x.shape[-1] if size > 1 else 0
            x = x if shared else upsample_nearest(x, factor)
            x = jnp.concatenate([skip, x], -1)
            x = block(x, train=train, block_size=size, shared=shared)
        return depth_to_space(self.head(x, block_size=block_sizes[0]), block_sizes[0])

    def block_sizes(self) -> list[int]:
        """Return the side of the blocks of pixels that each level has as channels; 1: pixels.

        Only the first level, at full resolution, is ever computed on blocks, and only where it is
        narrow: four pixels have four times as many channels, and sixteen times as many products.
        """
        narrow = self.width <= WIDEST_IN_BLOCKS
        first = 2 if formulation().blocked and narrow and self.pools[0] == 2 else 1
        return [first] + [1] * (len(self.pools) - 1)


def pool(x: Images, factor: int, block_size: int) -> Images:
    """Return x, of a level with this block size, reduced by `factor`, as pixels."""
    return block_maxima(x, factor) if block_size == factor else max_pool(x, factor)


def per_level(
    name: str, values: Sequence[int] | None, count: int, default: Sequence[int]
) -> tuple[int, ...]:
    """Return `values`, or `default` for None, as a tuple of `count` positive whole numbers.

    Raises: UsageError for other values, with the `name` of the argument.
    """
    values = tuple(default if values is None else values)
    if len(values) != count or any(value != int(value) or value < 1 for value in values):
        raise UsageError(f"{name}={values}, expected {count} positive whole numbers")
    return tuple(map(int, values))
