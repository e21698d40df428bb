"""Batches: order, resuming, processes, padding, refusals."""

import itertools

import jax
import numpy as np
import pytest

from emjax.data.batches import (
    RESIDENT_SHARE,
    EvalBatches,
    TrainBatches,
    pad_record,
    without_text,
)
from emjax.data.padding import pad_to_multiple
from emjax.data.records import Records, open_records
from emjax.errors import InputError, UsageError
from emjax.parallel import sharding
from tests.test_records import numbered


@pytest.fixture
def train(tiny_records):
    return open_records(tiny_records, "simulated/nanoparticles", "train")


def take(batches, count, start=0):
    reader = batches.starting_at(start)
    return [np.array(next(reader)["index"]) for _ in range(count)]


def test_batches_are_a_function_of_seed_and_step(train):
    mesh = sharding.data_mesh()
    batches = TrainBatches([train], batch_size=8, seed=3, mesh=mesh)
    first = take(batches, 8)
    assert (
        np.array(first) == take(TrainBatches([train], batch_size=8, seed=3, mesh=mesh), 8)
    ).all()
    assert (np.array(first[5:]) == take(batches, 3, start=5)).all()
    assert (
        np.array(first) != take(TrainBatches([train], batch_size=8, seed=4, mesh=mesh), 8)
    ).any()


def test_every_pass_holds_every_record_once_in_a_new_order(train):
    records = len(train.source)
    assert records == 28
    order = np.concatenate(take(TrainBatches([train], batch_size=4, seed=0, mesh=one_device()), 14))
    assert sorted(order[:records]) == sorted(order[records:])
    assert len(set(order[:records])) == records
    assert (order[:records] != order[records:]).any()


def one_device():
    return sharding.data_mesh(devices=jax.devices()[:1])


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_processes_read_contiguous_rows_of_the_same_batches(train, processes, monkeypatch):
    mesh = sharding.data_mesh()
    whole = take(TrainBatches([train], batch_size=8, seed=1, mesh=mesh), 3)
    monkeypatch.setattr(sharding.jax, "process_count", lambda: processes)
    monkeypatch.setattr(sharding, "to_devices", lambda batch, mesh: batch)
    parts = []
    for process in range(processes):
        monkeypatch.setattr(sharding.jax, "process_index", lambda: process)  # noqa: B023
        parts.append(take(TrainBatches([train], batch_size=8, seed=1, mesh=mesh), 3))
    assert (np.concatenate(parts, axis=1) == whole).all()


@pytest.mark.parametrize("devices", [1, 4])
def test_resident_records_give_the_same_batches(train, devices, tiny_records):
    val = open_records(tiny_records, "simulated/nanoparticles", "val")._replace(weight=0.3)
    mesh = sharding.data_mesh(devices=jax.devices()[:devices])
    options = dict(batch_size=8, seed=3, mesh=mesh)
    for parts in ([train], [train, val]):
        streamed = TrainBatches(parts, resident=False, **options)
        resident = TrainBatches(parts, resident=True, **options)
        rows = jax.jit(resident.rows)
        readers = (streamed.starting_at(3), resident.starting_at(3))
        for one, other in zip(*(itertools.islice(reader, 8) for reader in readers), strict=True):
            for batches, batch in ((streamed, one), (resident, other)):
                kinds = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), batch)
                assert kinds == jax.tree.map(
                    lambda x: (x.shape, x.dtype, x.sharding), batches.shapes
                )
            with jax.transfer_guard("disallow"):
                other = rows(other)
            assert one.keys() == other.keys()
            for name, values in one.items():
                assert values.dtype == other[name].dtype
                assert values.sharding.is_equivalent_to(other[name].sharding, values.ndim)
                np.testing.assert_array_equal(values, other[name])


def test_records_are_resident_where_they_take_little_of_the_memory(train, monkeypatch):
    options = dict(batch_size=8, seed=0, mesh=one_device())
    one = sum(np.asarray(value).nbytes for value in without_text(train.source[0]).values())
    for records, resident in ((27, False), (29, True)):  # of 28
        limit = records * one / RESIDENT_SHARE
        monkeypatch.setattr("emjax.parallel.devices.memory", lambda: {"bytes_limit": limit})  # noqa: B023
        assert TrainBatches([train], **options).resident is resident
    monkeypatch.setattr("emjax.parallel.devices.memory", dict)  # as on a CPU
    assert not TrainBatches([train], **options).resident


def test_batches_have_the_stored_dtypes(train):
    batch = next(
        TrainBatches([train], batch_size=8, seed=0, mesh=sharding.data_mesh()).starting_at(0)
    )
    assert {name: (str(a.dtype), a.shape) for name, a in batch.items()} == {
        "image": ("uint16", (8, 64, 64, 1)),
        "mask": ("uint8", (8, 64, 64, 1)),
        "intensity_range": ("float32", (8, 2)),
        "nm_per_pixel": ("float32", (8, 2)),
        "index": ("int32", (8,)),
    }
    assert len(batch["image"].sharding.device_set) == 8


def test_batch_size_must_fit_the_devices(train):
    with pytest.raises(
        UsageError, match="data.batch_size=12 cannot be spread over 8 devices; take 8 or"
    ):
        TrainBatches([train], batch_size=12, seed=0, mesh=sharding.data_mesh())


def record(index, h, w):
    rng = np.random.default_rng(index)
    return dict(
        image=rng.integers(0, 255, (h, w, 1)).astype(np.uint8),
        mask=np.ones((h, w, 1), np.uint8),
        intensity_range=np.float32([0, 255]),
        index=np.int32(index),
        name=b"x",
        source=b"x",
    )


def test_evaluation_sees_every_record_once_whole_and_masked():
    sizes = [(20, 33), (16, 16), (17, 36), (20, 36), (1, 5), (20, 33), (18, 35)]
    records = Records([record(i, *size) for i, size in enumerate(sizes)], {})
    evaluation = EvalBatches(records, batch_size=2, divisor=4, mesh=one_device())
    for _ in range(2):  # finite, and the same again
        seen = {}
        for batch in evaluation:
            batch = jax.device_get(batch)
            assert batch["image"].shape[1] % 4 == batch["image"].shape[2] % 4 == 0
            for row in range(len(batch["index"])):
                valid = batch["valid"][row, ..., 0]
                if valid.any():
                    h, w = valid.any(1).sum(), valid.any(0).sum()
                    assert valid[:h, :w].all() and valid.sum() == h * w
                    index = int(batch["index"][row])
                    image = records.source[index]["image"]
                    assert (batch["image"][row, :h, :w] == image).all()
                    assert index not in seen
                    seen[index] = (h, w)
        assert seen == dict(enumerate(sizes))


def test_padding_mirrors():
    image = pad_record(record(0, 5, 6), 4)["image"][..., 0]
    assert image.shape == (8, 8)
    assert (image[5] == image[3]).all() and (image[:, 7] == image[:, 3]).all()


def test_padding_of_images_without_channels():
    image = np.arange(30).reshape(5, 6)
    rows, columns = [0, 1, 2, 3, 4, 3, 2, 1], [0, 1, 2, 3, 4, 5, 4, 3]
    np.testing.assert_array_equal(pad_to_multiple(image, 4), image[np.ix_(rows, columns)])
    np.testing.assert_array_equal(pad_to_multiple(image[:3], 3), image[:3])


def test_last_batch_of_a_full_size_keeps_the_compiled_shape():
    records = Records([record(i, 8, 8) for i in range(5)], {})
    batches = EvalBatches(records, batch_size=2, divisor=4, mesh=one_device())
    assert [len(batch["index"]) for batch in batches] == [2, 2, 2]
    batches = EvalBatches(records, batch_size=16, divisor=4, mesh=one_device())
    assert [len(batch["index"]) for batch in batches] == [5]


def test_the_next_good_record_replaces_a_damaged_one(caplog):
    """The other rows, the shape of the batches and the order are those of the whole set."""
    options = dict(batch_size=100, seed=0, mesh=one_device())
    whole = np.concatenate(take(TrainBatches([numbered(2000)], **options), 20))
    damaged = numbered(2000, damaged=(7, 8))
    batches = np.concatenate(take(TrainBatches([damaged], **options), 20))
    assert {7, 8} <= set(whole) and not {7, 8} & set(batches)
    assert (batches == np.where((whole == 7) | (whole == 8), 9, whole)).all()
    assert len(caplog.messages) == 2
    assert "a:train: record 7: cannot be decoded: hash mismatch; the next record is" in caplog.text


def test_too_many_damaged_records_stop_the_run():
    records = numbered(2000, damaged=range(100, 200))
    with pytest.raises(InputError, match="3 of 2000 records so far, expected at most 0.1%"):
        records.source[100]
    with pytest.raises(InputError, match="cannot be decoded: hash mismatch; 3 of 2000"):
        batches = TrainBatches(
            [numbered(2000, damaged=range(100, 200))], batch_size=100, seed=0, mesh=one_device()
        )
        take(batches, 20)


def test_a_mixture_draws_by_weight_and_is_a_function_of_seed_and_step():
    parts = [numbered(50, name="a", weight=3.0), numbered(2000, name="b")]
    options = dict(batch_size=40, seed=0, mesh=one_device())
    batches = TrainBatches(parts, **options)
    drawn = take(batches, 20)
    # Of the second part, with 2000 numbers, nearly all drawn are 50 and above.
    assert abs(np.mean(np.concatenate(drawn) >= 50) - 0.25) < 0.02
    assert (np.array(drawn[5:]) == take(TrainBatches(parts, **options), 15, start=5)).all()
