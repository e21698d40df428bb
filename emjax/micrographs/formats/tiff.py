"""TIFF of every kind, and the pixel size that a microscope or program left in it."""

import contextlib
import math
import os
import struct

import numpy as np
import tifffile

from emjax.errors import InputError
from emjax.micrographs.formats import lzw
from emjax.micrographs.formats.tiff_pixel_size import _pixel_size, _plane_distance
from emjax.micrographs.signal import Signal, declared, pixels_of

PAGES = 100_000
SLACK = 1 << 16  # bytes that a tile may have beyond any need
LZW = 5
JPEG = (6, 7, 33007, 34892)
# None, fax, LZW, deflate, packbits, LZMA, Zstandard: what they give is bounded by what they get.
# JPEG says its own size, which is looked at; others that do (JPEG 2000, WebP, ...) are refused.
COMPRESSIONS = (1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 34926, 50000, *JPEG)
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # the JPEG markers that a size follows


@contextlib.contextmanager
def signals(path, limit):
    """The list of Signals of a TIFF; no other file is read, whatever the metadata say."""
    size = os.path.getsize(path)
    alone = dict(_multifile=False, is_mmstack=False, is_ndtiff=False)
    with open(path, "rb") as content:
        _check_circles(content)
        file = tifffile.TiffFile(content, **alone)
        every = [s for s in file.series if not s.keyframe.is_reduced] or file.series
        if not every:
            raise InputError("a TIFF without an image")
        yield [_signal(path, file, place, s, size, limit) for place, s in enumerate(every)]


def _check_circles(file):
    """Follow the chain of pages once: tifffile sees no circle of more than a hundred."""
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    large = head[2:4] in (b"+\0", b"\0+")  # BigTIFF
    count, offset, entry = ("Q", "Q", 20) if large else ("H", "I", 12)
    seen, at = set(), struct.unpack_from(order + offset, head, 8 if large else 4)[0]
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


def _signal(path, file, place, series, size, limit):
    page, axes, shape = series.keyframe, series.axes, series.shape
    samples = shape[axes.index("S")] if "S" in axes else 1
    sides = tuple(side for side, axis in zip(shape, axes, strict=True) if axis != "S")
    while len(sides) > 2 and sides[0] == 1:
        sides = sides[1:]
    refused = ""
    if len(sides) not in (2, 3):
        refused = f"{len(sides)}-D data {shape}"
    elif page.photometric in (tifffile.PHOTOMETRIC.SEPARATED, tifffile.PHOTOMETRIC.CIELAB):
        refused = f"{page.photometric.name} colours, where grey or RGB was due"
    elif page.compression not in COMPRESSIONS:
        refused = f"compressed by {getattr(page.compression, 'name', page.compression)}"
    dtype = series.dtype
    if dtype is None:
        raise InputError(f"{page.bitspersample} bits as {page.sampleformat}: no number format")
    one = pixels_of(sides[-2:], samples)
    compressed = page.compression != tifffile.COMPRESSION.NONE
    if compressed or page.bitspersample != 8 * dtype.itemsize:  # less than a byte: unpacked
        declared("its image", one, dtype, stored=size, limit=limit, compressed=True)
        chunk = [max(1, side) for side in page.chunks]
        declared("a tile", chunk, dtype, stored=size, limit=limit, compressed=True)
    else:
        declared("it", pixels_of(sides, samples), dtype, stored=size, limit=math.inf)
        declared("its image", one, dtype, stored=size, limit=limit)
    read = _reader(path, file, series, sides, axes, limit, size)
    nm_per_pixel, origin, strange = _pixel_size(path, file, place, series)
    return Signal(
        f"image {place}",
        sides,
        dtype,
        read,
        nm_per_pixel,
        origin,
        samples,
        refused or strange,
        lambda pixels: _grey_or_rgb(page, pixels),
        _plane_distance(file, place) if axes.replace("S", "")[-3:] == "ZYX" else math.nan,
    )


def _reader(path, file, series, sides, axes, limit, size):
    """Plane i of `series`: [h, w] or [h, w, samples] as stored."""
    page = series.keyframe
    planes = math.prod(sides[:-2])
    last = "S" in axes and axes.index("S") < len(axes) - 1  # planes of colours

    def move(pixels):
        return np.moveaxis(pixels, -3, -1) if last else pixels

    if planes > 1 and series.dataoffset is not None and not last:
        plane = page.dtype.newbyteorder(file.byteorder)
        shape = (*sides[-2:], page.samplesperpixel)
        step = math.prod(shape) * plane.itemsize

        def contiguous(i):
            pixels = np.fromfile(path, plane, math.prod(shape), offset=series.dataoffset + i * step)
            pixels = pixels.reshape(shape)
            return pixels if "S" in axes else pixels[..., 0]

        return contiguous
    if planes == len(series.pages) or planes == 1:

        def paged(i):
            part = series.pages[i]
            if part is None:
                raise InputError(f"page {i} of {planes} is missing")
            _check_tiles(file, part)
            pixels = series.asarray() if planes == 1 else part.asarray()
            return move(pixels.reshape(_one(series, sides, axes)))

        return paged
    declared("its stack", series.shape, page.dtype, stored=size, limit=limit, compressed=True)
    whole = []

    def cut(i):
        if not whole:
            for part in series.pages:
                _check_tiles(file, part)
            whole.append(series.asarray())
        return move(whole[0].reshape(planes, *_one(series, sides, axes))[i])

    return cut


def _one(series, sides, axes):
    """The shape of a plane as stored."""
    if "S" not in axes:
        return sides[-2:]
    samples = series.shape[axes.index("S")]
    first = axes.index("S") < axes.index("Y")
    return (samples, *sides[-2:]) if first else (*sides[-2:], samples)


def _check_tiles(file, page):
    """Refuse tiles beyond the end, and JPEGs larger than their tile: decoders believe both."""
    size, tile = file.filehandle.size, math.prod(page.chunks)
    most = 2 * tile * page.keyframe.bitspersample // 8 + SLACK
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


def _grey_or_rgb(page, pixels):
    """Palettes applied, and white high."""
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE and page.colormap is not None:
        return (page.colormap[:, pixels] >> 8).astype(np.uint8).transpose(1, 2, 0)
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        top = (1 << page.bitspersample) - 1 if pixels.dtype.kind == "u" else 1
        return ~pixels if pixels.dtype == bool else (top - pixels).astype(pixels.dtype)
    return pixels
