"""Open a file of any format: its signals, its planes, or the one micrograph in it."""

import contextlib
import logging
import math
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emjax.errors import InputError, note
from emjax.micrographs.formats import dm, hdf5, mrc, npy_zarr, png_jpeg, rosettasciio, ser, tiff
from emjax.micrographs.formats.npy_zarr import is_zarr
from emjax.micrographs.signal import LIMIT
from emjax.micrographs.units import amount

BY_MAGIC = {
    b"II*\0": tiff.signals,
    b"MM\0*": tiff.signals,
    b"II+\0": tiff.signals,  # BigTIFF
    b"MM\0+": tiff.signals,
    b"\x89PNG": png_jpeg.signals,
    b"\xff\xd8\xff": png_jpeg.signals,
    b"\x89HDF\r\n": hdf5.signals,
    b"\x93NUMPY": npy_zarr.npy_signals,
    b"\0\0\0\x03": dm.signals,
    b"\0\0\0\x04": dm.signals,
    b"II\x97\x01": ser.signals,
    b"\x1f\x8b": mrc.signals,
    b"BZh": mrc.signals,
}
BY_SUFFIX = {
    **dict.fromkeys((".dm3", ".dm4"), dm.signals),
    **dict.fromkeys(mrc.SUFFIXES, mrc.signals),
    ".emi": ser.emi_signals,
    **dict.fromkeys(rosettasciio.READERS, rosettasciio.signals),
}
PICTURES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")
SUFFIXES = (*PICTURES, *BY_SUFFIX, ".ser", ".emd", ".h5", ".hdf5", ".npy", ".zarr")
COMPRESSED = tuple(suffix + end for suffix in mrc.SUFFIXES for end in (".gz", ".bz2"))
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green, blue. Source: ITU-R BT.601


class Micrograph(NamedTuple):
    """One image as recorded."""

    image: np.ndarray  # uint8, uint16 or float32 [h, w], native byte order
    nm_per_pixel: tuple[float, float]  # y, x; NaN where unknown
    origin: str = "none"  # of nm_per_pixel: what in the file told it


@contextlib.contextmanager
def open_all(path, limit=LIMIT):
    """The list of Signals of `path`, each an image or a stack; the refused ones say why.

    Nothing is decoded yet, and the file stays open inside the `with`.

    Args:
        limit: bytes that what is decoded at once may take.

    Raises: InputError; `Signal.raw` raises what the decoder does.
    """
    with contextlib.ExitStack() as stack:
        with _one_line(path):
            signals = stack.enter_context(_reader(path)(path, limit))
        yield signals


def _reader(path):
    """The function that reads `path`: by its first bytes, and where they say nothing its suffix."""
    if Path(path).is_dir():
        if is_zarr(path):
            return npy_zarr.zarr_signals
        raise InputError(f"{path} is a folder and no Zarr; a micrograph was due")
    with open(path, "rb") as file:
        start = file.read(212)
    suffix = Path(path).suffix.lower()
    if suffix in rosettasciio.READERS:
        return rosettasciio.signals
    if start[208:211] == b"MAP":
        return mrc.signals
    found = [BY_MAGIC[magic] for magic in BY_MAGIC if start.startswith(magic)]
    if not found and suffix in BY_SUFFIX and start:
        found = [BY_SUFFIX[suffix]]
    if not found:
        raise InputError(f"no format that emjax reads: it starts with {start[:12]!r}")
    return found[0]


@contextlib.contextmanager
def _one_line(path):
    """Whatever goes wrong becomes one InputError that names the file."""
    try:
        with _library_messages(path):
            yield
    except Exception as error:  # the decoders raise whatever a broken file leads them to
        if isinstance(error, InputError) and str(error).startswith(str(path)):
            raise
        if isinstance(error, MemoryError):
            reason = "more memory was asked for than there is"
        elif isinstance(error, OSError) and error.strerror and not isinstance(error, InputError):
            reason = f"{error.strerror}; a micrograph was due"
        else:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            if not isinstance(error, InputError):
                reason += "; a whole micrograph was due"
        raise InputError(f"{path}: {reason}") from None


def _choose(path, signals, index):
    """The Signal that `index` picks among those that are micrographs, or the only one."""
    real = [signal for signal in signals if not signal.refused]
    if not real:
        told = "; ".join(dict.fromkeys(f"{s} is {s.refused}" for s in signals))
        raise InputError(f"{path}: {told}; a 2-D image or a stack of them was due")
    told = ", ".join(f"{place}: {signal}" for place, signal in enumerate(real[:20]))
    if index is None and len(real) > 1:
        raise InputError(f"{path}: {len(real)} different images ({told}); choose one by --index")
    if not 0 <= (index or 0) < len(real):
        raise InputError(f"{path}: no image {index}; it holds {told}")
    return real[index or 0]


def planes(path, index=None, limit=LIMIT, *, colours=False, axis="z"):
    """Yield every plane of the image or stack in a file as a Micrograph; colours as luminance.

    8- and 16-bit unsigned values stay as they are, all other numbers become float32. Along y or x
    a stack [z, y, x] gives slices [z, x] or [z, y], and is held whole; a single image gives none.

    Args:
        index: which of the images or stacks, if the file holds several.
        limit: bytes that what is decoded at once may take.
        colours: leave an image in colours as [h, w, 3] red, green, blue.
        axis: "z", "y" or "x", along which a stack is sliced.

    Raises: InputError for anything but readable 2-D images of finite values.
    """
    with open_all(path, limit) as signals:
        signal = _choose(path, signals, index)
        stack = (_pixels(path, signal, place) for place in range(signal.planes))
        if not colours:
            stack = (_luminance(path, pixels, quiet=n > 0) for n, pixels in enumerate(stack))
        (y, x), z = signal.nm_per_pixel, signal.nm_per_plane
        if axis == "z":
            nm_per_pixel = y, x
        elif signal.planes == 1:
            return
        else:
            volume = _volume(path, signal, stack, limit)
            stack = np.moveaxis(volume, {"y": 1, "x": 2}[axis], 0)
            nm_per_pixel = z, {"y": x, "x": y}[axis]
        for pixels in stack:
            yield Micrograph(np.ascontiguousarray(pixels), nm_per_pixel, signal.origin)


def _volume(path, signal, stack, limit, purpose="to be sliced along y or x", advice="--axes=z"):
    """[z, y, x] of the planes of `stack`, or InputError if they take more than `limit` bytes."""
    small = signal.dtype.kind in "bu" and signal.dtype.itemsize <= 2
    size = math.prod(signal.shape) * signal.samples * (signal.dtype.itemsize if small else 4)
    if size > limit:
        raise InputError(
            f"{path}: {signal}, {amount(size)}, {purpose}; "
            f"{amount(limit)} may be read at once, more by --memory_limit, or {advice}"
        )
    volume = None
    for place, pixels in enumerate(stack):
        if volume is None:
            volume = np.empty((signal.planes, *pixels.shape), pixels.dtype)
        volume[place] = pixels
    return volume


def read(path, index=None, limit=LIMIT):
    """The one Micrograph in a file, as `planes` gives it; a stack is refused."""
    pixels, signal = _read_one(path, index, limit)
    pixels = np.ascontiguousarray(_luminance(path, pixels))
    return Micrograph(pixels, signal.nm_per_pixel, signal.origin)


def read_stack(path, index=None, limit=LIMIT):
    """Return all planes of the image or stack in a file as one Micrograph: image [planes, h, w].

    A single image gives [1, h, w]; colours become luminance. `planes` holds one plane at a time.

    Args:
        index: which of the images or stacks, if the file holds several.
        limit: bytes that the whole stack may take; checked before anything is decoded.

    Raises: InputError as `planes` does, and if the stack is larger than `limit`.
    """
    with open_all(path, limit) as signals:
        signal = _choose(path, signals, index)
        stack = (_pixels(path, signal, n) for n in range(signal.planes))
        stack = (_luminance(path, pixels, quiet=n > 0) for n, pixels in enumerate(stack))
        volume = _volume(path, signal, stack, limit, "to be read at once", "use planes")
        return Micrograph(volume, signal.nm_per_pixel, signal.origin)


def read_pixels(path, limit=LIMIT):
    """uint8, uint16 or float32 [h, w], or [h, w, 3] red, green, blue: a file with its colours.

    For masks, where a colour is a label; an alpha channel is not looked at, a palette is applied.
    """
    return _read_one(path, None, limit)[0]


def _read_one(path, index, limit):
    with open_all(path, limit) as signals:
        signal = _choose(path, signals, index)
        if signal.planes > 1:
            raise InputError(f"{path}: 3-D data {signal.shape}, one 2-D image was due")
        return _pixels(path, signal, 0), signal


def _luminance(path, pixels, quiet=False):
    """[h, w] of [h, w] or [h, w, 3], in the number format of `pixels`."""
    if pixels.ndim == 2:
        return pixels
    red, green, blue = np.moveaxis(pixels, -1, 0)
    if np.array_equal(red, green) and np.array_equal(red, blue):
        return red
    if not quiet:
        note(path, "in colour; its luminance is used")
    luminance = pixels @ np.array(LUMINANCE)
    if pixels.dtype != np.float32:
        luminance = np.rint(luminance)
    return luminance.astype(pixels.dtype)


def _pixels(path, signal, place):
    """Plane `place` in one of the three number formats and without alpha, or InputError."""
    with _one_line(path):
        pixels = signal.finish(signal.raw(place))
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    if pixels.ndim == 3 and pixels.shape[-1] in (1, 2):
        pixels = pixels[..., 0]
    elif pixels.ndim == 3 and pixels.shape[-1] == 4:
        pixels = pixels[..., :3]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[-1] != 3):
        raise InputError(f"{path}: {pixels.ndim}-D data {pixels.shape}, one 2-D image was due")
    if pixels.dtype.kind not in "uif" or pixels.size == 0:
        raise InputError(f"{path}: {pixels.dtype} {pixels.shape}, real numbers were due")
    keep = pixels.dtype.kind == "u" and pixels.dtype.itemsize <= 2
    with np.errstate(over="ignore", invalid="ignore"):  # becomes infinite, which is refused
        pixels = pixels.astype(pixels.dtype.newbyteorder("=") if keep else np.float32)
    if pixels.dtype == np.float32 and not np.isfinite(pixels).all():
        bad = pixels.size - np.isfinite(pixels).sum()
        raise InputError(f"{path}: {bad} of {pixels.size} values are NaN or infinite as float32")
    return pixels


@contextlib.contextmanager
def _library_messages(path):
    """Warnings and log lines of the decoders, each as one line that names the file."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    loggers = [logging.getLogger(name) for name in ("tifffile", "rsciio")]
    kept = [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.propagate = False
        logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.simplefilter("ignore", ResourceWarning)
            yield
        lines += [str(warning.message) for warning in caught]
        for line in dict.fromkeys(lines[:20]):
            note(path, " ".join(line.split())[:200])
    finally:
        for logger, propagate in zip(loggers, kept, strict=True):
            logger.removeHandler(handler)
            logger.propagate = propagate


def find(folder):
    """All micrographs below `folder`, sorted; a Zarr store and a SER with its EMI are one each.

    Hidden files and folders, and links that lead out of `folder`, are not looked at.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; a folder of micrographs was due")
    paths, inside = [], folder.resolve()
    for parent, folders, files in os.walk(folder):
        stores = [name for name in folders if is_zarr(Path(parent, name))]
        folders[:] = [n for n in folders if n not in stores and not n.startswith(".")]
        for path in (Path(parent, name) for name in (*stores, *files)):
            if path.name.startswith(".") or not _is_named_like_one(path):
                continue
            if not path.resolve().is_relative_to(inside):
                note(path, f"leads out of {folder} and is left out")
            elif path.name in stores or path.is_file():
                paths.append(path)
    if not paths:
        raise InputError(f"{folder} holds no micrograph ({', '.join(SUFFIXES)})")
    return sorted(path for path in paths if path.suffix.lower() != ".emi" or not _has_ser(path))


def _is_named_like_one(path):
    name = path.name.lower()
    return path.suffix.lower() in SUFFIXES or name.endswith(COMPRESSED)


def _has_ser(path):
    return bool(ser.companions(path))
