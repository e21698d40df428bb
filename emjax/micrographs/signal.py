"""What every reader finds in a file before it reads pixels: its images, their sizes and units."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from emjax.errors import Adjustable, InputError
from emjax.micrographs.shapes import Stored
from emjax.micrographs.units import UNKNOWN, PixelSize, amount, is_known, no_image

LIMIT = 4 << 30  # bytes that one image (compressed files: all that is decoded at once) may take
SMALL = 64 << 20  # bytes that no compression ratio makes suspicious
RATIO = 10_000  # to the bytes in the file. Deflate reaches 1032; a constant image is none to keep

A_SPECTRUM = "a spectrum or profile"
NO_BRIGHTNESS = (0.0, 1.0, "")
ORIENTATIONS = range(2, 9)  # other than 1, as stored

DType: TypeAlias = np.dtype[Any] | str


class TooLarge(Adjustable):
    """What is to be decoded at once takes `needed` bytes, more than `limit`."""

    def __init__(self, problem: str, advice: str, needed: int = 0, limit: int | float = 0) -> None:
        super().__init__(problem, advice)
        self.needed, self.limit = needed, limit


def _unchanged(pixels: Stored) -> Stored:
    return pixels


def no_pixels(index: int) -> Stored:
    """Stand for the pixels of a refused signal that has none."""
    raise InputError(f"no pixels of plane {index}: the signal is not a micrograph")


class Signal(NamedTuple):
    """One 2-D image or stack of images in a file; its pixels are read plane by plane.

    `raw(i)` is plane i as stored, [h, w] or [h, w, samples]; `finish` turns that into grey values
    or red, green, blue: palettes applied, white high. `labels` turns it into the values of a mask:
    palettes applied, alpha kept, and white as stored.
    """

    name: str
    shape: tuple[int, ...]  # h, w or planes, h, w
    dtype: np.dtype[Any]  # as stored
    raw: Callable[[int], Stored]
    nm_per_pixel: PixelSize = UNKNOWN  # y, x
    origin: str = "none"  # of nm_per_pixel
    samples: int = 1  # colours and alpha per pixel
    refused: str = ""  # why it is not a micrograph; empty if it is one
    finish: Callable[[Stored], Stored] = _unchanged
    nm_per_plane: float = math.nan  # of a stack: from plane to plane
    top_row_stated: bool = True  # the first row is the top one; most MRC files do not say
    brightness: tuple[float, float, str] = NO_BRIGHTNESS  # origin, scale, unit
    labels: Callable[[Stored], Stored] = _unchanged
    white_is_zero: bool = False  # as stored; `finish` turns that over
    channel: str = ""  # its name, where the file has several

    @property
    def planes(self) -> int:
        return math.prod(self.shape[:-2])

    def calibrated(self, sizes: Sequence[float], origin: str) -> "Signal":
        """Return the signal with the sizes (y, x) or (z, y, x) in nm that `origin` states.

        NaN is an unknown size. A pixel size is known if both its sides are; otherwise it is
        UNKNOWN, and its origin "none".
        """
        z, y, x = (math.nan, *map(float, sizes))[-3:]
        if not is_known((y, x)):
            return self._replace(nm_per_pixel=UNKNOWN, origin="none", nm_per_plane=z)
        return self._replace(nm_per_pixel=(y, x), origin=origin, nm_per_plane=z)

    def with_top_row(self, mrc_rows: str | None) -> "Signal":
        """Return the signal with its rows turned over if `mrc_rows` says so and nothing else does.

        Args:
            mrc_rows: "bottom" or "top", where an MRC file has its first row; None: not known.
        """
        if self.top_row_stated or mrc_rows != "bottom":
            return self
        raw = self.raw
        return self._replace(raw=lambda i: raw(i)[::-1])

    def oriented(self, orientation: object) -> "Signal":
        """Return the signal as it is to be looked at by an orientation of TIFF and Exif, 2 to 8.

        It is transposed from 5 on. 1, and what is no orientation, leave it as stored. Source: TIFF
        6.0, tag 274.
        """
        if orientation not in ORIENTATIONS:
            return self
        raw, (*planes, h, w), (y, x) = self.raw, self.shape, self.nm_per_pixel
        vertical = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
        horizontal = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
        if orientation in (2, 3, 4):
            return self._replace(raw=lambda i: raw(i)[vertical, horizontal])
        return self._replace(
            raw=lambda i: raw(i).swapaxes(0, 1)[vertical, horizontal],
            shape=(*planes, w, h),
            nm_per_pixel=(x, y),
        )

    def with_brightness(self) -> "Signal":
        """Return the signal with float32 values (stored - origin) * scale, as it states them."""
        (origin, scale, _), finish = self.brightness, self.finish
        if (origin, scale) == NO_BRIGHTNESS[:2] or self.refused:
            return self
        return self._replace(
            finish=lambda pixels: ((finish(pixels) - origin) * scale).astype(np.float32),
            dtype=np.dtype(np.float32),
        )

    def __str__(self) -> str:
        if not self.shape:  # it has no pixels
            return self.name
        shape = "x".join(map(str, self.shape))
        return " ".join(part for part in (self.name, shape, self.dtype.name) if part)


def why_refused(dtype: DType, shape: Sequence[int], units: Sequence[object] = ()) -> str:
    """Return why an array with `units` of its last axes is not a micrograph; "" if it is one."""
    kind = np.dtype(dtype).kind
    if kind == "c":
        return "complex numbers"
    if kind not in "buif":
        return f"{dtype}, expected real numbers"
    if len(shape) > 3:
        return f"{len(shape)}-D data {tuple(shape)}"
    if len(shape) < 2:
        return A_SPECTRUM
    return no_image(*units)


def with_samples(shape: Sequence[int], samples: int) -> tuple[int, ...]:
    """Return `shape`, with the samples of a pixel as a last axis where there are several."""
    return tuple(shape) if samples == 1 else (*shape, samples)


def check_declared(
    what: str,
    shape: Sequence[int],
    dtype: DType,
    *,
    stored: int,
    limit: int | float,
    compressed: bool = False,
    unwritten: int = 0,
) -> None:
    """Refuse an array before it is decoded if its declared size is impossible or above the limit.

    Args:
        stored: bytes that the file has for it.
        limit: bytes that it may take once decoded.
        unwritten: of a compressed one, bytes that chunks which were never written may stand for.

    Raises: InputError, or TooLarge for the limit, without the file's name, which the caller adds.
    """
    shape = tuple(int(side) for side in shape)
    if not shape or min(shape) < 1:
        raise InputError(f"{what} declares the shape {shape}, expected positive sides")
    size = math.prod(shape) * np.dtype(dtype).itemsize
    described = f"{'x'.join(map(str, shape))} {np.dtype(dtype).name}, {amount(size)}"
    declared = f"{what} declares {described}"
    if not compressed and size > stored:
        raise InputError(
            f"{declared}, but the file has {amount(stored)}: cut off, or a wrong header"
        )
    if compressed and size > max(SMALL, RATIO * stored, unwritten):
        ratio = size // max(stored, 1)
        raise InputError(f"{declared}, {ratio} times the file's {amount(stored)}")
    if size > limit:
        problem = f"{declared}, expected at most {amount(limit)}"
        raise TooLarge(problem, "raise limit=", size, limit)
