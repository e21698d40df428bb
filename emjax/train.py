"""The loop, one for every objective."""

import math

import jax

from emjax.errors import NonFinite, Stopped


def fit(objective, state, train, evals, *, total_steps, log_every, eval_every, save_every,
        checkpoints, journal, publish, select="best", stop=lambda: False):  # fmt: skip
    """Train from `state` to `total_steps` updates; returns the last state.

    Args:
        state: whole on every device, `sharding.replicated`.
        train: `starting_at(step)` gives the batches from there on.
        evals: split name to finite batches.
        log_every, eval_every, save_every: in steps; each is also due at the last.
        publish: called with (generator, step, scores) at every new best.
        select: "best"; "last" publishes at every evaluation, so that the last one stays.
        stop: whether to save and stop after this step.

    Raises: Stopped when `stop` said so before the last step; NonFinite.
    """
    everywhere = state.step.sharding
    train_step = jax.jit(objective.train_step, donate_argnums=0, out_shardings=everywhere)
    eval_step = jax.jit(objective.eval_step, out_shardings=everywhere)
    done = int(state.step)
    reader = train.starting_at(done)

    def due(step, every):
        return step == total_steps or (every and step % every == 0)

    for step in range(done + 1, total_steps + 1):
        batch = next(reader)
        with jax.transfer_guard("disallow"):
            state, terms = train_step(state, batch)
        stopping = stop() and step < total_steps

        if due(step, log_every):
            terms = jax.device_get(terms)  # the loop's one wait
            if not all(map(math.isfinite, terms.values())):
                raise NonFinite(f"step {step}: {terms}; the last good state is kept")
            journal.train(step, terms)
        if due(step, eval_every):
            scores = {
                f"{split}/{name}": score
                for split, batches in evals.items()
                for name, score in evaluate(eval_step, state, batches).items()
            }
            journal.write(step, scores)
            if checkpoints.is_best(scores) or select == "last":
                publish(state.generator, step, scores)
            checkpoints.save(step, state, scores)
            journal.resume(step)
        elif due(step, save_every) or stopping:
            checkpoints.save(step, state)
        if stopping:
            checkpoints.wait()
            raise Stopped(f"stopped at step {step} of {total_steps}, all saved; run it again")
    checkpoints.wait()
    return state


def evaluate(eval_step, state, batches):
    """The mean of every metric over the images of `batches` to which it applies, {name: float}.

    A metric that applies to none of them is left out.
    """
    sums, counts = {}, {}
    for batch in batches:
        for name, (total, count) in jax.device_get(eval_step(state, batch)).items():
            sums[name] = sums.get(name, 0.0) + float(total)
            counts[name] = counts.get(name, 0.0) + float(count)
    return {name: sums[name] / counts[name] for name in sums if counts[name]}
