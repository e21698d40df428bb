"""What is drawn in a mask as files store it: alpha channels, and edges in grey."""

from pathlib import Path
from typing import Any

import numpy as np

from emjax.errors import InputError
from emjax.micrographs.shapes import Mask

JPEG = (".jpg", ".jpeg", ".jfif")
NEAR = 0.02  # of the range: values as near to its ends count as an end
FLAT = 0.25  # of the values between the ends of a mask with grey edges, this share at most is flat
WIDE = 8  # pixels that a grey edge reaches: a block of JPEG
STEPS = 4  # different values at least between the ends of a mask with grey edges
COLOURS = 8  # of outlines, at most
THICK = 0.05  # of the coloured pixels are further than two pixels inside a line, at most
LIVELY = 0.25  # of the pixels of a micrograph differ from the next one, at least


def without_alpha(
    pixels: np.ndarray,
) -> tuple[np.ndarray, str]:
    """Return ([h, w] or [h, w, 3], note): the alpha channel if the colours are all the same."""
    if pixels.ndim == 2 or pixels.shape[-1] == 3:
        return pixels, ""
    colours, alpha = pixels[..., :-1], pixels[..., -1]
    if alpha.min() < alpha.max() and (colours == colours[0, 0]).all():
        return alpha, "is drawn in its alpha channel, which is taken"
    return (colours if colours.shape[-1] == 3 else colours[..., 0]), ""


def has_grey_edges(path: str | Path, pixels: np.ndarray, *, is_asked: bool) -> bool:
    """Return whether `pixels` are two values with grey ones between them along the edges.

    Label images are not: their values stand in areas, and not only around the highest one.

    Args:
        is_asked: whether the foreground is known; it may be of any kind then.

    Raises: InputError if most pixels are between the two values: a picture, not a mask.
    """
    from scipy import ndimage  # slow to load

    is_jpeg = Path(path).suffix.lower() in JPEG  # which has such edges around every mask
    level = pixels.max(axis=-1) if pixels.ndim == 3 else pixels
    low, high = float(level.min()), float(level.max())
    if low == high or (level.dtype.kind in "ui" and high - low < 1 / NEAR):
        return is_jpeg
    scaled = (level.astype(np.float64) - low) / (high - low)
    others = (scaled > 0) & (scaled < 1)
    between = others & (scaled > NEAR) & (scaled < 1 - NEAR)
    steps = len(np.unique(level[others]))
    at_both_ends = (others & (scaled <= NEAR)).any() and (others & (scaled >= 1 - NEAR)).any()
    if not is_jpeg and not (len(np.unique(level[between])) >= STEPS or at_both_ends):
        return False
    if not is_jpeg and (others & _is_flat(level)).sum() > FLAT * others.sum():
        return False
    if between.mean() > 0.5 and not is_asked:
        raise InputError(
            f"{path}: expected a mask, got a picture: {steps} grey values, most of its pixels "
            "neither the lowest nor the highest; if it is one, name its --foreground"
        )
    if is_jpeg:
        return True
    near: Any = ndimage.binary_dilation(scaled >= 1 - NEAR, np.ones((3, 3)), iterations=WIDE)
    return bool((others & near).sum() >= 0.8 * others.sum())


def _is_flat(level: np.ndarray) -> Mask:
    """Return where a pixel has the value of a neighbour beside it and of one above or below it."""
    padded = np.pad(level.astype(np.float64), 1, constant_values=np.nan)
    centre = padded[1:-1, 1:-1]
    beside = (padded[1:-1, :-2] == centre) | (padded[1:-1, 2:] == centre)
    above = (padded[:-2, 1:-1] == centre) | (padded[2:, 1:-1] == centre)
    return beside & above


def cut(pixels: np.ndarray) -> np.ndarray:
    """Return `pixels` with the lower half of their range at 0 and the upper half at its end.

    The range of 8-bit values that are all near to each other is 0 to 255: such a mask has no
    foreground or nothing else. That of masks whose foreground is darker begins at 0.
    """
    low, high = float(pixels.min()), float(pixels.max())
    if pixels.dtype == np.uint8 and high - low < 128:
        is_dark = 1 / NEAR <= high < 128
        half, foreground = (high / 2, np.uint8(high)) if is_dark else (128, np.uint8(255))
        return foreground * (pixels >= half)
    return np.where(pixels >= (low + high) / 2, high, 0).astype(pixels.dtype)


OUTLINES_ARE_NO_MASK = (
    "expected a mask, got a micrograph with outlines on it: on which side of one the particle is "
    "cannot be known for sure. Give the mask itself, which emjax predict writes next to the overlay"
)


def has_outlines(pixels: np.ndarray) -> bool:
    """Return whether `pixels` are a micrograph in grey with thin lines of few colours on it."""
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or str(pixels.dtype) not in ("uint8", "uint16"):
        return False
    coloured = (pixels != pixels[..., :1]).any(axis=-1)
    if not 0 < coloured.mean() < 0.5:
        return False
    from scipy import ndimage  # slow to load

    inner: Any = ndimage.binary_erosion(coloured, np.ones((5, 5)))
    if inner.sum() > THICK * coloured.sum():
        return False
    grey = ~coloured
    level = pixels[..., 0]
    both = grey[:, 1:] & grey[:, :-1]
    if not both.any() or (level[:, 1:] != level[:, :-1])[both].mean() < LIVELY:
        return False
    packed = pixels[coloured].astype(np.uint64) @ np.array([1 << 32, 1 << 16, 1], np.uint64)
    return len(np.unique(packed)) <= COLOURS
