"""Masked-image modelling: guess the hidden parts of a micrograph."""

import dataclasses

import jax.numpy as jnp

from emjax.data.corruptions import Masking
from emjax.objectives.reconstruction import Reconstruction


@dataclasses.dataclass(frozen=True)
class Masked(Reconstruction):
    """L1 over the hidden pixels alone; what is visible need not be said again.

    Source: Xie et al. 2022, SimMIM (arXiv 2111.09886). Differs: the hidden blocks are mid-grey
    pixels, not a learned token, as the networks are convolutional.
    """

    corrupt: Masking

    def loss(self, restored, micrograph, corrupted):
        hidden = corrupted != micrograph
        return (jnp.abs(restored - micrograph) * hidden).sum() / jnp.maximum(hidden.sum(), 1)

    def scored(self, micrograph, corrupted, valid):
        return valid & (corrupted != micrograph)
