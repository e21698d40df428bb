"""The PatchGAN discriminator: real or not, patch by patch."""

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import random
from jax.ad_checkpoint import checkpoint_name
from jax.nn import initializers
from jaxtyping import Array, DTypeLike, Float, Key

from emjax.errors import UsageError
from emjax.models.blocks import KEPT_OUTPUT, Conv, Images, conv_norm
from emjax.models.model import KeySource
from emjax.models.norms import normalisation
from emjax.models.receptive_field import patchgan_receptive_field
from emjax.parallel import sharding

SMALL = initializers.normal(0.02)


class PatchGAN(nnx.Module):
    """A map of scores, one for each overlapping patch of (corrupted, image); no final sigmoid.

    `depth` 4x4 convolutions of stride 2, then two of stride 1, all padded by 1. With depth 3 each
    score sees 70 x 70 pixels and the map of a 224 x 224 pair is 26 x 26. Convolutions before a
    norm have no bias. Kernels start at N(0, 0.02), scales of norms at N(1, 0.02).
    Source: Isola et al. 2017 (arXiv 1611.07004), section 6.1.2, NLayerDiscriminator.

    Args:
        width: channels of the first convolution; each further one doubles them, up to 8 * width.
        in_channels: of the two images together.
        norm: batch, instance, group or none.

    Raises: UsageError when called on images too small for a single score.
    """

    inputs = 2

    def __init__(
        self,
        *,
        width: int = 64,
        depth: int = 3,
        in_channels: int = 2,
        norm: str = "batch",
        rngs: KeySource,
    ) -> None:
        self.norm = norm
        self.receptive_field = patchgan_receptive_field(depth)
        widths = [width * min(2**level, 8) for level in range(depth + 1)]
        strides = [2] * depth + [1]
        conv = partial(
            Conv,
            padding=1,
            kernel_init=SMALL,
            bias_init=initializers.zeros,
            rngs=rngs,
        )
        self.convs = nnx.List(
            conv(before, after, 4, stride=stride, use_bias=level == 0 or norm == "none")
            for level, (before, after, stride) in enumerate(
                zip([in_channels, *widths], widths, strides, strict=False)
            )
        )
        self.norms = nnx.List(
            normalisation(norm, after, scale_init=normal_around_one, rngs=rngs)
            for after in widths[1:]
        )
        self.head = conv(widths[-1], 1, 4)

    @property
    def wiring(self) -> dict[str, Any]:
        """The settings that change what the same arrays compute."""
        return {"norm": self.norm}

    def __call__(self, corrupted: Images, image: Images, *, train: bool) -> Images:
        """Return the scores [b, h', w', 1] of pairs [b, h, w, c]."""
        smallest = 3 * 2 ** (len(self.convs) - 1)
        if min(image.shape[1:3]) < smallest:
            raise UsageError(
                f"expected images of at least {smallest} pixels per side for a PatchGAN of depth "
                f"{len(self.convs) - 1}, got {image.shape[1]} x {image.shape[2]}; use a larger "
                "augment.crop"
            )
        x = jnp.concatenate([corrupted, image], -1)
        x = nnx.leaky_relu(self.convs[0](x), 0.2)
        for level, (layer, norm) in enumerate(zip(self.convs[1:], self.norms, strict=True), 1):
            h = x.shape[1]
            x = sharding.unsplit_uneven(x, h // 2 if level < len(self.norms) else h - 1)
            x = conv_norm(layer, norm, x, train=train)
            x = checkpoint_name(nnx.leaky_relu(x, 0.2), KEPT_OUTPUT)
        return self.head(sharding.unsplit_uneven(x, x.shape[1] - 1))


def normal_around_one(
    key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
) -> Float[Array, "..."]:
    """Return values drawn from N(1, 0.02)."""
    return 1 + 0.02 * random.normal(key, shape, dtype)
