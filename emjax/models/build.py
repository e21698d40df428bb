"""Networks from a config's `model` field."""

import jax
from flax import nnx

from emjax.errors import UsageError, choose
from emjax.models import MODELS
from emjax.models.network import PRECISIONS, Network, flat_arrays, nest


class Keys:
    """Stands in for nnx.Rngs while a module is built: one key for each `params()`.

    nnx.Rngs counts in an array; tracing looks that up anew at every layer, which took 4 of the 5
    seconds that the shapes of a large HRNet cost.
    """

    def __init__(self, key):
        self.key, self.count = key, 0

    def params(self):
        self.count += 1
        return jax.random.fold_in(self.key, self.count)


def build(model, *, key):
    """An nnx.Module from a config's `model` field, `{"name": ..., **arguments}`.

    Raises: UsageError for an unknown name, listing the known ones.
    """
    arguments = dict(model)
    name = arguments.pop("name")
    constructor = choose("model", name, MODELS)
    try:
        return constructor(**arguments, rngs=Keys(key))
    except TypeError as error:
        raise UsageError(f"model {name!r} with {arguments}: {error}") from error


def create(model, optimizer, *, key, precision="float32"):
    """A Network of the config's `model` at its initial values, with the optimizer's memory.

    Raises: UsageError for an unknown model or `precision`, listing the known ones.
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


def build_abstract(model):
    """The nnx.Module of a config's `model` with shapes in place of arrays; computes nothing."""
    return nnx.eval_shape(lambda: build(model, key=jax.random.key(0)))


def assemble(model, params, stats):
    """The nnx.Module of a config's `model` with these arrays in it."""
    return nnx.merge(nnx.graphdef(build_abstract(model)), nest(params), nest(stats))
