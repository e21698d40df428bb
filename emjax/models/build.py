"""Networks from a config's `model` field."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import optax
from flax import nnx
from jaxtyping import Array, Key

from emjax.errors import UsageError, choose
from emjax.models import MODELS
from emjax.models.initial import Keys, Requests, build_together
from emjax.models.model import Model
from emjax.models.network import PRECISIONS, Network, flat_arrays, nest


def build(model: Mapping[str, Any], *, key: Key[Array, ""]) -> Model:
    """Return an nnx.Module from a config's `model` field, `{"name": ..., **arguments}`.

    Raises: UsageError for an unknown name, with the known ones, and for unknown arguments.
    """
    return build_with(model, Keys(key))


def build_with(model: Mapping[str, Any], keys: Keys) -> Model:
    """Return what `build` does, with initial values from `keys`."""
    arguments = dict(model)
    name = arguments.pop("name")
    constructor = choose("model", name, MODELS)
    try:
        return constructor(**arguments, rngs=keys)
    except TypeError as error:
        raise UsageError(f"model {name!r} with {arguments}: {error}") from error


def create(
    model: Mapping[str, Any],
    optimizer: optax.GradientTransformation,
    *,
    key: Key[Array, ""],
    precision: str = "float32",
) -> Network:
    """Return a Network of the config's `model` at its initial values, with the optimizer's memory.

    Raises: UsageError for an unknown model or `precision`, with the known ones.
    """
    choose("precision", precision, PRECISIONS)

    params, stats = jax.device_put(flat_arrays(build_together(partial(build_with, model), key)))
    return Network(
        params=params,
        stats=stats,
        memory=jax.jit(optimizer.init)(params),  # one program in place of one for each shape
        definition=nnx.graphdef(build_abstract(model)),
        optimizer=optimizer,
        precision=precision,
    )


def build_abstract(model: Mapping[str, Any]) -> Model:
    """Return the nnx.Module of a config's `model` with shapes instead of arrays."""
    module = build_with(model, Requests())
    return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), module)


def assemble(
    model: Mapping[str, Any], params: Mapping[str, Any], stats: Mapping[str, Any]
) -> Model:
    """Return the nnx.Module of a config's `model` with these arrays, by path."""
    return nnx.merge(nnx.graphdef(build_abstract(model)), nest(params), nest(stats))
