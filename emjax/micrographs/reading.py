"""Open a file of any format: its signals, its planes, or the one micrograph in it."""

import contextlib
import functools
import math
import os
import stat
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from emjax.errors import Adjustable, InputError, UsageError, note
from emjax.micrographs import messages
from emjax.micrographs.formats import (
    dm,
    eer,
    hdf5,
    mrc,
    npy_zarr,
    png_jpeg,
    rosettasciio,
    ser,
    sidecars,
    tiff,
    vendors,
)
from emjax.micrographs.formats.npy_zarr import is_zarr
from emjax.micrographs.shapes import RGB, Grey, Volume
from emjax.micrographs.signal import LIMIT, NO_BRIGHTNESS, Signal, TooLarge
from emjax.micrographs.units import PixelSize, amount

StrPath: TypeAlias = str | os.PathLike[str]
Reader: TypeAlias = Callable[[StrPath, int], AbstractContextManager[list[Signal]]]

BY_MAGIC: dict[bytes, Reader] = {
    b"II*\0": tiff.signals,
    b"MM\0*": tiff.signals,
    b"II+\0": tiff.signals,  # BigTIFF
    b"MM\0+": tiff.signals,
    b"\x89PNG": png_jpeg.signals,
    b"\xff\xd8\xff": png_jpeg.signals,
    hdf5.MAGIC: hdf5.signals,
    b"\x93NUMPY": npy_zarr.npy_signals,
    b"\0\0\0\x03": dm.signals,
    b"\0\0\0\x04": dm.signals,
    b"II\x97\x01": ser.signals,
    b"\x1f\x8b": mrc.signals,
    b"BZh": mrc.signals,
}
# What other files are, by their first bytes, for the words of a refusal.
OTHERS = {
    b"PK\3\4": "a ZIP archive, such as NPZ; unpack it",
    b"GIF8": "a GIF; save it as TIFF or PNG",
    b"BM": "a BMP; save it as TIFF or PNG",
    b"RIFF": "a WebP or AVI; save it as TIFF or PNG",
    b"\0\0\0\x0cjP": "JPEG 2000; save it as TIFF",
    b"\xff\x4f\xff\x51": "JPEG 2000; save it as TIFF",
    b"%PDF": "a PDF; export the image from it",
    b"SIMPLE  =": "FITS; save it as TIFF",
    b"ZISRAWFILE": "a CZI of Zeiss; save it as OME-TIFF",
    b"MATLAB ": "a MATLAB file; save it as TIFF",
    b"<?xml": "XML, not an image; give the image that it belongs to",
}
BY_SUFFIX: dict[str, Reader] = {
    **dict.fromkeys((".dm3", ".dm4"), dm.signals),
    **dict.fromkeys(mrc.SUFFIXES, mrc.signals),
    ".emi": ser.emi_signals,
    **dict.fromkeys(rosettasciio.READERS, rosettasciio.signals),
}
PICTURES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")
HDF5 = (".h5", ".hdf5", ".hdf", ".hspy", ".nxs", ".ims")
SUFFIXES = (*PICTURES, *BY_SUFFIX, ".ser", ".eer", ".emd", *HDF5, ".npy", ".zarr", ".zspy")
COMPRESSED = tuple(suffix + end for suffix in mrc.SUFFIXES for end in (".gz", ".bz2"))
COLOURS = ("red", "green", "blue")
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green, blue. Source: ITU-R BT.601

MRC_ROWS = ("top", "bottom")  # where the first row of an MRC file belongs

LONGEST = 300  # characters of a library's message
NO_TEXT = "its name is not UTF-8"
OUT_OF_MEMORY = "decoding it takes more memory than there is"

messages.collect_from("tifffile")


class Micrograph(NamedTuple):
    """One image, or a whole stack of them, as recorded: native byte order."""

    image: Grey | RGB | Volume  # [h, w], with `colours` [h, w, 3], of a stack [planes, h, w]
    nm_per_pixel: PixelSize  # y, x; NaN where unknown
    origin: str = "none"  # of nm_per_pixel: what in the file states it


class SeveralImages(Adjustable):
    """A file holds several images and none, or one that is not there, was chosen.

    `choices` describes each image; its position is its index.
    """

    def __init__(self, problem: str, advice: str, choices: tuple[str, ...] = ()) -> None:
        super().__init__(problem, advice)
        self.choices = choices


@contextlib.contextmanager
def open_all(path: StrPath, limit: int = LIMIT) -> Generator[list[Signal]]:
    """Yield the list of Signals of `path`, each an image or a stack; the refused ones say why.

    Nothing is decoded yet, and the file stays open inside the `with`.

    Args:
        limit: bytes that what is decoded at once may take.

    Raises: InputError; `Signal.raw` raises what the decoder does.
    """
    with contextlib.ExitStack() as stack:
        if shown(name := Path(path).name) != name:
            raise InputError(f"{shown(path)}: {NO_TEXT}; rename it")
        with _one_line(path):
            signals = stack.enter_context(_reader(path)(path, limit))
        yield signals


def _reader(path: StrPath) -> Reader:
    """Return the function that reads `path`: by its first bytes, or else by its suffix."""
    if Path(path).is_dir():
        if is_zarr(path):
            return npy_zarr.zarr_signals
        raise InputError("a folder that is no Zarr store, expected a micrograph")
    with open(path, "rb") as file:
        start = file.read(212)
    suffix = Path(path).suffix.lower()
    if suffix in rosettasciio.READERS:
        return rosettasciio.signals
    if start[208:211] == b"MAP":
        return mrc.signals
    found = [BY_MAGIC[magic] for magic in BY_MAGIC if start.startswith(magic)]
    if start.startswith(eer.START) and eer.is_eer(path):
        found = [eer.signals]
    if not found and suffix in BY_SUFFIX and start:
        found = [BY_SUFFIX[suffix]]
    known = [OTHERS[magic] for magic in OTHERS if start.startswith(magic)]
    if not found and not known and hdf5.has_user_block(path):
        found = [hdf5.signals]
    if not found and mrc.is_one_without_map(path):
        found = [mrc.signals]
    if not start:
        raise InputError("an empty file, expected a micrograph")
    if not found:
        what = known[0] if known else f"it starts with {start[:12]!r}"
        raise InputError(f"no format that emjax reads: {what}")
    return found[0]


def _line(text: object) -> str:
    """Return `text` as one line of at most LONGEST characters."""
    return " ".join(str(text).split())[:LONGEST]


@contextlib.contextmanager
def _one_line(path: StrPath) -> Generator[None]:
    """Turn whatever goes wrong into one InputError of one line that names the file."""
    try:
        with messages.as_notes(path):
            yield
    except Adjustable as error:
        error.problem = f"{path}: {_line(error.problem)}"
        raise
    except InputError as error:
        raise InputError(f"{path}: {_line(error)}") from None
    except MemoryError:
        raise InputError(f"{path}: {OUT_OF_MEMORY}") from None
    except Exception as error:  # the decoders raise whatever a broken file leads them to
        if isinstance(error, OSError) and error.strerror:
            raise InputError(f"{path}: {error.strerror}; expected a micrograph") from None
        reason = _line(error) or type(error).__name__
        raise InputError(f"{path}: {reason}; expected an undamaged micrograph") from None


def _choose(
    path: StrPath, signals: Sequence[Signal], index: int | None, channel: str | None = None
) -> Signal:
    """Return the Signal that `index` and `channel` pick among the micrographs, or the only one."""
    if channel is not None and not all(signal.refused for signal in signals):
        signals = _of_channel(path, signals, channel)
    usable = [signal for signal in signals if not signal.refused]
    if not usable:
        reasons = "; ".join(dict.fromkeys(f"{signal} is {signal.refused}" for signal in signals))
        reasons = " ".join(reasons.split())  # names may hold line breaks
        raise InputError(f"{path}: {reasons}; expected a 2-D image or a stack of them")
    choices = tuple(" ".join(str(signal).split()) for signal in usable)
    listed = ", ".join(f"{index}: {choice}" for index, choice in enumerate(choices[:20]))
    advice = "choose one by index="
    if all(signal.channel for signal in usable) and channel is None:
        advice += " or channel="
    if index is None and len(usable) > 1:
        problem = f"{path}: {len(usable)} different images ({listed})"
        raise SeveralImages(problem, advice, choices)
    if not 0 <= (index or 0) < len(usable):
        problem = f"{path}: no image {index}; it holds {listed}"
        raise SeveralImages(problem, advice, choices)
    return usable[index or 0]


def _of_channel(path: StrPath, signals: Sequence[Signal], channel: str) -> list[Signal]:
    """Return the usable signals of the channel that a name or a number from 0 on picks.

    Of an image in colours, red, green and blue are channels.

    Raises: InputError if there is no such channel.
    """
    usable = [signal for signal in signals if not signal.refused]
    names = list(dict.fromkeys(signal.channel for signal in usable if signal.channel))
    coloured = [signal for signal in usable if signal.samples in (3, 4)]
    if not names and coloured:
        names = list(COLOURS)
    wanted = str(channel).strip().casefold()
    meant = [name for name in names if name.casefold() in (wanted, f"channel {wanted}")]
    if not meant and wanted.isdecimal():
        meant = names[int(wanted) : int(wanted) + 1]
    if not meant:
        has = f"its channels are {', '.join(names)}" if names else "it has no channels"
        raise InputError(f"{path}: no channel {channel!r}; {has}")
    chosen = [signal for signal in usable if signal.channel == meant[0]]
    return chosen or [_colour(signal, COLOURS.index(meant[0])) for signal in coloured]


def _colour(signal: Signal, k: int) -> Signal:
    finish = signal.finish
    return signal._replace(finish=lambda pixels: finish(pixels)[..., k], samples=1)


def planes(
    path: StrPath,
    index: int | None = None,
    limit: int = LIMIT,
    *,
    colours: bool = False,
    axis: str = "z",
    mrc_rows: str | None = None,
    brightness: bool = False,
    as_mask: bool = False,
    channel: str | None = None,
    whole_numbers: bool = False,
) -> Iterator[Micrograph]:
    """Yield every plane of the image or stack in a file as a Micrograph; colours as luminance.

    8- and 16-bit unsigned values stay as they are, all other numbers become float32. Along y or x
    a stack [z, y, x] gives slices [z, x] or [z, y], and is held whole; a single image gives none.

    Args:
        index: which of the images or stacks, if the file holds several.
        limit: bytes that what is decoded at once may take.
        colours: leave an image in colours as [h, w, 3] red, green, blue.
        axis: "z", "y" or "x", along which a stack is sliced.
        mrc_rows: "top" or "bottom", where the first row of an MRC file belongs that does not say
            so itself; None keeps the order of the rows, as "top" does, and notes it once.
        brightness: apply the origin and the scale of the values that a DM file states; they become
            float32. Otherwise the values are those stored, and a note names both.
        as_mask: leave values as stored, whatever a viewer shows as white, with colours and alpha:
            [h, w] or [h, w, samples].
        channel: which of the channels, by name or number from 0 on, of files that hold several;
            red, green or blue of an image in colours.
        whole_numbers: leave whole numbers of up to 32 bits, also signed ones, in their format.

    Raises: InputError for anything but readable 2-D images of finite values; of these,
        SeveralImages without a valid index, and TooLarge above the limit.
    """
    with open_all(path, limit) as signals:
        signal = _choose(path, signals, index, channel)
        if as_mask:
            signal = signal._replace(finish=signal.labels, white_is_zero=False)
        signal = _as_asked(path, signal, mrc_rows, brightness)
        stack: Iterable[Grey | RGB] = (
            _pixels(path, signal, i, as_mask=as_mask, whole_numbers=whole_numbers)
            for i in range(signal.planes)
        )
        if not (colours or as_mask):
            stack = (_luminance(path, pixels, quiet=i > 0) for i, pixels in enumerate(stack))
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


def _as_asked(
    path: StrPath, signal: Signal, mrc_rows: str | None = None, brightness: bool = False
) -> Signal:
    """Return `signal` as the arguments of `planes` ask for it; note what they leave open."""
    if mrc_rows not in (None, *MRC_ROWS):
        raise UsageError(f"mrc_rows={mrc_rows!r}, expected 'top' or 'bottom'")
    if brightness:
        signal = signal.with_brightness()
    elif signal.brightness != NO_BRIGHTNESS:
        origin, scale, unit = signal.brightness
        meaning = f"(stored - {origin:g}) * {scale:g} {unit}".strip()
        note(path, f"its values mean {meaning}; they are read as stored")
    if signal.white_is_zero:
        note(
            path,
            "its zero is white (MINISWHITE); its values are turned over, so that white is high",
        )
    if mrc_rows is None and not signal.top_row_stated:
        _note_rows()
    return signal.with_top_row(mrc_rows)


@functools.cache  # once, however many files
def _note_rows() -> None:
    note(
        "MRC files",
        "their rows keep the order in which they are stored. IMOD, 3dmod and Fiji show the first "
        "row at the bottom; FEI's programs, mrcfile and napari at the top",
    )


def top_row_is_stated(path: StrPath, limit: int = LIMIT) -> bool:
    """Return whether the format of a file, or its header, says which of its rows is the top one.

    Most MRC files do not.

    Args:
        limit: bytes that an image may take.

    Raises: InputError as `open_all` does.
    """
    with _one_line(path):
        if _reader(path) is not mrc.signals:
            return True
    with open_all(path, limit) as signals:
        return all(signal.top_row_stated for signal in signals)


def _volume(
    path: StrPath,
    signal: Signal,
    stack: Iterable[Grey | RGB],
    limit: int,
    *,
    purpose: str = "to be sliced along y or x",
    advice: str = "slice along axis=z",
) -> Volume:
    """Return [z, y, x] of the planes of `stack`.

    Args:
        purpose, advice: what the planes are held for, and what to do instead, for the error.

    Raises: TooLarge if they take more than `limit` bytes.
    """
    small = signal.dtype.kind in "bu" and signal.dtype.itemsize <= 2
    size = math.prod(signal.shape) * signal.samples * (signal.dtype.itemsize if small else 4)
    if size > limit:
        problem = f"{path}: {signal}, {amount(size)}, {purpose}, expected at most {amount(limit)}"
        raise TooLarge(problem, f"raise limit=, or {advice}", size, limit)
    left = iter(stack)
    first = next(left)
    volume = np.empty((signal.planes, *first.shape), first.dtype)
    volume[0] = first
    for index, pixels in enumerate(left, start=1):
        volume[index] = pixels
    return volume


def read(
    path: StrPath,
    index: int | None = None,
    limit: int = LIMIT,
    *,
    mrc_rows: str | None = None,
    brightness: bool = False,
    channel: str | None = None,
) -> Micrograph:
    """Return the one Micrograph in a file, as `planes` yields it; a stack is refused."""
    pixels, signal = _read_one(path, index, limit, mrc_rows, brightness, channel)
    pixels = np.ascontiguousarray(_luminance(path, pixels))
    return Micrograph(pixels, signal.nm_per_pixel, signal.origin)


def read_stack(
    path: StrPath,
    index: int | None = None,
    limit: int = LIMIT,
    *,
    mrc_rows: str | None = None,
    brightness: bool = False,
    channel: str | None = None,
) -> Micrograph:
    """Return all planes of the image or stack in a file as one Micrograph, image [planes, h, w].

    A single image gives [1, h, w]; colours become luminance. To hold one plane at a time, use
    `planes`.

    Args:
        index: which of the images or stacks, if the file holds several.
        limit: bytes that the whole stack may take; checked before anything is decoded.
        mrc_rows, brightness, channel: as `planes` takes them.

    Raises: InputError as `planes` does; of these, TooLarge if the stack is above the limit.
    """
    with open_all(path, limit) as signals:
        chosen = _choose(path, signals, index, channel)
        signal = _as_asked(path, chosen, mrc_rows, brightness)
        stack = (_luminance(path, _pixels(path, signal, i), i > 0) for i in range(signal.planes))
        volume = _volume(
            path, signal, stack, limit, purpose="to be read as a whole", advice="read planes"
        )
        return Micrograph(volume, signal.nm_per_pixel, signal.origin)


def read_plane(path: StrPath, plane: int, index: int | None = None, limit: int = LIMIT) -> Grey:
    """Return plane number `plane` of the image or stack in a file, as `planes` yields it.

    Raises: InputError as `planes` does.
    """
    with open_all(path, limit) as signals:
        signal = _as_asked(path, _choose(path, signals, index, None))
        return np.ascontiguousarray(_luminance(path, _pixels(path, signal, plane), plane > 0))


def read_pixels(path: StrPath, limit: int = LIMIT) -> Grey | RGB:
    """Return a file with its colours: [h, w], or [h, w, 3] red, green, blue.

    For masks, where a colour is a label; an alpha channel is dropped, a palette is applied.
    """
    return _read_one(path, None, limit)[0]


def _read_one(
    path: StrPath,
    index: int | None,
    limit: int,
    mrc_rows: str | None = None,
    brightness: bool = False,
    channel: str | None = None,
) -> tuple[Grey | RGB, Signal]:
    with open_all(path, limit) as signals:
        chosen = _choose(path, signals, index, channel)
        signal = _as_asked(path, chosen, mrc_rows, brightness)
        if signal.planes > 1:
            raise InputError(f"{path}: 3-D data {signal.shape}, expected one 2-D image")
        return _pixels(path, signal, 0), signal


def _luminance(path: StrPath, pixels: Grey | RGB, quiet: bool = False) -> Grey:
    """Return [h, w] of [h, w] or [h, w, 3], in the number format of `pixels`."""
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


def _pixels(
    path: StrPath,
    signal: Signal,
    index: int,
    *,
    as_mask: bool = False,
    whole_numbers: bool = False,
) -> Grey | RGB:
    """Return plane `index` in one of the three number formats, and without alpha.

    With `as_mask` alpha stays, and so do whole numbers of any format: labels may exceed 2**24.

    Args:
        whole_numbers: as `planes` takes it.

    Raises: InputError for other than real, finite numbers.
    """
    with _one_line(path):
        pixels = signal.finish(signal.raw(index))
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    elif as_mask and pixels.ndim == 3 and pixels.shape[-1] in (2, 4):
        pass
    elif pixels.ndim == 3 and pixels.shape[-1] == 2:
        raise InputError(f"{path}: 2 samples per pixel, expected grey, or red, green and blue")
    elif pixels.ndim == 3 and pixels.shape[-1] == 4:
        pixels = pixels[..., :3]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[-1] not in (2, 3, 4)):
        raise InputError(f"{path}: {pixels.ndim}-D data {pixels.shape}, expected one 2-D image")
    if pixels.dtype.kind not in "uif" or pixels.size == 0:
        raise InputError(f"{path}: {pixels.dtype} {pixels.shape}, expected real numbers")
    keep = pixels.dtype.kind == "u" and pixels.dtype.itemsize <= 2
    if pixels.dtype.kind in "ui":
        keep |= as_mask or (whole_numbers and pixels.dtype.itemsize <= 4)
    with np.errstate(over="ignore", invalid="ignore"):  # becomes infinite, which is refused
        pixels = pixels.astype(pixels.dtype.newbyteorder("=") if keep else np.float32)
    if pixels.dtype == np.float32 and not np.isfinite(pixels).all():
        bad = pixels.size - np.isfinite(pixels).sum()
        raise InputError(f"{path}: {bad} of {pixels.size} values are NaN or infinite as float32")
    return pixels


def _left_out(error: OSError) -> None:
    """Note a folder that may not be read."""
    note(error.filename, f"{error.strerror}; it is left out")


def shown(path: StrPath) -> str:
    """Return a path as text; what is not UTF-8 in it, as in old archives, as its number.

    It differs from the path only where that cannot be in a table or a card.
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def find(folder: StrPath) -> list[Path]:
    """Return all micrographs below `folder`, sorted; a Zarr store or a SER with its EMI is one.

    Hidden files and folders are left out, and so are, with a note, links to folders, links that
    lead out of `folder`, folders that may not be read, and names that are not UTF-8.

    Raises: InputError if `folder` is none, or holds no micrograph.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; expected a folder of micrographs")
    paths: list[Path] = []
    inside = folder.resolve()
    for parent, folders, files in os.walk(folder, onerror=_left_out):
        if not os.access(parent, os.X_OK):
            note(parent, "a folder that may not be entered; it is left out")
            folders.clear()
            continue
        stores = [name for name in folders if is_zarr(Path(parent, name))]
        for name in {*folders}.difference(stores):
            if os.path.islink(link := Path(parent, name)) and not name.startswith("."):
                note(link, "a link to a folder, which is left out; name it to read it")
        folders[:] = [n for n in folders if n not in stores and not n.startswith(".")]
        for path in (Path(parent, name) for name in (*stores, *files)):
            if path.name.startswith(".") or not has_known_suffix(path):
                continue
            if shown(place := path.relative_to(folder)) != str(place):
                note(shown(path), f"{NO_TEXT} and is left out; rename it")
            elif not path.resolve().is_relative_to(inside):
                note(path, f"leads out of {folder} and is left out")
            elif path.name in stores or os.path.isfile(path):
                paths.append(path)
    if not paths:
        raise InputError(f"{folder} holds no micrograph ({', '.join(SUFFIXES)})")
    return sorted(path for path in paths if path.suffix.lower() != ".emi" or not _has_ser(path))


def parts_of(path: Path) -> list[Path]:
    """Return the files that what is read from `path` depends on, `path` first.

    Those of a Zarr store; the SER files of an EMI, the EMI of a SER; texts that state pixel sizes.
    """
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    suffixes = {suffix for suffix, _ in vendors.TEXTS.values()} | {".mdoc"}
    texts = [
        Path(name)
        for suffix in sorted(suffixes)
        for name, found in sidecars.beside(path, suffix)
        if stat.S_ISREG(found.st_mode) and found.st_size <= sidecars.LARGEST
    ]
    return [path, *ser.others(path), *texts]


def has_known_suffix(path: Path) -> bool:
    """Return whether a file or folder is named as micrographs are."""
    return path.suffix.lower() in SUFFIXES or path.name.lower().endswith(COMPRESSED)


def _has_ser(path: Path) -> bool:
    return bool(ser.companions(path))
