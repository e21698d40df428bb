"""HDF5: what programs write into it, or else all its arrays. No other file is followed."""

import contextlib
import os
from collections.abc import Generator
from typing import Any

import numpy as np

from emjax.errors import InputError, note
from emjax.micrographs.axes import Axes
from emjax.micrographs.formats.hdf5_items import (
    Inside,
    attribute,
    coordinates,
    inside,
    is_elsewhere,
    text,
    texts,
)
from emjax.micrographs.formats.stored_values import axistags
from emjax.micrographs.signal import Signal
from emjax.micrographs.units import nm

MAGIC = b"\x89HDF\r\n"
# Why an array is not even worth a word where others are micrographs.
TRIVIAL = ("a spectrum or profile", "an array without values", "expected real numbers")


def has_user_block(path: str | os.PathLike[str]) -> bool:
    """Return whether an HDF5 file begins after a block of the user's, at 512, 1024, 2048, ..."""
    at, size = 512, os.path.getsize(path)
    with open(path, "rb") as file:
        while at < size:
            file.seek(at)
            if file.read(len(MAGIC)) == MAGIC:
                return True
            at *= 2
    return False


@contextlib.contextmanager
def signals(path: str | os.PathLike[str], limit: int) -> Generator[list[Signal]]:
    """Yield the Signals of the program that wrote a file, or of all its arrays of numbers."""
    import h5py

    from emjax.micrographs.formats.hdf5_programs import PROGRAMS

    with h5py.File(path, "r") as file:
        held = inside(file, limit)
        found = next((found for program in PROGRAMS if (found := program(held))), [])
        is_known = bool(found)
        if not found:
            found = [signal for name in held.arrays for signal in _plain(held, name)]
            found = [signal for signal in found if not signal.refused.endswith(TRIVIAL)]
            usable = [signal for signal in found if not signal.refused]
            for signal in found if usable else ():
                if signal.refused:
                    note(path, f"{signal} is left out: {signal.refused}")
            found = usable or found
        for name in held.elsewhere[:8]:
            reason = "its values are virtual or in other files, which are not followed"
            if not is_known:  # it may be the image, and what is left its mask
                raise InputError(f"{name}: {reason}; save them as an array in the file itself")
            note(path, f"{name} is left out: {reason}")
        if not found:
            listed = ", ".join(
                f"{name} {array.shape}" for name, array in list(held.arrays.items())[:8]
            )
            raise InputError(
                f"no 2-D or 3-D array of numbers; it has {listed or 'no array at all'}"
            )
        yield found


def _plain(held: Inside, name: str) -> list[Signal]:
    """Return the Signals of an array; attributes and dimension scales may name its axes."""
    array = held.arrays[name]
    if text(array, "CLASS") == "PALETTE":
        return []
    axes = _scales(held, array)
    tagged = axistags(text(array, "axistags"))
    if len(tagged) == array.ndim:
        axes = axes._replace(names=tagged)
    picture, refused = _picture(array)
    if picture or refused:
        axes = axes._replace(names=picture, colours=True, refused=refused)
    found = held.signals(array, name, axes)
    sizes = [nm(size, "um") for size in np.ravel(attribute(array, "element_size_um", ()))]
    if len(sizes) not in (2, 3):
        return found
    # z, y, x, as ImageJ and ilastik write it
    return [
        signal if signal.refused else signal.calibrated(sizes, "element_size_um")
        for signal in found
    ]


def _scales(held: Inside, array: Any) -> Axes:
    """Return what the labels of dimensions and the scales attached to them say of the axes.

    An axis is called by its label, or else by its scale. Source: HDF5's specification of them.
    """
    from h5py import Dataset

    vectors: list[Any] = [None] * array.ndim
    names = [""] * array.ndim
    labels = texts(attribute(array, "DIMENSION_LABELS", ()))
    attached: Any = np.ravel(attribute(array, "DIMENSION_LIST", ()))
    for axis, scales in enumerate(attached if len(attached) == array.ndim else ()):
        item = array.file[scales[0]] if np.size(scales) and scales[0] else None
        if not isinstance(item, Dataset) or is_elsewhere(item):
            continue
        if item.shape == (array.shape[axis],):
            names[axis], vectors[axis] = str(item.name).rpartition("/")[2], item
    if len(labels) == array.ndim:
        names = [label or name for label, name in zip(labels, names, strict=True)]
    return Axes(names, *coordinates(held, vectors), origin="dimension scales")


def _picture(array: Any) -> tuple[str, str]:
    """Return (names of the axes, why it is refused) of an array that is an HDF5 image, else "".

    Source: the HDF5 Image and Palette Specification 1.2.
    """
    if text(array, "CLASS") != "IMAGE":
        return "", ""
    if text(array, "IMAGE_SUBCLASS") == "IMAGE_INDEXED":
        return "", "an image of palette indices"
    if text(array, "IMAGE_WHITE_IS_ZERO") not in ("", "0"):
        return "", "an image with white as zero"
    if text(array, "DISPLAY_ORIGIN") not in ("", "UL"):
        return "", f"an image from {text(array, 'DISPLAY_ORIGIN')!r}, expected the upper left first"
    planes = {"INTERLACE_PLANE": "cyx", "INTERLACE_PIXEL": "yxc", "INTERLACE_LINE": "ycx"}
    if array.ndim == 3 and text(array, "IMAGE_SUBCLASS") == "IMAGE_TRUECOLOR":
        return planes.get(text(array, "INTERLACE_MODE"), ""), ""
    return "", ""
