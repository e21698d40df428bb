"""Where arrays are on a mesh of devices with three axes.

data    rows of a batch
fsdp    rows of a batch, and parts of every kernel and of its optimizer memory
space   the height of images; the compiler exchanges what convolutions need across the borders
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from emjax.errors import UsageError

AXES = ("data", "fsdp", "space")
ROW_AXES = ("data", "fsdp")


def data_mesh(*, fsdp: int = 1, space: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Return the mesh of `devices`, by default all devices of all processes.

    Devices of one process are neighbours. The axis `data` has what `fsdp` and `space` leave.

    Raises: UsageError if `fsdp` and `space` do not divide the devices, or if images would be split
        between processes.
    """
    by_process = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    devices = by_process if devices is None else devices
    if fsdp < 1 or space < 1 or len(devices) % (fsdp * space):
        raise UsageError(
            f"mesh.fsdp={fsdp} and mesh.space={space} on {len(devices)} devices, expected whole "
            "numbers from 1 up with a product that divides the number of devices"
        )
    per_process = len(devices) // jax.process_count()
    if per_process % space:
        raise UsageError(
            f"mesh.space={space}, expected a divisor of {per_process}, the number of devices of a "
            "process: an image is never split between processes"
        )
    shape = (len(devices) // (fsdp * space), fsdp, space)
    return Mesh(np.array(devices).reshape(shape), AXES, axis_types=(AxisType.Auto,) * 3)


def devices_in_use(mesh: Mesh | None = None) -> str:
    """Return how many devices of what kind are used: `8 x NVIDIA H200 (gpu)`.

    If there are several processes, also how many; if `mesh` has more than its axis `data`, also its
    shape.
    """
    devices, processes = jax.devices(), jax.process_count()
    of_processes = f" of {processes} processes" if processes > 1 else ""
    layout = ""
    if splits_more_than_rows(mesh):
        layout = " as " + " x ".join(f"{size} {axis}" for axis, size in mesh.shape.items())
    kind = f"{devices[0].device_kind} ({devices[0].platform})"
    return f"{len(devices)} x {kind}{of_processes}{layout}"


def splits_more_than_rows(mesh: Mesh | None) -> TypeGuard[Mesh]:
    """Return whether `mesh` also splits kernels or the height of images."""
    return mesh is not None and mesh.shape["data"] != mesh.size


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array that is whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def all_devices_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array with equal parts of its first axis on all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def batch_sharding(shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array of a batch.

    Rows are split over `data` and `fsdp`, and the height of images [b, h, w, c] over `space` if
    that divides it.
    """
    if len(shape) == 4 and shape[1] % mesh.shape["space"] == 0:
        return NamedSharding(mesh, PartitionSpec(ROW_AXES, "space"))
    return NamedSharding(mesh, PartitionSpec(ROW_AXES))


def kernel_sharding(shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array of a state.

    Arrays of two axes and more are split along the largest axis that `fsdp` divides. All others are
    whole.
    """
    parts = mesh.shape["fsdp"]
    axes = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if parts == 1 or len(shape) < 2 or not axes:
        return replicated(mesh)
    axis = max(axes, key=lambda axis: shape[axis])
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))


def place_state(state: Any, mesh: Mesh) -> Any:
    """Return `state`, a pytree that every process has, on all devices by `kernel_sharding`."""
    shardings = jax.tree.map(lambda leaf: kernel_sharding(leaf.shape, mesh), state)
    if jax.process_count() == 1:
        return jax.device_put(state, shardings)

    def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            bits = put(jax.random.key_data(leaf), sharding)
            return jax.jit(jax.random.wrap_key_data, out_shardings=sharding)(bits)
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda part: whole[part])

    return jax.tree.map(put, state, shardings)


@contextmanager
def constrained(
    params: Any, images: Sequence[jax.Array], mesh: Mesh | None
) -> Iterator[tuple[Any, Sequence[jax.Array]]]:
    """Yield, inside a step, the parameters whole on every device and the images split as a batch.

    The images are constrained again because a crop gathers the image that it is cut from. Layers
    with odd heights call `unsplit_uneven`.
    """
    if not splits_more_than_rows(mesh):
        yield params, images
        return
    params = jax.lax.with_sharding_constraint(params, replicated(mesh))
    images = [jax.lax.with_sharding_constraint(x, batch_sharding(x.shape, mesh)) for x in images]
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        yield params, images


def side_multiple(divisor: int, space: int) -> int:
    """Return what the sides of images must be multiples of, for a network with this `divisor`.

    Every device then has equally many rows of the coarsest level, and two at least. With uneven or
    single rows, XLA (of JAX 0.10.2) computed wrong gradients without an error.
    """
    return divisor * 2 * space if space > 1 else divisor


def unsplit_uneven(x: jax.Array, next_height: int) -> jax.Array:
    """Return x [b, h, w, c], inside a layer, with h whole on every device if a split is uneven.

    It is split only if both h and `next_height`, of the layer's output, are multiples of what
    `side_multiple` returns.
    """
    mesh = jax.sharding.get_abstract_mesh()
    heights = (x.shape[1], next_height)
    if mesh.empty or not any(h % side_multiple(1, mesh.shape["space"]) for h in heights):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(ROW_AXES))


def row_devices(mesh: Mesh) -> int:
    """Return the number of devices that rows are split over."""
    return math.prod(mesh.shape[axis] for axis in ROW_AXES)


def local_rows(rows: int, mesh: Mesh) -> slice:
    """Return the contiguous block of a global batch's rows that this process provides.

    Raises: UsageError if `rows` cannot be split evenly over the devices.
    """
    n_devices = row_devices(mesh)
    if rows % n_devices:
        raise UsageError(
            f"data.batch_size={rows} cannot be spread over {n_devices} devices; "
            f"take {max(rows // n_devices, 1) * n_devices} or {(rows // n_devices + 1) * n_devices}"
        )
    share = rows // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def to_devices(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Return a batch as one global array per field.

    Args:
        batch: this process's rows of each field.
    """
    return {
        name: jax.make_array_from_process_local_data(batch_sharding(rows.shape, mesh), rows)
        for name, rows in batch.items()
    }
