"""Sizes and shapes of particles in masks and label images, and their statistics. No JAX.

from emjax.measurement import measure

particles = measure(mask, nm_per_pixel=0.12)
print(particles["feret_min_nm"])
"""

from emjax.measurement.particles import SPLIT, Labels, label, measure

__all__ = ["SPLIT", "Labels", "label", "measure"]
