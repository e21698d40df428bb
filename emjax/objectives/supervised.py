"""Finetuning: from an image to the target of a task."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from flax import struct

from emjax import metrics
from emjax.data.augment import Augmentation
from emjax.data.normalise import row_keys, to_network
from emjax.models.build import create
from emjax.models.network import Network
from emjax.objectives.accumulate import accumulate_gradients
from emjax.objectives.nonfinite import Skips, apply_if_finite, no_skips
from emjax.tasks import Task


class State(struct.PyTreeNode):
    """Everything a step reads or writes; saving this resumes the run exactly."""

    step: jax.Array  # int32 [], updates done so far
    key: jax.Array  # PRNG key []; folded with `step`, never replaced
    generator: Network
    skips: Skips = struct.field(default_factory=no_skips)


@dataclasses.dataclass(frozen=True)
class Supervised:
    """The task's loss on (image, target) pairs."""

    generator: dict  # model field of a config
    optimizer: optax.GradientTransformation
    augment: Augmentation
    task: Task
    precision: str = "float32"  # what the network computes in; or bfloat16
    accumulate: int = 1  # parts in which a batch is computed, one after the other

    compiler_options: ClassVar = {}

    def init(self, seed):
        generator_seed, key = jax.random.split(jax.random.key(seed))
        return State(
            step=jnp.zeros((), jnp.int32),
            key=key,
            generator=create(
                self.generator, self.optimizer, key=generator_seed, precision=self.precision
            ),
        )

    def train_step(self, state, batch):
        """One update; `batch` holds the image and the task's target, [b, h, w, 1] as stored."""
        g = state.generator
        key = jax.random.fold_in(state.key, state.step)
        example = self.augment(row_keys(key, len(batch["image"])), to_network(batch))

        def loss(params, example):
            output, stats = g.apply(params, g.stats, example["image"], train=True)
            return self.task.loss(output, example[self.task.target]), stats

        slope = functools.partial(jax.value_and_grad(loss, has_aux=True), g.params)
        (value, stats), grads = accumulate_gradients(slope, example, self.accumulate)
        after = state.replace(step=state.step + 1, generator=g.apply_gradients(grads, stats))
        return apply_if_finite(state, after, (value, grads, stats)), {"loss": value}

    def eval_step(self, state, batch):
        """The task's metrics on whole images, with running statistics, image by image."""
        g = state.generator.ema_network
        example = to_network(batch)
        output, _ = g.apply(g.params, g.stats, example["image"], train=False)
        scores = self.task.metrics(output, example[self.task.target], batch["valid"])
        return metrics.counted(scores, batch["valid"])

    def views(self, generator, batch):
        """{name: float32 [b, h, w, 1] in [-1, 1]} of what is worth looking at side by side."""
        example = to_network(batch)
        output, _ = generator.apply(
            generator.params, generator.stats, example["image"], train=False
        )
        pair = {"prediction": self.task.prediction(output), "truth": example[self.task.target]}
        if self.task.is_mask:  # from [0, 1]
            pair = {name: 2 * values - 1 for name, values in pair.items()}
        return {"input": example["image"], **pair}
