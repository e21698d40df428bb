"""Records: decoding, opening, what replaces damaged ones."""

import shutil

import numpy as np
import pytest
from tensorflow_datasets.core import example_serializer

from data_builders import writer
from emjax.data.records import (
    Decoded,
    Records,
    TolerantSource,
    open_mixture,
    open_records,
    without_slices,
)
from emjax.errors import InputError, UsageError


@pytest.mark.parametrize("shape", [(5, 6), None])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_records_are_decoded_as_tfds_does(dtype, shape):
    features = writer.features(dtype, shape, ("mask", "denoised"))
    rng = np.random.default_rng(0)
    record = {
        "image": rng.uniform(0, 255, (5, 6, 1)).astype(dtype),
        "mask": rng.integers(0, 2, (5, 6, 1), np.uint8),
        "denoised": rng.uniform(0, 255, (5, 6, 1)).astype(dtype),
        "intensity_range": np.float32([0.25, 201]),
        "nm_per_pixel": np.float32([0.02, np.nan]),
        "name": "Körner/ä 1",
        "source": "",
        "index": 2**31 - 1,
    }
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    stored = serializer.serialize_example(features.encode_example(record))
    (found,), expected = Decoded([stored], features), features.deserialize_example_np(stored)
    assert found.keys() == expected.keys() == record.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, strict=isinstance(value, np.ndarray))
        assert type(found[name]) is type(value)
    for damaged in (b"", stored[:-1], stored[: len(stored) // 2]):
        with pytest.raises(Exception):  # noqa: B017  any: TolerantSource catches all
            Decoded([damaged], features)[0]


def test_missing_dataset_names_the_command(tmp_path):
    with pytest.raises(
        InputError, match="not built.*data_builders.build cem500k --data_dir=.*source"
    ):
        open_records(tmp_path, "cem500k", "train")
    with pytest.raises(InputError, match="build simulated/unlabelled --data_dir=[^ ]*$"):
        open_records(tmp_path, "simulated/unlabelled", "train")
    with pytest.raises(
        InputError, match="build micrographs --name=mine --data_dir=.* --source=DIR"
    ):
        open_records(tmp_path, "micrographs/mine", "train")


@pytest.mark.parametrize("split", ["train[:50000]", "validation", "train[:0]", "train[bad"])
def test_missing_split_names_what_there_is(tiny_records, split):
    with pytest.raises(InputError, match="no split.*It has: .*train 28"):
        open_records(tiny_records, "simulated/unlabelled", split)


def test_slices_are_nested(tiny_records):
    few, many = (
        open_records(tiny_records, "simulated/unlabelled", f"train[:{count}]").source
        for count in (5, 20)
    )
    assert [few[i]["index"] for i in range(5)] == [many[i]["index"] for i in range(5)]


class Numbered:
    """Records with their number as image; those in `damaged` cannot be decoded."""

    def __init__(self, count, damaged=(), side=2):
        self.count, self.damaged, self.side = count, damaged, side

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.damaged:
            raise RuntimeError("hash mismatch\nin a chunk")
        image = np.full((self.side, self.side, 1), index, np.float32)
        return {"image": image, "index": index, "name": "n", "source": "s"}


def numbered(count, damaged=(), *, name="a:train", weight=1.0, **options):
    return Records(TolerantSource(Numbered(count, damaged, **options), name), {}, weight)


def test_the_last_record_is_replaced_by_the_first():
    assert numbered(1000, damaged=(999,)).source[999]["index"] == 0


def test_a_flipped_bit_in_a_shard_is_found(tiny_records, tmp_path):
    home = tmp_path / "simulated" / "nanoparticles"
    shutil.copytree(tiny_records / "simulated" / "nanoparticles", home)
    (shard,) = home.glob("*/*train*array_record*")
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    shard.write_bytes(bytes(content))
    records = open_records(tmp_path, "simulated/nanoparticles", "train")
    with pytest.raises(
        InputError, match="nanoparticles:train: record .* cannot be decoded: Corrupt"
    ):
        for index in range(len(records.source)):
            records.source[index]


def test_mixtures_are_opened_by_name(tiny_records):
    parts = (("simulated/nanoparticles", "train", 2), ("simulated/nanoparticles", "val", 1))
    first, second = open_mixture(tiny_records, parts)
    assert (first.weight, second.weight) == (2.0, 1.0)
    assert (len(first.source), len(second.source)) == (28, 4)
    with pytest.raises(
        InputError, match="unlabelled:train has images uint8 .64, 64, 1., simulated/"
    ):
        open_mixture(tiny_records, (*parts, ("simulated/unlabelled", "train", 1)))
    with pytest.raises(
        UsageError, match="weight 0 of simulated/nanoparticles, expected a positive"
    ):
        open_mixture(tiny_records, (("simulated/nanoparticles", "train", 0), *parts))


def test_slices_of_what_is_there_do_not_count_again():
    parts = [numbered(4, name=name) for name in ("a:train", "a:train[1:2]", "b:train[:3]")]
    assert without_slices(parts) == [parts[0], parts[2]]


def test_a_mixture_has_one_rule_of_ranges(monkeypatch):
    rules = {"a": "fixed", "b": "percentile"}

    def opened(_dir, name, _split):
        records = numbered(4, name=f"{name}:train")
        return records._replace(card={"range_rule": rules[name]})

    monkeypatch.setattr("emjax.data.records.open_records", opened)
    assert len(open_mixture("d", (("a", "train", 1), ("a", "train", 2)))) == 2
    with pytest.raises(InputError, match="a:train fixed, b:train percentile; expected one"):
        open_mixture("d", (("a", "train", 1), ("b", "train", 1)))
