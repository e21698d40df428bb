"""States of a run on disk: the latest two and the best are kept."""

import functools
import math
from pathlib import Path

import jax
from orbax.checkpoint import v1 as ocp

from emjax.errors import BadInput

POLICIES = ocp.training.preservation_policies
EVERY_CALL = ocp.training.save_decision_policies.FixedIntervalPolicy(1)


class Checkpoints:
    """A folder of states by step; saving returns before the write is done.

    Args:
        folder: made if it is not there.
        score: the score that chooses the best, `<split>/<metric>`.
        higher_is_better: whether more of it is better.
    """

    def __init__(self, folder, *, score, higher_is_better):
        self.rank = functools.partial(rank, score=score, higher_is_better=higher_is_better)
        self.on_disk = ocp.training.Checkpointer(
            Path(folder).absolute(),
            save_decision_policy=EVERY_CALL,
            preservation_policy=POLICIES.AnyPreservationPolicy(
                [
                    POLICIES.LatestN(2),
                    POLICIES.BestN(
                        n=1, get_metric_fn=self.rank, keep_checkpoints_without_metrics=False
                    ),
                ]
            ),
            cleanup_tmp_directories=True,
        )
        self.best = max(
            (self.rank(kept.metrics) for kept in scored(self.on_disk)), default=-math.inf
        )

    def is_best(self, scores):
        """Whether `scores` beat every one seen so far; the next comparison is against these."""
        if self.rank(scores) <= self.best:
            return False
        self.best = self.rank(scores)
        return True

    def save(self, step, state, scores=None):
        self.on_disk.save_async(step, state, metrics=scores)

    def restore(self, state):
        """The latest saved state, placed as `state` is; `state` itself if nothing is saved."""
        if self.on_disk.latest is None:
            return state
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )
        loaded = self.on_disk.load(self.on_disk.latest.step, abstract)
        # Orbax returns PRNG keys under a sharding that is equal but written otherwise.
        return jax.device_put(loaded, jax.tree.map(lambda x: x.sharding, state))

    def wait(self):
        """Return once everything is written."""
        self.on_disk.wait()

    def close(self):
        self.on_disk.close()


def rank(scores, *, score, higher_is_better):
    """A number that is the larger the better `scores` are; the least of all for NaN."""
    value = scores[score] if higher_is_better else -scores[score]
    return -math.inf if math.isnan(value) else value


def any_saved(folder):
    """Whether there is a finished checkpoint below `folder`; makes nothing."""
    return folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())


def scored(on_disk):
    """The checkpoints that were saved with scores, by step."""
    return [kept for kept in on_disk.checkpoints if kept.metrics is not None]


def load_generator(folder, step, *, score, higher_is_better):
    """(params, stats) of the generator saved under `folder`, as host arrays.

    Args:
        step: "best" by `score`, "last", or a number as text.

    Raises: BadInput if that step is not there, naming those that are.
    """
    folder = Path(folder).absolute()
    if not any_saved(folder):
        raise BadInput(f"{folder}: no checkpoint {str(step)!r}; there are: none")
    with ocp.training.Checkpointer(folder) as on_disk:
        kept = {str(checkpoint.step): checkpoint for checkpoint in on_disk.checkpoints}
        names = {**kept, "last": on_disk.latest}
        ranked = scored(on_disk)
        if ranked:
            best = functools.partial(rank, score=score, higher_is_better=higher_is_better)
            names["best"] = max(reversed(ranked), key=lambda c: best(c.metrics))
        if str(step) not in names:
            there = ", ".join(names)
            raise BadInput(f"{folder}: no checkpoint {str(step)!r}; there are: {there}")
        chosen = names[str(step)].step
        stored = on_disk.metadata(chosen).metadata["generator"]
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = {
        part: {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
            for name, leaf in stored[part].items()
        }
        for part in ("params", "stats")
    }
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        loaded = ocp.load(folder / str(chosen), {"generator": wanted}, checkpointable_name="state")
    loaded = jax.device_get(loaded["generator"])
    return loaded["params"], loaded["stats"]
