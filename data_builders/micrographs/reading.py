"""Read the planes of a source and of its targets, as the records are to have them."""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Real, UInt8

from data_builders.micrographs.listing import Source
from data_builders.micrographs.masks import Found, interpret
from data_builders.micrographs.resample import resample_to
from emjax import micrographs
from emjax.errors import InputError, UsageError
from emjax.micrographs import banner


class Mismatch(InputError):
    """An image and its target differ in size: the pairing is wrong, and not one file."""


class ReadOptions(NamedTuple):
    """What the flags say about reading a file."""

    index: int | None  # which image, of files that hold several
    limit: int  # bytes that one image may take
    foreground: tuple[float, ...] | None  # in masks: a value or a colour; None for nonzero
    nm_per_pixel: float | None  # resample to this
    mrc_rows: str | None = None  # where the first row of MRC files belongs
    channel: str | None = None  # which, of images that have several
    cut_banner: bool = False  # leave out banners, borders and scale bars
    classes: int | None = None  # of masks that hold their numbers; None: foreground or not


Planes = dict[str, Real[np.ndarray, "h w"]]  # by target


def planes_of(
    source: Source, axis: str, options: ReadOptions, masks: list[Found] | None = None
) -> Iterator[tuple[micrographs.Micrograph, Planes]]:
    """Yield (Micrograph, {target: [h, w]}) for each plane along `axis`, one at a time.

    They are as the records are to be: with the table's pixel size, or resampled.

    Args:
        masks: gets what each plane of the mask holds.

    Raises: Mismatch if an image and a target differ in size, InputError if they differ in their
        numbers of planes or cannot be read, SkippedByRule as resample_to.
    """
    rows = options.mrc_rows or "top"
    files: list[Iterator[Any]] = [
        micrographs.planes(
            source.image,
            options.index,
            options.limit,
            axis=axis,
            mrc_rows=rows,
            channel=options.channel,
        )
    ]
    files += [
        _mask(path, axis, options, masks) if target == "mask" else _restored(path, axis, options)
        for target, path in source.targets.items()
    ]
    area: banner.Area | None = None  # of all planes, that of the first
    for found in itertools.zip_longest(*files):
        if any(plane is None for plane in found):
            raise InputError("the image and its targets differ in their numbers of planes")
        micrograph: micrographs.Micrograph = found[0]
        targets: Planes = dict(zip(source.targets, found[1:], strict=True))
        if options.cut_banner and axis == "z":
            area = area or banner.picture(micrograph.image)
            whole = micrograph.image.shape
            micrograph = micrograph._replace(image=micrograph.image[area])
            targets = {t: p[area] if p.shape == whole else p for t, p in targets.items()}
        for target, pixels in targets.items():
            if pixels.shape != micrograph.image.shape:
                raise Mismatch(
                    f"{source.targets[target]} is {size(pixels.shape)}, expected the size of its "
                    f"image {source.image}, {size(micrograph.image.shape)}"
                )
            if target != "mask":
                _check_scale(micrograph.image, pixels, source.targets[target])
        micrograph = _by_table(micrograph, source, axis)
        if options.nm_per_pixel:
            micrograph, targets = resample_to(
                options.nm_per_pixel, micrograph, targets, options.limit
            )
        yield micrograph, targets


def _restored(path: Path, axis: str, options: ReadOptions) -> Iterator[Real[np.ndarray, "h w"]]:
    """Yield each plane of a target in grey values, as recorded."""
    rows = options.mrc_rows or "top"
    with _one_image(path):
        for plane in micrographs.planes(path, limit=options.limit, axis=axis, mrc_rows=rows):
            yield plane.image


def _check_scale(
    image: Real[np.ndarray, "h w"], restored: Real[np.ndarray, "h w"], path: Path
) -> None:
    """Raise InputError if a target has other grey values than its image.

    Both are seen in the range of the image, in which such a target is black, white or flat.
    """
    low, high = map(float, np.quantile(_some(image), [0.001, 0.999]))
    lower, median, upper = map(float, np.quantile(_some(restored), [0.05, 0.5, 0.95]))
    if high > low and micrographs.is_far((low, high), lower, median, upper):
        raise InputError(
            f"{path} has grey values of {lower:g} to {upper:g}, its image of {low:g} to {high:g}; "
            "expected both in one scale, save them alike"
        )


def _some(image: Real[np.ndarray, "h w"]) -> Real[np.ndarray, " n"]:
    """Return pixels that are spread over an image, enough for its quantiles."""
    return image.reshape(-1)[:: max(1, image.size // 50_021)]


def _mask(
    path: Path, axis: str, options: ReadOptions, masks: list[Found] | None
) -> Iterator[UInt8[np.ndarray, "h w"]]:
    """Yield the foreground, 0 or 1, or the classes of each plane of a mask."""
    rows = options.mrc_rows or "top"
    with _one_image(path):
        for plane in micrographs.planes(
            path, limit=options.limit, as_mask=True, axis=axis, mrc_rows=rows
        ):
            foreground, found = interpret(path, plane.image, options.foreground, options.classes)
            if masks is not None:
                masks.append(found)
            yield foreground


@contextlib.contextmanager
def _one_image(path: Path) -> Iterator[None]:
    """Say of a target of several images what helps: index= and channel= are of images."""
    try:
        yield
    except micrographs.SeveralImages as error:
        raise InputError(
            f"{path} holds {len(error.choices)} images, expected one in a target; save it alone"
        ) from None


def _by_table(
    micrograph: micrographs.Micrograph, source: Source, axis: str
) -> micrographs.Micrograph:
    """Return `micrograph`, a slice along `axis`, with the pixel size that the table states."""
    z, y, x = source.nm_per_pixel
    if not np.isfinite((y, x)).all():
        return micrograph
    if axis != "z" and not np.isfinite(z):
        z = micrograph.nm_per_pixel[0]
    sizes = {"z": (y, x), "y": (z, x), "x": (z, y)}[axis]
    return micrograph._replace(nm_per_pixel=sizes, origin="the table")


def foreground_of(text: str) -> tuple[float, ...] | None:
    """Return the meaning of --foreground: None for nonzero, or one value or three.

    Raises: UsageError for anything else.
    """
    if text == "nonzero":
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in (1, 3):
        raise UsageError(f"--foreground={text}, expected nonzero, a value, or a colour R,G,B")
    return values


def size(shape: tuple[int, ...]) -> str:
    """Return `shape` as text: 40x48."""
    return "x".join(str(side) for side in shape)
