"""A model as one file that JAX runs without the code of its network.

The file is an archive as `exports.packed` makes it. Its program is what `jax.export` serialises,
for cpu, cuda, tpu and rocm, with any batch and any sides that the divisor divides.
"""

import contextlib
import hashlib
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from emjax.errors import InputError, UsageError, first_line
from emjax.files import write_atomically
from emjax.inference.network import Network
from emjax.interchange import exports
from emjax.interchange.exports import Facts
from emjax.models.formulation import FASTEST, PLAIN, Formulation, formulated

PLATFORMS = ("cpu", "cuda", "tpu", "rocm")


def write(folder: str | Path, path: Path) -> float:
    """Write the model in `folder` to `path`, whole or not at all.

    Returns: the largest difference to the model, in standard deviations of its output.

    Raises: as `from_folder` and `exports.compare`.
    """
    network, facts = exports.facts_of(folder)
    content = exports.packed(facts, bytes(exported(network).serialize()))
    theirs = exports.of_any_sides(parse(path, content))
    far = exports.compare(str(path), network, theirs)
    write_atomically(path, content)
    return far


def exported(network: Network) -> export.Exported:
    """Return the program of `network` for all PLATFORMS, with batch and sides free."""
    forward, d = network.forward, network.divisor
    assert forward is not None

    def traced(formulation: Formulation, images: jax.Array) -> jax.Array:
        with formulated(formulation):
            return forward(images)

    def chosen(images: jax.Array) -> jax.Array:
        ways = {name: partial(traced, FASTEST[name]) for name in FASTEST}
        return jax.lax.platform_dependent(images, **ways, default=partial(traced, PLAIN))

    shape = export.symbolic_shape(f"b, {d}*h, {d}*w, 1")
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    with without_locations():
        return export.export(jax.jit(chosen), platforms=PLATFORMS)(images)


@contextlib.contextmanager
def without_locations() -> Generator[None]:
    """Trace programs that do not hold the paths and lines of the code that they come from."""
    option = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, option)
    jax.config.update(option, 0)
    try:
        yield
    finally:
        jax.config.update(option, before)


def read(path: Path) -> Network:
    """Return the network that `write` wrote.

    Raises: InputError if there is no such file, or it is damaged, or of a newer JAX.
    """
    return parse(path, exports.content_of(path))


def parse(path: Path, content: bytes) -> Network:
    """Return the network of the `content` of a file.

    Raises: InputError as `read`, with the file's `path`.
    """
    facts, program = exports.unpacked(path, content)
    check_version(path, facts)
    try:
        function = export.deserialize(bytearray(program))
    except Exception as error:  # of any kind: it is not said which
        raise InputError(
            f"{path}: expected a program of JAX, got a damaged one: {first_line(error)}; export it "
            "again"
        ) from error
    apply: Any = jax.jit(function.call)
    digest = hashlib.sha256(content).hexdigest()
    return facts.network(path, apply, digest, forget=apply.clear_cache)


def check_version(path: Path, facts: Facts) -> None:
    """Raise UsageError if the file was written by a newer JAX, whose programs this may not read."""
    theirs, ours = facts.written_by.get("jax", "0.0"), jax.__version__
    numbers = [tuple(map(int, version.split(".")[:2])) for version in (theirs, ours)]
    if numbers[0] > numbers[1]:
        raise UsageError(
            f"{path}: was exported with JAX {theirs} and needs {'.'.join(theirs.split('.')[:2])} "
            f"or newer, here is {ours}; install it, or export the model with an older one"
        )
