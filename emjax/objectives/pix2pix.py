"""Pretraining: restore a corrupted micrograph so that a discriminator takes it for the original."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from emjax.data.augment import Augmentation
from emjax.metrics import losses
from emjax.models.build import create
from emjax.models.network import Network
from emjax.objectives.accumulate import accumulate_gradients
from emjax.objectives.nonfinite import Skips, apply_if_finite, no_skips
from emjax.objectives.objective import Batch
from emjax.objectives.restoring import Corrupt, Restoring


class GanState(struct.PyTreeNode):
    """Everything a step reads or writes; saving it resumes the run exactly."""

    step: jax.Array  # int32 [], updates done so far
    key: jax.Array  # PRNG key []; folded with `step`, never replaced
    generator: Network
    discriminator: Network
    skips: Skips = struct.field(default_factory=no_skips)


@dataclasses.dataclass(frozen=True)
class Pix2Pix(Restoring):
    """LSGAN + `l1_weight` * L1 on (corrupted, micrograph) pairs.

    Source: Isola et al. 2017 (arXiv 1611.07004), as used by Kazimi et al. (arXiv 2402.18286).
    Differs: the generator's only randomness is the corruption of its input.
    """

    generator: dict[str, Any]  # model field of a config
    discriminator: dict[str, Any]
    optimizer: optax.GradientTransformation
    augment: Augmentation
    corrupt: Corrupt
    l1_weight: float = 100.0
    precision: str = "float32"  # what the networks compute in; or bfloat16
    accumulate: int = 1  # microbatches in which a batch is computed, one after the other

    def init(self, seed: int) -> GanState:
        """Return the state at step 0."""
        generator_seed, discriminator_seed, key = jax.random.split(jax.random.key(seed), 3)
        return GanState(
            step=jnp.zeros((), jnp.int32),
            key=key,
            generator=create(
                self.generator, self.optimizer, key=generator_seed, precision=self.precision
            ),
            discriminator=create(
                self.discriminator, self.optimizer, key=discriminator_seed, precision=self.precision
            ),
        )

    def train_step(self, state: GanState, batch: Batch) -> tuple[GanState, dict[str, jax.Array]]:
        """Update the discriminator, then the generator against the updated discriminator.

        batch["image"] is uint8, uint16 or float32 [b, h, w, 1]. Returns the next state and a flat
        dict of scalars; nothing leaves the device.
        """
        g, d = state.generator, state.discriminator
        pairs = self.training_pairs(state, batch)
        corrupted = pairs[1]

        # `pull_back` takes a gradient with respect to the restored image to one with respect to the
        # parameters. So one generator pass serves both updates, except with microbatches: the pass
        # is then repeated, because it would have to be kept for all of them.
        def generate(corrupted):
            return jax.vjp(
                lambda params: g.apply(params, g.stats, corrupted, train=True),
                g.params,
                has_aux=True,
            )

        generated = generate(corrupted) if self.accumulate == 1 else None

        def discriminator_turn(pair):
            micrograph, corrupted = pair
            restored, *_ = generated or generate(corrupted)

            def loss(params):
                on_fake, stats = d.apply(params, d.stats, corrupted, restored, train=True)
                on_real, stats = d.apply(params, stats, corrupted, micrograph, train=True)
                terms = {
                    "d_real": losses.adversarial(on_real, real=True),
                    "d_fake": losses.adversarial(on_fake, real=False),
                }
                return 0.5 * (terms["d_real"] + terms["d_fake"]), (stats, terms)

            return jax.grad(loss, has_aux=True)(d.params)

        d_grads, (d_stats, d_terms) = accumulate_gradients(
            discriminator_turn, pairs, self.accumulate
        )
        d = d.apply_gradients(d_grads, d_stats)

        def generator_turn(pair):
            micrograph, corrupted = pair
            restored, pull_back, g_stats = generated or generate(corrupted)

            def loss(restored):
                on_fake, stats = d.apply(d.params, d.stats, corrupted, restored, train=True)
                terms = {
                    "g_gan": losses.adversarial(on_fake, real=True),
                    "g_l1": losses.l1(prediction=restored, target=micrograph),
                }
                return terms["g_gan"] + self.l1_weight * terms["g_l1"], (stats, terms)

            image_grads, (d_stats, terms) = jax.grad(loss, has_aux=True)(restored)
            return *pull_back(image_grads), g_stats, d_stats, terms

        g_grads, g_stats, d_stats, g_terms = accumulate_gradients(
            generator_turn, pairs, self.accumulate
        )
        after = state.replace(
            step=state.step + 1,
            generator=g.apply_gradients(g_grads, g_stats),
            discriminator=d.replace(stats=d_stats),
        )
        terms = {**g_terms, **d_terms}
        return apply_if_finite(state, after, (terms, g_grads, g_stats, d_grads, d_stats)), terms
