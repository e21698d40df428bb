"""Batches that are not applied, because a loss or a gradient is no number.

Whether is decided on the device, in the step. The host looks where it reports or saves: it names
the examples, and goes back to a checkpoint after IN_A_ROW of them.
"""

import jax

from emjax.errors import NonFiniteError, note
from emjax.objectives.nonfinite import IN_A_ROW
from emjax.parallel import processes


def report_skips(skips, known, examples):
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
        note(
            f"step {update}",
            "the loss or a gradient is not finite, so its batch was not applied. Its examples, by "
            f"index and source: {named}",
        )
    if new > IN_A_ROW:
        note("skipped steps", f"{new - IN_A_ROW} more before these, {skips.count} in all")


def too_many(skips):
    """Whether IN_A_ROW or more were skipped, one after the other; `skips` on the host."""
    return skips.last[0] - skips.since + 1 >= IN_A_ROW


def roll_back(state, skips, checkpoints):
    """(state as it was before the first of too many skips, the step that it is from).

    The steps go on, so that the batches and draws that follow are other ones.

    Args:
        skips: those of `state`, on the host.

    Raises: NonFiniteError if the run has gone back before, or if there is nothing to go back to.
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
        note(why, f"goes back to the checkpoint of step {step}, once")
    counts = dict(count=state.skips.count, rollbacks=state.skips.rollbacks + 1)
    return old.replace(step=state.step, skips=old.skips.replace(**counts)), step
