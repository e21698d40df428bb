"""Images padded to sizes that a network accepts."""

import numpy as np


def pad_to_multiple(image: np.ndarray, divisor: int) -> np.ndarray:
    """Return `image`, [h, w] or [h, w, c], mirrored at the bottom and right edges.

    The height and width of the result are the next multiples of `divisor`.
    """
    return np.pad(image, padding_to_multiple(image, divisor), mode="reflect")


def padding_to_multiple(image: np.ndarray, divisor: int) -> list[tuple[int, int]]:
    """Return the `pad_width` of numpy.pad that `pad_to_multiple` uses."""
    h, w, *channels = image.shape
    return [(0, -h % divisor), (0, -w % divisor), *((0, 0) for _ in channels)]
