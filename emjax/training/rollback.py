"""Report the batches that were skipped as non-finite, and go back to a checkpoint if too many were.

The step decides on the device whether a batch is applied. The host checks when it reports or saves:
it names the examples, and goes back to a checkpoint after IN_A_ROW skipped batches.
"""

from collections.abc import Callable, Iterable

import jax

from emjax.errors import NonFiniteError, note
from emjax.objectives.nonfinite import IN_A_ROW, Skips
from emjax.objectives.objective import State
from emjax.parallel import processes
from emjax.runs.checkpoints import Checkpoints


def report_skips(
    skips: Skips, reported: int, examples: Callable[[int], Iterable[tuple[str, int]]]
) -> None:
    """Note the examples of the batches that were skipped after the first `reported` skips.

    Args:
        skips: on the host.
        examples: number of a batch, counted from 0, to the (source, index) of its rows.
    """
    new = int(skips.count) - reported
    if jax.process_index() or not new:
        return
    for update in sorted(skips.last[:new].tolist()):
        by_source: dict[str, list[str]] = {}
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


def too_many(skips: Skips) -> bool:
    """Return whether IN_A_ROW or more batches were skipped in a row; `skips` on the host."""
    return int(skips.last[0]) - int(skips.since) + 1 >= IN_A_ROW


def roll_back(state: State, skips: Skips, checkpoints: Checkpoints) -> tuple[State, int]:
    """Return the state from before the first of too many skips, and the step that it is from.

    The step count goes on, so that other batches and draws follow.

    Args:
        skips: those of `state`, on the host.

    Raises: NonFiniteError if the run has gone back before, or if there is no checkpoint.
    """
    why = (
        f"steps {skips.since} to {skips.last[0]}: the loss or a gradient is not finite, "
        f"{IN_A_ROW} times or more in a row"
    )
    advice = "Look at the examples named above, or lower optimizer.lr"
    if skips.rollbacks:
        raise NonFiniteError(f"{why}, and the run has gone back to a checkpoint before. {advice}")
    old = checkpoints.restore_before(state, int(skips.since))
    if old is None:
        raise NonFiniteError(f"{why}, and there is no good checkpoint from before. {advice}")
    step = int(old.step)
    if processes.is_first():
        note(why, f"the run goes back to the checkpoint of step {step}, once")
    counts = dict(count=state.skips.count, rollbacks=state.skips.rollbacks + 1)
    return old.replace(step=state.step, skips=old.skips.replace(**counts)), step
