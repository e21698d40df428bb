"""Optimizers by name, and what each may have: clipped gradients, a learning rate in time."""

import optax

from emjax.errors import UsageError, choose


def adam(*, lr, b1=0.9, b2=0.999):
    """Adam; epsilon 1e-8 outside the root, as in PyTorch. `lr` is a number or a schedule."""
    return optax.adam(lr, b1=b1, b2=b2)


OPTIMIZERS = {"adam": adam}
SCHEDULES = {  # (learning rate, updates) to a schedule over so many
    "constant": lambda lr, updates: optax.constant_schedule(lr),
    "cosine": optax.cosine_decay_schedule,
    "linear": lambda lr, updates: optax.linear_schedule(lr, 0.0, updates),
}


def build(optimizer, updates=None):
    """The optax transformation of a config's `optimizer` field, `{"name": ..., **arguments}`.

    Args:
        optimizer: of its arguments, three are common to all:
            clip: the largest norm of all gradients of a network together; 0 for any.
            schedule: constant, or cosine or linear down to zero at the end of the run.
            warmup: updates in which the learning rate rises, from lr / warmup in equal steps.
        updates: those of the whole run; without them, for a run that only evaluates, the
            learning rate is constant.

    Raises: UsageError for names that are not there, and numbers that cannot be.
    """
    arguments = {"clip": 0.0, "schedule": "constant", "warmup": 0, **optimizer}
    clip, schedule, warmup = (arguments.pop(name) for name in ("clip", "schedule", "warmup"))
    constructor = choose("optimizer", arguments.pop("name"), OPTIMIZERS)
    decay = choose("optimizer.schedule", schedule, SCHEDULES)
    if not clip >= 0:
        raise UsageError(f"optimizer.clip={clip}; a norm above 0, or 0 for none, was due")
    if warmup < 0 or (updates and warmup >= updates):
        raise UsageError(f"optimizer.warmup={warmup}; 0 to {(updates or 1) - 1} updates were due")
    if updates and (schedule != "constant" or warmup):
        lr = arguments["lr"]
        rise = optax.linear_schedule(lr / max(warmup, 1), lr, warmup - 1)
        arguments["lr"] = optax.join_schedules([rise, decay(lr, updates - warmup)], [warmup])
    built = constructor(**arguments)
    return optax.chain(optax.clip_by_global_norm(clip), built) if clip else built
