"""Scores of images and of whole particles, and losses (`emjax.metrics.losses`)."""

from emjax.metrics.images import (
    bias,
    binary_cross_entropy,
    counted,
    hard_dice,
    iou,
    l1,
    l2,
    mean_over,
    particle_scores,
    precision,
    psnr,
    recall,
    soft_dice,
    ssim,
)

__all__ = [
    "bias",
    "binary_cross_entropy",
    "counted",
    "hard_dice",
    "iou",
    "l1",
    "l2",
    "mean_over",
    "particle_scores",
    "precision",
    "psnr",
    "recall",
    "soft_dice",
    "ssim",
]
