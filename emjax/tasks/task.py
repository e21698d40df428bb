"""The parts of a task."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array


class Task(NamedTuple):
    """How a network's output is trained, scored and written.

    Attributes:
        target: the record's field that is the truth.
        loss: (output, target) to a scalar.
        metrics: (output, target, valid) to what `metrics.counted` takes, {name: float32 [b]}.
        best: the metric that chooses the best checkpoint.
        higher_is_better: whether a higher value of it is better.
        prediction: output to what is written: a probability in [0, 1], or an image in [-1, 1].
    """

    target: str
    loss: Callable[[Array, Array], Array]
    metrics: Callable[[Array, Array, Array], dict[str, Any]]
    best: str
    higher_is_better: bool
    prediction: Callable[[Array], Array]

    @property
    def is_mask(self) -> bool:
        """Whether the truth is a mask, not an image in the range of the input."""
        return self.target == "mask"
