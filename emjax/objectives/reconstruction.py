"""Pretraining without a discriminator: restore a corrupted micrograph, judged by L1 alone."""

import dataclasses
import functools

import jax
import optax

from emjax.data.augment import Augmentation
from emjax.data.corruptions import Corruption
from emjax.data.normalise import row_keys, to_network
from emjax.metrics import losses
from emjax.objectives.accumulate import accumulate_gradients
from emjax.objectives.nonfinite import apply_if_finite
from emjax.objectives.restoring import Restoring
from emjax.objectives.supervised import Supervised


@dataclasses.dataclass(frozen=True)
class Reconstruction(Restoring):
    """What pix2pix is without its GAN: the same generator, corruption and score, half the cost."""

    generator: dict  # model field of a config
    optimizer: optax.GradientTransformation
    augment: Augmentation
    corrupt: Corruption
    precision: str = "float32"  # what the network computes in; or bfloat16
    accumulate: int = 1  # parts in which a batch is computed, one after the other

    init = Supervised.init  # one network: from the same seed the same values

    def train_step(self, state, batch):
        """One update; batch["image"] is uint8, uint16 or float32 [b, h, w, 1]."""
        g = state.generator
        augment_key, corrupt_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        rows = len(batch["image"])
        micrograph = self.augment(row_keys(augment_key, rows), to_network(batch))["image"]
        corrupted = self.corrupt(row_keys(corrupt_key, rows), micrograph)

        def loss(params, pair):
            micrograph, corrupted = pair
            restored, stats = g.apply(params, g.stats, corrupted, train=True)
            return self.loss(restored, micrograph, corrupted), stats

        slope = functools.partial(jax.value_and_grad(loss, has_aux=True), g.params)
        pairs = micrograph, corrupted
        (value, stats), grads = accumulate_gradients(slope, pairs, self.accumulate)
        after = state.replace(step=state.step + 1, generator=g.apply_gradients(grads, stats))
        return apply_if_finite(state, after, (value, grads, stats)), {"g_l1": value}

    def loss(self, restored, micrograph, corrupted):
        return losses.l1(prediction=restored, target=micrograph)
