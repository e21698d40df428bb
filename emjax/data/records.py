"""Records on disk: opening what was built, decoding it, standing in for what is damaged."""

import json
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from emjax.config import parts_of
from emjax.errors import InputError, UsageError, first_line, note

BAD_SHARE = 0.001  # of a split's records may be damaged; more, and the run stops


class Records(NamedTuple):
    """A split of a dataset as it was built, and the dataset's card."""

    source: "Readable"  # source[i]: {field: array}
    card: dict
    weight: float = 1.0  # of its examples in a mixture, against those of the other parts


class Readable:
    """The records of a split, by place. The next good one stands in for one that is damaged.

    So each place has an example, the same one on every machine. A damaged record is named on
    stderr, once.

    Raises: InputError once more than BAD_SHARE of the records are known to be damaged.
    """

    def __init__(self, source, name):
        self.source, self.name, self.damaged = source, name, {}
        self.noting = threading.Lock()

    def __len__(self):
        return len(self.source)

    def __repr__(self):
        return f"Readable({self.name}, {len(self)} records)"

    def __getitem__(self, place):
        at = int(place)
        if not 0 <= at < len(self):
            raise IndexError(f"{self.name} has {len(self)} records, no record {at}")
        while True:
            if at not in self.damaged:
                try:
                    return self.source[at]
                except Exception as error:  # whatever a decoder makes of damaged bytes
                    self.note_damaged(at, error)
            at = (at + 1) % len(self)

    def note_damaged(self, at, error):
        reason = f"cannot be decoded: {first_line(error)}"
        most = BAD_SHARE * len(self)
        with self.noting:  # so that the count that ends a run is the same on every machine
            if at in self.damaged:
                return  # another thread was first
            if len(self.damaged) <= most:
                self.damaged[at] = error
        if len(self.damaged) > most:
            raise InputError(
                f"{self.name}: record {at} {reason}; {len(self.damaged)} of {len(self)} so far, "
                f"more than {BAD_SHARE:.1%}. Build the dataset again"
            )
        note(f"{self.name}: record {at}", f"{reason}; the next one stands in for it")


class Decoded:
    """Stored bytes as records: what TFDS would make of them, in less than a third of its time.

    Decoding holds Python's global lock, so that its speed is all a host can stream, on however
    many cores.

    Args:
        raw: raw[i]: the bytes of record i, a tf.train.Example.
        features: those of `data_builders.writer.features`.
    """

    def __init__(self, raw, features):
        self.raw = raw
        self.fields = {name: field(name, feature) for name, feature in features.items()}

    def __len__(self):
        return len(self.raw)

    def __getitem__(self, place):
        stored = tf_example_pb2.Example.FromString(self.raw[place]).features.feature
        return {name: value(stored) for name, value in self.fields.items()}


def field(name, feature):
    """A function from an Example's features to the value of `name`: array, int or bytes."""
    if isinstance(feature, tfds.features.Text):
        return lambda stored: stored[name].bytes_list.value[0]
    dtype, shape = feature.np_dtype, feature.shape
    if not shape:
        return lambda stored: stored[name].int64_list.value[0]
    if None in shape:  # written with the sizes of each image
        return lambda stored: np.frombuffer(
            stored[f"{name}/value"].bytes_list.value[0], dtype
        ).reshape(stored[f"{name}/shape"].int64_list.value)
    if len(shape) > 1:
        return lambda stored: np.frombuffer(stored[name].bytes_list.value[0], dtype).reshape(shape)
    return lambda stored: np.array(stored[name].float_list.value, dtype).reshape(shape)


def open_records(data_dir, name, split):
    """The records of `split` ("train", "train[:50000]", ...) of the dataset `name`.

    Raises: InputError if the dataset is not built or the split is not in it or not that large.
    """
    folder = Path(data_dir) / name
    cards = sorted(folder.glob("[0-9]*/card.json"))
    if not cards:
        kind, _, rest = name.partition("/")
        what = f"micrographs --name={rest}" if kind == "micrographs" and rest else name
        source = "" if kind == "simulated" else " --source=DIR"
        raise InputError(
            f"{folder}: dataset {name!r} is not built. "
            f"Build it: python -m data_builders.build {what} --data_dir={data_dir}{source}"
        )
    builder = tfds.builder_from_directory(cards[-1].parent)
    counts = {key: info.num_examples for key, info in builder.info.splits.items()}
    try:
        records = builder.info.splits[split].num_examples
        if not records:
            raise ValueError("it is empty")
    except (KeyError, ValueError, AssertionError) as error:
        has = ", ".join(f"{key} {count}" for key, count in counts.items())
        raise InputError(
            f"{folder}: no split {split!r} of it: {first_line(error)}. It has: {has}"
        ) from error
    raw = builder.as_data_source(split).data_source
    source = Readable(Decoded(raw, builder.info.features), f"{name}:{split}")
    return Records(source, json.loads(cards[-1].read_text()))


def open_mixture(data_dir, parts):
    """The Records to train on, of a config's `data.train`.

    Args:
        parts: (name, split), or several (name, split, weight): of the examples, shares in
            proportion to the weights come from each, whatever their sizes.

    Raises: InputError as open_records, or if the images of two parts differ in size or number
        format; UsageError for a weight that is not positive.
    """
    mixture = []
    for name, split, weight in parts_of(parts):
        if not weight > 0:
            raise UsageError(f"data.train: weight {weight} of {name}; a positive number was due")
        mixture.append(open_records(data_dir, name, split)._replace(weight=float(weight)))
    first, *others = ((r.source.name, r.source[0]["image"]) for r in mixture)
    for name, image in others:
        if (image.shape, image.dtype) != (first[1].shape, first[1].dtype):
            raise InputError(
                f"{name} has images {image.dtype} {image.shape}, {first[0]} has "
                f"{first[1].dtype} {first[1].shape}; one mixture needs one kind: build them alike"
            )
    return mixture
