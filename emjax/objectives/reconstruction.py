"""Pretraining without a discriminator: restore a corrupted micrograph, scored by L1 alone."""

import dataclasses
from typing import Any

import jax
import optax

from emjax.data.augment import Augmentation
from emjax.metrics import losses
from emjax.objectives import one_network
from emjax.objectives.objective import Batch
from emjax.objectives.one_network import GeneratorState
from emjax.objectives.restoring import Corrupt, Restoring


@dataclasses.dataclass(frozen=True)
class Reconstruction(Restoring):
    """Pix2Pix without its GAN: the same generator, corruption and score, half the cost."""

    generator: dict[str, Any]  # model field of a config
    optimizer: optax.GradientTransformation
    augment: Augmentation
    corrupt: Corrupt
    precision: str = "float32"  # what the network computes in; or bfloat16
    accumulate: int = 1  # microbatches in which a batch is computed, one after the other

    def init(self, seed: int) -> GeneratorState:
        """Return the state at step 0."""
        return one_network.initial_state(seed, self.generator, self.optimizer, self.precision)

    def train_step(
        self, state: GeneratorState, batch: Batch
    ) -> tuple[GeneratorState, dict[str, jax.Array]]:
        """Return the state after one update, and the loss.

        batch["image"] is uint8, uint16 or float32 [b, h, w, 1].
        """
        g = state.generator

        def loss(params, pair):
            micrograph, corrupted = pair
            restored, stats = g.apply(params, g.stats, corrupted, train=True)
            return self.loss(restored, micrograph, corrupted), stats

        pairs = self.training_pairs(state, batch)
        after, value = one_network.update_generator(state, loss, pairs, self.accumulate)
        return after, {"g_l1": value}

    def loss(
        self, restored: losses.Images, micrograph: losses.Images, corrupted: losses.Images
    ) -> losses.Scalar:
        """Return the loss of a batch."""
        return losses.l1(prediction=restored, target=micrograph)
