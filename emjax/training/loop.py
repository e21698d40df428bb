"""The training loop, one for all objectives."""

import collections
import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import jax

from emjax.errors import Interrupted
from emjax.models.network import Network
from emjax.objectives.objective import Batch, Objective, State
from emjax.parallel import devices, processes
from emjax.runs.checkpoints import Checkpoints
from emjax.runs.metrics_log import MetricsLog
from emjax.training import rollback
from emjax.training.timing import StepTimer


class Batches(Protocol):
    """Training batches without end; batch k depends on k alone."""

    def starting_at(self, step: int) -> Iterator[Any]:
        """Yield the batches `step`, `step` + 1, ..., on the devices."""
        ...

    def rows(self, batch: Any) -> Batch:
        """Return {field: [b, ...]} of a batch; called inside the step."""
        ...

    def examples(self, batch: int) -> list[tuple[str, int]]:
        """Return the (source, index) of every row of batch number `batch`, counted from 0."""
        ...


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When a run logs, evaluates and saves: each every so many steps, 0 for never, and at its end.

    Attributes:
        total_steps: updates of the whole run.
    """

    total_steps: int
    log_every: int
    eval_every: int
    save_every: int

    def logs(self, step: int) -> bool:
        """Return whether the losses are logged after `step`."""
        return self._applies(step, self.log_every)

    def evaluates(self, step: int) -> bool:
        """Return whether the state is evaluated after `step`, and saved with its scores."""
        return self._applies(step, self.eval_every)

    def saves(self, step: int) -> bool:
        """Return whether the state is saved after `step`."""
        return self._applies(step, self.save_every)

    def _applies(self, step: int, every: int) -> bool:
        return step == self.total_steps or (every != 0 and step % every == 0)


def update_program(objective: Objective, train: Batches, state: State) -> Any:
    """Return the jitted function of one update, (state, batch) to (state, terms).

    The next state takes the memory of the one before.

    Args:
        state: on the devices, as the next one will be.
    """

    def update(state, batch):
        return objective.train_step(state, train.rows(batch))

    return jax.jit(
        update,
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, state), state.step.sharding),
        compiler_options=devices.supported_options(),
    )


def fit(
    objective: Objective,
    state: State,
    train: Batches,
    evals: Mapping[str, Iterable[Batch]],
    schedule: Schedule,
    *,
    checkpoints: Checkpoints,
    log: MetricsLog,
    publish: Callable[[Network, int, dict[str, float]], None],
    select: str = "best",
    early_stopping: int = 0,
    since_best: int = 0,
    stop: Callable[[], bool] = lambda: False,
    timer: StepTimer | None = None,
    train_step: Any = None,
) -> State:
    """Train from `state` to the last step of `schedule` or an early stop; return the last state.

    Args:
        state: on the devices, as `sharding.place_state` puts it; it stays there.
        evals: split name to finite batches. `val` is scored at every evaluation, the others at each
            new best and at the last step.
        publish: called with (generator, step, scores) at every new best.
        select: "best"; "last" publishes at every evaluation, so that the last one remains.
        early_stopping: evaluations in a row without a better score that end the run; 0: never.
        since_best: how many there are already.
        stop: called once per step; True saves and stops after this step.
        timer: times the steps, and writes a profile if it has one; by default a new one.
        train_step: that of `update_program`, if it is there already.

    Raises: Interrupted if `stop` returned true before the last step; NonFiniteError as
        `rollback.roll_back`.
    """
    total_steps = schedule.total_steps

    def scores(state, batch):
        return objective.eval_step(state, batch), batch["index"]

    train_step = train_step or update_program(objective, train, state)
    eval_step = jax.jit(scores, out_shardings=state.step.sharding)
    done = int(state.step)
    reader = train.starting_at(done)
    skips_reported = int(state.skips.count)
    timer = timer or StepTimer()
    if 0 < early_stopping <= since_best:
        return state

    for step in range(done + 1, total_steps + 1):
        batch = timer.read(reader, step)
        with jax.transfer_guard("disallow"):
            state, terms = train_step(state, batch)
        timer.stepped(step, terms)
        log.show_step(step)
        stopping = stop() and step < total_steps
        logs, evaluates, saves = schedule.logs(step), schedule.evaluates(step), schedule.saves(step)

        if stopping or logs or evaluates or saves:
            terms, skipped = jax.device_get((terms, state.skips))  # the loop's one wait
            log.clear_line()
            rollback.report_skips(skipped, skips_reported, train.examples)
            skips_reported = int(skipped.count)
            if logs:
                terms = {name: value for name, value in terms.items() if math.isfinite(value)}
                terms = {**terms, "skipped": skips_reported} if skips_reported else terms
                log.train(step, terms, timer.row())
            checkpoints.hold(before=skipped.since if skipped.last[0] == step else math.inf)
            if rollback.too_many(skipped):
                state, back_to = rollback.roll_back(state, skipped, checkpoints)
                log.write(step, {"train/back_to": back_to})
        if evaluates:
            means, _ = evaluate(eval_step, state, "val", evals["val"])
            is_best = checkpoints.is_best(means)
            since_best = 0 if is_best else since_best + 1
            stops_early = step < total_steps and 0 < early_stopping <= since_best
            if is_best or stops_early or step == total_steps:
                for split in [name for name in evals if name != "val"]:
                    others, images = evaluate(eval_step, state, split, evals[split])
                    means |= others
                    log.write_images(step, split, images)
            log.write(step, means | ({"train/stopped_early": since_best} if stops_early else {}))
            if is_best or select == "last":
                publish(state.generator, step, means)
            checkpoints.save(step, state, means)
            log.restart_clock(step)
            timer.restart()
            if stops_early:
                break
        elif saves or stopping:
            checkpoints.save(step, state)
        if stopping:
            checkpoints.wait()
            processes.barrier()  # all is saved once all have: the first to end ends the others
            raise Interrupted(f"stopped at step {step} of {total_steps}, all saved; run it again")
    checkpoints.wait()
    return state


def evaluate(
    eval_step: Callable[[State, Batch], Any], state: State, split: str, batches: Iterable[Batch]
) -> tuple[dict[str, float], dict[int, dict[str, float]]]:
    """Return ({"split/metric": mean over its images}, {index: {metric: value}}) of all `batches`.

    An image to which a metric does not apply has no value of it; a metric that applies to no image
    is left out of the means.

    Args:
        eval_step: (state, batch) to ({metric: (values [b], whether each counts)}, indices [b]).
    """
    images = collections.defaultdict(dict)
    for batch in batches:
        scores, indices = jax.device_get(eval_step(state, batch))
        for name, (values, counts) in scores.items():
            for index, value in zip(indices[counts], values[counts], strict=True):
                images[int(index)][name] = float(value)
    columns = collections.defaultdict(list)
    for scores in images.values():
        for name, value in scores.items():
            columns[f"{split}/{name}"].append(value)
    return {name: statistics.fmean(values) for name, values in columns.items()}, images
