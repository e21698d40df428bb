"""The residual U-Net whose receptive field is set by dilation."""

import math

import jax.numpy as jnp
from flax import nnx

from emjax.models.blocks import ResidualBlock, conv, max_pool, upsample_nearest
from emjax.models.receptive_field import unet_dilations


class UNet(nnx.Module):
    """Image to image: `blocks` levels of a residual block and a pooling, a bottleneck, and back.

    Level i has 4 * 2**i channels and the same dilation on the way down and up. The output is
    linear. Input and output float32 [b, h, w, channels], h and w divisible by `divisor`.
    Source: Sytwu et al. 2022 (arXiv 2204.04250); nine variants in Kazimi et al. (arXiv 2402.18286).
    Differs: one linear output channel in place of a two-channel softmax.

    Args:
        blocks: levels above the bottleneck.
        receptive_field: pixels one output sees; chooses the dilations.
    """

    def __init__(self, *, blocks, receptive_field, in_channels=1, out_channels=1, rngs):
        self.pools = (2,) * blocks
        self.divisor = math.prod(self.pools)
        widths = [4 * 2**level for level in range(blocks + 1)]
        *dilations, deepest = unet_dilations(receptive_field, self.pools)

        self.down = nnx.List(
            ResidualBlock(before, width, dilation=dilation, rngs=rngs)
            for before, width, dilation in zip(
                [in_channels, *widths], widths, dilations, strict=False
            )
        )
        self.bottleneck = ResidualBlock(widths[-2], widths[-1], dilation=deepest, rngs=rngs)
        self.up = nnx.List(
            ResidualBlock(width + below, width, dilation=dilation, rngs=rngs)
            for width, below, dilation in zip(widths, widths[1:], dilations, strict=False)
        )
        self.head = conv(widths[0], out_channels, 1, rngs=rngs)

    def __call__(self, x, *, train):
        skips = []
        for block, pool in zip(self.down, self.pools, strict=True):
            x = block(x, train=train)
            skips.append(x)
            x = max_pool(x, pool)
        x = self.bottleneck(x, train=train)
        for block, pool, skip in reversed(list(zip(self.up, self.pools, skips, strict=True))):
            x = jnp.concatenate([skip, upsample_nearest(x, pool)], -1)
            x = block(x, train=train)
        return self.head(x)
