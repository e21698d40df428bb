"""What the pretraining objectives that restore corrupted micrographs share: data and score."""

from collections.abc import Callable

import jax
from jaxtyping import Array, Bool, Key

from emjax import metrics
from emjax.data.augment import Augmentation
from emjax.data.normalise import row_keys, to_network
from emjax.metrics.losses import Images
from emjax.models.network import Network
from emjax.objectives.objective import Batch, State

VALIDATION_KEY = 0  # never the run's seed: every run and model is scored on the same corruption

Corrupt = Callable[[Key[Array, " b"], Images], Images]  # (keys, images) to images


class Restoring:
    """Base of objectives that have `augment` and `corrupt`, and a generator in their state."""

    augment: Augmentation
    corrupt: Corrupt

    def training_pairs(self, state: State, batch: Batch) -> tuple[Images, Images]:
        """Return the augmented micrographs and their corrupted views, drawn for the state's step.

        batch["image"] is uint8, uint16 or float32 [b, h, w, 1].
        """
        augment_key, corrupt_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        rows = len(batch["image"])
        micrograph = self.augment(row_keys(augment_key, rows), to_network(batch))["image"]
        corrupted = self.corrupt(row_keys(corrupt_key, rows), micrograph)
        return micrograph, corrupted

    def eval_step(self, state: State, batch: Batch) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Return the L1 to the original, in [0, 1], of the restored and the corrupted images.

        The corruption of a record depends on its `index` alone: the same in every epoch and run.
        """
        micrograph, corrupted, restored = self.restore(state.generator.ema_network, batch)
        valid = self.scored(micrograph, corrupted, batch["valid"])
        against = dict(target=micrograph, valid=valid)
        scores = {
            "l1": metrics.l1(prediction=restored, **against),
            "corrupted_l1": metrics.l1(prediction=corrupted, **against),
        }
        return metrics.counted(scores, batch["valid"])

    def scored(
        self, micrograph: Images, corrupted: Images, valid: Bool[Array, "b h w 1"]
    ) -> Bool[Array, "b h w 1"]:
        """Return the pixels that count."""
        return valid

    def views(self, generator: Network, batch: Batch) -> dict[str, jax.Array]:
        """Return {name: float32 [b, h, w, 1] in [-1, 1]} to look at side by side."""
        micrograph, corrupted, restored = self.restore(generator, batch)
        return {"corrupted": corrupted, "restored": restored, "truth": micrograph}

    def restore(self, generator: Network, batch: Batch) -> tuple[Images, Images, Images]:
        """Return the batch's micrographs, their corrupted views and the generator's output."""
        micrograph = to_network(batch)["image"]
        fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
        corrupted = self.corrupt(fold(jax.random.key(VALIDATION_KEY), batch["index"]), micrograph)
        restored, _ = generator.apply(generator.params, generator.stats, corrupted, train=False)
        return micrograph, corrupted, restored
