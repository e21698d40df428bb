"""Where arrays live: batches in rows over all devices, everything else whole on each."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from emjax.errors import Usage


def data_mesh():
    """All devices of all processes along one axis, `data`; those of a process side by side."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def devices_in_use():
    """How many devices of what kind: `8 x NVIDIA H200 (gpu)`, and of how many processes."""
    devices, processes = jax.devices(), jax.process_count()
    among = f" of {processes} processes" if processes > 1 else ""
    return f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform}){among}"


def by_row(mesh):
    """Rows of the leading axis spread over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh):
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def everywhere(tree, mesh):
    """A tree that every process has, whole on every device of all processes."""
    place = replicated(mesh)
    if jax.process_count() == 1:
        return jax.device_put(tree, place)

    def put(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            bits = put(jax.random.key_data(leaf))
            return jax.jit(jax.random.wrap_key_data, out_shardings=place)(bits)
        return jax.make_array_from_process_local_data(place, np.asarray(leaf))

    return jax.tree.map(put, tree)


def local_rows(rows, mesh):
    """The contiguous block of a global batch's rows that this process provides.

    Raises: Usage if `rows` cannot be spread evenly over the devices.
    """
    if rows % mesh.size:
        raise Usage(
            f"data.batch_size={rows} cannot be spread over {mesh.size} devices; "
            f"take {max(rows // mesh.size, 1) * mesh.size} or {(rows // mesh.size + 1) * mesh.size}"
        )
    share = rows // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def to_devices(batch, mesh):
    """This process's rows of a batch as one global array a field."""
    place = by_row(mesh)
    return {
        name: jax.make_array_from_process_local_data(place, rows) for name, rows in batch.items()
    }
