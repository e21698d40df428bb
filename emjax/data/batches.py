"""Records to sharded device batches: endless for training, finite and padded for evaluation."""

import itertools
import math
import os

import grain
import jax
import jax.numpy as jnp
import numpy as np

from emjax.parallel import devices, sharding

ON_HOST = ("name", "source")  # text; never sent to a device
RESIDENT_SHARE = 0.3  # of a device's memory may hold records


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


def first_examples(records, divisor, count):
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
