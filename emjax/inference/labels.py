"""Particles of a mask, numbered."""

from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8

TOUCHING = np.ones((3, 3))  # at edges or corners, as in emjax.metrics.particles


def label_particles(mask: UInt8[np.ndarray, "*planes h w"]) -> Shaped[np.ndarray, "*planes h w"]:
    """Return the number of the particle that each pixel of `mask` belongs to; 0 is background.

    A particle is a set of pixels of one value that touch at edges or corners (8-connected).
    Particles are numbered from 1 on in reading order; planes one after the other, so that a number
    is one particle of one plane. uint16, or uint32 above 65535 particles.
    """
    from scipy import ndimage  # slow to load, and few ask for labels

    labels, count = np.zeros(mask.shape, np.uint32), 0
    h, w = mask.shape[-2:]
    for plane, numbers in zip(mask.reshape(-1, h, w), labels.reshape(-1, h, w), strict=True):
        for value in np.unique(plane[plane > 0]):
            labelled: Any = ndimage.label(plane == value, TOUCHING)
            found, particles = labelled
            numbers[found > 0] = found[found > 0] + count
            count += particles
    return labels if count > np.iinfo(np.uint16).max else labels.astype(np.uint16)
