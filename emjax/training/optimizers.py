"""Optimizers by name, with gradient clipping and learning-rate schedules."""

from collections.abc import Callable, Mapping
from typing import Any

import optax

from emjax.errors import UsageError, choose


def adam(
    *, lr: optax.ScalarOrSchedule, b1: float = 0.9, b2: float = 0.999
) -> optax.GradientTransformation:
    """Return Adam; epsilon 1e-8 outside the root, as in PyTorch."""
    return optax.adam(lr, b1=b1, b2=b2)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {"adam": adam}
SCHEDULES: dict[str, Callable[[float, int], optax.Schedule]] = {  # of (learning rate, updates)
    "constant": lambda lr, updates: optax.constant_schedule(lr),
    "cosine": optax.cosine_decay_schedule,
    "linear": lambda lr, updates: optax.linear_schedule(lr, 0.0, updates),
}


def build(optimizer: Mapping[str, Any], updates: int | None = None) -> optax.GradientTransformation:
    """Return the optax transformation of a config's `optimizer`, `{"name": ..., **arguments}`.

    Args:
        optimizer: three of its arguments are common to all:
            clip: largest norm of all gradients of a network together; 0: no clipping.
            schedule: constant, or cosine or linear down to zero at the end of the run.
            warmup: updates in which the learning rate rises, from lr / warmup in equal steps.
        updates: those of the whole run. Without them, for a run that only evaluates, the learning
            rate is constant.

    Raises: UsageError for unknown names and impossible numbers.
    """
    arguments = {"clip": 0.0, "schedule": "constant", "warmup": 0, **optimizer}
    clip, schedule, warmup = (arguments.pop(name) for name in ("clip", "schedule", "warmup"))
    constructor = choose("optimizer", arguments.pop("name"), OPTIMIZERS)
    decay = choose("optimizer.schedule", schedule, SCHEDULES)
    if not clip >= 0:
        raise UsageError(f"optimizer.clip={clip}, expected a norm above 0, or 0 for no clipping")
    if warmup < 0 or (updates and warmup >= updates):
        raise UsageError(f"optimizer.warmup={warmup}, expected 0 to {(updates or 1) - 1} updates")
    if updates and (schedule != "constant" or warmup):
        lr = arguments["lr"]
        rise = optax.linear_schedule(lr / max(warmup, 1), lr, warmup - 1)
        arguments["lr"] = optax.join_schedules([rise, decay(lr, updates - warmup)], [warmup])
    built = constructor(**arguments)
    return optax.chain(optax.clip_by_global_norm(clip), built) if clip else built
