"""Records into ArrayRecord shards, and what the card says of them."""

import array
import contextlib
import io
import json
import struct
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer, shuffle

from data_builders import duplicates
from emjax.errors import InputError

VERSION = "1.0.0"
PAIRS_NAMED = 5  # near-duplicates of two splits that the card names


class LeftOut(NamedTuple):
    """A file, or a part of one, that cannot be used, and why."""

    path: str
    reason: str


class Count(NamedTuple):
    """Something that the card tells the number of, such as a file dropped by a rule."""

    what: str


def features(dtype, shape, targets):
    """The features of a record; raw bytes, as PNG saves nothing on noise and reads slowly."""

    def image(dtype):
        return tfds.features.Tensor(
            shape=(*(shape or (None, None)), 1), dtype=np.dtype(dtype).type, encoding="bytes"
        )

    return tfds.features.FeaturesDict(
        {
            "image": image(dtype),
            **{target: image("uint8" if target == "mask" else dtype) for target in targets},
            "intensity_range": tfds.features.Tensor(shape=(2,), dtype=np.float32),
            "nm_per_pixel": tfds.features.Tensor(shape=(2,), dtype=np.float32),
            "name": tfds.features.Text(),
            "source": tfds.features.Text(),
            "index": np.int32,
        }
    )


def check_unusable_share(dataset, unusable, images, share):
    """Raise InputError if more than `share` of the `images` of a dataset are `unusable`."""
    if len(unusable) <= share * images:
        return
    first = "; ".join(f"{path}: {reason}" for path, reason in unusable[:3])
    more = f"; and {len(unusable) - 3} more" if len(unusable) > 3 else ""
    raise InputError(
        f"{dataset.folder}: {len(unusable)} of {images} images cannot be used, over the "
        f"{share:.1%} that may be left out: {first}{more}. "
        "Repair or remove them, or raise --left_out"
    )


class _Bucket:
    """Records of a split that wait on the disk to be put in order.

    Stands in for the class of the same name in TFDS, which needs TensorFlow: without it no split
    could be larger than the buffer.
    """

    def __init__(self, path):
        self.path, self.size, self.records = path, 0, 0

    def __len__(self):
        return self.records

    def add(self, key, data):
        with open(self.path, "ab") as file:  # there are a thousand; not all can stay open
            file.write(struct.pack("<QQQ", key >> 64, key & (1 << 64) - 1, len(data)) + data)
        self.size += len(data)
        self.records += 1

    def read_values(self):
        if self.records:
            with open(self.path, "rb") as file:
                while head := file.read(24):
                    high, low, size = struct.unpack("<QQQ", head)
                    yield (high << 64) | low, file.read(size)

    def del_file(self):
        Path(self.path).unlink(missing_ok=True)


def _in_one_order(serializer, example):
    """`example` as TFDS serialises it, its fields in the same order in every process."""
    return serializer.get_tf_example(example).SerializeToString(deterministic=True)


shuffle._Bucket = _Bucket
shuffle.MAX_MEM_BUFFER_SIZE = 256 << 20  # bytes of a split held in memory; the rest is in buckets
example_serializer.ExampleSerializer.serialize_example = _in_one_order


class Info(tfds.core.DatasetInfo):
    """What TFDS knows of the records, from their builder alone."""

    def initialize_from_bucket(self):
        """Ours are not among those it publishes; asking would leave an empty temporary folder."""


class Writer(tfds.core.GeneratorBasedBuilder):
    """Writes ArrayRecord shards with TFDS, and remembers what the card says of the records."""

    name = "records"
    VERSION = tfds.core.Version(VERSION)

    def __init__(self, dataset, contents, *, data_dir, share):
        self.dataset, self.contents, self.share, self.partial = dataset, contents, share, data_dir
        self.unusable = []  # found while the records were written
        self.fingerprints = {split: array.array("Q") for split in contents.splits}
        self.sizes, self.without_size, self.counts = [], 0, Counter()
        super().__init__(data_dir=data_dir, file_format="array_record")

    def write(self):
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):  # it tells of a download and of our folder
            self.download_and_prepare(download_dir=Path(self._data_dir_root) / "downloads")

    def _info(self):
        dtype, shape, targets = self.contents.dtype, self.contents.shape, self.contents.targets
        return Info(builder=self, features=features(dtype, shape, targets))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.contents.splits}

    def _generate_examples(self, split):
        yield from self.remembered(split, self.dataset.records(split))
        self._check_not_empty(split)

    def remembered(self, split, records):
        """Yield (key, record) of those of `records` that can be used, and remember them.

        TFDS orders the records of a split by a hash of the key: train[:n] is a random subset.
        """
        with open(self.partial / f"{split}.names", "w", encoding="utf-8") as names:
            for record in records:
                if isinstance(record, LeftOut):
                    self._leave_out(record)
                elif isinstance(record, Count):
                    self.counts[record.what] += 1
                else:
                    self._remember(split, record, names)
                    yield int(record["index"]), record

    def _check_not_empty(self, split):
        if not self.fingerprints[split]:
            last = "".join(f"; {path}: {reason}" for path, reason in self.unusable[-1:])
            raise InputError(f"{self.dataset.folder}: nothing is left of the split {split}{last}")

    def _leave_out(self, record):
        self.unusable.append(record)
        before, images = self.contents.unusable, self.contents.images
        if len(before) + len(self.unusable) > self.share * images:
            check_unusable_share(self.dataset, [*before, *self.unusable], images, self.share)

    def _remember(self, split, record, names):
        self.fingerprints[split].append(duplicates.fingerprint(record["image"][..., 0]))
        names.write(json.dumps(record["name"]) + "\n")
        sizes = [float(size) for size in record["nm_per_pixel"] if np.isfinite(size)]
        self.without_size += not sizes
        if sizes:
            sizes += self.sizes
            self.sizes = [min(sizes), max(sizes)]

    def pixel_sizes(self):
        """The smallest and the largest nm per pixel, and how many records do not know theirs."""
        return {"range": self.sizes, "unknown": self.without_size}

    def near_duplicates(self):
        """For each two splits: how many records of the second look like one of the first."""
        told = []
        prints = {split: np.array(kept, np.uint64) for split, kept in self.fingerprints.items()}
        for first, second in combinations(prints, 2):
            found = duplicates.look_alikes(of=prints[second], among=prints[first])
            alike = np.flatnonzero(found >= 0)[:PAIRS_NAMED]
            pairs = zip(self._names(first, found[alike]), self._names(second, alike), strict=True)
            told.append(
                {
                    "splits": [first, second],
                    "records": int((found >= 0).sum()),
                    "of": len(found),
                    "first": [list(pair) for pair in pairs],
                }
            )
        return told

    def _names(self, split, places):
        """The names of the records of `split` that were written at `places`."""
        due = {int(place): None for place in places}
        with open(self.partial / f"{split}.names", encoding="utf-8") as names:
            for place, name in enumerate(names):
                if place in due:
                    due[place] = json.loads(name)
        return [due[int(place)] for place in places]
