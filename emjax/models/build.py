"""Networks from a config's `model` field."""

from collections.abc import Mapping
from typing import Any

import jax
import optax
from flax import nnx
from jaxtyping import Array, Key

from emjax.errors import UsageError, choose
from emjax.models import MODELS
from emjax.models.model import Model
from emjax.models.network import PRECISIONS, Network, flat_arrays, nest


class Keys:
    """Replaces nnx.Rngs while a module is built: a new key at each `params()`.

    nnx.Rngs counts in an array. Tracing looks that up again at every layer, which took 4 of the 5
    seconds that building the shapes of a large HRNet takes.
    """

    def __init__(self, key: Key[Array, ""]) -> None:
        self.key, self.count = key, 0

    def params(self) -> Key[Array, ""]:
        """Return the next key."""
        self.count += 1
        return jax.random.fold_in(self.key, self.count)


def build(model: Mapping[str, Any], *, key: Key[Array, ""]) -> Model:
    """Return an nnx.Module from a config's `model` field, `{"name": ..., **arguments}`.

    Raises: UsageError for an unknown name, with the known ones, and for unknown arguments.
    """
    arguments = dict(model)
    name = arguments.pop("name")
    constructor = choose("model", name, MODELS)
    try:
        return constructor(**arguments, rngs=Keys(key))
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

    # Run once, so compiled fast rather than well: a quarter of the time for the same values.
    quick = {"xla_backend_optimization_level": 0}
    initial = jax.jit(lambda key: flat_arrays(build(model, key=key)), compiler_options=quick)
    params, stats = initial(key)
    return Network(
        params=params,
        stats=stats,
        memory=optimizer.init(params),
        definition=nnx.graphdef(build_abstract(model)),
        optimizer=optimizer,
        precision=precision,
    )


def build_abstract(model: Mapping[str, Any]) -> Model:
    """Return the nnx.Module of a config's `model` with shapes instead of arrays."""
    return nnx.eval_shape(lambda: build(model, key=jax.random.key(0)))


def assemble(
    model: Mapping[str, Any], params: Mapping[str, Any], stats: Mapping[str, Any]
) -> Model:
    """Return the nnx.Module of a config's `model` with these arrays, by path."""
    return nnx.merge(nnx.graphdef(build_abstract(model)), nest(params), nest(stats))
