"""Records on disk: opening a dataset, decoding its records, replacing damaged ones."""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from emjax.config import SPLITS, parts_of
from emjax.errors import InputError, UsageError, first_line, note

MAX_DAMAGED_SHARE = 0.001  # of a split's records; with more, the run stops

Record = dict[str, Any]  # {field: array, int or bytes}


class Source(Protocol):
    """Records by index."""

    def __len__(self) -> int:
        """Return the number of records."""
        ...

    def __getitem__(self, index: int, /) -> Record:
        """Return a record; raises whatever a decoder raises if it is damaged."""
        ...


class Records(NamedTuple):
    """A split of a dataset, and the dataset's card."""

    source: "TolerantSource"  # source[i]: {field: array}
    card: dict[str, Any]
    weight: float = 1.0  # of its examples in a mixture, relative to the other parts


class TolerantSource:
    """The records of a split, by index. A damaged record is replaced by the next good one.

    So every index has an example, the same one on every machine. A note names each damaged record,
    once.

    Raises: InputError once more than MAX_DAMAGED_SHARE of the records are known to be damaged.
    """

    def __init__(self, source: Source, name: str) -> None:
        self.source, self.name = source, name
        self.damaged: dict[int, Exception] = {}
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.source)

    def __repr__(self) -> str:
        return f"TolerantSource({self.name}, {len(self)} records)"

    def __getitem__(self, index: int) -> Record:
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} records, no record {index}")
        while True:
            if index not in self.damaged:
                try:
                    return self.source[index]
                except Exception as error:  # a decoder may raise anything for damaged bytes
                    self.note_damaged(index, error)
            index = (index + 1) % len(self)

    def note_damaged(self, index: int, error: Exception) -> None:
        """Print a note that a record is damaged; raise InputError if there are too many."""
        reason = f"cannot be decoded: {first_line(error)}"
        limit = MAX_DAMAGED_SHARE * len(self)
        with self.lock:  # so that the count that ends a run is the same on every machine
            if index in self.damaged:
                return  # another thread was first
            if len(self.damaged) <= limit:
                self.damaged[index] = error
        if len(self.damaged) > limit:
            raise InputError(
                f"{self.name}: record {index} {reason}; {len(self.damaged)} of {len(self)} records "
                f"so far, expected at most {MAX_DAMAGED_SHARE:.1%}; build the dataset again"
            )
        note(f"{self.name}: record {index}", f"{reason}; the next record is used instead")


class Decoded:
    """Stored bytes as records, decoded as TFDS does but in less than a third of its time.

    Decoding holds Python's global lock, so its speed limits what a host can stream, on any number
    of cores.

    Args:
        raw: raw[i]: the bytes of record i, a tf.train.Example.
        features: those of `data_builders.writer.features`.
    """

    def __init__(self, raw: Any, features: Mapping[str, Any]) -> None:
        self.raw = raw
        self.decoders = {name: decoder(name, feature) for name, feature in features.items()}

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, index: int) -> Record:
        example = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]  # made at run time
        stored = example.FromString(self.raw[index]).features.feature
        return {name: decode(stored) for name, decode in self.decoders.items()}


def decoder(name: str, feature: Any) -> Callable[[Any], Any]:
    """Return a function from an Example's features to the value of `name`: array, int or bytes."""
    if isinstance(feature, tfds.features.Text):
        return lambda stored: stored[name].bytes_list.value[0]
    dtype, shape = feature.np_dtype, feature.shape
    if not shape:
        return lambda stored: stored[name].int64_list.value[0]
    if None in shape:  # stored with the size of each image
        return lambda stored: np.frombuffer(
            stored[f"{name}/value"].bytes_list.value[0], dtype
        ).reshape(stored[f"{name}/shape"].int64_list.value)
    if len(shape) > 1:
        return lambda stored: np.frombuffer(stored[name].bytes_list.value[0], dtype).reshape(shape)
    return lambda stored: np.array(stored[name].float_list.value, dtype).reshape(shape)


def open_records(data_dir: str | Path, name: str, split: str) -> Records:
    """Return the records of `split` ("train", "train[:50000]", ...) of the dataset `name`.

    Raises: InputError if the dataset is not built, or has no such split or not that many records.
    """
    folder = Path(data_dir) / name
    cards = _cards(folder)
    if not cards:
        kind, _, rest = name.partition("/")
        what = f"micrographs --name={rest}" if kind == "micrographs" and rest else name
        source = "" if kind == "simulated" else " --source=DIR"
        raise InputError(
            f"{folder}: dataset {name!r} is not built. "
            f"Build it: python -m data_builders.build {what} --data_dir={data_dir}{source}"
        )
    builder: Any = tfds.builder_from_directory(cards[-1].parent)
    counts = {key: info.num_examples for key, info in builder.info.splits.items()}
    try:
        records = builder.info.splits[split].num_examples
        if not records:
            raise ValueError("it is empty")
    except (KeyError, ValueError, AssertionError) as error:
        has = ", ".join(f"{key} {count}" for key, count in counts.items())
        more = ""
        if split in SPLITS and split not in counts:
            more = "; its sources were too few for it: build it from more, or use another split"
        raise InputError(
            f"{folder}: no split {split!r} of it: {first_line(error)}. It has: {has}{more}"
        ) from error
    raw = builder.as_data_source(split).data_source
    source = TolerantSource(Decoded(raw, builder.info.features), f"{name}:{split}")
    return Records(source, json.loads(cards[-1].read_text()))


def has_split(data_dir: str | Path, name: str, split: str) -> bool:
    """Return False if the dataset `name` is built and its sources were too few for `split`."""
    cards = _cards(Path(data_dir) / name)
    return not (
        cards and split in SPLITS and split not in json.loads(cards[-1].read_text())["splits"]
    )


def _cards(folder: Path) -> list[Path]:
    """Return the cards of the builds in `folder`, the latest last."""
    return sorted(folder.glob("[0-9]*/card.json"))


def without_slices(mixture: Sequence[Records]) -> list[Records]:
    """Return the parts of a mixture but for slices of splits that are parts, too.

    Such are what a finetuning with corrections draws more often: "train[3:5]" beside "train".
    """
    whole = {records.source.name for records in mixture}
    return [
        records
        for records in mixture
        if "[" not in records.source.name or records.source.name.partition("[")[0] not in whole
    ]


def open_mixture(data_dir: str | Path, parts: Sequence[Any]) -> list[Records]:
    """Return the Records to train on, those of a config's `data.train`.

    Args:
        parts: (name, split), or several (name, split, weight). The examples of each part are drawn
            in proportion to its weight, whatever its size.

    Raises: InputError as open_records, or if the images of two parts differ in size or dtype;
        UsageError for a weight that is not positive.
    """
    mixture = []
    for name, split, weight in parts_of(parts):
        if not weight > 0:
            raise UsageError(f"data.train: weight {weight} of {name}, expected a positive number")
        mixture.append(open_records(data_dir, name, split)._replace(weight=float(weight)))
    first, *others = ((r.source.name, r.source[0]["image"]) for r in mixture)
    for name, image in others:
        if (image.shape, image.dtype) != (first[1].shape, first[1].dtype):
            raise InputError(
                f"{name} has images {image.dtype} {image.shape}, {first[0]} has {first[1].dtype} "
                f"{first[1].shape}; expected images of one kind in a mixture, build them alike"
            )
    rules = {r.source.name: r.card["range_rule"] for r in mixture}
    if len({*rules.values()}) > 1:
        listed = ", ".join(f"{name} {rule}" for name, rule in rules.items())
        raise InputError(
            f"data.train: intensity ranges by different rules, {listed}; expected one, since a "
            "model sees every micrograph by one: build one again with another --range"
        )
    return mixture
