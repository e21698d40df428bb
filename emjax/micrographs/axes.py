"""Which axes of an array are rows, columns, planes and channels: by their names, else by shape."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from emjax.micrographs.shapes import Stored
from emjax.micrographs.signal import DType, why_refused
from emjax.micrographs.units import no_image

ROLES = {
    "y": ("y", "row", "rows", "height", "yaxis", "axisy", "dimy"),
    "x": ("x", "col", "cols", "column", "columns", "width", "xaxis", "axisx", "dimx"),
    "z": ("z", "depth", "section", "sections", "slice", "slices", "plane", "planes", "zaxis"),
    "t": ("t", "time", "frame", "frames"),
    "c": ("c", "ch", "channel", "channels", "band", "bands", "sample", "samples", "rgb", "rgba"),
}
ROLE = {name: role for role, names in ROLES.items() for name in names}
COLOURS = (3, 4)
FIELDS = (tuple("RGB"), tuple("RGBA"))
CHANNELS = 100  # more are the channels of a spectrum
NARROW = 2  # pixels: a stack of such images is rather an array in another order


class Axes(NamedTuple):
    """What a file says of the axes of an array; each empty, or one for each axis in its order."""

    names: Sequence[object] = ()  # what is not known is empty
    units: Sequence[str] = ()
    steps: Sequence[float] = ()  # nm
    labels: Sequence[str] = ()  # of the channels
    origin: str = "none"  # of the steps
    colours: bool | None = None  # whether the channels are; None: by their axis and numbers
    refused: str = ""  # why the array is not a micrograph


class Layout(NamedTuple):
    """How an image, or a stack of them, lies in an array."""

    shape: tuple[int, ...]  # h, w or planes, h, w
    axes: tuple[int, ...]  # of the array: that of the planes where there is one, y, x, samples
    fixed: Mapping[int, int]  # the index at which each other axis is taken
    samples: int = 1  # colours and alpha per pixel
    label: str = ""  # of this one of several images

    def plane(self, array: Any, index: int) -> Stored:
        """Return plane `index` of `array` (NumPy, h5py or Zarr) as [h, w] or [h, w, samples]."""
        where: list[slice | int] = [self.fixed.get(n, slice(None)) for n in range(array.ndim)]
        image = self.axes
        if len(self.shape) == 3:
            where[image[0]] = index
            image = image[1:]
        stored = sorted(image)
        pixels = np.asarray(array[tuple(where)]).transpose([stored.index(axis) for axis in image])
        fields = pixels.dtype.names
        return np.stack([pixels[name] for name in fields], -1) if fields else pixels

    def of(self, values: Sequence[Any]) -> list[Any]:
        """Return what `values` has, one for each axis of the array or none, for (planes,) y, x."""
        return [values[axis] for axis in self.axes[: len(self.shape)]] if values else []

    def no_length(self, units: Sequence[str]) -> str:
        """Return why units of the array's axes are not those of a micrograph, or ""."""
        return no_image(*self.of(units))


def role(name: object) -> str:
    """Return "y", "x", "z", "t" or "c" for the name of an axis, else ""."""
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name or "")
    return ROLE.get(re.sub(r"[\W_]", "", text).lower(), "")


def is_reciprocal(name: object) -> bool:
    """Return whether the name of an axis is one of a diffraction pattern: Qx, k_y, ..."""
    return re.fullmatch(r"[qk]_?[xy]", str(name).strip().lower()) is not None


def numbers(dtype: DType) -> np.dtype[Any]:
    """Return the number format of an array: of colours in the fields R, G, B, that of each field.

    HyperSpy keeps colours so.
    """
    dtype = np.dtype(dtype)
    fields = [dtype[name] for name in dtype.names or ()]
    return fields[0] if dtype.names in FIELDS and len(set(fields)) == 1 else dtype


def layouts(shape: Sequence[int], dtype: DType, axes: Axes) -> tuple[list[Layout], str]:
    """Return (the images or stacks in an array, why there is none or "").

    Axes of length 1 are left out wherever they stand. Names that say which axes are y and x decide;
    else the last two axes are the image. A short last axis without a name is colours or channels.
    Each channel is an image of its own, unless they are colours: 3 or 4 of 8 or 16 bits, on the
    last axis.
    """
    if (number := numbers(dtype)) != np.dtype(dtype):
        found, refused = layouts(shape, number, axes._replace(colours=False))
        fields = len(np.dtype(dtype).names or ())
        return [layout._replace(samples=fields) for layout in found], refused
    names = axes.names
    sides = tuple(int(side) for side in shape)
    roles = [role(name) for name in names] if len(names) == len(sides) else [""] * len(sides)
    roles = [found if roles.count(found) == 1 else "" for found in roles]
    named = {found: axis for axis, found in enumerate(roles) if found}
    channel = named.get("c")
    if refused := axes.refused or why_refused(dtype, sides[:2]):
        return [], refused
    if 0 in sides:
        return [], f"an array without values {sides}"
    if "y" in named and "x" in named:
        image, last = [named["y"], named["x"]], len(sides) - 1
        is_last = last > image[1] > image[0] and not names[last]
        if channel is None and is_last and sides[last] in COLOURS:
            channel = last
    else:
        image, channel = _by_shape(sides, roles)
    kept = [axis for axis, side in enumerate(sides) if side > 1 and axis not in (*image, channel)]
    described = str(sides)
    if named and all(names):
        described += f" of the axes {', '.join(map(str, names))}"
    if len(kept) > 1:
        return [], f"{len(kept) + 2}-D data {described}"
    h, w = (sides[axis] for axis in image)
    if len(kept) == 1 and not named and (doubt := doubt_of_order(sides[kept[0]], h, w)):
        return [], f"{described} {doubt}"
    order = (*kept, *image)
    fixed = {axis: 0 for axis in range(len(sides)) if axis not in order}
    inner = tuple(sides[axis] for axis in order)
    if channel is None or sides[channel] == 1:
        return [Layout(inner, order, fixed)], ""
    count = sides[channel]
    colours = axes.colours
    if colours is None:
        small = np.dtype(dtype).kind == "u" and np.dtype(dtype).itemsize <= 2
        colours = small and channel == len(sides) - 1
    if colours and count in COLOURS:
        del fixed[channel]
        return [Layout(inner, (*order, channel), fixed, count)], ""
    if count > CHANNELS:
        return [], f"{count} channels, expected at most {CHANNELS}"
    called = list(axes.labels[:count])
    if len(called) < count:
        called = [f"channel {n}" for n in range(count)]
    return [
        Layout(inner, order, fixed | {channel: n}, label=label) for n, label in enumerate(called)
    ], ""


def doubt_of_order(planes: int, h: int, w: int) -> str:
    """Return why `planes` unnamed images of h x w may be planes x h with w channels, or ""."""
    few = w <= CHANNELS and 4 * w <= min(planes, h) and max(planes, h) <= 2 * min(planes, h)
    if min(h, w) > NARROW and not few:
        return ""
    return f"would be {planes} images of {h}x{w}; store the image axes last, or name the axes"


def _by_shape(sides: Sequence[int], roles: Sequence[str]) -> tuple[list[int], int | None]:
    """Return (the axes y and x, that of the channels or None) of an array without their names."""
    channel = roles.index("c") if "c" in roles else None
    free = [axis for axis, found in enumerate(roles) if found not in ("c", "z", "t")]
    if len(free) < 2:
        free = [axis for axis in range(len(sides)) if axis != channel]
    if len(free) < 2:
        return [0, 1], None
    long = [axis for axis in free if sides[axis] > 1]
    if not any(roles) and len(long) > 2 and sides[long[-1]] <= max(COLOURS):
        h, w = (sides[axis] for axis in long[-3:-1])
        if min(h, w) > max(COLOURS):
            channel = long.pop()
    for axis in reversed(free):  # a single row or column is an image, too
        if len(long) < 2 and axis not in long and axis != channel:
            long.append(axis)
    return sorted(sorted(long)[-2:]), channel
