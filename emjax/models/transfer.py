"""New weights filled from old ones, every leaf accounted for."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from emjax.errors import UsageError
from emjax.models.model import Model
from emjax.models.network import Network


class TransferReport(NamedTuple):
    """What became of every parameter and running statistic, by path."""

    loaded: list[str]  # taken from the old weights
    fresh: list[str]  # left at their initial values because a pattern matches them

    def __str__(self) -> str:
        return f"{len(self.loaded)} arrays loaded, {len(self.fresh)} fresh: " + (
            ", ".join(self.fresh) or "none"
        )


def check_same_wiring(old: Model, new: Model) -> None:
    """Raise UsageError if two modules compute differently from the same arrays, naming where.

    Settings that only one of them has belong to another architecture: its arrays do not fit.
    """
    before, after = old.wiring, new.wiring
    differ = [
        f"{name} {value} -> {after[name]}"
        for name, value in before.items()
        if name in after and value != after[name]
    ]
    if differ:
        raise UsageError(
            f"the old weights belong to a network with other settings: {'; '.join(differ)}; "
            "set config.model alike"
        )


def fill(
    network: Network,
    params: Mapping[str, Any],
    stats: Mapping[str, Any],
    *,
    fresh: Sequence[str] = (),
) -> tuple[Network, TransferReport]:
    """Return `network` with its arrays taken from old `params` and `stats`, and the report of it.

    The optimizer's memory stays at its start.

    Args:
        fresh: regular expressions; whole paths that match one keep their initial values.

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
        advice = ". List in initialise.fresh the layers to re-initialise" if missing - keep else ""
        raise UsageError("the weights do not fit: " + "; ".join(problems) + advice)

    def filled(arrays: Mapping[str, Array]) -> dict[str, Array]:
        return {
            path: value if path in keep else jnp.asarray(old[path], value.dtype)
            for path, value in arrays.items()
        }

    report = TransferReport(loaded=sorted(new.keys() - keep), fresh=sorted(keep))
    return network.replace(params=filled(network.params), stats=filled(network.stats)), report
