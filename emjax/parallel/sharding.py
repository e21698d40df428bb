"""Where arrays live on a mesh of devices with three axes.

data    rows of a batch
fsdp    rows of a batch, and parts of every kernel and of its optimizer memory
space   the height of images; the compiler exchanges what convolutions need across the borders
"""

import math
from contextlib import contextmanager

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from emjax.errors import UsageError

AXES = ("data", "fsdp", "space")
ROWS = ("data", "fsdp")


def data_mesh(*, fsdp=1, space=1, devices=None):
    """The mesh of `devices`, by default all of all processes; those of a process side by side.

    What `fsdp` and `space` do not take goes along `data`.

    Raises: UsageError if they do not divide the devices, or if images would be cut between
        processes.
    """
    by_process = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    devices = by_process if devices is None else devices
    if fsdp < 1 or space < 1 or len(devices) % (fsdp * space):
        raise UsageError(
            f"mesh.fsdp={fsdp} and mesh.space={space} on {len(devices)} devices: whole numbers "
            "from 1 up were due, whose product divides the number of devices"
        )
    if len(devices) // jax.process_count() % space:
        raise UsageError(
            f"mesh.space={space}, but a process has {len(devices) // jax.process_count()} devices: "
            "an image lies within one process, so a divisor of that was due"
        )
    shape = (len(devices) // (fsdp * space), fsdp, space)
    return Mesh(np.array(devices).reshape(shape), AXES, axis_types=(AxisType.Auto,) * 3)


def devices_in_use(mesh=None):
    """How many devices of what kind: `8 x NVIDIA H200 (gpu)`, of how many processes, how laid out.

    The last only where `mesh` has more than its axis `data`.
    """
    devices, processes = jax.devices(), jax.process_count()
    among = f" of {processes} processes" if processes > 1 else ""
    laid = "" if is_plain(mesh) else " as " + " x ".join(f"{n} {a}" for a, n in mesh.shape.items())
    return f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform}){among}{laid}"


def is_plain(mesh):
    """Whether there is nothing to lay out but rows of batches."""
    return mesh is None or mesh.shape["data"] == mesh.size


def replicated(mesh):
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_all(mesh):
    """Rows of the leading axis in equal parts over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def of_batch(shape, mesh):
    """Rows over `data` and `fsdp`; the height of images [b, h, w, c] over `space` if it divides."""
    if len(shape) == 4 and shape[1] % mesh.shape["space"] == 0:
        return NamedSharding(mesh, PartitionSpec(ROWS, "space"))
    return NamedSharding(mesh, PartitionSpec(ROWS))


def of_kernel(shape, mesh):
    """Arrays of two axes and more along their largest that `fsdp` divides; all others whole."""
    parts = mesh.shape["fsdp"]
    axes = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if parts == 1 or len(shape) < 2 or not axes:
        return replicated(mesh)
    axis = max(axes, key=lambda axis: shape[axis])
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))


def placed(state, mesh):
    """A state that every process has, on the devices of all of them, by `of_kernel`."""
    places = jax.tree.map(lambda leaf: of_kernel(leaf.shape, mesh), state)
    if jax.process_count() == 1:
        return jax.device_put(state, places)

    def put(leaf, place):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            bits = put(jax.random.key_data(leaf), place)
            return jax.jit(jax.random.wrap_key_data, out_shardings=place)(bits)
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, place, lambda part: whole[part])

    return jax.tree.map(put, state, places)


@contextmanager
def laid_out(params, images, mesh):
    """Inside a step: (parameters whole on every device, images as a batch is laid out).

    A crop gathers the image that it is cut from, hence again. Layers with odd heights ask `even`.
    """
    if is_plain(mesh):
        yield params, images
        return
    params = jax.lax.with_sharding_constraint(params, replicated(mesh))
    images = [jax.lax.with_sharding_constraint(x, of_batch(x.shape, mesh)) for x in images]
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        yield params, images


def sides(divisor, space):
    """What the sides of images must be multiples of, for a network with this `divisor`.

    So that every device has as many rows as the others, and two at least, on the coarsest level:
    where they were uneven, or single, XLA (of JAX 0.10.2) made wrong gradients without a word.
    """
    return divisor * 2 * space if space > 1 else divisor


def even(x, height):
    """x [b, h, w, c] inside a layer, h spread only if it and the next `height` are as `sides` asks.

    Else each row of it is whole on a device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not any(h % sides(1, mesh.shape["space"]) for h in (x.shape[1], height)):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(ROWS))


def row_devices(mesh):
    """Over how many devices rows are spread."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


def local_rows(rows, mesh):
    """The contiguous block of a global batch's rows that this process provides.

    Raises: UsageError if `rows` cannot be spread evenly over the devices.
    """
    over = row_devices(mesh)
    if rows % over:
        raise UsageError(
            f"data.batch_size={rows} cannot be spread over {over} devices; "
            f"take {max(rows // over, 1) * over} or {(rows // over + 1) * over}"
        )
    share = rows // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def to_devices(batch, mesh):
    """This process's rows of a batch as one global array a field."""
    return {
        name: jax.make_array_from_process_local_data(of_batch(rows.shape, mesh), rows)
        for name, rows in batch.items()
    }
