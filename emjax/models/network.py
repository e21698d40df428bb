"""A network as plain arrays: parameters, running statistics and optimizer memory."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct
from jaxtyping import Array, Float

from emjax.errors import UsageError
from emjax.models.blocks import KEPT_OUTPUT
from emjax.models.formulation import PLAIN, formulated, formulation
from emjax.parallel import sharding

# The dtype that layers compute in; None: that of the images, float32 outside of tests.
PRECISIONS = {"float32": None, "bfloat16": jnp.bfloat16}

Images = Float[Array, "b h w c"]
Arrays = dict[str, Any]  # arrays of JAX or NumPy by path: {"down/0/conv1/kernel": array}


class Network(struct.PyTreeNode):
    """What a step reads and writes of one network, as flat dicts of arrays.

    Parameters, statistics and memory are float32 whatever `precision` the network computes in.

    Differs from an nnx.Module: nothing in it depends on Flax, so optax, Orbax and safetensors
    accept it as it is, and transfer selects arrays by their paths.
    """

    params: Arrays  # trained
    stats: Arrays  # running statistics of BatchNorm
    memory: Any = None  # optax.OptState
    definition: nnx.GraphDef = struct.field(pytree_node=False, default=None)
    optimizer: optax.GradientTransformation = struct.field(pytree_node=False, default=None)
    precision: str = struct.field(pytree_node=False, default="float32")
    remat: bool = struct.field(pytree_node=False, default=False)  # keep blocks' outputs only
    mesh: jax.sharding.Mesh | None = struct.field(pytree_node=False, default=None)

    def apply(
        self, params: Arrays, stats: Arrays, *images: Images, train: bool
    ) -> tuple[Images, Arrays]:
        """Return (output for `images`, running statistics); the latter change only in training.

        The output has the dtype of the images, whatever the network computes in.
        """

        def run(params: Arrays, stats: Arrays, *images: Images) -> tuple[Images, Arrays]:
            module = nnx.merge(self.definition, nest(params), nest(stats))
            dtype = PRECISIONS[self.precision]
            output = module(*(x.astype(dtype or x.dtype) for x in images), train=train)
            output = output.astype(images[0].dtype)
            return output, (flat_arrays(module)[1] if train else stats)

        if self.remat and train:
            policy = jax.checkpoint_policies.save_only_these_names(KEPT_OUTPUT)
            run = jax.checkpoint(run, policy=policy)
        # On a mesh that splits more than rows, the compiler was tried with plain layers alone.
        chosen = PLAIN if sharding.splits_more_than_rows(self.mesh) else formulation()
        with (
            formulated(chosen),
            sharding.constrained(params, images, self.mesh) as (whole, split),
        ):
            return run(whole, stats, *split)

    def apply_gradients(self, grads: Arrays, stats: Arrays) -> Self:
        """Return this network after one optimizer step along `grads`, with statistics `stats`."""
        updates, memory = self.optimizer.update(grads, self.memory, self.params)
        params = optax.apply_updates(self.params, updates)
        return self.replace(params=params, stats=stats, memory=memory)

    def with_ema(self, decay: float) -> "Network":
        """Return this network with exponential moving averages from now on; 0: without.

        Raises: UsageError unless `decay` is in [0, 1).
        """
        if not 0 <= decay < 1:
            raise UsageError(
                f"ema={decay}, expected 0 for no averages or a number below 1, such as 0.999"
            )
        if not decay:
            return self
        copies = jax.tree.map(jnp.copy, {"params": self.params, "stats": self.stats})
        return Averaging(**vars(self), average=copies, decay=decay)

    @property
    def ema_network(self) -> "Network":
        """The network to evaluate and keep: at its averages if there are any, else itself."""
        return self


class Averaging(Network):
    """A Network with the exponential moving averages of its arrays.

    A class of its own, so that the state of a run without averages has no field for them.
    """

    average: Any = None  # {"params", "stats"}; starts at their initial values
    decay: float = struct.field(pytree_node=False, default=0.0)  # per update

    def apply_gradients(self, grads: Arrays, stats: Arrays) -> Self:
        """Return this network after one optimizer step, its averages updated."""
        after = super().apply_gradients(grads, stats)
        new = {"params": after.params, "stats": after.stats}
        return after.replace(average=optax.incremental_update(new, self.average, 1 - self.decay))

    @property
    def ema_network(self) -> Network:
        """The network at its averages."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(Network)}
        return Network(**{**fields, **self.average})


def replace_in_networks(state: Any, **fields: Any) -> Any:
    """Return `state`, a pytree, with these fields of every Network in it replaced."""
    return jax.tree.map(
        lambda leaf: leaf.replace(**fields) if isinstance(leaf, Network) else leaf,
        state,
        is_leaf=lambda leaf: isinstance(leaf, Network),
    )


def flat_arrays(module: Any) -> tuple[Arrays, Arrays]:
    """Return the parameters and the running statistics of an nnx.Module as two flat dicts."""
    _, params, stats = nnx.split(module, nnx.Param, ...)
    return flatten(params), flatten(stats)


def flatten(state: Any) -> Arrays:
    """Return an nnx state as a flat dict."""
    return {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.as_pure(state))}


def nest(flat: Mapping[str, Any]) -> Any:
    """Return a flat dict as the nested state that nnx.merge takes; digits index an nnx.List."""
    split = {
        tuple(int(part) if part.isdigit() else part for part in path.split("/")): leaf
        for path, leaf in flat.items()
    }
    return nnx.from_flat_state(list(split.items()))
