"""What attributes say of the numbers and the axes of an array: CF, HyperSpy, ilastik."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from emjax.errors import InputError
from emjax.micrographs.axes import Axes, is_reciprocal
from emjax.micrographs.shapes import Numbers, Stored
from emjax.micrographs.units import nm

# Source: CF conventions 1.11, sections 2.5.1 and 8.1; _Unsigned: NetCDF Users' Guide, appendix B.
SCALE, OFFSET, UNSIGNED = "scale_factor", "add_offset", "_Unsigned"
MISSING = ("_FillValue", "missing_value")
VALID = ("valid_min", "valid_max", "valid_range")
HYPERSPY = ("name", "scale", "units", "navigate")  # of its axes
ATTRIBUTES = (SCALE, OFFSET, UNSIGNED, *MISSING, *VALID)


class Values(NamedTuple):
    """What the stored numbers become."""

    dtype: np.dtype[Any]
    convert: Callable[[Stored], Stored]
    refused: str = ""


def values_of(dtype: np.dtype[Any], attributes: Mapping[str, Any]) -> Values:
    """Return what numbers of `dtype` become by the CF attributes of their array.

    Stored times scale_factor plus add_offset, as float32; _Unsigned: the same bits without a sign.
    `convert` raises InputError for pixels that the attributes call missing or not valid.
    """
    stored = dtype
    if dtype.kind == "i" and str(_one(attributes.get(UNSIGNED))).lower() == "true":
        stored = np.dtype(f"{dtype.byteorder}u{dtype.itemsize}")
    try:
        scale, offset = (
            float(_one(attributes.get(name, usual))) for name, usual in ((SCALE, 1), (OFFSET, 0))
        )
    except (TypeError, ValueError):
        scale = offset = math.nan
    if not (math.isfinite(scale) and math.isfinite(offset) and scale):
        stated = ", ".join(
            f"{name} {attributes[name]!r}" for name in (SCALE, OFFSET) if name in attributes
        )
        return Values(dtype, _unchanged, f"{stated}, expected one finite number each")
    try:
        missing = {
            (name, float(value))
            for name in MISSING
            for value in np.ravel(attributes.get(name, ()))
            if stored.kind in "uif" and not math.isnan(float(value))
        }
        low, high = _valid(attributes)
    except (TypeError, ValueError):  # texts, as Zarr keeps fill values of floats
        missing, low, high = set(), -math.inf, math.inf
    if (scale, offset) == (1, 0) and stored == dtype and not missing and (low, high) == ANY:
        return Values(dtype, _unchanged)

    def convert(pixels: Stored) -> Stored:
        pixels = np.asarray(pixels).view(stored)
        for name, value in missing:
            if stored != dtype and value < 0:
                value += 256.0**stored.itemsize
            if count := np.count_nonzero(pixels == value):
                raise InputError(f"{count} of {pixels.size} values are {value:g}, its {name}")
        if count := np.count_nonzero((pixels < low) | (pixels > high)):
            raise InputError(
                f"{count} of {pixels.size} values are outside {low:g} to {high:g}, its valid range"
            )
        if (scale, offset) == (1, 0):
            return pixels
        return (pixels * np.float64(scale) + offset).astype(np.float32)

    return Values(stored if (scale, offset) == (1, 0) else np.dtype(np.float32), convert)


ANY = (-math.inf, math.inf)


def _unchanged(pixels: Stored) -> Stored:
    return pixels


def _one(value: Any) -> Any:
    """Return the only element of an array of one, any other value as it is."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _valid(attributes: Mapping[str, Any]) -> tuple[float, float]:
    """Return (lowest, highest) valid stored value."""
    low, high = ANY
    if np.size(attributes.get("valid_range", ())) == 2:
        low, high = map(float, np.ravel(attributes["valid_range"]))
    return float(_one(attributes.get("valid_min", low))), float(
        _one(attributes.get("valid_max", high))
    )


def axistags(text: Any) -> list[str]:
    """Return the names of axes in the JSON text that ilastik writes as the attribute `axistags`."""
    try:
        return [str(axis["key"]) for axis in json.loads(text)["axes"]]
    except (TypeError, ValueError, KeyError):
        return []


def spacing(positions: Sequence[float] | Numbers, unit: object) -> float:
    """Return nm between the first, second and last of `positions`, NaN unless they are even."""
    try:
        first, second, last = (float(positions[index]) for index in (0, 1, -1))
        steps = len(positions) - 1
    except (TypeError, ValueError, IndexError):
        return math.nan
    step = second - first
    return (
        nm(abs(step), unit) if math.isclose(last - first, step * steps, rel_tol=1e-3) else math.nan
    )


def hyperspy_axes(shape: Sequence[int], axes: Sequence[Mapping[str, Any]]) -> Axes:
    """Return the Axes of a signal of HyperSpy by the attributes of each axis, [] without them.

    The axes of the signal, not those of navigation, are the image, in their order. Source: the
    hspy page of RosettaSciIO's documentation.
    """
    if len(axes) != len(shape):
        return Axes()
    image = [n for n, axis in enumerate(axes) if not _one(axis.get("navigate", False))]
    if not any("navigate" in axis for axis in axes):  # before version 2 of the format
        image = image[-2:]
    if not image and len(axes) == 2:  # one number per position
        image = [0, 1]
    if len(image) > 2:
        image = [n for n in image if shape[n] > 1]
    if len(image) < 2:
        return Axes(refused="a spectrum or profile")
    if len(image) > 2:
        return Axes(refused=f"{len(shape)}-D data {tuple(shape)}")
    names = ["y" if n == image[0] else "x" if n == image[1] else "" for n in range(len(axes))]
    units = [str(_one(axis.get("units", ""))) for axis in axes]
    steps = [
        nm(abs(_number(axis.get("scale"))), unit) for axis, unit in zip(axes, units, strict=True)
    ]
    reciprocal = any(is_reciprocal(_one(axes[n].get("name", ""))) for n in image)
    refused = "reciprocal space" if reciprocal else ""
    return Axes(names, units, steps, origin="HyperSpy", refused=refused)


def _number(value: Any) -> float:
    try:
        return float(_one(value))
    except (TypeError, ValueError):
        return math.nan
