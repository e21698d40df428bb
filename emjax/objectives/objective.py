"""The interface of an objective."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax

from emjax.models.network import Network

State = Any  # a struct.PyTreeNode: `step`, `key`, `skips`, the kept network `generator`, others
Batch = Mapping[str, jax.Array]  # {field: [b, ...]}, as records hold them


class Objective(Protocol):
    """How weights change: a frozen dataclass of plain values with pure methods.

    One that has no task is ranked by `emjax.tasks.PRETRAINING_SCORE`.
    """

    @property
    def accumulate(self) -> int:
        """Number of microbatches in which a batch is computed."""
        ...

    def init(self, seed: int) -> State:
        """Return the state at step 0."""
        ...

    def train_step(self, state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        """Return the state after one update, and a flat dict of scalars."""
        ...

    def eval_step(self, state: State, batch: Batch) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Return {metric: (values [b], whether each counts, bool [b])}, an entry per image."""
        ...

    def views(self, generator: Network, batch: Batch) -> dict[str, jax.Array]:
        """Return {name: float32 [b, h, w, 1] in [-1, 1]} to look at side by side."""
        ...
