"""TIFF of every kind, decoded by tifffile."""

import contextlib
import math
import os
import struct
from collections.abc import Callable, Generator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tifffile import (
    COMPRESSION,
    PHOTOMETRIC,
    PLANARCONFIG,
    TiffFile,
    TiffFrame,
    TiffPage,
    TiffPageSeries,
)

from emjax.errors import InputError, note
from emjax.micrographs.axes import COLOURS, doubt_of_order
from emjax.micrographs.formats import four_bits, lzw
from emjax.micrographs.formats.tiff_pixel_size import (
    OmeImage,
    ome_image,
    ome_images,
    pages_to_compare,
    pixel_size,
    plane_distance,
)
from emjax.micrographs.formats.vendors.common import tag_value
from emjax.micrographs.shapes import Stored
from emjax.micrographs.signal import ORIENTATIONS, Signal, check_declared, with_samples

PAGES = 100_000
SLACK = 1 << 16  # bytes that a tile may have beyond any need
LARGER = 4  # a JPEG may have as many pixels as four of its tile
PHOTOMETRIC_TAG = 262
LZW = 5
JPEG = (6, 7, 33007, 34892)
# None, fax, LZW, deflate, packbits, LZMA, Zstandard: the size of their output is bounded by that of
# their input. JPEG states its own size, which is checked; others that do (JPEG 2000, WebP, ...) are
# refused.
COMPRESSIONS = (1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 34926, 50000, *JPEG)
# Others are refused: CMYK, CIELAB, raw values of a colour filter, logarithms, ...
PHOTOMETRICS = (
    PHOTOMETRIC.MINISWHITE,
    PHOTOMETRIC.MINISBLACK,
    PHOTOMETRIC.RGB,
    PHOTOMETRIC.PALETTE,
    PHOTOMETRIC.MASK,
    PHOTOMETRIC.YCBCR,
)
GREY = (PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.MINISBLACK)
ALPHA = (1, 2)  # kinds of an extra sample
ORIENTATION, DATE_TIME, GATAN_OFFSET, GATAN_SCALE = 274, 306, 65024, 65025
NOT_AN_IMAGE = 1 | 4  # subfile types: a reduced image, a transparency mask
SIGNED = (-32768.0, 1.0)  # offset and slope of signed 16-bit values kept as unsigned ones
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # the JPEG markers that a size follows


@contextlib.contextmanager
def signals(path: str | os.PathLike[str], limit: int) -> Generator[list[Signal]]:
    """Yield the list of Signals of a TIFF; no other file is read, whatever the metadata name."""
    size = os.path.getsize(path)
    with open(path, "rb") as content:
        _check_chain(content)
        file = TiffFile(content, _multifile=False, is_mmstack=False, is_ndtiff=False)
        every = [s for s in file.series if not s.keyframe.subfiletype & NOT_AN_IMAGE] or file.series
        if not every:
            raise InputError("a TIFF without an image")
        path, images = os.fspath(path), ome_images(os.fspath(path), file)
        yield [
            signal
            for index, series in enumerate(every)
            for layout in _layouts(series)
            for signal in _signals(
                path, file, index, series, layout, ome_image(path, images, series), size, limit
            )
        ]


def _check_chain(file: BinaryIO) -> None:
    """Follow the chain of pages once, before a library does: each page may come once.

    tifffile 2026.3.3 hung on some chains; they are refused now.
    """
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    large = head[2:4] in (b"+\0", b"\0+")  # BigTIFF
    count, offset, entry = ("Q", "Q", 20) if large else ("H", "I", 12)
    seen: set[int] = set()
    at = struct.unpack_from(order + offset, head, 8 if large else 4)[0]
    while at:
        if at in seen or len(seen) >= PAGES:
            raise InputError(f"a damaged chain of pages, or one of more than {PAGES}")
        seen.add(at)
        file.seek(at)
        tags = file.read(struct.calcsize(count))
        if len(tags) < struct.calcsize(count):
            break
        file.seek(struct.unpack(order + count, tags)[0] * entry, os.SEEK_CUR)
        after = file.read(struct.calcsize(offset))
        at = struct.unpack(order + offset, after)[0] if len(after) == struct.calcsize(offset) else 0
    file.seek(0)


def _signals(
    path: str,
    file: TiffFile,
    index: int,
    series: TiffPageSeries,
    layout: "_Layout",
    ome: OmeImage | None,
    size: int,
    limit: int,
) -> list[Signal]:
    """Return the Signals of a series: one, or one for each channel and grey image in samples."""
    page = series.keyframe
    shape, dtype = layout.shape, series.dtype
    is_packed, doubt = _packed_bytes(page, shape)
    pages = pages_to_compare(series)
    refused = layout.refused or _why_not_grey_or_rgb(page) or doubt or _why_not_alike(series, pages)
    plane = with_samples(shape[-2:], layout.samples)
    whole = with_samples(shape, layout.samples)
    compressed = page.compression != COMPRESSION.NONE
    if compressed or page.bitspersample != 8 * dtype.itemsize:  # less than a byte: unpacked
        check_declared("its image", plane, dtype, stored=size, limit=limit, compressed=True)
        chunk = [max(1, side) for side in page.chunks]
        check_declared("a tile", chunk, dtype, stored=size, limit=limit, compressed=True)
    else:
        check_declared("it", whole, dtype, stored=size, limit=math.inf)
        check_declared("its image", plane, dtype, stored=size, limit=limit)
    raw = _reader(path, file, series, layout, limit, size)
    if is_packed:
        raw, shape = _unpacked(raw), (*shape[:-1], 2 * shape[-1])
        check_declared("its image", shape[-2:], dtype, stored=size, limit=limit, compressed=True)
    dtype, finish, labels = _values(path, file, series)
    sizes, origin, no_length = pixel_size(path, file, series, ome, shape, pages)
    distance = plane_distance(file, ome) if "Z" in layout.others else math.nan
    orientation = tag_value(page, ORIENTATION)
    if orientation in ORIENTATIONS:
        note(path, f"its orientation tag is {orientation}, by which it is turned")
    offset, scale = tag_value(page, GATAN_OFFSET), tag_value(page, GATAN_SCALE)
    if (offset, scale) not in ((None, None), (0, 1)):
        line = f"{offset} + {scale} times the stored values"
        note(path, f"Gatan's tags state an intensity of {line}; values stay as stored")
    signal = Signal(
        f"image {index}{layout.label}",
        shape,
        dtype,
        raw,
        samples=layout.samples,
        refused=refused or no_length,
        finish=finish,
        labels=labels,
        white_is_zero=_is_white_zero(page, series.dtype),
    ).calibrated((distance, *sizes), origin)
    signals = [signal]
    parts = {} if signal.refused else _planes_of_channels(series, layout, ome)
    if parts:
        by_ome = ome if "C" not in layout.others else None
        names = _channel_names(file, ome, by_ome.counts["C"] if by_ome else len(parts))
        signals = [_channel(signal, part, k, names) for k, part in parts.items()]
    signals = [signal.oriented(orientation) for signal in signals]
    if layout.images:
        signals = [_sample(signal, k) for signal in signals for k in range(layout.images)]
    return signals


def _why_not_alike(series: TiffPageSeries, pages: Sequence[TiffPage]) -> str:
    """Return what tells the pages of a series apart that are read by the first, or ""."""
    first = tag_value(series.keyframe, ORIENTATION) or 1  # pages that state none are as it is
    turned = {tag_value(page, ORIENTATION) or first for page in pages}
    palettes = [page.colormap for page in pages if page.colormap is not None]
    if any(not np.array_equal(palette, palettes[0]) for palette in palettes):
        return "a stack whose pages have different palettes (save each as a file)"
    different = "a stack whose pages have different orientations (save each as a file)"
    return different if len(turned) > 1 else ""


def _unpacked(raw: Callable[[int], Stored]) -> Callable[[int], Stored]:
    return lambda i: four_bits.unpacked(raw(i))


def _sample(signal: Signal, k: int) -> Signal:
    raw = signal.raw
    name = f"{signal.name}, sample {k}"
    return signal._replace(name=name, samples=1, raw=lambda i: raw(i)[..., k])


def _planes_of_channels(
    series: TiffPageSeries, layout: "_Layout", ome: OmeImage | None
) -> dict[int, NDArray[np.intp]]:
    """Return the planes of each channel, if they are several: by the axes, or by OME-XML.

    tifffile gives no axes to the pages of an OME-TIFF that is one of several files.
    """
    planes = np.arange(math.prod(layout.shape[:-2])).reshape(layout.shape[:-2])
    if "C" in layout.others:
        return dict(enumerate(np.moveaxis(planes, layout.others.index("C"), 0)))
    if ome is None or series.kind == "ome" or len(series.pages) != planes.size:
        return {}
    channels = ome.channels_of([page.index if page else -1 for page in series.pages])
    if -1 in channels or len(set(channels)) < 2:
        return {}
    return {k: np.squeeze(planes[np.equal(channels, k)]) for k in sorted(set(channels))}


def _channel(signal: Signal, planes: NDArray[np.intp], k: int, names: Sequence[str]) -> Signal:
    """Return channel `k` of a signal, which has these of its planes."""
    raw, of_channel = signal.raw, planes.ravel()
    name = names[k] if names else str(k)
    return signal._replace(
        name=f"{signal.name}, channel {name}",
        channel=f"channel {name}" if name == str(k) else name,
        shape=(*planes.shape, *signal.shape[-2:]),
        raw=lambda i: raw(int(of_channel[i])),
    )


def _channel_names(file: TiffFile, ome: OmeImage | None, count: int) -> list[str]:
    """Return the names of `count` channels by OME-XML or ImageJ, [] where not all have one."""
    names: list[str] = list(ome.channels) if ome else []
    if file.is_imagej:
        labels = (file.imagej_metadata or {}).get("Labels") or []
        names = [str(label) for label in labels] if isinstance(labels, list) else []
    if len(names) != count or len(set(names)) < count:
        return []
    return [" ".join(name.split()) or str(k) for k, name in enumerate(names)]


class _Layout(NamedTuple):
    """What the axes of a series are."""

    shape: tuple[int, ...]  # h, w or planes, h, w
    order: tuple[int, ...]  # of the stored axes: those of length 1, planes, y, x, samples
    samples: int = 1  # of a pixel: colours, alpha, or images
    images: int = 0  # how many of the samples are images of their own; 0: colours or grey
    others: str = ""  # the names of the axes of the planes: none, one, or a stack and its channels
    refused: str = ""
    label: str = ""  # of this one of two that a series may have


def _layouts(series: TiffPageSeries) -> list[_Layout]:
    """Return what the axes of a series are: two layouts where it does not say which of them.

    tifffile writes a stack [3, h, w] or [4, h, w] as planes of colours unless asked not to. Of 8
    and 16 bits it may be either, of other numbers a stack.
    """
    page, axes = series.keyframe, series.axes
    layout = _layout(series, axes)
    is_planar = page.photometric == PHOTOMETRIC.RGB and page.planarconfig == PLANARCONFIG.SEPARATE
    if series.kind != "shaped" or not is_planar or "S" not in axes:
        return [layout]
    stack = _layout(series, axes.replace("S", "Q"))
    if series.dtype.kind == "u" and series.dtype.itemsize <= 2:
        return [layout._replace(label=" in colours"), stack._replace(label=" as a stack")]
    return [stack]


def _layout(series: TiffPageSeries, axes: str) -> _Layout:
    """Return the layout of a series by the names of its axes; those of length 1 are dropped.

    "Q" is an axis without a name. tifffile writes [h, w, 2] as h pages of [w, 2] with such names:
    these are two images, as [h, w, 3] and [h, w, 4] are three and four. A stack of images 2 wide
    that has names is refused.
    """
    page, stored = series.keyframe, series.shape
    unnamed = axes.endswith("QYX") and set(axes[:-2]) == {"Q"} and len(page.shape) == 2
    if unnamed and any(stored[-1] <= most < min(stored[-3:-1]) for most in (2, max(COLOURS))):
        axes = f"{axes[:-3]}YXS"
    elif unnamed and stored[-2] == 1 < min(stored[-3], stored[-1]):
        axes = f"{axes[:-3]}YQX"
    named = " x ".join(
        f"{side} {axis}".rstrip(" Q") for side, axis in zip(stored, axes, strict=True)
    )
    if axes.count("Y") != 1 or axes.count("X") != 1:
        return _Layout(stored, tuple(range(len(stored))), refused=f"{named}, no y and x")
    y, x, last = axes.index("Y"), axes.index("X"), axes.find("S")
    rest = [k for k in range(len(stored)) if k not in (y, x, last)]
    planes = [k for k in rest if stored[k] > 1]
    order = [k for k in rest if k not in planes] + [*planes, y, x]
    shape = tuple(stored[k] for k in (*planes, y, x))
    refused, names = "", "".join(axes[k] for k in planes)
    if len(planes) - ("C" in names) > 1:
        refused = f"{len(planes) + 2}-D data ({named})"
    elif unnamed and planes and (doubt := doubt_of_order(*shape)):
        refused = f"{stored} {doubt}"
    elif planes and shape[-1] <= 2:
        refused = (
            f"a stack of {shape[0]} images {shape[-1]} wide, perhaps [h, w, channels] saved as a "
            "stack; save each channel as an image"
        )
    if last < 0:
        return _Layout(shape, tuple(order), others=names, refused=refused)
    samples = stored[last]
    images = samples if axes != series.axes else _images_in_samples(page, samples)
    return _Layout(shape, (*order, last), samples, images, names, refused)


def _packed_bytes(page: TiffPage, shape: tuple[int, ...]) -> tuple[bool, str]:
    """Return (whether a byte holds two pixels, why that is in doubt or "")."""
    if page.photometric not in GREY or page.samplesperpixel != 1 or page.dtype != np.uint8:
        return False, ""
    if page.bitspersample != 8 or four_bits.SAID in page.description:
        return page.bitspersample == 8, ""
    is_dated = tag_value(page, DATE_TIME) is not None  # as every frame of SerialEM is
    return False, four_bits.doubt(shape) if is_dated and four_bits.may_be_packed(shape) else ""


def _images_in_samples(page: TiffPage, samples: int) -> int:
    """Return how many images the samples of a grey pixel are, 0 if it is one (alpha aside).

    Several samples without colours are several detectors. Without an ExtraSamples tag, three and
    four are taken for colours.
    """
    if page.photometric not in GREY:
        return 0
    extra = page.extrasamples
    grey = samples - sum(int(kind) in ALPHA for kind in extra)
    if grey > 1 and (extra or samples not in (3, 4)):
        return grey
    return 0


def _why_not_grey_or_rgb(page: TiffPage) -> str:
    """Return why the values of a page are no grey values or colours that emjax reads."""
    photometric = getattr(page.photometric, "name", page.photometric)
    if page.photometric not in PHOTOMETRICS:
        return f"{photometric} colours, expected grey or RGB"
    if page.photometric == PHOTOMETRIC.YCBCR and page.compression not in JPEG:
        return "YCbCr colours not compressed by JPEG, expected grey or RGB"
    if page.compression not in COMPRESSIONS:
        return f"compressed by {getattr(page.compression, 'name', page.compression)}"
    if page.dtype is None:
        return f"{page.bitspersample} bits as {page.sampleformat}, not a number format"
    return ""


def _reader(
    path: str, file: TiffFile, series: TiffPageSeries, layout: _Layout, limit: int, size: int
) -> Callable[[int], Stored]:
    """Return the function of i for plane i of `series`: [h, w] or [h, w, samples] as stored."""
    page, planes = series.keyframe, math.prod(layout.shape[:-2])
    plane = with_samples(layout.shape[-2:], layout.samples)
    longer = [k for k in layout.order if series.shape[k] > 1]
    if planes > 1 and series.dataoffset is not None and page.dtype and longer == sorted(longer):
        start, dtype = series.dataoffset, page.dtype.newbyteorder(file.byteorder)
        step = math.prod(plane) * dtype.itemsize

        def contiguous(i: int) -> Stored:
            pixels = np.fromfile(path, dtype, math.prod(plane), offset=start + i * step)
            return pixels.reshape(plane)

        return contiguous
    in_pages = [k for k in longer if series.axes[k] != "S"]
    if planes == len(series.pages) > 1 and in_pages == sorted(in_pages):
        axes = [page.axes.index(axis) for axis in "YXS" if axis in page.axes]

        def paged(i: int) -> Stored:
            part = series.pages[i]
            if part is None:
                raise InputError(f"page {i} of {planes} is missing")
            _check_tiles(file, page, part)
            return part.asarray().reshape(page.shape).transpose(axes).reshape(plane)

        return paged
    everything = f"its {'stack' if planes > 1 else 'image'}"
    check_declared(
        everything, series.shape, series.dtype, stored=size, limit=limit, compressed=True
    )
    held: list[np.ndarray] = []

    def cut(i: int) -> Stored:
        if held:
            return held[0][i]
        _check_all(file, series)
        pixels = series.asarray().reshape(series.shape).transpose(layout.order)
        pixels = pixels.reshape(planes, *plane)
        if planes > 1 or layout.images:
            held.append(pixels)
        return pixels[i]

    return cut


def _check_all(file: TiffFile, series: TiffPageSeries) -> None:
    """Check the tiles of every page of a series; refuse one that misses a page."""
    for part in series.pages:
        if part is None:
            raise InputError("a page of the stack is missing")
        _check_tiles(file, series.keyframe, part)


def _check_tiles(file: TiffFile, keyframe: TiffPage, page: TiffPage | TiffFrame) -> None:
    """Refuse a tile before it is decoded if its bytes or its JPEG do not fit the page."""
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
                if h * w > LARGER * tile:
                    raise InputError(f"a JPEG of {h}x{w} in a tile of {page.chunks}")
                break
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")


def _values(
    path: str, file: TiffFile, series: TiffPageSeries
) -> tuple[np.dtype[Any], Callable[[Stored], Stored], Callable[[Stored], Stored]]:
    """Return (the dtype of the values, the functions for them and for those of a mask).

    Both take stored values, and apply palettes and ImageJ's calibration. The first makes white high
    and drops alpha.
    """
    page, dtype = series.keyframe, series.dtype
    offset, slope = _imagej_calibration(path, file, dtype)
    if page.photometric == PHOTOMETRIC.MINISWHITE and dtype.kind not in "bu":
        note(path, f"MINISWHITE of {dtype.name} values, which stay as stored")

    # Of 1 bit it is no inverting LUT, but how black and white are stored; tifffile, however, writes
    # it for all bool arrays, and leaves them as they are.
    is_turned = (
        dtype.kind == "b"
        and _is_white_zero(page, dtype)
        and not page.software.startswith("tifffile")
    )

    def finish(pixels: Stored) -> Stored:
        return calibrated(_grey_or_rgb(page, pixels))

    def labels(pixels: Stored) -> Stored:
        if is_turned:
            return ~pixels
        return calibrated(_with_palette(page, pixels))

    def calibrated(pixels: Stored) -> Stored:
        if (offset, slope) == (0.0, 1.0):
            return pixels
        if (offset, slope) == SIGNED:
            return (pixels.astype(np.int32) - 32768).astype(np.int16)
        return (offset + slope * pixels).astype(np.float32)

    if (offset, slope) == SIGNED and dtype == np.uint16:
        dtype = np.dtype(np.int16)
    elif (offset, slope) != (0.0, 1.0):
        dtype = np.dtype(np.float32)
    return dtype, finish, labels


def _imagej_calibration(path: str, file: TiffFile, dtype: np.dtype[Any]) -> tuple[float, float]:
    """Return (c0, c1) of the straight line that ImageJ's description states for integers.

    ImageJ keeps signed 16-bit images as unsigned ones with c0 = -32768 and c1 = 1. Other functions
    than a straight line are not applied, and noted.

    Source: ImageJ, TiffEncoder and FileSaver (cf, c0, c1, ...), measure/Calibration (functions).
    """
    tags = (file.imagej_metadata or {}) if file.is_imagej else {}
    if "cf" not in tags or dtype.kind != "u":
        return 0.0, 1.0
    try:
        function, offset, slope = int(tags["cf"]), float(tags["c0"]), float(tags["c1"])
    except (KeyError, TypeError, ValueError):
        function, offset, slope = -1, 0.0, 1.0
    if function != 0 or not (math.isfinite(offset) and math.isfinite(slope) and slope):
        unit = f" of {tags['vunit']}" if "vunit" in tags else ""
        note(path, f"ImageJ's calibration{unit} is not a straight line; values stay as stored")
        return 0.0, 1.0
    if (offset, slope) not in ((0.0, 1.0), SIGNED):
        note(path, f"values are {offset:g} + {slope:g} times the stored ones, as ImageJ states")
    return offset, slope


def _grey_or_rgb(page: TiffPage, pixels: Stored) -> Stored:
    """Return `pixels` with palettes applied, white high, and without extra samples.

    Floats and signed integers of MINISWHITE stay: they have no white to count from. A palette has
    16 bits; if no entry needs more than 8, it was written in 8 (as libtiff assumes).
    """
    if pixels.ndim == 3 and page.extrasamples:
        pixels = pixels[..., 0] if page.photometric in GREY else pixels[..., :3]
    if _is_white_zero(page, pixels.dtype):
        top = (1 << page.bitspersample) - 1
        return ~pixels if pixels.dtype == bool else (top - pixels).astype(pixels.dtype)
    return _with_palette(page, pixels)


def _is_white_zero(page: TiffPage, dtype: np.dtype[Any]) -> bool:
    """Return whether a page says so; tifffile says it of pages that do not state it, too."""
    is_stated = PHOTOMETRIC_TAG in page.tags and page.photometric == PHOTOMETRIC.MINISWHITE
    return is_stated and dtype.kind in "bu"


def _with_palette(page: TiffPage, pixels: Stored) -> Stored:
    """Return `pixels` in the colours of the palette of `page`, if it has one."""
    if page.photometric != PHOTOMETRIC.PALETTE or page.colormap is None:
        return pixels
    colours = page.colormap
    if not colours.any():
        raise InputError("a palette of black alone, so that its image is lost")
    shift = 8 if colours.max() > 255 else 0
    indices = pixels.astype(np.uint8) if pixels.dtype == bool else pixels
    return (colours[:, indices] >> shift).astype(np.uint8).transpose(1, 2, 0)
