"""Meshes: which part of an array is where, and which meshes are refused."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from emjax.errors import UsageError
from emjax.parallel import sharding


def test_axes_and_their_devices():
    mesh = sharding.data_mesh(fsdp=2, space=2)
    assert dict(mesh.shape) == dict(data=2, fsdp=2, space=2)
    assert list(mesh.devices.flat) == jax.devices()
    assert sharding.devices_in_use(mesh) == "8 x cpu (cpu) as 2 data x 2 fsdp x 2 space"
    assert sharding.devices_in_use(sharding.data_mesh()) == "8 x cpu (cpu)"
    assert sharding.row_devices(mesh) == 4


def test_rows_and_heights_of_a_batch():
    mesh = sharding.data_mesh(fsdp=2, space=2)
    shapes = {"image": (8, 6, 4, 1), "odd": (8, 5, 4, 1), "index": (8,)}
    arrays = {name: np.arange(np.prod(shape)).reshape(shape) for name, shape in shapes.items()}
    batch = sharding.to_devices(arrays, mesh)
    parts = {name: array.addressable_shards[0].data.shape for name, array in batch.items()}
    assert parts == dict(image=(2, 3, 4, 1), odd=(2, 5, 4, 1), index=(2,))
    np.testing.assert_array_equal(batch["image"], np.arange(8 * 24).reshape(8, 6, 4, 1))


def test_kernels_are_split_and_the_rest_is_whole():
    mesh = sharding.data_mesh(fsdp=4)
    state = dict(
        kernel=np.ones((3, 3, 8, 16)),
        deep=np.ones((3, 3, 32, 6)),
        odd=np.ones((3, 3)),
        bias=np.ones(16),
        key=jax.random.key(0),
    )
    placed = sharding.place_state(state, mesh)
    specs = {name: leaf.sharding.spec for name, leaf in placed.items()}
    whole = PartitionSpec()
    assert specs.pop("kernel") == PartitionSpec(None, None, None, "fsdp")
    assert specs.pop("deep") == PartitionSpec(None, None, "fsdp")
    assert specs == dict(odd=whole, bias=whole, key=whole)
    assert placed["kernel"].addressable_shards[0].data.shape == (3, 3, 8, 4)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (dict(fsdp=3), "mesh.fsdp=3 and mesh.space=1 on 8 devices, .* divides the number"),
        (dict(fsdp=4, space=4), "mesh.fsdp=4 and mesh.space=4 on 8 devices"),
        (dict(space=0), "mesh.fsdp=1 and mesh.space=0 on 8 devices, expected whole numbers"),
    ],
)
def test_impossible_meshes(axes, message):
    with pytest.raises(UsageError, match=message):
        sharding.data_mesh(**axes)


def test_an_image_is_within_one_process(monkeypatch):
    monkeypatch.setattr(sharding.jax, "process_count", lambda: 4)
    assert sharding.data_mesh(fsdp=4, space=2).size == 8
    with pytest.raises(UsageError, match="mesh.space=4, expected a divisor of 2, the number of"):
        sharding.data_mesh(space=4)
