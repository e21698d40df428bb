"""Files that programs write as HDF5: HyperSpy, NeXus, Nion Swift, BigDataViewer, Imaris, EMAN2.

To add a program: write a function that returns the Signals of its files, [] for others, and give it
a place in `PROGRAMS`.
"""

import contextlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from emjax.errors import InputError, note
from emjax.micrographs.axes import Axes
from emjax.micrographs.formats import emd
from emjax.micrographs.formats.hdf5_items import (
    DEPTH,
    METADATA,
    Inside,
    attribute,
    coordinates,
    is_elsewhere,
    member,
    text,
    texts,
)
from emjax.micrographs.formats.stored_values import HYPERSPY, Values, hyperspy_axes
from emjax.micrographs.formats.vendors.common import ANGSTROM
from emjax.micrographs.shapes import Stored
from emjax.micrographs.signal import NO_BRIGHTNESS, Signal
from emjax.micrographs.units import nm

# The last axes of NeXus by the attribute `interpretation`.
NEXUS = {"image": "yx", "rgb-image": "yxc", "rgba-image": "yxc"}
# BigDataViewer's levels. Source: imagej.net/plugins/bdv, "the HDF5 file format".
CELLS = re.compile(r"/t\d+/s\d+/(\d+)/cells")
MDF = re.compile(r"/MDF/images/\d+")
IMARIS = re.compile(r"/DataSet/ResolutionLevel (\d+)/TimePoint (\d+)/Channel (\d+)")


def hyperspy(inside: Inside) -> list[Signal]:
    """Return the Signals of HyperSpy: /Experiments/NAME with data, axis-0, axis-1, ..."""
    if "/Experiments" not in inside.groups or "file_format" not in inside.groups["/"].attrs:
        return []
    found: list[Signal] = []
    for name in inside.groups:
        if name.count("/") != 2 or not name.startswith("/Experiments/"):
            continue
        if (array := inside.members(name).get("data")) is None:
            continue
        groups = [inside.groups.get(f"{name}/axis-{n}") for n in range(len(array.shape or ()))]
        axes = hyperspy_axes(
            array.shape or (),
            [
                {key: attribute(axis, key) for key in HYPERSPY if key in axis.attrs}
                for axis in groups
                if axis is not None
            ],
        )
        found += inside.signals(array, name.removeprefix("/Experiments/"), axes)
    return found


def nexus(inside: Inside) -> list[Signal]:
    """Return the Signals of NeXus: of each NXdata group, the dataset that `signal` names.

    Source: the NXdata page of the NeXus manual. `axes` names the vector of each axis. In older
    files the dataset itself has the attributes `signal`, which is 1, and `axes`. Where the file
    says what to plot, by `default`, the others are left out.

    Raises: InputError if a signal is not in the file, unless another is the default.
    """
    of_group: dict[str, list[Signal]] = {}
    missing: list[str] = []
    for name, group in inside.groups.items():
        if "NX_class" not in group.attrs or text(group, "NX_class") != "NXdata":
            continue
        held = {key: item for key in group if (item := _dataset(group, key)) is not None}
        old = [key for key, item in held.items() if text(item, "signal") == "1"]
        signal, refused = text(group, "signal") or next(iter(old), ""), ""
        if (array := held.get(signal)) is None or len(array.shape or ()) < 2:
            missing += [f"{name}/{signal}"] if array is None and signal in {*group} else []
            continue
        names = _words(attribute(group, "axes", ())) or _words(attribute(array, "axes", ()))
        names = _placed(inside, group, names, array.shape, held)
        units, steps = coordinates(inside, [held.get(axis) for axis in names])
        kind = text(array, "interpretation") or text(group, "interpretation")
        if kind in ("spectrum", "scalar"):
            refused = "a spectrum or profile"
        if last := NEXUS.get(kind):
            names = ([""] * array.ndim + list(last))[-array.ndim :]
        if _is_scaled(held, f"{signal}_") or _is_scaled(held):
            refused = "scaled by a scaling_factor or an offset of its NXdata, which are not read"
        if others := texts(attribute(group, "auxiliary_signals", ())):
            note(inside.path, f"{name}: left out beside {signal}: {', '.join(others[:8])}")
        axes = Axes(names, units, steps, origin="NeXus", refused=refused)
        of_group[name] = inside.signals(array, name.strip("/"), axes)
    plotted = _default(inside)
    if not all(signal.refused for signal in of_group.get(plotted, ())):
        others = [name for name in of_group if name != plotted]
        if others:
            note(inside.path, f"{plotted} is read, its default; left out: {', '.join(others[:8])}")
        return of_group[plotted]
    if missing and (of_group or not inside.elsewhere):  # what is left may be its mask
        raise InputError(f"{missing[0]}, which its NXdata is of, is not in the file")
    return [signal for found in of_group.values() for signal in found]


def _default(inside: Inside) -> str:
    """Return the name of the group that a file says is to be plotted, "" where it says none."""
    name = "/"
    for _ in range(DEPTH):
        following = text(inside.groups[name], "default")
        path = f"{name.rstrip('/')}/{following.strip('/')}"
        if not following or path not in inside.groups:
            return name
        name = path
    return ""


def _is_scaled(held: Mapping[str, Any], start: str = "") -> bool:
    """Return whether fields of an NXdata change its values; their names begin with `start`.

    Without one, an `offset` of many numbers is the positions of an axis.
    """
    for end, usual in (("scaling_factor", 1), ("offset", 0)):
        field = held.get(f"{start}{end}")
        if field is None or (not start and field.size != 1):
            continue
        if field.size != 1 or np.ravel(field[()])[0] != usual:
            return True
    return False


def _placed(
    inside: Inside,
    group: Any,
    names: Sequence[str],
    shape: Sequence[int],
    held: Mapping[str, Any],
) -> list[str]:
    """Return the names of the axes in their order; AXIS_indices say to which each belongs.

    Where the positions of an axis are not as many as the pixels that it would have by its index,
    and those of all fit by their places in `axes`, these decide: pynxtools-em counted x first in
    the indices. A square image that is stated so leaves a doubt, which is noted.
    """
    ndim = len(shape)

    def fits(name: str, at: int) -> bool:
        positions = getattr(held.get(name), "shape", None) or ()
        return len(positions) != 1 or positions[0] in (shape[at], shape[at] + 1)  # of edges

    stated = [np.ravel(attribute(group, f"{name}_indices", ())) for name in names]
    if not all(map(len, stated)) and len(names) != ndim:
        return [""] * ndim
    by_place = {at: name for at, name in enumerate(names[:ndim]) if name != "."}
    by_index: dict[int, str] = {}
    for place, (name, indices) in enumerate(zip(names, stated, strict=True)):
        at = int(indices[0]) if len(indices) == 1 else place if not len(indices) else ndim
        if 0 <= at < ndim and name != ".":
            by_index[at] = name
    placed = by_index
    is_complete = len(by_index) == len(by_place)
    if (
        is_complete
        and by_index != by_place
        and all(fits(name, at) for at, name in by_place.items())
    ):
        if not all(fits(name, at) for at, name in by_index.items()):
            placed = by_place
        elif any(name in held for name in names) and len(names) == ndim:
            note(inside.path, "its axes and their indices are in different orders, and either may "
                 "be right: the indices are taken")  # fmt: skip
    return [placed.get(at, "") for at in range(ndim)]


def _dataset(group: Any, key: str) -> Any:
    """Return the dataset `key` of a group, None if it or its values are elsewhere."""
    item = member(group, key)
    return item if isinstance(item, h5py.Dataset) and not is_elsewhere(item) else None


def _words(value: Any) -> list[str]:
    """Return the names that an attribute lists: as texts, or in one with colons or commas."""
    found = texts(value)
    if len(found) == 1:
        found = re.split("[:,]", found[0].strip("[]"))
    return [name.strip() for name in found]


def nion(inside: Inside) -> list[Signal]:
    """Return the Signals of Nion Swift: /data, whose calibrations are JSON in an attribute.

    Source: nionswift, model/HDF5Handler and the properties of its data items.
    """
    array = inside.members("/").get("data")
    if array is None or "properties" not in array.attrs:
        return []
    try:
        known = json.loads(text(array, "properties")[:METADATA])
        listed = [
            (nm(one["scale"], one["units"]), str(one["units"]))
            for one in known["dimensional_calibrations"]
        ]
        dimensions = int(known.get("datum_dimension_count", 2))
    except (KeyError, TypeError, ValueError):
        return []
    rest = len(array.shape or ()) - 2
    if len(listed) != rest + 2:
        return []
    steps, units = zip(*listed, strict=True) if listed else ((), ())
    refused = "" if dimensions == 2 else "a spectrum or profile"
    names = ["t"] * rest + ["y", "x"]
    axes = Axes(names, units, steps, origin="Nion Swift", refused=refused)
    brightness = _nion_brightness(known.get("intensity_calibration"))
    return [s._replace(brightness=brightness) for s in inside.signals(array, "data", axes)]


def _nion_brightness(stated: Any) -> tuple[float, float, str]:
    """Return `Signal.brightness` of a calibration of Nion Swift: offset + scale * stored."""
    with contextlib.suppress(AttributeError, TypeError, ValueError, ZeroDivisionError):
        offset, scale = float(stated.get("offset", 0)), float(stated.get("scale", 1))
        found = (-offset / scale or 0.0, scale)
        if all(map(math.isfinite, found)) and found != NO_BRIGHTNESS[:2]:
            return *found, str(stated.get("units") or "")
    return NO_BRIGHTNESS


def eman(inside: Inside) -> list[Signal]:
    """Return the Signals of EMAN2: /MDF/images/N with `image`, whose attributes are EMAN's.

    Source: EMAN2, libEM/io/hdfio2.cpp: apix_x is in angstrom, and numbers of stored_renderbits bits
    are a share of what is between stored_rendermin and stored_rendermax.
    """
    found: list[Signal] = []
    for name, group in inside.groups.items():
        array = inside.members(name).get("image")
        if not MDF.fullmatch(name) or array is None:
            continue

        def stated(key: str, group: Any = group) -> float:
            value = attribute(group, f"EMAN.{key}", math.nan)
            number = np.ravel(value) if np.asarray(value).dtype.kind in "uif" else ()
            return float(number[0]) if len(number) == 1 else math.nan

        steps = [nm(stated(f"apix_{axis}"), "angstrom") for axis in "zyx"][-array.ndim :]
        low, high, bits = map(stated, ("stored_rendermin", "stored_rendermax", "stored_renderbits"))
        values = None
        if bits > 0 and high > low:
            values = Values(np.dtype(np.float32), _between(low, high, 2**bits - 1))
        axes = Axes(["z", "y", "x"][-array.ndim :], (), steps, origin="EMAN")
        found += inside.signals(array, name.removeprefix("/MDF/"), axes, values)
        if all(step == ANGSTROM for step in steps[-2:]):
            note(inside.path, "exactly 1 angstrom (0.1 nm) per pixel by EMAN, which is also what "
                 "it writes where it knows none")  # fmt: skip
    return found


def _between(low: float, high: float, most: float) -> Callable[[Stored], Stored]:
    return lambda pixels: (pixels / most * (high - low) + low).astype(np.float32)


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
        values = None
        if array.dtype.kind == "i" and array.dtype.itemsize == 2:
            values = Values(np.dtype(f"{array.dtype.str[0]}u2"), _unsigned)
        found += inside.signals(
            array, name.removesuffix("/0/cells").strip("/"), Axes("zyx"), values
        )
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
        if not all(0 < side <= most for side, most in zip(sides, array.shape, strict=True)):
            refused = f"an image of {sides} in an array of {array.shape}"
            found += inside.signals(array, label, Axes(refused=refused))
            continue
        extents = [
            _spelt_number(known, f"ExtMax{n}") - _spelt_number(known, f"ExtMin{n}")
            for n in (2, 1, 0)
        ]
        steps = [nm(extent / side, unit) for extent, side in zip(extents, sides, strict=True)]
        _, h, w = shape = tuple(map(int, sides))
        axes = Axes("zyx", (), steps, origin="Imaris")
        signals = inside.signals(array, label, axes, Values(array.dtype, _corner(h, w)), shape)
        found += [signal._replace(channel=f"channel {at[3]}") for signal in signals]
    return found


def _unsigned(pixels: Stored) -> Stored:
    return pixels.view(f"{pixels.dtype.str[0]}u{pixels.dtype.itemsize}")


def _corner(h: int, w: int) -> Callable[[Stored], Stored]:
    return lambda pixels: pixels[:h, :w]


def _spelt(group: Any, name: str) -> str:
    """Return an attribute that is stored as an array of single letters."""
    return "".join(texts(attribute(group, name, ())))


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
    nion,
    eman,
]
