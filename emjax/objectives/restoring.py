"""How pretraining objectives that restore corrupted micrographs are scored: all in one way."""

import jax

from emjax import metrics
from emjax.data.normalise import to_network
from emjax.tasks import PRETRAINING_SCORE

VALIDATION_KEY = 0  # never the run's seed: every run and model is scored on the same corruption


class Restoring:
    """For an objective that has `corrupt(keys, images)` and keeps a generator in its state."""

    best, higher_is_better = PRETRAINING_SCORE
    compiler_options = {}

    def eval_step(self, state, batch):
        """L1 of the restored and, for scale, of the corrupted image to the original, in [0, 1].

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

    def scored(self, micrograph, corrupted, valid):
        """The pixels that count, bool [b, h, w, 1]."""
        return valid

    def views(self, generator, batch):
        """{name: float32 [b, h, w, 1] in [-1, 1]} of what is worth looking at side by side."""
        micrograph, corrupted, restored = self.restore(generator, batch)
        return {"corrupted": corrupted, "restored": restored, "truth": micrograph}

    def restore(self, generator, batch):
        """The batch's micrographs, their corrupted views and what `generator` makes of them."""
        micrograph = to_network(batch)["image"]
        fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
        corrupted = self.corrupt(fold(jax.random.key(VALIDATION_KEY), batch["index"]), micrograph)
        restored, _ = generator.apply(generator.params, generator.stats, corrupted, train=False)
        return micrograph, corrupted, restored
