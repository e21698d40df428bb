"""EMD, images in HDF5: of Velox, of Berkeley (0.2, ncempy, HyperSpy) and 1.0 (emdfile, py4DSTEM).

Sources: emdatasets.com/format; the emdfile package.
"""

import contextlib
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from emjax.micrographs.axes import Axes, is_reciprocal, role
from emjax.micrographs.formats.hdf5_items import (
    METADATA,
    Inside,
    attribute,
    check_heaps,
    coordinates,
    text,
    texts,
)
from emjax.micrographs.signal import Signal
from emjax.micrographs.units import UNKNOWN, nm

LABELS = "_labels_"  # the axis along which emdfile stacks arrays


def signals(inside: Inside) -> list[Signal]:
    """Return the Signals of every image group of Velox and array group of EMD; [] without one."""
    found: list[Signal] = []
    for name, group in inside.groups.items():
        if name.startswith("/Data/Image/") and "Data" in inside.members(name):
            found += _velox(inside, name)
        elif "emd_group_type" in group.attrs and _is_array(attribute(group, "emd_group_type")):
            found += _array(inside, name)
    return found


def _is_array(kind: Any) -> bool:
    """Return whether a group type is an array's: 1, "1" or "array"."""
    if isinstance(kind, np.ndarray) and kind.size == 1:
        kind = kind.reshape(-1)[0]
    word = kind.decode("utf-8", "replace") if isinstance(kind, bytes) else str(kind)
    return word in ("1", "array")


def _velox(inside: Inside, name: str) -> list[Signal]:
    """Return the Signal of an array [h, w, frames] with its pixel size in the JSON text by it."""
    held = inside.members(name)
    array = held["Data"]
    detector, nm_per_pixel, units = "", UNKNOWN, ("", "")
    with contextlib.suppress(KeyError, ValueError, TypeError, AttributeError):
        known = json.loads(_text(inside, held["Metadata"]))["BinaryResult"]
        detector = str(known.get("Detector", ""))
        units = str(known["PixelUnitY"]), str(known["PixelUnitX"])
        pixel = known["PixelSize"]
        nm_per_pixel = nm(pixel["height"], units[0]), nm(pixel["width"], units[1])
    rest = len(array.shape or ()) - 2
    axes = Axes(
        ("y", "x", *["t"] * rest),
        (*units, *[""] * rest),
        (*nm_per_pixel, *[math.nan] * rest),
        origin="Velox",
        refused="complex numbers" if array.dtype.names else "",
    )
    return inside.signals(array, f"{detector} {name[12:20]}".strip(), axes)


def _text(inside: Inside, array: Any) -> bytes:
    """Return what the first column of an array of bytes spells."""
    rows = array.shape[0]
    if array.dtype != np.uint8 or rows > METADATA:
        raise ValueError("no text")
    inside.check(array, (rows,), "Metadata")
    return bytes(array[:, 0] if array.ndim == 2 else array[()]).split(b"\0", 1)[0]


def _array(inside: Inside, name: str) -> list[Signal]:
    """Return the Signals of an array and the vectors that describe its axes.

    They are dim1, dim2, ... in Berkeley's EMD, and dim0, dim1, ... in EMD 1.0. There, and in what
    py4DSTEM wrote before, the axes are in the order of NumPy; in Berkeley's, the axes of an image
    are the last two, or the two that are lengths, and x may stand before y. HyperSpy writes
    Berkeley's with all axes reversed.
    """
    held = inside.members(name)
    data = {key: array for key, array in held.items() if not key.startswith("dim")}
    if not data:
        return []
    array = data.get("data", next(iter(data.values())))
    if len(data) > 1 and "data" not in data:
        refused = f"{len(data)} arrays in one group ({', '.join(data)}), expected one"
        return inside.signals(array, name, Axes(refused=refused))
    first = 0 if "dim0" in held else 1
    in_order = first == 0 or name.startswith("/4DSTEM_experiment/")
    x_first = name.startswith("/signals/") and text(inside.groups["/"], "version_minor") == "2"
    vectors = [held.get(f"dim{axis + first}") for axis in range(len(array.shape or ()))]
    called = [text(part, "name") if part is not None else "" for part in vectors]
    units, steps = coordinates(inside, vectors)
    refused = any(is_reciprocal(axis) for axis in called) and len(vectors) == 2
    axes = Axes(
        _names(called, steps, in_order=in_order, x_first=x_first),
        units,
        steps,
        _labels(vectors[-1]) if called and called[-1] == LABELS else (),
        "EMD 1.0" if first == 0 else "Berkeley EMD",
        colours=False,
        refused="reciprocal space" if refused else "",
    )
    return inside.signals(array, name, axes)


def _names(
    names: Sequence[str], steps: Sequence[float], *, in_order: bool, x_first: bool = False
) -> list[str]:
    """Return the axes' names: y, x and "" as these formats mean them."""
    if names and names[-1] == LABELS:
        return [*_names(names[:-1], steps[:-1], in_order=in_order), "c"]
    roles = [role(name.removeprefix("R").removeprefix("r")) for name in names]
    image = [axis for axis, step in enumerate(steps) if math.isfinite(step)]
    if roles.count("x") == roles.count("y") == 1:
        if not in_order:
            return roles
        image = sorted((roles.index("y"), roles.index("x")))
    found = [""] * len(names)
    if x_first and len(image) != 2 <= len(names):
        image = [0, 1]
    if len(image) == 2:
        found[image[0]], found[image[1]] = "xy" if x_first else "yx"
    return found


def _labels(array: Any) -> list[str]:
    """Return the texts of a dataset [n]."""
    if array is None or array.ndim != 1 or array.nbytes > METADATA:
        return []
    if array.dtype.kind == "O":
        check_heaps(array.file.filename)
    elif array.dtype.kind != "S":
        return []
    return texts(array[()])
