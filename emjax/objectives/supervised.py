"""Finetuning: from an image to the target of a task."""

import dataclasses
from typing import Any

import jax
import optax

from emjax import metrics
from emjax.data.augment import Augmentation
from emjax.data.normalise import row_keys, to_network
from emjax.models.network import Network
from emjax.objectives import one_network
from emjax.objectives.objective import Batch
from emjax.objectives.one_network import GeneratorState
from emjax.tasks import Task


@dataclasses.dataclass(frozen=True)
class Supervised:
    """The task's loss on (image, target) pairs."""

    generator: dict[str, Any]  # model field of a config
    optimizer: optax.GradientTransformation
    augment: Augmentation
    task: Task
    precision: str = "float32"  # what the network computes in; or bfloat16
    accumulate: int = 1  # microbatches in which a batch is computed, one after the other

    def init(self, seed: int) -> GeneratorState:
        """Return the state at step 0."""
        return one_network.initial_state(seed, self.generator, self.optimizer, self.precision)

    def train_step(
        self, state: GeneratorState, batch: Batch
    ) -> tuple[GeneratorState, dict[str, jax.Array]]:
        """Return the state after one update, and the loss.

        `batch` holds the image and the task's target, [b, h, w, 1] as stored.
        """
        g = state.generator
        key = jax.random.fold_in(state.key, state.step)
        example = self.augment(row_keys(key, len(batch["image"])), to_network(batch))

        def loss(params, example):
            output, stats = g.apply(params, g.stats, example["image"], train=True)
            return self.task.loss(output, example[self.task.target]), stats

        after, value = one_network.update_generator(state, loss, example, self.accumulate)
        return after, {"loss": value}

    def eval_step(
        self, state: GeneratorState, batch: Batch
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Return the task's metrics on whole images, with running statistics, per image."""
        g = state.generator.ema_network
        example = to_network(batch)
        output, _ = g.apply(g.params, g.stats, example["image"], train=False)
        scores = self.task.metrics(output, example[self.task.target], batch["valid"])
        return metrics.counted(scores, batch["valid"])

    def views(self, generator: Network, batch: Batch) -> dict[str, jax.Array]:
        """Return {name: float32 [b, h, w, 1] in [-1, 1]} to look at side by side."""
        example = to_network(batch)
        output, _ = generator.apply(
            generator.params, generator.stats, example["image"], train=False
        )
        pair = {"prediction": self.task.prediction(output), "truth": example[self.task.target]}
        if self.task.is_mask:  # from [0, 1]
            pair = {name: 2 * self.task.grey(values) - 1 for name, values in pair.items()}
        return {"input": example["image"], **pair}
