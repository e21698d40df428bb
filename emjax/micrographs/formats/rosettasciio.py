"""Formats that RosettaSciIO reads, if it is installed: by these of its readers and no other."""

import contextlib
import importlib
import math
import os
import struct
import zipfile
from collections.abc import Generator, Mapping
from typing import Any

from emjax.errors import InputError
from emjax.micrographs import messages
from emjax.micrographs.axes import Axes, Layout, layouts
from emjax.micrographs.formats.stored_values import hyperspy_axes
from emjax.micrographs.shapes import Stored
from emjax.micrographs.signal import Signal, check_declared, no_pixels, with_samples
from emjax.micrographs.units import UNKNOWN

READERS = {
    ".blo": "blockfile",
    ".prz": "pantarhei",
    ".tvips": "tvips",
    ".unf": "semper",
}
PATTERNS = "diffraction patterns"


@contextlib.contextmanager
def signals(path: str | os.PathLike[str], limit: int) -> Generator[list[Signal]]:
    """Yield the Signals of a file with a suffix of READERS; pixels are read when needed."""
    suffix = os.path.splitext(path)[1].lower()
    try:
        reader = importlib.import_module(f"rsciio.{READERS[suffix]}")
    except ImportError:
        raise InputError(f"{suffix} is read by RosettaSciIO; install emjax[rsciio]") from None
    messages.collect_from("rsciio")
    size = os.path.getsize(path)
    if suffix == ".blo":
        _check_blockfile(path, size)
    found = reader.file_reader(str(path), lazy=not _is_compressed(path, suffix, limit))
    held = [signal for n, part in enumerate(found) for signal in _signals(part, n, size, limit)]
    if suffix == ".blo":  # also of one position, where the reader returns an image
        held = [signal._replace(refused=signal.refused or PATTERNS) for signal in held]
    yield held


def _is_compressed(path: str | os.PathLike[str], suffix: str, limit: int) -> bool:
    """Return whether a file of Panta Rhei is compressed, and so is not to be read in parts.

    RosettaSciIO 0.15 writes such files, but takes what is in them for pixels where it reads lazily.
    """
    if suffix != ".prz":
        return False
    with zipfile.ZipFile(path) as archive:
        parts = [part for part in archive.infolist() if part.filename.endswith(".npy")]
    compressed = [part for part in parts if part.compress_type != zipfile.ZIP_STORED]
    for part in compressed:
        size = (part.file_size,)
        check_declared("it", size, "u1", stored=part.compress_size, limit=limit, compressed=True)
    return bool(compressed)


def _check_blockfile(path: str | os.PathLike[str], size: int) -> None:
    """Refuse a blockfile that declares more patterns than it has."""
    with open(path, "rb") as file:
        pattern, _, columns, rows = struct.unpack("<20x4H", file.read(28))
    check_declared("it", (rows, columns, pattern, pattern), "u1", stored=size, limit=math.inf)


def _signals(part: Mapping[str, Any], number: int, size: int, limit: int) -> list[Signal]:
    """Return the Signals of a dict of RosettaSciIO: one, or one for each channel."""
    array = part["data"]
    name = part.get("metadata", {}).get("General", {}).get("title") or f"signal {number}"
    axes = hyperspy_axes(array.shape, part["axes"])._replace(origin="RosettaSciIO")
    found, refused = layouts(array.shape, array.dtype, axes)
    if refused:
        return [Signal(name, tuple(array.shape), array.dtype, no_pixels, refused=refused)]
    return [_signal(array, layout, name, axes, size, limit) for layout in found]


def _signal(array: Any, layout: Layout, name: str, axes: Axes, size: int, limit: int) -> Signal:
    shape, samples = layout.shape, layout.samples
    refused = layout.no_length(axes.units)
    plane = with_samples(shape[-2:], samples)
    for what, checked, most in (("its image", plane, limit), ("it", shape, math.inf)):
        if not refused:
            check_declared(what, checked, array.dtype, stored=size, limit=most, compressed=True)

    def raw(index: int) -> Stored:
        return layout.plane(array, index)

    label = " ".join(part for part in (name, layout.label) if part)
    signal = Signal(label, shape, array.dtype, raw, samples=samples, refused=refused)
    signal = signal._replace(channel=layout.label)
    return signal.calibrated(layout.of(axes.steps) or UNKNOWN, axes.origin)
