"""Arrays as pictures: grey levels, overlays of masks, PNG bytes."""

import io

import numpy as np
from PIL import Image


def grey(values, valid):
    """uint8 [h, w] of float [1, h, w, 1] in [-1, 1], without what is not `valid`."""
    valid = np.asarray(valid)[0, :, :, 0]
    h, w = valid.any(1).sum(), valid.any(0).sum()
    unit = (np.asarray(values, np.float32)[0, :h, :w, 0] + 1) / 2
    return np.uint8(np.rint(255 * np.clip(unit, 0, 1)))


OUTLINE = (255, 64, 0)  # red, green, blue


def overlay(image, mask):
    """uint8 [h, w, 3]: the image in grey, the border of the mask in colour."""
    low, high = np.percentile(image, [0.1, 99.9])
    grey = np.clip((image - low) / max(high - low, 1e-9), 0, 1)
    picture = np.repeat(np.uint8(255 * grey)[..., None], 3, axis=2)
    inside = np.pad(mask > 0, 1, mode="edge")
    eroded = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    picture[(mask > 0) & ~eroded] = OUTLINE
    return picture


def png(picture):
    """The bytes of a PNG of uint8 [h, w, 3] or [h, w]."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()
