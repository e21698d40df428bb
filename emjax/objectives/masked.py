"""Masked-image modelling: predict the hidden parts of a micrograph."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool

from emjax.data.corruptions import Masking
from emjax.metrics.losses import Images, Scalar
from emjax.objectives.reconstruction import Reconstruction


@dataclasses.dataclass(frozen=True)
class Masked(Reconstruction):
    """L1 over the hidden pixels alone; visible pixels do not count.

    Source: Xie et al. 2022, SimMIM (arXiv 2111.09886). Differs: the hidden blocks are mid-grey
    pixels, not a learned token, because the networks are convolutional.
    """

    corrupt: Masking

    def loss(self, restored: Images, micrograph: Images, corrupted: Images) -> Scalar:
        """Return the mean absolute error over the hidden pixels of a batch."""
        hidden = corrupted != micrograph
        return (jnp.abs(restored - micrograph) * hidden).sum() / jnp.maximum(hidden.sum(), 1)

    def scored(
        self, micrograph: Images, corrupted: Images, valid: Bool[Array, "b h w 1"]
    ) -> Bool[Array, "b h w 1"]:
        """Return the hidden pixels among the `valid` ones."""
        return valid & (corrupted != micrograph)
