"""Batches that are not applied, because a loss or a gradient is no number.

Whether is decided on the device, in the step. The host looks where it reports or saves: it names
the examples, and goes back to a checkpoint after IN_A_ROW of them.
"""

import sys

import jax
import jax.numpy as jnp
from flax import struct

from emjax.errors import NonFiniteError
from emjax.parallel import processes

IN_A_ROW = 10  # without one between that was applied


class Skips(struct.PyTreeNode):
    """Which batches were not applied, by the number of their update, from 1 on; int32 all."""

    last: jax.Array  # [IN_A_ROW], the latest first; 0: none
    since: jax.Array  # [], the first of those that were skipped together with the latest
    count: jax.Array  # [], of all
    rollbacks: jax.Array  # [], how often the run has gone back to a checkpoint


def none_yet():
    return Skips(
        last=jnp.zeros(IN_A_ROW, jnp.int32),
        since=jnp.zeros((), jnp.int32),
        count=jnp.zeros((), jnp.int32),
        rollbacks=jnp.zeros((), jnp.int32),
    )


def applied(before, after, judged):
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


def tell(skips, known, examples):
    """Name on stderr what was skipped since there were `known` skips.

    Args:
        skips: Skips on the host.
        examples: of a batch, counted from 0, gives [(source, index)].
    """
    new = int(skips.count) - known
    if jax.process_index() or not new:
        return
    for update in sorted(skips.last[:new].tolist()):
        by_source = {}
        for source, index in examples(update - 1):
            by_source.setdefault(source, []).append(str(index))
        named = "; ".join(f"{', '.join(found)} of {source}" for source, found in by_source.items())
        print(
            f"note: step {update}: the loss or a gradient is not finite, so its batch was not "
            f"applied. Its examples, by index and source: {named}",
            file=sys.stderr,
        )
    if new > IN_A_ROW:
        print(f"note: {new - IN_A_ROW} more before these, {skips.count} in all", file=sys.stderr)


def too_many(skips):
    """Whether IN_A_ROW or more were skipped, one after the other; `skips` on the host."""
    return skips.last[0] - skips.since + 1 >= IN_A_ROW


def rolled_back(state, skips, checkpoints):
    """(state as it was before the first of too many skips, the step that it is from).

    The steps go on, so that the batches and draws that follow are other ones.

    Args:
        skips: those of `state`, on the host.

    Raises: NonFinite if the run has gone back before, or if there is nothing to go back to.
    """
    why = (
        f"steps {skips.since} to {skips.last[0]}: the loss or a gradient is not finite, "
        f"{IN_A_ROW} times or more in a row"
    )
    look = "Look at the examples named above, or take a smaller optimizer.lr"
    if skips.rollbacks:
        raise NonFiniteError(f"{why}, after going back to a checkpoint before. {look}")
    old = checkpoints.restore_before(state, int(skips.since))
    if old is None:
        raise NonFiniteError(f"{why}, and there is no good checkpoint from before. {look}")
    step = int(old.step)
    if processes.is_first():
        print(f"note: {why}; goes on from what was saved at step {step}, once", file=sys.stderr)
    counts = dict(count=state.skips.count, rollbacks=state.skips.rollbacks + 1)
    return old.replace(step=state.step, skips=old.skips.replace(**counts)), step
