"""Records to sharded device batches: endless for training, finite and padded for evaluation."""

import itertools
import json
import math
import os
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds

from emjax import devices, sharding
from emjax.errors import BadInput, Usage, first_line

ON_HOST = ("name", "source")  # text; never sent to a device


BAD_SHARE = 0.001  # of a split's records may be damaged; more, and the run stops
RESIDENT_SHARE = 0.3  # of a device's memory may hold records


class Records(NamedTuple):
    """A split of a dataset as it was built, and the dataset's card."""

    source: "Readable"  # source[i]: {field: array}
    card: dict
    weight: float = 1.0  # of its examples in a mixture, against those of the other parts


class Readable:
    """The records of a split, by place. The next good one stands in for one that is damaged.

    So each place has an example, the same one on every machine. A damaged record is named on
    stderr, once.

    Raises: BadInput once more than BAD_SHARE of the records are known to be damaged.
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
                    self.note(at, error)
            at = (at + 1) % len(self)

    def note(self, at, error):
        told = f"{self.name}: record {at} cannot be decoded: {first_line(error)}"
        most = BAD_SHARE * len(self)
        with self.noting:  # so that the count that ends a run is the same on every machine
            if at in self.damaged:
                return  # another thread was first
            if len(self.damaged) <= most:
                self.damaged[at] = error
        if len(self.damaged) > most:
            raise BadInput(
                f"{told}; {len(self.damaged)} of {len(self)} so far, over the {BAD_SHARE:.1%} that "
                "may be. Build the dataset again"
            )
        print(f"note: {told}; the next one stands in for it", file=sys.stderr)


def open_records(data_dir, name, split):
    """The records of `split` ("train", "train[:50000]", ...) of the dataset `name`.

    Raises: BadInput if the dataset is not built or the split is not in it or not that large.
    """
    folder = Path(data_dir) / name
    cards = sorted(folder.glob("[0-9]*/card.json"))
    if not cards:
        kind, _, rest = name.partition("/")
        what = f"micrographs --name={rest}" if kind == "micrographs" and rest else name
        source = "" if kind == "simulated" else " --source=DIR"
        raise BadInput(
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
        raise BadInput(
            f"{folder}: no split {split!r} of it: {first_line(error)}. It has: {has}"
        ) from error
    source = Readable(builder.as_data_source(split), f"{name}:{split}")
    return Records(source, json.loads(cards[-1].read_text()))


def parts_of(train):
    """A config's `data.train` as [(name, split, weight)]."""
    return [(*train, 1.0)] if isinstance(train[0], str) else train


def open_mixture(data_dir, parts):
    """The Records to train on, of a config's `data.train`.

    Args:
        parts: (name, split), or several (name, split, weight): of the examples, shares in
            proportion to the weights come from each, whatever their sizes.

    Raises: BadInput as open_records, or if the images of two parts differ in size or number
        format; Usage for a weight that is not positive.
    """
    mixture = []
    for name, split, weight in parts_of(parts):
        if not weight > 0:
            raise Usage(f"data.train: weight {weight} of {name}; a positive number was due")
        mixture.append(open_records(data_dir, name, split)._replace(weight=float(weight)))
    first, *others = ((r.source.name, r.source[0]["image"]) for r in mixture)
    for name, image in others:
        if (image.shape, image.dtype) != (first[1].shape, first[1].dtype):
            raise BadInput(
                f"{name} has images {image.dtype} {image.shape}, {first[0]} has "
                f"{first[1].dtype} {first[1].shape}; one mixture needs one kind: build them alike"
            )
    return mixture


def without_text(record):
    """The record's arrays, `index` among them as int32."""
    index = np.asarray(record["index"], np.int32)
    arrays = {name: value for name, value in record.items() if name not in ON_HOST}
    return {**arrays, "index": index}


class TrainBatches:
    """Global batches without end. Batch k is a function of (records, seed, k) alone.

    Row i of it is the same record on any number of processes; each process reads a contiguous
    block of rows. Every pass over the records has an order of its own.

    A batch is what `rows` makes the rows of, inside the step: the rows themselves, read from disk
    ahead of time, or, where all records are resident on the devices, as stored and spread over
    them, those and the places of the rows. The rows are the same either way.

    Args:
        mixture: the Records to draw from, by their weights; arrays that not all of them have are
            left out.
        resident: whether all records are kept on the devices; None: on those that have memory of
            their own, where they take at most RESIDENT_SHARE of it.
    """

    def __init__(self, mixture, *, batch_size, seed, mesh, resident=None):
        self.mine = sharding.local_rows(batch_size, mesh)
        self.batch_size, self.mesh = batch_size, mesh
        self.sources = [records.source for records in mixture]
        self.starts = np.cumsum([0, *map(len, self.sources)])
        shuffled = [
            grain.MapDataset.range(first, end).seed(seed).shuffle().repeat(None)
            for first, end in zip(self.starts, self.starts[1:], strict=False)
        ]
        weights = [records.weight for records in mixture]
        self.order = grain.MapDataset.mix(shuffled, weights) if weights[1:] else shuffled[0]
        self.fields = set.intersection(*(set(without_text(each[0])) for each in self.sources))
        self.record_shapes = {
            name: jax.ShapeDtypeStruct(np.shape(value), value.dtype)
            for name, value in self.example(0).items()
        }
        self.shapes = {
            name: jax.ShapeDtypeStruct((batch_size, *like.shape), like.dtype)
            for name, like in self.record_shapes.items()
        }
        self.resident = self.fits() if resident is None else resident

    def fits(self):
        record = sum(math.prod(x.shape) * x.dtype.itemsize for x in self.record_shapes.values())
        share = record * self.starts[-1] / self.mesh.size
        return bool(share <= RESIDENT_SHARE * devices.memory().get("bytes_limit", 0))

    def record(self, place):
        """The record at a place of all sources, one behind the other."""
        part = np.searchsorted(self.starts, place, side="right") - 1
        return self.sources[part][place - self.starts[part]]

    def example(self, place):
        """The arrays of a record that all sources have."""
        record = without_text(self.record(place))
        return {name: value for name, value in record.items() if name in self.fields}

    def places(self, batch):
        """Where the rows of batch number `batch` are, int32 [batch_size]."""
        rows = range(batch * self.batch_size, (batch + 1) * self.batch_size)
        return np.array([self.order[row] for row in rows], np.int32)

    def examples(self, batch):
        """The (source, index) of every row of batch number `batch`, on whatever process it is."""
        records = map(self.record, self.places(batch))
        return [(record["source"].decode(), int(record["index"])) for record in records]

    def starting_at(self, step):
        """Batches `step`, `step + 1`, ... on the devices."""
        return self.looked_up(step) if self.resident else self.streamed(step)

    def streamed(self, step):
        share = self.mine.stop - self.mine.start

        def example(position):
            batch, row = divmod(position, share)
            return self.example(self.order[batch * self.batch_size + self.mine.start + row])

        positions = grain.MapDataset.range(step * share, 2**62)
        rows = positions.map(example).batch(share, drop_remainder=True)
        for batch in rows.to_iter_dataset(reading(prefetched=4 * share)):
            yield sharding.to_devices(batch, self.mesh)

    def looked_up(self, step):
        stored = self.stored()
        for batch in itertools.count(step):
            places = sharding.placed(self.places(batch), self.mesh)
            yield {"places": places, "stored": stored}

    def rows(self, batch):
        """{field: [batch_size, ...]} of a batch; to be called in the step."""
        if "stored" not in batch:
            return batch

        def rows(name, values):
            shape = self.shapes[name].shape
            place = sharding.of_batch(shape, self.mesh)
            return jax.lax.with_sharding_constraint(values[batch["places"]].reshape(shape), place)

        return {name: rows(name, values) for name, values in batch["stored"].items()}

    def stored(self):
        """{field: [records, values of one]} of all records, in equal parts on all devices."""
        place, total = sharding.over_all(self.mesh), int(self.starts[-1])
        rounded = -(-total // self.mesh.size) * self.mesh.size
        shapes = {name: (rounded, math.prod(x.shape)) for name, x in self.record_shapes.items()}
        write = jax.jit(jax.lax.dynamic_update_slice_in_dim, static_argnums=3, donate_argnums=0)
        parts = {name: [] for name in shapes}
        for device, (rows, _) in place.addressable_devices_indices_map((rounded, 1)).items():
            first, end = rows.start or 0, min(rows.stop or rounded, total)
            part = {
                name: jnp.zeros((rounded // self.mesh.size, width), like.dtype, device=device)
                for (name, (_, width)), like in zip(
                    shapes.items(), self.record_shapes.values(), strict=True
                )
            }
            chunks = grain.MapDataset.range(first, max(end, first)).map(self.example).batch(1024)
            at = 0
            for chunk in chunks.to_iter_dataset(reading(prefetched=2048)):
                count = len(chunk["index"])
                flat = {name: x.reshape(count, -1) for name, x in chunk.items()}
                part = {name: write(x, flat[name], at, 0) for name, x in part.items()}
                at += count
            for name, values in part.items():
                parts[name].append(values)
        return {
            name: jax.make_array_from_single_device_arrays(shape, place, parts[name])
            for name, shape in shapes.items()
        }


def reading(prefetched):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = min(cores, 16)
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetched)


class EvalBatches:
    """Every record once, in stored order, whole, grouped by padded size.

    Images are mirrored at the bottom and right up to the network's `divisor`; `valid` [b, h, w, 1]
    is True on real pixels of real rows. A full batch has `batch_size` rows; the last of a size is
    filled up with rows that are nowhere valid.
    """

    def __init__(self, records, *, batch_size, divisor, mesh):
        sharding.local_rows(batch_size, mesh)
        self.records, self.batch_size = records, batch_size
        self.divisor, self.mesh = divisor, mesh

    def __iter__(self):
        waiting, compiled = {}, set()
        for position in range(len(self.records.source)):
            example = padded(self.records.source[position], self.divisor)
            size = example["image"].shape
            group = waiting.setdefault(size, [])
            group.append(example)
            if len(group) == self.batch_size:
                yield self.batch(waiting.pop(size), self.batch_size)
                compiled.add(size)
        for size, group in waiting.items():
            over = sharding.row_devices(self.mesh)
            fewest = -(-len(group) // over) * over
            yield self.batch(group, self.batch_size if size in compiled else fewest)

    def batch(self, group, rows):
        empty = {**group[0], "valid": np.zeros_like(group[0]["valid"])}
        group = group + [empty] * (rows - len(group))
        mine = group[sharding.local_rows(rows, self.mesh)]
        return sharding.to_devices(
            {name: np.stack([example[name] for example in mine]) for name in empty}, self.mesh
        )


def examples(records, divisor, count):
    """(name, batch of one on a device) for the first records, padded as for evaluation."""
    for position in range(min(count, len(records.source))):
        record = records.source[position]
        example = padded(record, divisor)
        batch = jax.device_put({field: np.asarray(value)[None] for field, value in example.items()})
        yield record["name"].decode(), batch


def padded(record, divisor):
    """A record without its text, images mirrored up to multiples of `divisor`, and `valid`."""
    h, w, _ = record["image"].shape
    more = ((0, -h % divisor), (0, -w % divisor), (0, 0))
    example = {
        name: np.pad(value, more, mode="reflect") if value.ndim == 3 else value
        for name, value in without_text(record).items()
    }
    return {**example, "valid": np.pad(np.ones((h, w, 1), bool), more)}
