"""A network as plain arrays: parameters, running statistics and optimizer memory."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct

from emjax.errors import UsageError
from emjax.models.blocks import BLOCK
from emjax.models.formulation import PLAIN, formulated, formulation
from emjax.parallel import sharding

# What layers compute in; None: in the format of the images, float32 outside of tests.
PRECISIONS = {"float32": None, "bfloat16": jnp.bfloat16}


class Network(struct.PyTreeNode):
    """What a step reads and writes of one network; flat dicts `{"down/0/conv1/kernel": array}`.

    Parameters, statistics and memory are float32 whatever `precision` the network computes in.

    Differs from an nnx.Module: nothing in it depends on Flax, so optax, Orbax and safetensors take
    it as it is, and transfer is a test on a path.
    """

    params: dict  # trained arrays
    stats: dict  # running statistics of BatchNorm
    memory: optax.OptState | None = None
    definition: nnx.GraphDef = struct.field(pytree_node=False, default=None)
    optimizer: optax.GradientTransformation = struct.field(pytree_node=False, default=None)
    precision: str = struct.field(pytree_node=False, default="float32")
    remat: bool = struct.field(pytree_node=False, default=False)  # keep no more than blocks' ends
    mesh: jax.sharding.Mesh | None = struct.field(pytree_node=False, default=None)

    def apply(self, params, stats, *images, train):
        """The network's output for `images` and, in training, the statistics that follow.

        The output has the number format of the images, whatever the network computes in.
        """

        def run(params, stats, *images):
            module = nnx.merge(self.definition, nest(params), nest(stats))
            dtype = PRECISIONS[self.precision]
            output = module(*(x.astype(dtype or x.dtype) for x in images), train=train)
            output = output.astype(images[0].dtype)
            return output, (flat_arrays(module)[1] if train else stats)

        if self.remat and train:
            run = jax.checkpoint(run, policy=jax.checkpoint_policies.save_only_these_names(BLOCK))
        # Spread over more than rows, layers are as plain as the compiler was tried with.
        way = formulation() if sharding.is_plain(self.mesh) else PLAIN
        with formulated(way), sharding.laid_out(params, images, self.mesh) as (params, images):
            return run(params, stats, *images)

    def apply_gradients(self, grads, stats):
        """This network after one optimizer step along `grads`, with running statistics `stats`."""
        updates, memory = self.optimizer.update(grads, self.memory, self.params)
        params = optax.apply_updates(self.params, updates)
        return self.replace(params=params, stats=stats, memory=memory)

    def with_ema(self, decay):
        """This network, from here on with moving averages, as Averaging; 0: as it is.

        Raises: UsageError unless `decay` is in [0, 1).
        """
        if not 0 <= decay < 1:
            raise UsageError(
                f"ema={decay}; from 0, for none, to below 1 was due, 0.999 for example"
            )
        if not decay:
            return self
        copies = jax.tree.map(jnp.copy, {"params": self.params, "stats": self.stats})
        return Averaging(**vars(self), average=copies, decay=decay)

    @property
    def ema_network(self):
        """The network to be judged and kept: at its averages where there are any, else itself."""
        return self


class Averaging(Network):
    """A Network beside which the exponential moving averages of its arrays are kept.

    A class of its own, so that the state of a run without them has no place for them.
    """

    average: dict | None = None  # {"params", "stats"}, from their values at the start on
    decay: float = struct.field(pytree_node=False, default=0.0)  # an update

    def apply_gradients(self, grads, stats):
        after = super().apply_gradients(grads, stats)
        new = {"params": after.params, "stats": after.stats}
        return after.replace(average=optax.incremental_update(new, self.average, 1 - self.decay))

    @property
    def ema_network(self):
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(Network)}
        return Network(**{**fields, **self.average})


def replace_in_networks(state, **fields):
    """`state` with these fields of every Network in it replaced."""
    return jax.tree.map(
        lambda leaf: leaf.replace(**fields) if isinstance(leaf, Network) else leaf,
        state,
        is_leaf=lambda leaf: isinstance(leaf, Network),
    )


def flat_arrays(module):
    """The module's parameters and running statistics as two flat dicts."""
    _, params, stats = nnx.split(module, nnx.Param, ...)
    return flatten(params), flatten(stats)


def flatten(state):
    return {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.as_pure(state))}


def nest(flat):
    """A flat dict as the nested state nnx.merge takes; digits index an nnx.List."""
    split = {
        tuple(int(part) if part.isdigit() else part for part in path.split("/")): leaf
        for path, leaf in flat.items()
    }
    return nnx.from_flat_state(list(split.items()))
