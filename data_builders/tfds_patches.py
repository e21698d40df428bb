"""All use of private parts of TensorFlow Datasets (TFDS): what is replaced and what is called.

TFDS may change these parts in any release. `check` compares them with the installed version before
a build; tests/test_tfds_patches.py names the part that is gone. Private modules are imported inside
functions, because an import at the top would fail before `check` can name the part.
"""

import importlib
import importlib.metadata
import inspect
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from emjax.errors import UsageError

TESTED = "4.9.10"  # the release of tensorflow-datasets that this file was tested with
BUFFER_BYTES = 256 << 20  # of a split held in memory; the rest waits in buckets on disk

# module of tensorflow_datasets.core: part -> the parameters that it is called with here
PARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "shuffle": {
        "_Bucket": ("path",),
        "_Bucket.__len__": (),
        "_Bucket.add": ("key", "data"),
        "_Bucket.read_values": (),
        "_Bucket.del_file": (),
        "MAX_MEM_BUFFER_SIZE": (),
    },
    "example_serializer": {
        "ExampleSerializer": ("example_specs",),
        "ExampleSerializer.get_tf_example": ("example",),
        "ExampleSerializer.serialize_example": ("example",),
    },
    "dataset_info": {"DatasetInfo.initialize_from_bucket": ()},
    "dataset_builder": {
        "GeneratorBasedBuilder._generate_splits": ("dl_manager", "download_config"),
        "GeneratorBasedBuilder._get_filename_template": ("split_name",),
    },
    "hashing": {"Hasher": ("salt",), "Hasher.hash_key": ("key",)},
    "file_adapters": {
        "ADAPTER_FOR_FORMAT": (),
        "FileFormat.ARRAY_RECORD": (),
        "FileAdapter.write_examples": ("path", "iterator"),
    },
    "naming": {"ShardedFileTemplate.sharded_filepath": ("shard_index", "num_shards")},
    "splits": {"SplitInfo": ("name", "shard_lengths", "num_bytes", "filename_template")},
    "utils.shard_utils": {
        "ShardConfig.get_number_shards": ("total_size", "num_examples"),
        "get_shard_boundaries": ("num_examples", "number_of_shards"),
    },
}


def missing_parts() -> list[str]:
    """Return the names of those PARTS that the installed TFDS lacks or calls differently."""
    missing = []
    for module, parts in PARTS.items():
        for name, parameters in parts.items():
            try:
                found = importlib.import_module(f"tensorflow_datasets.core.{module}")
                part: Any = reduce(getattr, name.split("."), found)
            except (ImportError, AttributeError):
                missing.append(f"{module}.{name}")
                continue
            if parameters:
                lacking = set(parameters) - inspect.signature(part).parameters.keys()
                missing += [f"{module}.{name}({parameter}=)" for parameter in sorted(lacking)]
    return missing


def check() -> None:
    """Raise UsageError if the installed TFDS lacks any of PARTS."""
    missing = missing_parts()
    if missing:
        installed = importlib.metadata.version("tensorflow-datasets")
        raise UsageError(
            f"tensorflow-datasets {installed} has no {', '.join(missing)}; expected release "
            f"{TESTED}, which the builders were tested with: "
            f"pip install tensorflow-datasets=={TESTED}"
        )


def apply() -> None:
    """Replace TFDS's disk buckets and serialisation, and shrink its buffer, in this process.

    Raises: UsageError as `check`.
    """
    check()
    from tensorflow_datasets.core import example_serializer, shuffle

    if shuffle._Bucket is Bucket:
        return
    for owner, name, replacement in (
        (shuffle, "_Bucket", Bucket),
        (shuffle, "MAX_MEM_BUFFER_SIZE", BUFFER_BYTES),
        (example_serializer.ExampleSerializer, "serialize_example", serialize_example),
    ):
        setattr(owner, name, replacement)


class Bucket:
    """Records of a split that wait on disk to be sorted.

    Replaces TFDS's class, which needs TensorFlow: without this one no split could be larger than
    the buffer.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.records = path, 0

    def __len__(self) -> int:
        return self.records

    def add(self, key: int, data: bytes) -> None:
        """Append the record `data` with its hashed `key` of 128 bits."""
        with open(self.path, "ab") as file:  # there are a thousand; not all can stay open
            file.write(struct.pack("<QQQ", key >> 64, key & (1 << 64) - 1, len(data)) + data)
        self.records += 1

    def read_values(self) -> Iterator[tuple[int, bytes]]:
        """Yield (key, record) in the order of `add`."""
        if self.records:
            with open(self.path, "rb") as file:
                while head := file.read(24):
                    high, low, size = struct.unpack("<QQQ", head)
                    yield (high << 64) | low, file.read(size)

    def del_file(self) -> None:
        """Remove the file, if there is one."""
        Path(self.path).unlink(missing_ok=True)


def serialize_example(self: Any, example: Mapping[str, Any]) -> bytes:
    """Serialise `example` with its fields in the same order in every process.

    Replaces the method of TFDS's ExampleSerializer, which leaves the order to chance.
    """
    return self.get_tf_example(example).SerializeToString(deterministic=True)


class Info(tfds.core.DatasetInfo):
    """What TFDS knows of the records, from their builder alone."""

    def initialize_from_bucket(self) -> None:
        """Do nothing: asking for published datasets would leave an empty temporary folder."""


def serializer_of(builder: tfds.core.DatasetBuilder) -> Callable[[Mapping[str, Any]], bytes]:
    """Return the function from a record to the bytes that `builder` writes of it."""
    from tensorflow_datasets.core import example_serializer

    features: Any = builder.info.features
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    return lambda record: serializer.serialize_example(features.encode_example(record))


def hash_of_keys(split: str) -> Callable[[int], int]:
    """Return the function from a record's key to its hash, 128 bits, which orders `split`."""
    from tensorflow_datasets.core import hashing

    return hashing.Hasher(split).hash_key


class Shard(NamedTuple):
    """One file of a split and the records in it."""

    split: str
    path: Path
    start: int  # index of its first record in the order of the split
    stop: int


def plan_shards(
    builder: Any, split: str, *, n_bytes: int, n_records: int
) -> tuple[Any, list[Shard]]:
    """Return (TFDS's SplitInfo, the Shards) of a split, cut where TFDS cuts it.

    Args:
        builder: a tfds.core.GeneratorBasedBuilder.
        n_bytes: of the serialised records together.
    """
    from tensorflow_datasets.core import splits
    from tensorflow_datasets.core.utils import shard_utils

    template = builder._get_filename_template(split)
    count = shard_utils.ShardConfig().get_number_shards(n_bytes, n_records)
    bounds = [0, *shard_utils.get_shard_boundaries(n_records, count)]
    shards = []
    for number, (start, stop) in enumerate(pairwise(bounds)):
        path = template.sharded_filepath(shard_index=number, num_shards=count)
        shards.append(Shard(split, Path(path).resolve(), start, stop))
    info = splits.SplitInfo(
        name=split,
        shard_lengths=[shard.stop - shard.start for shard in shards],
        num_bytes=n_bytes,
        filename_template=template,
    )
    return info, shards


def write_array_record(path: Path, records: Iterable[bytes]) -> None:
    """Write serialised `records`, in their order, to the ArrayRecord file `path`."""
    from tensorflow_datasets.core import file_adapters

    adapter: Any = file_adapters.ADAPTER_FOR_FORMAT[file_adapters.FileFormat.ARRAY_RECORD]
    adapter.write_examples(path, ((None, record) for record in records))
