"""Micrographs and their targets at the pixel size that a build asks for."""

import numpy as np
from jaxtyping import Real

from emjax.errors import InputError
from emjax.micrographs import Micrograph
from emjax.micrographs.resampling import resample, resampled_shape

MAX_MAGNIFICATION = 4.0  # times; beyond it a pixel would cover more than 4 x 4 and add nothing


class SkippedByRule(InputError):
    """A good image that cannot have the requested pixel size."""


def resample_to(
    nm: float, micrograph: Micrograph, targets: dict[str, Real[np.ndarray, "h w"]], limit: int
) -> tuple[Micrograph, dict[str, Real[np.ndarray, "h2 w2"]]]:
    """Return `micrograph` and its `targets` at `nm` per pixel, y and x alike.

    Raises: SkippedByRule if its pixel size is not known, or it would grow more than
        MAX_MAGNIFICATION times or would take more than `limit` bytes as float64, before or after.
    """
    if not np.isfinite(micrograph.nm_per_pixel).all():
        raise SkippedByRule("its nm per pixel are not known; the table can state them")
    y, x = (known / nm for known in micrograph.nm_per_pixel)
    if max(y, x) > MAX_MAGNIFICATION:
        raise SkippedByRule(
            f"{max(micrograph.nm_per_pixel):g} nm per pixel, "
            f"to be magnified {max(y, x):.3g} times, expected at most {MAX_MAGNIFICATION:g}"
        )
    h, w = resampled_shape(micrograph.image.shape, (y, x))
    if 8 * max(h * w, micrograph.image.size) > limit:
        before = "x".join(map(str, micrograph.image.shape))
        raise SkippedByRule(f"resampled from {before} to {h}x{w}, too large; raise --memory_limit")
    image = resample(micrograph.image, (y, x))
    targets = {
        target: (resample_classes if target == "mask" else resample)(pixels, (y, x))
        for target, pixels in targets.items()
    }
    return micrograph._replace(image=image, nm_per_pixel=(nm, nm)), targets


def resample_classes(
    mask: Real[np.ndarray, "h w"], factors: tuple[float, float]
) -> Real[np.ndarray, "h2 w2"]:
    """Return what `resample` does, of class numbers: the class with most of each new pixel."""
    numbers = np.unique(mask)
    if numbers[-1] <= 1:
        return resample(mask, factors)
    shares = [resample((mask == number).astype(np.float32), factors) for number in numbers]
    return numbers[np.argmax(shares, axis=0)]
