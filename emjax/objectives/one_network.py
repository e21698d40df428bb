"""What the objectives that train one network share: its state and its update."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from emjax.models.build import create
from emjax.models.network import Network
from emjax.objectives.accumulate import Examples, accumulate_gradients
from emjax.objectives.nonfinite import Skips, apply_if_finite, no_skips


class GeneratorState(struct.PyTreeNode):
    """Everything a step reads or writes; saving it resumes the run exactly."""

    step: jax.Array  # int32 [], updates done so far
    key: jax.Array  # PRNG key []; folded with `step`, never replaced
    generator: Network
    skips: Skips = struct.field(default_factory=no_skips)


def initial_state(
    seed: int,
    generator: dict[str, Any],
    optimizer: optax.GradientTransformation,
    precision: str,
) -> GeneratorState:
    """Return the state at step 0; the same seed gives every objective the same values.

    Args:
        generator: the model field of a config.
    """
    generator_seed, key = jax.random.split(jax.random.key(seed))
    return GeneratorState(
        step=jnp.zeros((), jnp.int32),
        key=key,
        generator=create(generator, optimizer, key=generator_seed, precision=precision),
    )


def update_generator(
    state: GeneratorState,
    loss: Callable[[dict[str, jax.Array], Examples], tuple[jax.Array, dict[str, jax.Array]]],
    examples: Examples,
    n_microbatches: int,
) -> tuple[GeneratorState, jax.Array]:
    """Return the state after one update, and the loss of the batch.

    Args:
        loss: (params, examples) to (scalar, running statistics).
        examples: what the batch is trained on, a tree of arrays [b, ...].
        n_microbatches: parts in which the batch is computed.
    """
    g = state.generator
    gradient = functools.partial(jax.value_and_grad(loss, has_aux=True), g.params)
    (value, stats), grads = accumulate_gradients(gradient, examples, n_microbatches)
    after = state.replace(step=state.step + 1, generator=g.apply_gradients(grads, stats))
    return apply_if_finite(state, after, (value, grads, stats)), value
