"""Records to sharded device batches: endless for training, finite and padded for evaluation."""

import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from emjax.data.padding import pad_to_multiple, padding_to_multiple
from emjax.data.records import Records
from emjax.parallel import devices, sharding

TEXT_FIELDS = ("name", "source")  # never sent to a device
RESIDENT_SHARE = 0.3  # of a device's memory may hold records

Record = Mapping[str, Any]  # {field: array, number or bytes}
Example = dict[str, np.ndarray]  # {field: array}
Batch = dict[str, Any]  # {field: [b, ...]}, or as TrainBatches.starting_at yields it


def without_text(record: Record) -> Example:
    """Return the record's arrays, `index` among them as int32."""
    index = np.asarray(record["index"], np.int32)
    arrays = {name: value for name, value in record.items() if name not in TEXT_FIELDS}
    return {**arrays, "index": index}


class TrainBatches:
    """Global batches without end. Batch k is a function of (records, seed, k) alone.

    Row i of a batch is the same record on any number of processes; each process reads a contiguous
    block of rows. Every pass over the records has its own order.

    A batch holds either the rows themselves (streamed from disk) or, if all records are on the
    devices, the indices of the records and the stored arrays. `rows` turns both into the same rows
    inside the step.

    Attributes:
        shapes: shapes, dtypes and shardings of what `starting_at` yields.
        resident: whether all records are on the devices.

    Args:
        mixture: the Records to draw from, by their weights; fields that not all of them have are
            left out.
        resident: whether to keep all records on the devices; None: on devices with memory of their
            own, if the records take at most RESIDENT_SHARE of it.
    """

    def __init__(
        self,
        mixture: Sequence[Records],
        *,
        batch_size: int,
        seed: int,
        mesh: Mesh,
        resident: bool | None = None,
    ) -> None:
        self.local_rows = sharding.local_rows(batch_size, mesh)
        self.batch_size, self.mesh = batch_size, mesh
        self.sources = [records.source for records in mixture]
        self.offsets = np.cumsum([0, *map(len, self.sources)])
        shuffled = [
            grain.MapDataset.range(first, end).seed(seed).shuffle().repeat(None)
            for first, end in itertools.pairwise(self.offsets)
        ]
        weights = [records.weight for records in mixture]
        self.order = grain.MapDataset.mix(shuffled, weights) if weights[1:] else shuffled[0]
        self.fields = set.intersection(*(set(without_text(each[0])) for each in self.sources))
        self.record_shapes = {
            name: jax.ShapeDtypeStruct(np.shape(value), value.dtype)
            for name, value in self.example(0).items()
        }
        self.resident = self.fits_on_devices() if resident is None else resident
        self.shapes = self.resident_shapes() if self.resident else self.streamed_shapes()

    def fits_on_devices(self) -> bool:
        """Return whether the records take at most RESIDENT_SHARE of the devices' memory."""
        record = sum(math.prod(x.shape) * x.dtype.itemsize for x in self.record_shapes.values())
        per_device = record * self.offsets[-1] / self.mesh.size
        return bool(per_device <= RESIDENT_SHARE * devices.memory().get("bytes_limit", 0))

    def streamed_shapes(self) -> Batch:
        """Return {field: [batch_size, ...]}, without values."""
        return {
            name: jax.ShapeDtypeStruct(
                (shape := (self.batch_size, *like.shape)),
                like.dtype,
                sharding=sharding.batch_sharding(shape, self.mesh),
            )
            for name, like in self.record_shapes.items()
        }

    def resident_shapes(self) -> Batch:
        """Return {"indices", "stored"} as `resident_batches` yields them, without values."""
        layout, rows = sharding.all_devices_sharding(self.mesh), self.stored_rows()
        indices = (self.batch_size,)
        everywhere = sharding.kernel_sharding(indices, self.mesh)
        return {
            "indices": jax.ShapeDtypeStruct(indices, np.int32, sharding=everywhere),
            "stored": {
                name: jax.ShapeDtypeStruct((rows, math.prod(x.shape)), x.dtype, sharding=layout)
                for name, x in self.record_shapes.items()
            },
        }

    def stored_rows(self) -> int:
        """Return the rows of the stored arrays, equally many on each device."""
        return -(-int(self.offsets[-1]) // self.mesh.size) * self.mesh.size

    def record(self, index: int) -> Record:
        """Return the record at an index into all sources, one after the other."""
        part = np.searchsorted(self.offsets, index, side="right") - 1
        return self.sources[part][index - self.offsets[part]]

    def example(self, index: int) -> Example:
        """Return the arrays of a record that all sources have."""
        record = without_text(self.record(index))
        return {name: value for name, value in record.items() if name in self.fields}

    def indices(self, batch: int) -> np.ndarray:
        """Return the indices of the records of batch number `batch`, int32 [batch_size]."""
        rows = range(batch * self.batch_size, (batch + 1) * self.batch_size)
        return np.array([self.order[row] for row in rows], np.int32)

    def examples(self, batch: int) -> list[tuple[str, int]]:
        """Return the (source, index) of every row of batch number `batch`, of all processes."""
        records = map(self.record, self.indices(batch))
        return [(record["source"].decode(), int(record["index"])) for record in records]

    def starting_at(self, step: int) -> Iterator[Batch]:
        """Return an iterator over batches `step`, `step` + 1, ..., on the devices."""
        return self.resident_batches(step) if self.resident else self.streamed_batches(step)

    def streamed_batches(self, step: int) -> Iterator[Batch]:
        """Yield {field: [batch_size, ...]}, read from disk ahead of time."""
        share = self.local_rows.stop - self.local_rows.start

        def example(position: int) -> Example:
            batch, row = divmod(position, share)
            return self.example(self.order[batch * self.batch_size + self.local_rows.start + row])

        positions = grain.MapDataset.range(step * share, 2**62)
        rows = positions.map(example).batch(share, drop_remainder=True)
        for batch in rows.to_iter_dataset(read_options(prefetched=4 * share)):
            yield sharding.to_devices(batch, self.mesh)

    def resident_batches(self, step: int) -> Iterator[Batch]:
        """Yield {"indices": int32 [batch_size], "stored": the arrays that `stored` returns}."""
        stored = self.stored()
        for batch in itertools.count(step):
            indices = sharding.place_state(self.indices(batch), self.mesh)
            yield {"indices": indices, "stored": stored}

    def rows(self, batch: Batch) -> dict[str, jax.Array]:
        """Return {field: [batch_size, ...]} of a batch; to be called inside the step."""
        if "stored" not in batch:
            return batch

        def rows(name: str, values: jax.Array) -> jax.Array:
            shape = (self.batch_size, *self.record_shapes[name].shape)
            layout = sharding.batch_sharding(shape, self.mesh)
            chosen = values[batch["indices"]].reshape(shape)
            return jax.lax.with_sharding_constraint(chosen, layout)

        return {name: rows(name, values) for name, values in batch["stored"].items()}

    def stored(self) -> dict[str, jax.Array]:
        """Return {field: [records, values per record]} of all records, split over all devices.

        All devices have equally many rows; the last rows may be empty.
        """
        layout, total = sharding.all_devices_sharding(self.mesh), int(self.offsets[-1])
        rounded = self.stored_rows()
        shapes = {name: (rounded, math.prod(x.shape)) for name, x in self.record_shapes.items()}
        write = jax.jit(jax.lax.dynamic_update_slice_in_dim, static_argnums=3, donate_argnums=0)
        parts: dict[str, list[jax.Array]] = {name: [] for name in shapes}
        for device, slices in layout.addressable_devices_indices_map((rounded, 1)).items():
            assert slices is not None
            rows = slices[0]
            first, end = rows.start or 0, min(rows.stop or rounded, total)
            part = {
                name: jnp.zeros((rounded // self.mesh.size, width), like.dtype, device=device)
                for (name, (_, width)), like in zip(
                    shapes.items(), self.record_shapes.values(), strict=True
                )
            }
            chunks = grain.MapDataset.range(first, max(end, first)).map(self.example).batch(1024)
            written = 0
            for chunk in chunks.to_iter_dataset(read_options(prefetched=2048)):
                count = len(chunk["index"])
                flat = {name: x.reshape(count, -1) for name, x in chunk.items()}
                part = {name: write(x, flat[name], written, 0) for name, x in part.items()}
                written += count
            for name, values in part.items():
                parts[name].append(values)
        return {
            name: jax.make_array_from_single_device_arrays(shape, layout, parts[name])
            for name, shape in shapes.items()
        }


def read_options(prefetched: int) -> grain.ReadOptions:
    """Return the options to read with one thread per core, up to 16."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return grain.ReadOptions(num_threads=min(cores, 16), prefetch_buffer_size=prefetched)


class EvalBatches:
    """Every record once, in stored order, whole, grouped by padded size.

    Images are mirrored at the bottom and right up to multiples of the network's `divisor`. `valid`
    [b, h, w, 1] is True on real pixels of real rows. A full batch has `batch_size` rows; the last
    of a size is filled up with rows that are not valid anywhere.
    """

    def __init__(self, records: Records, *, batch_size: int, divisor: int, mesh: Mesh) -> None:
        sharding.local_rows(batch_size, mesh)  # raises if they cannot be split
        self.records, self.batch_size = records, batch_size
        self.divisor, self.mesh = divisor, mesh

    def __iter__(self) -> Iterator[dict[str, jax.Array]]:
        waiting: dict[tuple[int, ...], list[Example]] = {}
        compiled = set()
        for index in range(len(self.records.source)):
            example = pad_record(self.records.source[index], self.divisor)
            size = example["image"].shape
            group = waiting.setdefault(size, [])
            group.append(example)
            if len(group) == self.batch_size:
                yield self.batch(waiting.pop(size), self.batch_size)
                compiled.add(size)
        for size, group in waiting.items():
            n_devices = sharding.row_devices(self.mesh)
            fewest = -(-len(group) // n_devices) * n_devices
            yield self.batch(group, self.batch_size if size in compiled else fewest)

    def batch(self, group: list[Example], rows: int) -> dict[str, jax.Array]:
        """Return the batch of `rows` rows that begins with `group`, on the devices."""
        empty = {**group[0], "valid": np.zeros_like(group[0]["valid"])}
        group = group + [empty] * (rows - len(group))
        local = group[sharding.local_rows(rows, self.mesh)]
        return sharding.to_devices(
            {name: np.stack([example[name] for example in local]) for name in empty}, self.mesh
        )


def first_examples(
    records: Records, divisor: int, count: int
) -> Iterator[tuple[str, dict[str, jax.Array]]]:
    """Yield (name, batch of one on a device) of the first records, padded as for evaluation."""
    for index in range(min(count, len(records.source))):
        record = records.source[index]
        example = pad_record(record, divisor)
        batch = jax.device_put({field: np.asarray(value)[None] for field, value in example.items()})
        yield record["name"].decode(), batch


def pad_record(record: Record, divisor: int) -> Example:
    """Return a record without its text, images mirrored up to multiples of `divisor`, and `valid`.

    `valid`, bool [h, w, 1], is True on the pixels that the record had before.
    """
    image = record["image"]
    example = {
        name: pad_to_multiple(value, divisor) if value.ndim == 3 else value
        for name, value in without_text(record).items()
    }
    valid = np.pad(np.ones((*image.shape[:2], 1), bool), padding_to_multiple(image, divisor))
    return {**example, "valid": valid}
