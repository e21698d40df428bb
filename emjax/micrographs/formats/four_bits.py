"""Two pixels of 4 bits per byte, as SerialEM saves super-resolution frames of the K2 and K3.

Some files say so only in a description, some not at all. Source: IMOD, iitif.c and mrcfiles.c
(sizeCanBe4BitK2SuperRes).
"""

from collections.abc import Sequence

import numpy as np

from emjax.micrographs.shapes import Stored

SAID = "4 bits packed"
FRAMES = ((7676, 7420), (7680, 7424), (11520, 8184))  # pixels, turned by 90 degrees or not
TOLERANCE = 2  # bytes of a row, and rows


def unpacked(pairs: Stored) -> Stored:
    """Return [h, 2 w] of bytes [h, w]: the low bits of each are its first pixel."""
    return np.stack([pairs & 15, pairs >> 4], -1).reshape(len(pairs), -1)


def may_be_packed(shape: Sequence[int]) -> bool:
    """Return whether bytes [.., h, w] have the size of a frame that is packed along its rows."""
    h, w = shape[-2:]
    return any(
        abs(w - width // 2) <= TOLERANCE and abs(h - height) <= TOLERANCE
        for frame in FRAMES
        for width, height in (frame, frame[::-1])
    )


def doubt(shape: Sequence[int]) -> str:
    """Return why bytes that may be packed and do not say so are refused."""
    h, w = shape[-2:]
    return (
        f"{h}x{w} bytes, the size of a K2 or K3 frame with two pixels of 4 bits per byte, without "
        f"{SAID!r} in its description; unpack it with IMOD, or save it in 16 bits if it is not one"
    )
