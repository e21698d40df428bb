"""Arrays as pictures: grey levels, overlays of masks, PNG bytes."""

import io

import numpy as np
from PIL import Image, PngImagePlugin

OUTLINE = (255, 64, 0)  # red, green, blue


def grey(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return uint8 [h, w] of float [1, h, w, 1] in [-1, 1], cut to where `valid` is true."""
    valid = np.asarray(valid)[0, :, :, 0]
    h, w = valid.any(1).sum(), valid.any(0).sum()
    unit = (np.asarray(values, np.float32)[0, :h, :w, 0] + 1) / 2
    return np.rint(255 * np.clip(unit, 0, 1)).astype(np.uint8)


def overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return uint8 [h, w, 3]: the image in grey with the outline of the mask in colour."""
    low, high = np.percentile(image, [0.1, 99.9])
    unit = np.clip((image - low) / max(high - low, 1e-9), 0, 1)
    picture = np.repeat((255 * unit).astype(np.uint8)[..., None], 3, axis=2)
    inside = np.pad(mask > 0, 1, mode="edge")
    eroded = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    picture[(mask > 0) & ~eroded] = OUTLINE
    return picture


def png(picture: np.ndarray, software: str = "") -> bytes:
    """Return the bytes of a PNG of uint8 [h, w] or [h, w, 3].

    Args:
        software: text about what made the picture, kept as the chunk Software.
    """
    buffer, texts = io.BytesIO(), PngImagePlugin.PngInfo()
    if software:
        texts.add_text("Software", software)
    Image.fromarray(picture).save(buffer, format="PNG", pnginfo=texts)
    return buffer.getvalue()
