"""The h5 files of the Au sets in each of their published layouts, read one image at a time."""

import contextlib
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

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
    """One image of a file is damaged; the others may be sound."""


def find(folder, facts):
    """The Found of a dataset in `folder`: its first files, or the first prepared ones there are.

    Raises: InputError if one file of a pair is missing, if two preparations are there, or nothing.
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
        raise InputError(f"{folder} holds {has} only; all of {', '.join(SPLITS)} were due")
    if pairs:
        return Found("split", pairs)
    stem = facts.images.removesuffix("_Images.h5")
    images = _only_one(folder, f"{stem}*_Std*_Images.h5")
    if images:
        return Found("cut", [_whole(Pair(images, _labels_of(images), None))])
    there = sorted(path.name for path in folder.glob("*.h5"))[:5] if folder.is_dir() else []
    raise InputError(
        f"{folder} {'holds ' + ', '.join(there) if there else 'holds no h5 file'}; "
        f"{facts.images} and {facts.labels} were due. Download them from {facts.address} into "
        f"{folder}, or try --fetch"
    )


def _only_one(folder, pattern):
    paths = sorted(folder.glob(pattern))
    if len(paths) > 1:
        names = " and ".join(path.name for path in paths)
        raise InputError(f"{folder} holds {names}; one of them was due, keep the others elsewhere")
    return paths[0] if paths else None


def _labels_of(images):
    return images.with_name(images.name.removesuffix("Images.h5") + "Labels.h5")


def _whole(pair):
    for path, other in ((pair.images, pair.labels), (pair.labels, pair.images)):
        if not path.is_file():
            raise InputError(f"{path} is missing; it belongs to {other.name}")
    return pair


class Stack(NamedTuple):
    """The images or the labels of a file, not in memory."""

    path: Path
    values: h5py.Dataset
    channel: tuple  # what follows [place] to get one [h, w]
    shape: tuple[int, int, int]  # n, h, w


@contextlib.contextmanager
def opened(pair):
    """(images, labels) of `pair`: two Stacks of one shape."""
    with _stack(pair.images, ("images",), 1) as images:
        with _stack(pair.labels, ("labels", "maps", "images"), 2) as labels:
            if images.shape != labels.shape:
                raise InputError(
                    f"{pair.labels}: {_size(labels.shape)} labels (number, height, width), but "
                    f"{pair.images.name} has {_size(images.shape)} images; one shape was due"
                )
            yield images, labels


@contextlib.contextmanager
def _stack(path, keys, most_channels):
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: {reason}; an HDF5 file was due") from None
    with file:
        key = next((key for key in keys if isinstance(file.get(key), h5py.Dataset)), None)
        if key is None:
            has = ", ".join(map(repr, sorted(file))) or "none"
            raise InputError(f"{path}: no key {' or '.join(map(repr, keys))}; its keys: {has}")
        values = file[key]
        if values.dtype.kind not in "buif":
            raise InputError(f"{path}: {key!r} is {values.dtype}; real numbers were due")
        n, *shape = values.shape or (0,)
        if len(shape) == 2:
            channel = ()
        elif len(shape) == 3 and shape[0] == 1:  # channels first
            channel, shape = (0,), shape[1:]
        elif len(shape) == 3 and shape[2] <= most_channels:
            channel, shape = (slice(None), slice(None), shape[2] - 1), shape[:2]
        else:
            raise InputError(
                f"{path}: {key!r} has the shape {_size(values.shape)}; number x height x width, "
                f"with at most {most_channels} channel(s) first or last, was due"
            )
        yield Stack(path, values, channel, (n, *shape))


def read_image(images, place):
    """float32 [h, w]: the image at `place` of the Stack `images`.

    Raises: Unusable if it cannot be read, or its values are not finite, or all the same.
    """
    image = _read(images, place).astype(np.float32)
    if not np.isfinite(image).all():
        bad = image.size - np.isfinite(image).sum()
        raise Unusable(f"{bad} of {image.size} values are NaN or infinite")
    if image.max() == image.min():
        raise Unusable(f"all pixels are {image.flat[0]:g}")
    return image


def read_mask(labels, place):
    """uint8 [h, w] in {0, 1}: the label at `place` of the Stack `labels`, 1 for particle.

    Raises: InputError if it holds other values.
    """
    label = _read(labels, place)
    mask = (label == 1).astype(np.uint8)
    if not np.array_equal(mask, label):
        others = np.unique(label[(label != 0) & (label != 1)])[:3]
        told = ", ".join(f"{value:g}" for value in others)
        raise InputError(f"{labels.path}[{place}]: labels hold {told}; 0 and 1 alone were due")
    return mask


def _read(stack, place):
    try:
        return stack.values[(place, *stack.channel)]
    except OSError as error:
        raise Unusable(" ".join(str(error).split())) from None


def _size(shape):
    return "x".join(str(side) for side in shape)
