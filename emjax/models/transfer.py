"""New weights filled from old ones, every leaf accounted for."""

import re
from typing import NamedTuple

import jax.numpy as jnp

from emjax.errors import UsageError


class TransferReport(NamedTuple):
    """What became of every parameter and running statistic."""

    loaded: list  # taken from the old weights
    fresh: list  # left at their initial values because a pattern says so

    def __str__(self):
        return f"{len(self.loaded)} arrays loaded, {len(self.fresh)} fresh: " + (
            ", ".join(self.fresh) or "none"
        )


def check_same_wiring(old, new):
    """Raise UsageError if two modules compute differently from the same arrays, naming where."""
    settings = ("pools", "dilations", "upsampling", "input_interval", "norm")
    differ = [
        f"{name} {getattr(old, name)} -> {getattr(new, name)}"
        for name in settings
        if getattr(old, name, None) != getattr(new, name, None)
        and hasattr(old, name) and hasattr(new, name)
    ]  # fmt: skip
    if differ:
        raise UsageError(
            "the old weights belong to another network: "
            + "; ".join(differ)
            + "; set config.model alike"
        )


def fill(network, params, stats, *, fresh=()):
    """`network` with its body taken from old `params` and `stats`, and the account of it.

    Paths that match a pattern in `fresh` (regular expressions, whole path) keep their initial
    values. The optimizer's memory stays as it is: at its start.

    Raises: UsageError naming every leaf that is missing, unused or of another shape, and every
        pattern that matches nothing.
    """
    new, old = {**network.params, **network.stats}, {**params, **stats}
    missing, unused = new.keys() - old.keys(), old.keys() - new.keys()
    keep = {path for path in new if any(re.fullmatch(pattern, path) for pattern in fresh)}
    problems = [
        f"fresh pattern {pattern!r} matches nothing"
        for pattern in fresh
        if not any(re.fullmatch(pattern, path) for path in new)
    ]
    problems += [f"only in the new network {path}" for path in sorted(missing - keep)]
    problems += [f"only in the checkpoint {path}" for path in sorted(unused)]
    problems += [
        f"shapes differ {path} {tuple(old[path].shape)} -> {tuple(new[path].shape)}"
        for path in sorted((new.keys() & old.keys()) - keep)
        if tuple(old[path].shape) != tuple(new[path].shape)
    ]
    if problems:
        anew = ". Name in initialise.fresh what is to start anew" if missing - keep else ""
        raise UsageError("the weights do not fit: " + "; ".join(problems) + anew)

    def filled(arrays):
        return {
            path: value if path in keep else jnp.asarray(old[path], value.dtype)
            for path, value in arrays.items()
        }

    account = TransferReport(loaded=sorted(new.keys() - keep), fresh=sorted(keep))
    return network.replace(params=filled(network.params), stats=filled(network.stats)), account
