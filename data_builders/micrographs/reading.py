"""The planes of an item and of its targets, as the records are to have them."""

import itertools
from typing import NamedTuple

import numpy as np

from data_builders.micrographs.resample import resample_to
from emjax import micrographs
from emjax.errors import InputError, UsageError


class Mismatch(InputError):
    """An image and its target differ in size: the pairing is wrong, and not one file."""


class ReadOptions(NamedTuple):
    """What the flags say of reading a file."""

    index: int | None  # which image, of files that hold several
    limit: int  # bytes that one image may take
    foreground: tuple[float, ...] | None  # in masks: a value or a colour; None for nonzero
    nm_per_pixel: float | None  # resample to this


def planes_of(item, axis, how):
    """Yield (Micrograph, {target: [h, w]}) for each plane along `axis`, one at a time.

    They are as the records are to be: with the table's pixel size, or resampled.
    """
    files = [micrographs.planes(item.image, how.index, how.limit, axis=axis)]
    files += [_target(target, path, axis, how) for target, path in item.targets.items()]
    for found in itertools.zip_longest(*files):
        if any(plane is None for plane in found):
            raise InputError("it and its targets have not the same number of planes")
        micrograph, targets = found[0], dict(zip(item.targets, found[1:], strict=True))
        for target, pixels in targets.items():
            if pixels.shape != micrograph.image.shape:
                raise Mismatch(
                    f"{item.targets[target]} is {size(pixels.shape)}, but its image "
                    f"{item.image} is {size(micrograph.image.shape)}; one size was due"
                )
        micrograph = _by_table(micrograph, item, axis)
        if how.nm_per_pixel:
            micrograph, targets = resample_to(how.nm_per_pixel, micrograph, targets, how.limit)
        yield micrograph, targets


def _target(target, path, axis, how):
    """Yield uint8 [h, w] in {0, 1} for a mask, otherwise the micrographs that are due."""
    mask = target == "mask"
    for plane in micrographs.planes(path, limit=how.limit, colours=mask, axis=axis):
        yield _is_foreground(path, plane.image, how.foreground) if mask else plane.image


def _is_foreground(path, pixels, foreground):
    if foreground is None:
        return (pixels if pixels.ndim == 2 else pixels.any(axis=-1)).astype(bool).astype("u1")
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if len(foreground) == 1 and np.any(pixels != pixels[..., :1]):
        raise InputError(f"{path}: a mask in colours; --foreground=R,G,B was due")
    return np.all(pixels == foreground, axis=-1).astype("u1")


def _by_table(micrograph, item, axis):
    """`micrograph`, a slice along `axis`, with the pixel size that the table states for `item`."""
    z, y, x = item.nm_per_pixel
    if not np.isfinite((y, x)).all():
        return micrograph
    if axis != "z" and not np.isfinite(z):
        z = micrograph.nm_per_pixel[0]
    sizes = {"z": (y, x), "y": (z, x), "x": (z, y)}[axis]
    return micrograph._replace(nm_per_pixel=sizes, origin="the table")


def foreground_of(text):
    """What --foreground says: None for nonzero, or a tuple of one value or three."""
    if text == "nonzero":
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in (1, 3):
        raise UsageError(f"--foreground={text}; nonzero, a value, or a colour R,G,B was due")
    return values


def size(shape):
    """`shape` for people."""
    return "x".join(str(side) for side in shape)
