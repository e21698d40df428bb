"""Read the h5 files of the Au sets, in each of their published layouts, image by image."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from jaxtyping import Float32, Shaped, UInt8

from data_builders.au_nanoparticles.facts import Facts
from emjax.errors import InputError

SPLITS = {"Training": "train", "Validation": "val", "Test": "test"}  # in file names, and here


class Pair(NamedTuple):
    """A file of images and the file of their labels."""

    images: Path
    labels: Path
    split: str | None  # that all of it belongs to; None: not split yet


class Found(NamedTuple):
    """What a folder holds of a dataset."""

    layout: str  # raw: micrographs to preprocess; cut: patches to split; split: patches in splits
    pairs: list[Pair]


class Unusable(InputError):
    """One image of a file is damaged; the others may be good."""


def find(folder: str | Path, facts: Facts) -> Found:
    """Return the Found of a dataset in `folder`: its published files, or else prepared ones.

    Raises: InputError if one file of a pair is missing, if there are two preparations, or nothing.
    """
    folder = Path(folder)
    first = Pair(folder / facts.images, folder / facts.labels, None)
    if first.images.exists() or first.labels.exists():
        return Found("cut" if facts.xray_threshold is None else "raw", [_whole(first)])
    pairs = []
    for name, split in SPLITS.items():
        images = _only_one(folder, f"{facts.prepared}_{name}_DiAugment_*_Images.h5")
        if images:
            pairs.append(_whole(Pair(images, _labels_of(images), split)))
    if pairs and len(pairs) < len(SPLITS):
        has = ", ".join(pair.images.name for pair in pairs)
        raise InputError(f"{folder} holds {has} only, expected all of {', '.join(SPLITS)}")
    if pairs:
        return Found("split", pairs)
    stem = facts.images.removesuffix("_Images.h5")
    images = _only_one(folder, f"{stem}*_Std*_Images.h5")
    if images:
        return Found("cut", [_whole(Pair(images, _labels_of(images), None))])
    found = sorted(path.name for path in folder.glob("*.h5"))[:5] if folder.is_dir() else []
    raise InputError(
        f"{folder} holds {', '.join(found) or 'no h5 file'}, expected {facts.images} and "
        f"{facts.labels}; download them from {facts.address} into {folder}, or try --fetch"
    )


def _only_one(folder: Path, pattern: str) -> Path | None:
    paths = sorted(folder.glob(pattern))
    if len(paths) > 1:
        names = " and ".join(path.name for path in paths)
        raise InputError(f"{folder} holds {names}, expected one of them; keep the others elsewhere")
    return paths[0] if paths else None


def _labels_of(images: Path) -> Path:
    return images.with_name(images.name.removesuffix("Images.h5") + "Labels.h5")


def _whole(pair: Pair) -> Pair:
    """Return `pair`; raise InputError if one of its files is missing."""
    for path, other in ((pair.images, pair.labels), (pair.labels, pair.images)):
        if not path.is_file():
            raise InputError(f"{path} is missing; it belongs to {other.name}")
    return pair


class Stack(NamedTuple):
    """The images or the labels of a file, not in memory."""

    path: Path
    values: h5py.Dataset
    channel: tuple[int | slice, ...]  # what follows [index] to get one [h, w]
    shape: tuple[int, int, int]  # n, h, w


@contextlib.contextmanager
def opened(pair: Pair) -> Iterator[tuple[Stack, Stack]]:
    """Open the (images, labels) of `pair`, two Stacks of one shape.

    Raises: InputError if a file cannot be read, has no such data, or the shapes differ.
    """
    with _stack(pair.images, ("images",), 1) as images:
        with _stack(pair.labels, ("labels", "maps", "images"), 2) as labels:
            if images.shape != labels.shape:
                raise InputError(
                    f"{pair.labels}: {_size(labels.shape)} labels (number, height, width), "
                    f"expected the shape of the images in {pair.images.name}, {_size(images.shape)}"
                )
            yield images, labels


@contextlib.contextmanager
def _stack(path: Path, keys: tuple[str, ...], most_channels: int) -> Iterator[Stack]:
    """Open the first of `keys` in the h5 file at `path`, with up to `most_channels` per image."""
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: {reason}; expected an HDF5 file") from None
    with file:
        for key in keys:
            values = file.get(key)
            if isinstance(values, h5py.Dataset):
                break
        else:
            has = ", ".join(map(repr, sorted(file))) or "none"
            raise InputError(f"{path}: no key {' or '.join(map(repr, keys))}; its keys: {has}")
        if values.dtype.kind not in "buif":
            raise InputError(f"{path}: {key!r} is {values.dtype}, expected real numbers")
        n, *shape = values.shape or (0,)
        channel: tuple[int | slice, ...] = ()
        if len(shape) == 3 and shape[0] == 1:  # channels first
            channel, shape = (0,), shape[1:]
        elif len(shape) == 3 and shape[2] <= most_channels:
            channel, shape = (slice(None), slice(None), shape[2] - 1), shape[:2]
        if len(shape) != 2:
            raise InputError(
                f"{path}: {key!r} has the shape {_size(values.shape)}, expected number x height x "
                f"width, with at most {most_channels} channel(s) first or last"
            )
        yield Stack(path, values, channel, (n, shape[0], shape[1]))


def read_image(images: Stack, index: int) -> Float32[np.ndarray, "h w"]:
    """Return the image `index` of `images`.

    Raises: Unusable if it cannot be read, or its values are not finite, or all the same.
    """
    image = _read(images, index).astype(np.float32)
    if not np.isfinite(image).all():
        bad = image.size - np.isfinite(image).sum()
        raise Unusable(f"{bad} of {image.size} values are NaN or infinite")
    if image.max() == image.min():
        raise Unusable(f"all pixels are {image.flat[0]:g}")
    return image


def read_mask(labels: Stack, index: int) -> UInt8[np.ndarray, "h w"]:
    """Return the label `index` of `labels`: 1 for particle, else 0.

    Raises: InputError if it holds other values.
    """
    label = _read(labels, index)
    mask = (label == 1).astype(np.uint8)
    if not np.array_equal(mask, label):
        others = np.unique(label[(label != 0) & (label != 1)])[:3]
        values = ", ".join(f"{value:g}" for value in others)
        raise InputError(f"{labels.path}[{index}]: labels hold {values}, expected 0 and 1 alone")
    return mask


def _read(stack: Stack, index: int) -> Shaped[np.ndarray, "h w"]:
    try:
        return stack.values[(index, *stack.channel)]
    except OSError as error:
        raise Unusable(" ".join(str(error).split())) from None


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(str(side) for side in shape)
