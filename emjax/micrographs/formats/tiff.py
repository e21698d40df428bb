"""TIFF of every kind, decoded by tifffile."""

import contextlib
import math
import os
import struct
from collections.abc import Callable, Generator, Sequence
from typing import BinaryIO

import numpy as np
from tifffile import COMPRESSION, PHOTOMETRIC, TiffFile, TiffFrame, TiffPage, TiffPageSeries

from emjax.errors import InputError
from emjax.micrographs.formats import lzw
from emjax.micrographs.formats.tiff_pixel_size import pixel_size, plane_distance
from emjax.micrographs.shapes import Stored
from emjax.micrographs.signal import Signal, check_declared, with_samples

PAGES = 100_000
SLACK = 1 << 16  # bytes that a tile may have beyond any need
LZW = 5
JPEG = (6, 7, 33007, 34892)
# None, fax, LZW, deflate, packbits, LZMA, Zstandard: the size of their output is bounded by that of
# their input. JPEG states its own size, which is checked; others that do (JPEG 2000, WebP, ...) are
# refused.
COMPRESSIONS = (1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 34926, 50000, *JPEG)
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # the JPEG markers that a size follows


@contextlib.contextmanager
def signals(path: str | os.PathLike[str], limit: int) -> Generator[list[Signal]]:
    """Yield the list of Signals of a TIFF; no other file is read, whatever the metadata name."""
    size = os.path.getsize(path)
    with open(path, "rb") as content:
        _check_circles(content)
        file = TiffFile(content, _multifile=False, is_mmstack=False, is_ndtiff=False)
        every = [s for s in file.series if not s.keyframe.is_reduced] or file.series
        if not every:
            raise InputError("a TIFF without an image")
        yield [_signal(path, file, index, s, size, limit) for index, s in enumerate(every)]


def _check_circles(file: BinaryIO) -> None:
    """Follow the chain of pages once: tifffile detects no circle of more than a hundred."""
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    large = head[2:4] in (b"+\0", b"\0+")  # BigTIFF
    count, offset, entry = ("Q", "Q", 20) if large else ("H", "I", 12)
    seen: set[int] = set()
    at = struct.unpack_from(order + offset, head, 8 if large else 4)[0]
    while at:
        if at in seen or len(seen) >= PAGES:
            raise InputError(f"a circle, or over {PAGES}, of pages")
        seen.add(at)
        file.seek(at)
        tags = file.read(struct.calcsize(count))
        if len(tags) < struct.calcsize(count):
            break
        file.seek(struct.unpack(order + count, tags)[0] * entry, os.SEEK_CUR)
        after = file.read(struct.calcsize(offset))
        at = struct.unpack(order + offset, after)[0] if len(after) == struct.calcsize(offset) else 0
    file.seek(0)


def _signal(
    path: str | os.PathLike[str],
    file: TiffFile,
    index: int,
    series: TiffPageSeries,
    size: int,
    limit: int,
) -> Signal:
    page, axes = series.keyframe, series.axes
    samples = series.shape[axes.index("S")] if "S" in axes else 1
    shape = tuple(side for side, axis in zip(series.shape, axes, strict=True) if axis != "S")
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    refused = ""
    if len(shape) not in (2, 3):
        refused = f"{len(shape)}-D data {series.shape}"
    elif page.photometric in (PHOTOMETRIC.SEPARATED, PHOTOMETRIC.CIELAB):
        refused = f"{PHOTOMETRIC(page.photometric).name} colours, expected grey or RGB"
    elif page.compression not in COMPRESSIONS:
        refused = f"compressed by {getattr(page.compression, 'name', page.compression)}"
    elif page.dtype is None:
        refused = f"{page.bitspersample} bits as {page.sampleformat}, not a number format"
    dtype = series.dtype
    plane = with_samples(shape[-2:], samples)
    compressed = page.compression != COMPRESSION.NONE
    if compressed or page.bitspersample != 8 * dtype.itemsize:  # less than a byte: unpacked
        check_declared("its image", plane, dtype, stored=size, limit=limit, compressed=True)
        chunk = [max(1, side) for side in page.chunks]
        check_declared("a tile", chunk, dtype, stored=size, limit=limit, compressed=True)
    else:
        whole = with_samples(shape, samples)
        check_declared("it", whole, dtype, stored=size, limit=math.inf)
        check_declared("its image", plane, dtype, stored=size, limit=limit)
    raw = _reader(path, file, series, shape, axes, limit, size)
    sizes, origin, no_length = pixel_size(path, file, index, series)
    is_volume = axes.replace("S", "")[-3:] == "ZYX"
    distance = plane_distance(file, index) if is_volume else math.nan
    return Signal(
        f"image {index}",
        shape,
        dtype,
        raw,
        samples=samples,
        refused=refused or no_length,
        finish=lambda pixels: _grey_or_rgb(page, pixels),
    ).calibrated((distance, *sizes), origin)


def _reader(
    path: str | os.PathLike[str],
    file: TiffFile,
    series: TiffPageSeries,
    shape: Sequence[int],
    axes: str,
    limit: int,
    size: int,
) -> Callable[[int], Stored]:
    """Return the function of i for plane i of `series`: [h, w] or [h, w, samples] as stored."""
    page = series.keyframe
    planes = math.prod(shape[:-2])
    last = "S" in axes and axes.index("S") < len(axes) - 1  # planes of colours

    def move(pixels: np.ndarray) -> Stored:
        return np.moveaxis(pixels, -3, -1) if last else pixels

    if planes > 1 and series.dataoffset is not None and page.dtype is not None and not last:
        start, dtype = series.dataoffset, page.dtype.newbyteorder(file.byteorder)
        stored = (*shape[-2:], page.samplesperpixel)
        step = math.prod(stored) * dtype.itemsize

        def contiguous(i: int) -> Stored:
            pixels = np.fromfile(path, dtype, math.prod(stored), offset=start + i * step)
            pixels = pixels.reshape(stored)
            return pixels if "S" in axes else pixels[..., 0]

        return contiguous
    if planes == len(series.pages) or planes == 1:

        def paged(i: int) -> Stored:
            part = series.pages[i]
            if part is None:
                raise InputError(f"page {i} of {planes} is missing")
            _check_tiles(file, page, part)
            pixels = series.asarray() if planes == 1 else part.asarray()
            return move(pixels.reshape(_stored_shape(series, shape, axes)))

        return paged
    dtype = series.dtype
    check_declared("its stack", series.shape, dtype, stored=size, limit=limit, compressed=True)
    whole: list[np.ndarray] = []

    def cut(i: int) -> Stored:
        if not whole:
            for part in series.pages:
                if part is None:
                    raise InputError("a page of the stack is missing")
                _check_tiles(file, page, part)
            whole.append(series.asarray())
        return move(whole[0].reshape(planes, *_stored_shape(series, shape, axes))[i])

    return cut


def _stored_shape(series: TiffPageSeries, shape: Sequence[int], axes: str) -> tuple[int, ...]:
    """Return the shape of a plane as stored."""
    if "S" not in axes:
        return tuple(shape[-2:])
    samples = series.shape[axes.index("S")]
    first = axes.index("S") < axes.index("Y")
    return (samples, *shape[-2:]) if first else (*shape[-2:], samples)


def _check_tiles(file: TiffFile, keyframe: TiffPage, page: TiffPage | TiffFrame) -> None:
    """Refuse tiles beyond the end, and JPEGs larger than their tile: decoders believe both."""
    size, tile = file.filehandle.size, math.prod(page.chunks)
    most = 2 * tile * keyframe.bitspersample // 8 + SLACK
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False):
        if offset + count > size:
            raise InputError(
                f"pixels up to byte {offset + count}, but it is cut off at byte {size}"
            )
        if count > most:
            raise InputError(f"{count} bytes for a tile of {page.chunks}")
        if page.compression not in (LZW, *JPEG):
            continue
        file.filehandle.seek(offset)
        data, at = file.filehandle.read(count), 2
        if page.compression == LZW:
            lzw.check(data)
            continue
        while data[at : at + 1] == b"\xff" and at + 9 <= len(data):
            if data[at + 1] in FRAMES:
                h, w = struct.unpack_from(">HH", data, at + 5)
                if h * w > 4 * tile:
                    raise InputError(f"a JPEG of {h}x{w} in a tile of {page.chunks}")
                break
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")


def _grey_or_rgb(page: TiffPage, pixels: Stored) -> Stored:
    """Return `pixels` with palettes applied, and white high."""
    if page.photometric == PHOTOMETRIC.PALETTE and page.colormap is not None:
        return (page.colormap[:, pixels] >> 8).astype(np.uint8).transpose(1, 2, 0)
    if page.photometric == PHOTOMETRIC.MINISWHITE:
        top = (1 << page.bitspersample) - 1 if pixels.dtype.kind == "u" else 1
        return ~pixels if pixels.dtype == bool else (top - pixels).astype(pixels.dtype)
    return pixels
