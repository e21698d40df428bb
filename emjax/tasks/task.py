"""The parts of a task."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array


class Task(NamedTuple):
    """How a network's output is trained, scored and written.

    Attributes:
        target: the record's field that is the truth.
        loss: (output, target) to a scalar.
        metrics: (output, target, valid) to what `metrics.counted` takes, {name: float32 [b]}.
        best: the metric that chooses the best checkpoint.
        higher_is_better: whether a higher value of it is better.
        prediction: output to what is written: a probability in [0, 1], one per class if there are
            more than two, or an image in [-1, 1].
        classes: of a mask, the background among them.
    """

    target: str
    loss: Callable[[Array, Array], Array]
    metrics: Callable[[Array, Array, Array], dict[str, Any]]
    best: str
    higher_is_better: bool
    prediction: Callable[[Array], Array]
    classes: int = 2

    @property
    def is_mask(self) -> bool:
        """Whether the truth is a mask, not an image in the range of the input."""
        return self.target == "mask"

    def grey(self, values: Array) -> Array:
        """Return a mask, or a prediction of one, in [0, 1], [b, h, w, 1], to look at.

        Of several classes, their numbers.
        """
        if self.classes == 2:
            return values
        numbers = values if values.shape[-1] == 1 else jnp.argmax(values, -1, keepdims=True)
        return numbers / (self.classes - 1)
