"""Micrographs of any format as 2-D arrays, their grey-value range, and micrographs written back."""

import contextlib
import io
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from emjax.errors import BadInput

SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")
MAGIC = {
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"II+\0": "tiff",  # BigTIFF
    b"MM\0+": "tiff",
    b"\x89PNG": "pillow",
    b"\xff\xd8\xff": "pillow",
}
RULES = ("percentile", "fixed", "sigma")
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green, blue. Source: ITU-R BT.601
Image.MAX_IMAGE_PIXELS = None  # a 16k x 16k micrograph is no decompression bomb


class NoRange(BadInput):
    """The images do not hold two values that could become -1 and 1."""


class Micrograph(NamedTuple):
    """One image as recorded."""

    image: np.ndarray  # uint8, uint16 or float32 [h, w], native byte order
    nm_per_pixel: tuple[float, float]  # y, x; NaN where unknown


def read(path):
    """The micrograph in a TIFF, PNG or JPEG file; colours become their luminance.

    8- and 16-bit unsigned values stay as they are, all other numbers become float32.

    Raises: BadInput for anything but one readable 2-D image of finite values.
    """
    image = read_pixels(path)
    if image.ndim == 3:
        red, green, blue = np.moveaxis(image, -1, 0)
        if np.array_equal(red, green) and np.array_equal(red, blue):
            image = red
        else:
            luminance = image @ np.array(LUMINANCE)
            if image.dtype != np.float32:
                luminance = np.rint(luminance)
            image = luminance.astype(image.dtype)
    return Micrograph(np.ascontiguousarray(image), (np.nan, np.nan))


def read_pixels(path):
    """uint8, uint16 or float32 [h, w], or [h, w, 3] red, green, blue: a file with its colours.

    For masks, where a colour is a label; an alpha channel is not looked at, a palette is applied.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; a micrograph was due") from None
    try:
        with _library_messages(path):
            kinds = [kind for magic, kind in MAGIC.items() if content.startswith(magic)]
            if not kinds:
                raise ValueError(f"no TIFF, PNG or JPEG: it starts with {content[:12]!r}")
            pixels = (_tiff if kinds[0] == "tiff" else _png_or_jpeg)(content)
    except MemoryError:
        raise
    except Exception as error:  # the decoders raise whatever a broken file leads them to
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(f"{path}: {reason}; emjax reads 2-D images as TIFF, PNG or JPEG") from None
    pixels = _supported(path, pixels)
    if pixels.dtype == np.float32 and not np.isfinite(pixels).all():
        bad = pixels.size - np.isfinite(pixels).sum()
        raise BadInput(f"{path}: {bad} of {pixels.size} values are NaN or infinite as float32")
    return pixels


def _tiff(content):
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        series = [s for s in file.series if not s.keyframe.is_reduced] or file.series
        if not series:
            raise ValueError("a TIFF without an image")
        if len(series) > 1:
            shapes = ", ".join(str(s.shape) for s in series)
            raise ValueError(f"{len(series)} different images {shapes}")
        page, axes, pixels = series[0].keyframe, series[0].axes, series[0].asarray()
        colormap = page.colormap
    if page.photometric in (tifffile.PHOTOMETRIC.SEPARATED, tifffile.PHOTOMETRIC.CIELAB):
        raise ValueError(f"a TIFF in {page.photometric.name} colours, grey or RGB was due")
    if "S" in axes:
        pixels = np.moveaxis(pixels, axes.index("S"), -1)
    while pixels.ndim > 2 + ("S" in axes) and len(pixels) == 1:  # a stack of one
        pixels = pixels[0]
    if pixels.ndim != 2 + ("S" in axes):
        raise ValueError(f"{pixels.ndim}-D data {pixels.shape}, one 2-D image was due")
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE and colormap is not None:
        return (colormap[:, pixels] >> 8).astype(np.uint8).transpose(1, 2, 0)
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        top = (1 << page.bitspersample) - 1 if pixels.dtype.kind == "u" else 1
        pixels = ~pixels if pixels.dtype == bool else top - pixels
    return pixels


def _png_or_jpeg(content):
    with Image.open(io.BytesIO(content)) as file:
        if file.tile and file.tile[0][3] in ("RGB;16B", "RGBA;16B", "LA;16B"):
            return imagecodecs.png_decode(content)  # Pillow would drop the lower 8 bits
        if getattr(file, "n_frames", 1) > 1:
            raise ValueError(f"{file.n_frames} frames, one 2-D image was due")
        if file.mode in ("L", "F") or file.mode.startswith("I"):
            return np.array(file)
        return np.array(file.convert("L" if file.mode in ("1", "LA") else "RGB"))


def _supported(path, pixels):
    """`pixels` in one of the three number formats and without alpha, or BadInput."""
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    if pixels.ndim == 3 and pixels.shape[-1] in (1, 2):
        pixels = pixels[..., 0]
    elif pixels.ndim == 3 and pixels.shape[-1] == 4:
        pixels = pixels[..., :3]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[-1] != 3):
        raise BadInput(f"{path}: {pixels.ndim}-D data {pixels.shape}, one 2-D image was due")
    if pixels.dtype.kind not in "uif" or pixels.size == 0:
        raise BadInput(f"{path}: {pixels.dtype} {pixels.shape}, real numbers were due")
    keep = pixels.dtype.kind == "u" and pixels.dtype.itemsize <= 2
    with np.errstate(over="ignore"):  # becomes infinite, which the caller refuses
        return pixels.astype(pixels.dtype.newbyteorder("=") if keep else np.float32)


@contextlib.contextmanager
def _library_messages(path):
    """Warnings and log lines of the decoders, each as one line that names the file."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("tifffile")
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        for line in [*lines, *(str(warning.message) for warning in caught)]:
            print(f"note: {path}: {' '.join(line.split())[:200]}", file=sys.stderr)
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def find(folder):
    """All micrograph files below `folder`, sorted; hidden files and folders are not looked at."""
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput(f"{folder} is no folder; a folder of micrographs was due")
    paths = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    ]
    if not paths:
        raise BadInput(f"{folder} holds no micrograph ({', '.join(SUFFIXES)})")
    return sorted(paths)


def write(path, image, nm_per_pixel=(np.nan, np.nan)):
    """Write uint8, uint16 or float32 [h, w] as TIFF, whole or not at all.

    A known `nm_per_pixel` (y, x) is written the way ImageJ does and reads.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {}
    if np.all(np.isfinite(nm_per_pixel)):
        y, x = (float(size) for size in nm_per_pixel)
        known = dict(imagej=True, resolution=(1 / x, 1 / y), metadata={"unit": "nm"})
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        tifffile.imwrite(partial, image, **known)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def intensity_range(images, rule):
    """The two values (low, high) of `images` that become -1 and 1.

    percentile: 0.1 and 99.9 percent of all pixels of all images (the smallest value that at least
    this part of the pixels does not exceed). sigma: mean -+ 4 standard deviations. fixed: 0 and
    255, 65535 or 1 for uint8, uint16, float32, by the first image. `images` may be a generator;
    8- and 16-bit images are counted and forgotten, one at a time.

    Raises: NoRange if there is no image, or the two values are the same.
    """
    if rule not in RULES:
        raise BadInput(f"no range rule {rule!r}; there are: {', '.join(RULES)}")
    counts, floats, tops = np.zeros(1 << 16, np.int64), [], []
    for image in images:
        tops.append(1.0 if image.dtype.kind == "f" else float(np.iinfo(image.dtype).max))
        if rule == "fixed":
            continue
        if image.dtype.kind == "f":
            floats.append(image.ravel())
        else:
            counts += np.bincount(image.ravel(), minlength=counts.size)
    if not tops:
        raise NoRange("no image to take the intensity range from")
    if rule == "fixed":
        return 0.0, tops[0]
    values = np.concatenate([np.flatnonzero(counts).astype(np.float64), *floats])
    weights = np.concatenate([counts[counts > 0], *(np.ones(f.size, np.int64) for f in floats)])
    if rule == "sigma":
        mean = np.average(values, weights=weights)
        sd = np.sqrt(np.average((values - mean) ** 2, weights=weights))
        low, high = mean - 4 * sd, mean + 4 * sd
    else:
        order = np.argsort(values)
        below = np.cumsum(weights[order])
        last = np.searchsorted(below, [0.001 * below[-1], 0.999 * below[-1]])
        low, high = values[order][last]
    if not low < high:
        raise NoRange(f"the {rule} range is {low:g} to {high:g}: (nearly) all pixels are the same")
    return float(low), float(high)


def from_range(image, intensity_range, *, clip=True):
    """float32 like `image`, with `intensity_range` (low, high) at -1 and 1, clipped there."""
    low, high = np.asarray(intensity_range, np.float32)
    scaled = (np.asarray(image, np.float32) - low) * (2 / (high - low)) - 1
    return np.clip(scaled, -1, 1) if clip else scaled


def to_range(image, intensity_range):
    """float32 like `image` in [-1, 1], back in the values of `intensity_range` (low, high)."""
    low, high = np.asarray(intensity_range, np.float32)
    return (np.asarray(image, np.float32) + 1) * ((high - low) / 2) + low
