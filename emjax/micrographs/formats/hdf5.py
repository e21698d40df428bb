"""HDF5: what programs write into it, or else all its arrays. No other file is followed."""

import contextlib
import math
import os
from collections.abc import Generator
from typing import Any

import numpy as np

from emjax.errors import InputError, note
from emjax.micrographs.axes import layouts
from emjax.micrographs.formats.hdf5_items import Inside, attribute, inside, text, vector
from emjax.micrographs.formats.stored_values import axistags, spacing
from emjax.micrographs.signal import Signal, why_refused
from emjax.micrographs.units import nm

# Why an array is not even worth a word where others are micrographs.
TRIVIAL = ("a spectrum or profile", "an array without values", "expected real numbers")


@contextlib.contextmanager
def signals(path: str | os.PathLike[str], limit: int) -> Generator[list[Signal]]:
    """Yield the Signals of the program that wrote a file, or of all its arrays of numbers."""
    import h5py

    from emjax.micrographs.formats.hdf5_programs import PROGRAMS

    with h5py.File(path, "r") as file:
        held = inside(file, limit)
        found = next((found for program in PROGRAMS if (found := program(held))), [])
        if not found:
            found = [signal for name in held.arrays for signal in _plain(held, name)]
            found = [signal for signal in found if not signal.refused.endswith(TRIVIAL)]
            usable = [signal for signal in found if not signal.refused]
            for signal in found if usable else ():
                if signal.refused:
                    note(path, f"{signal} is left out: {signal.refused}")
            found = usable or found
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
    if array.shape is None or 0 in array.shape:
        return [held.refused(array, name, "an array without values")]
    names, steps, units = _scales(held, array)
    tagged = axistags(text(array, "axistags"))
    names = tagged if len(tagged) == array.ndim else names
    picture, refused = _picture(array)
    names = picture or names
    found, why = layouts(array.shape, array.dtype, names, interleaved=bool(picture))
    refused = why_refused(array.dtype, array.shape[:2]) or refused or why
    if refused:
        return [held.refused(array, name, refused)]
    sizes = [nm(size, "um") for size in np.ravel(attribute(array, "element_size_um", ()))]
    signals: list[Signal] = []
    for layout in found:
        signal = held.signal(array, layout, name, layout.of(units))
        if len(sizes) in (2, 3):  # z, y, x, as ImageJ and ilastik write it
            signals.append(signal.calibrated(sizes, "element_size_um"))
        else:
            signals.append(signal.calibrated(layout.of(steps), "dimension scales"))
    return signals


def _scales(held: Inside, array: Any) -> tuple[list[str], list[float], list[str]]:
    """Return (names, nm per pixel, units) of the axes by the dimension scales attached to them.

    An axis is called by its label, or else by its scale. Source: HDF5's specification of them.
    """
    names, steps, units = [""] * array.ndim, [math.nan] * array.ndim, [""] * array.ndim
    labels = attribute(array, "DIMENSION_LABELS", ())
    attached = attribute(array, "DIMENSION_LIST", ())
    for axis, scales in enumerate(attached if len(attached) == array.ndim else ()):
        item = array.file[scales[0]] if len(scales) and scales[0] else None
        if item is None or not hasattr(item, "ndim"):
            continue
        names[axis], units[axis] = item.name.rpartition("/")[2], text(item, "units")
        positions = vector(item, held)
        if len(positions) == array.shape[axis]:
            steps[axis] = spacing(positions, units[axis])
    for axis, label in enumerate(labels if len(labels) == array.ndim else ()):
        called = label.decode("utf-8", "replace") if isinstance(label, bytes) else str(label)
        names[axis] = called or names[axis]
    return names, steps, units


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
