"""Skip updates that have a non-finite loss or gradient. The step decides on the device."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

IN_A_ROW = 10  # skipped updates with no applied one between them: too many


class Skips(struct.PyTreeNode):
    """Which batches were not applied, by the number of their update, counted from 1; int32."""

    last: jax.Array  # [IN_A_ROW], the latest first; 0: none
    since: jax.Array  # [], the first of those that were skipped in a row with the latest
    count: jax.Array  # [], of all
    rollbacks: jax.Array  # [], how often the run has gone back to a checkpoint


def no_skips() -> Skips:
    """Return the Skips of a run that has skipped nothing."""
    return Skips(
        last=jnp.zeros(IN_A_ROW, jnp.int32),
        since=jnp.zeros((), jnp.int32),
        count=jnp.zeros((), jnp.int32),
        rollbacks=jnp.zeros((), jnp.int32),
    )


def apply_if_finite(before: Any, after: Any, judged: Any) -> Any:
    """Return the state `after` if all of `judged` is finite, else `before` with one more skip.

    `step` counts either way, because data and keys depend on it.

    Args:
        before, after: states of an objective, with `step` and `skips`.
        judged: losses, gradients and statistics, a tree of floats. Their squares are checked: a
            gradient with an overflowing square would hold Adam's moments at infinity.
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
