"""The loop, one for every objective."""

import collections
import math
import statistics

import jax

from emjax.errors import Interrupted
from emjax.parallel import devices
from emjax.training import rollback
from emjax.training.timing import StepTimer


def fit(objective, state, train, evals, *, total_steps, log_every, eval_every, save_every,
        checkpoints, journal, publish, select="best", stop=lambda: False, watch=None):  # fmt: skip
    """Train from `state` to `total_steps` updates; returns the last state.

    Args:
        state: on the devices, as `sharding.place_state` puts it; it stays so.
        train: TrainBatches, or what has its `starting_at`, `rows` and `examples`.
        evals: split name to finite batches. `val` is scored at every evaluation; the others at each
            new best and at the last step.
        log_every, eval_every, save_every: in steps; each is also due at the last.
        publish: called with (generator, step, scores) at every new best.
        select: "best"; "last" publishes at every evaluation, so that the last one stays.
        stop: whether to save and stop after this step.
        watch: the StepTimer that times the steps, with a profile to write or without.

    Raises: Interrupted if `stop` returned true before the last step; NonFiniteError as
        `rollback.roll_back`.
    """
    everywhere = state.step.sharding
    places = jax.tree.map(lambda leaf: leaf.sharding, state)

    def update(state, batch):
        return objective.train_step(state, train.rows(batch))

    def scores(state, batch):
        return objective.eval_step(state, batch), batch["index"]

    options = devices.supported_options(objective.compiler_options)
    train_step = jax.jit(
        update,
        donate_argnums=0,
        out_shardings=(places, everywhere),
        compiler_options=options,
    )
    eval_step = jax.jit(scores, out_shardings=everywhere)
    done = int(state.step)
    reader = train.starting_at(done)
    known = int(state.skips.count)
    watch = watch or StepTimer()

    def due(step, every):
        return step == total_steps or (every and step % every == 0)

    for step in range(done + 1, total_steps + 1):
        batch = watch.read(reader, step)
        with jax.transfer_guard("disallow"):
            state, terms = train_step(state, batch)
        watch.stepped(step, terms)
        journal.at(step)
        stopping = stop() and step < total_steps

        if stopping or any(due(step, every) for every in (log_every, eval_every, save_every)):
            terms, skipped = jax.device_get((terms, state.skips))  # the loop's one wait
            journal.clear()
            rollback.report_skips(skipped, known, train.examples)
            known = int(skipped.count)
            if due(step, log_every):
                terms = {name: value for name, value in terms.items() if math.isfinite(value)}
                terms = {**terms, "skipped": known} if known else terms
                journal.train(step, terms, watch.row())
            checkpoints.hold(before=skipped.since if skipped.last[0] == step else math.inf)
            if rollback.too_many(skipped):
                state, back_to = rollback.roll_back(state, skipped, checkpoints)
                journal.write(step, {"train/back_to": back_to})
        if due(step, eval_every):
            means, _ = evaluate(eval_step, state, "val", evals["val"])
            is_best = checkpoints.is_best(means)
            if is_best or step == total_steps:
                for split in [name for name in evals if name != "val"]:
                    more, images = evaluate(eval_step, state, split, evals[split])
                    means |= more
                    journal.write_images(step, split, images)
            journal.write(step, means)
            if is_best or select == "last":
                publish(state.generator, step, means)
            checkpoints.save(step, state, means)
            journal.resume(step)
            watch.resume()
        elif due(step, save_every) or stopping:
            checkpoints.save(step, state)
        if stopping:
            checkpoints.wait()
            raise Interrupted(f"stopped at step {step} of {total_steps}, all saved; run it again")
    checkpoints.wait()
    return state


def evaluate(eval_step, state, split, batches):
    """({"split/metric": mean over its images}, {index: {metric: value}}) of all `batches`.

    An image to which a metric does not apply has none of it; a metric that applies to none is left
    out of the means.
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
