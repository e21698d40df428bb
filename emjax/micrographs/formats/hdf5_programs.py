"""Files that programs write as HDF5: HyperSpy, NeXus, BigDataViewer, Imaris.

To add a program: write a function that returns the Signals of its files, [] for others, and give it
a place in `PROGRAMS`.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np

from emjax.micrographs.axes import is_reciprocal, layouts
from emjax.micrographs.formats import emd
from emjax.micrographs.formats.hdf5_items import Inside, attribute, text, vector
from emjax.micrographs.formats.stored_values import Values, spacing
from emjax.micrographs.shapes import Stored
from emjax.micrographs.signal import Signal, why_refused
from emjax.micrographs.units import nm

# BigDataViewer's levels. Source: imagej.net/plugins/bdv, "the HDF5 file format".
CELLS = re.compile(r"/t\d+/s\d+/(\d+)/cells")
IMARIS = re.compile(r"/DataSet/ResolutionLevel (\d+)/TimePoint (\d+)/Channel (\d+)")


def hyperspy(inside: Inside) -> list[Signal]:
    """Return the Signals of HyperSpy: /Experiments/NAME with data, axis-0, axis-1, ...

    Source: the hspy page of RosettaSciIO's documentation. The signal's axes are the image.
    """
    root = inside.groups["/"]
    if "/Experiments" not in inside.groups or "file_format" not in root.attrs:
        return []
    found: list[Signal] = []
    for name in inside.groups:
        if name.count("/") != 2 or not name.startswith("/Experiments/"):
            continue
        if (array := inside.members(name).get("data")) is None:
            continue
        title = name.removeprefix("/Experiments/")
        axes = [inside.groups.get(f"{name}/axis-{axis}") for axis in range(len(array.shape or ()))]
        found.append(_hyperspy(inside, array, title, axes))
    return found


def _hyperspy(inside: Inside, array: Any, title: str, axes: list[Any]) -> Signal:
    if array.shape is None or 0 in array.shape or array.dtype.kind not in "buifc":
        return inside.refused(array, title, "an array without numbers")
    if None in axes:
        found, refused = layouts(array.shape, array.dtype)
        if refused or len(found) > 1:
            return inside.refused(array, title, refused or "an array without its axes")
        return inside.signal(array, found[0], title)
    navigates = [bool(attribute(axis, "navigate", False)) for axis in axes]
    image = [axis for axis, moves in enumerate(navigates) if not moves]
    if not any("navigate" in axis.attrs for axis in axes):  # before version 2
        image = image[-2:]
    if not image and len(axes) == 2:  # one number per position: its map
        image = [0, 1]
    if len(image) > 2:
        image = [axis for axis in image if array.shape[axis] > 1]
    if len(image) != 2:
        kind = "a spectrum or profile" if len(image) < 2 else f"{len(image)}-D data {array.shape}"
        return inside.refused(array, title, kind)
    names = ["y" if n == image[0] else "x" if n == image[1] else "" for n in range(len(axes))]
    units = [text(axis, "units") for axis in axes]
    found, refused = layouts(array.shape, array.dtype, names)
    if any(is_reciprocal(text(axes[axis], "name")) for axis in image):
        refused = refused or "reciprocal space"
    if refused:
        return inside.refused(array, title, refused)
    (layout,) = found
    steps = [
        nm(abs(_number(attribute(axis, "scale", math.nan))), unit)
        for axis, unit in zip(axes, units, strict=True)
    ]
    signal = inside.signal(array, layout, title, layout.of(units))
    return signal.calibrated(layout.of(steps), "HyperSpy")


def _number(value: Any) -> float:
    try:
        return float(np.ravel(value)[0])
    except (TypeError, ValueError, IndexError):
        return math.nan


def nexus(inside: Inside) -> list[Signal]:
    """Return the Signals of NeXus: of each NXdata group, the dataset that `signal` names.

    Source: the NXdata page of the NeXus manual. `axes` names the vector of each axis.
    """
    found: list[Signal] = []
    for name, group in inside.groups.items():
        if "NX_class" not in group.attrs or text(group, "NX_class") != "NXdata":
            continue
        held = {key: item for key in group if (item := _hard(group, key)) is not None}
        array = held.get(text(group, "signal"))
        if (
            array is None
            or array.shape is None
            or 0 in array.shape
            or array.dtype.kind not in "uif"
        ):
            continue
        names = _words(attribute(group, "axes", ()))
        if len(names) != array.ndim:
            names = [""] * array.ndim
        vectors = [held.get(axis) for axis in names]
        units = [text(part, "units") if part is not None else "" for part in vectors]
        steps = [
            spacing(vector(part, inside), unit) for part, unit in zip(vectors, units, strict=True)
        ]
        label = name.strip("/")
        scaled = [f"{text(group, 'signal')}_{end}" for end in ("scaling_factor", "offset")]
        layout, refused = layouts(array.shape, array.dtype, names)
        if text(array, "interpretation") in ("spectrum", "scalar"):
            refused = refused or "a spectrum or profile"
        if any(key in held for key in scaled):
            refused = refused or "scaled by a field of its own (scaling_factor), which is not read"
        if refused := refused or why_refused(array.dtype, (0, 0)):
            found.append(inside.refused(array, label, refused))
            continue
        found += [
            inside.signal(array, part, label, part.of(units)).calibrated(part.of(steps), "NeXus")
            for part in layout
        ]
    return found


def _hard(group: Any, key: str) -> Any:
    """Return the dataset `key` of a group unless it is a link elsewhere or kept elsewhere."""
    if not isinstance(group.get(key, getlink=True), h5py.HardLink):
        return None
    item = group.get(key)
    inside = isinstance(item, h5py.Dataset) and not item.external and not item.is_virtual
    return item if inside else None


def _words(value: Any) -> list[str]:
    """Return the names that an attribute lists, as an array of texts or with colons."""
    found = [
        part.decode("utf-8", "replace") if isinstance(part, bytes) else str(part)
        for part in np.ravel(np.asarray(value, dtype=object))
    ]
    return found[0].split(":") if len(found) == 1 else found


def bigdataviewer(inside: Inside) -> list[Signal]:
    """Return the Signals of BigDataViewer: the full-size level of each time and setup.

    Its 16-bit numbers have no sign, though the datasets' format has one. The pixel size is in its
    XML file, which is not read.
    """
    names = [name for name in inside.arrays if (level := CELLS.fullmatch(name)) and level[1] == "0"]
    if not any(re.fullmatch(r"/s\d+", name) for name in inside.groups):
        return []
    found: list[Signal] = []
    for name in names:
        array = inside.arrays[name]
        label = name.removesuffix("/0/cells").strip("/")
        layout, refused = layouts(array.shape, array.dtype, "zyx")
        if refused := refused or why_refused(array.dtype, (0, 0)):
            found.append(inside.refused(array, label, refused))
            continue
        values = None
        if array.dtype.kind == "i" and array.dtype.itemsize == 2:
            values = Values(np.dtype(f"{array.dtype.str[0]}u2"), _unsigned)
        found.append(inside.signal(array, layout[0], label, (), values))
    return found


def imaris(inside: Inside) -> list[Signal]:
    """Return the Signals of Imaris 5.5: the full-size level of each time and channel.

    Its arrays are larger than the image; ImageSizeX, Y and Z of the channel are the image's.
    Source: Bitplane's description of the file format.
    """
    if "/DataSetInfo/Image" not in inside.groups:
        return []
    known = inside.groups["/DataSetInfo/Image"]
    unit = _spelt(known, "Unit")
    found: list[Signal] = []
    for name, group in inside.groups.items():
        at = IMARIS.fullmatch(name)
        array = inside.members(name).get("Data")
        if not at or at[1] != "0" or array is None or array.ndim != 3:
            continue
        label = f"time {at[2]}, channel {at[3]}"
        sides = [_spelt_number(group, f"ImageSize{axis}") for axis in "ZYX"]
        whole = all(0 < side <= most for side, most in zip(sides, array.shape, strict=True))
        if not whole or array.dtype.kind not in "uif":
            found.append(inside.refused(array, label, f"an image of {sides} in {array.shape}"))
            continue
        shape = tuple(map(int, sides))
        layout, refused = layouts(shape, array.dtype, "zyx")
        if refused:
            found.append(inside.refused(array, label, refused))
            continue
        h, w = shape[-2:]
        values = Values(array.dtype, _corner(h, w))
        signal = inside.signal(array, layout[0], label, (), values)
        steps = [
            nm(
                (_spelt_number(known, f"ExtMax{n}") - _spelt_number(known, f"ExtMin{n}")) / side,
                unit,
            )
            for n, side in zip((2, 1, 0), sides, strict=True)
        ]
        found.append(signal.calibrated(layout[0].of(steps), "Imaris"))
    return found


def _unsigned(pixels: Stored) -> Stored:
    return pixels.view(f"{pixels.dtype.str[0]}u{pixels.dtype.itemsize}")


def _corner(h: int, w: int) -> Callable[[Stored], Stored]:
    return lambda pixels: pixels[:h, :w]


def _spelt(group: Any, name: str) -> str:
    """Return an attribute that is stored as an array of single letters."""
    return "".join(_words(attribute(group, name, ())))


def _spelt_number(group: Any, name: str) -> float:
    try:
        return float(_spelt(group, name))
    except ValueError:
        return math.nan


PROGRAMS: list[Callable[[Inside], list[Signal]]] = [
    hyperspy,
    emd.signals,
    bigdataviewer,
    imaris,
    nexus,
]
