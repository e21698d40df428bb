"""Skip updates whose loss or gradient is not finite. The step decides on the device."""

import jax
import jax.numpy as jnp
from flax import struct

IN_A_ROW = 10  # without one between that was applied


class Skips(struct.PyTreeNode):
    """Which batches were not applied, by the number of their update, from 1 on; int32 all."""

    last: jax.Array  # [IN_A_ROW], the latest first; 0: none
    since: jax.Array  # [], the first of those that were skipped together with the latest
    count: jax.Array  # [], of all
    rollbacks: jax.Array  # [], how often the run has gone back to a checkpoint


def no_skips():
    return Skips(
        last=jnp.zeros(IN_A_ROW, jnp.int32),
        since=jnp.zeros((), jnp.int32),
        count=jnp.zeros((), jnp.int32),
        rollbacks=jnp.zeros((), jnp.int32),
    )


def apply_if_finite(before, after, judged):
    """The state `after` if all of `judged` is finite, else `before` with one more batch skipped.

    `step` counts either way, as data and keys depend on it.

    Args:
        before, after: states of an objective, with `step` and `skips`.
        judged: losses, gradients and statistics, float; their squares are looked at, since a
            gradient whose square overflows would hold Adam's memory at infinity.
    """
    judged = jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(judged)])
    finite = jnp.isfinite(judged * judged).all()
    chosen = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, before)
    old, update = before.skips, after.step
    skipped = Skips(
        last=jnp.concatenate([update[None], old.last[:-1]]),
        since=jnp.where(old.last[0] == before.step, jnp.maximum(old.since, 1), update),
        count=old.count + 1,
        rollbacks=old.rollbacks,
    )
    skips = jax.tree.map(lambda new, old: jnp.where(finite, old, new), skipped, old)
    return chosen.replace(step=update, skips=skips)
