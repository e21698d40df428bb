"""States of a run on disk: the latest two and the best are kept.

What Orbax has written is sealed: each process puts the SHA-256 of the files that it wrote into a
manifest of its own, `manifest.0-of-1.json`, beside them. A checkpoint is good once all manifests
are there, and as long as every file is what they say; no other one is loaded. The one before is
still there until the new one is sealed.
"""

import functools
import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import jax
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from emjax.errors import InputError, first_line, note
from emjax.parallel.processes import is_first
from emjax.runs.manifests import UNFINISHED, fault, is_finished, seal

POLICIES = ocp.training.preservation_policies
EVERY_CALL = ocp.training.save_decision_policies.FixedIntervalPolicy(1)


class Held:
    """Keeps what is at `steps`."""

    steps = ()

    def should_preserve(self, checkpoints, *, context):
        return [kept.step in self.steps for kept in checkpoints]


class Checkpoints:
    """A folder of states by step; saving returns before the write is done.

    Args:
        folder: made if it is not there.
        score: the score that chooses the best, `<split>/<metric>`.
        higher_is_better: whether more of it is better.
    """

    def __init__(self, folder, *, score, higher_is_better):
        self.folder = Path(folder).absolute()
        self.rank = functools.partial(rank, score=score, higher_is_better=higher_is_better)
        self.held = Held()
        self.discard_broken()
        self.on_disk = ocp.training.Checkpointer(
            self.folder,
            save_decision_policy=EVERY_CALL,
            preservation_policy=POLICIES.AnyPreservationPolicy(
                [
                    POLICIES.LatestN(2),
                    self.held,
                    POLICIES.BestN(
                        n=1, get_metric_fn=self.rank, keep_checkpoints_without_metrics=False
                    ),
                ]
            ),
            cleanup_tmp_directories=True,
        )
        ranks = map(self.rank, scored(self.folder, self.steps()).values())
        self.best = max(ranks, default=-math.inf)
        self.beside = ThreadPoolExecutor(1, "seal")
        self.sealed = None

    def steps(self):
        return [kept.step for kept in self.on_disk.checkpoints]

    def discard_broken(self):
        """Remove the checkpoints that are not good, so that their steps can be saved again.

        Raises: InputError if there are some and none is good, unless it is the first save that
            was not finished.
        """
        if is_first():
            good, broken = examined(self.folder)
            if broken and not good and (len(broken) > 1 or UNFINISHED not in broken.values()):
                told = "; ".join(f"{step}: {wrong}" for step, wrong in broken.items())
                raise InputError(
                    f"{self.folder}: no good checkpoint: {told}. "
                    "Choose another --workdir, or delete this one to start over"
                )
            for step, wrong in broken.items():
                note_unusable(self.folder, step, wrong, good[-1] if good else None)
                shutil.rmtree(self.folder / str(step))
        multihost_utils.sync_global_devices("what is broken is gone")

    def is_best(self, scores):
        """Whether `scores` beat every one seen so far; the next comparison is against these."""
        if self.rank(scores) <= self.best:
            return False
        self.best = self.rank(scores)
        return True

    def save(self, step, state, scores=None):
        """Begin to save `state`; what went wrong in the save before is raised here.

        Raises: InputError that names the last good checkpoint if it cannot be written.
        """
        self.wait()
        with self.failures_told():
            saved = self.on_disk.save_async(step, state, metrics=scores)
            self.sealed = self.beside.submit(self.seal, step, saved)

    def seal(self, step, saved):
        saved.result()
        seal(self.folder / str(step), jax.process_index(), jax.process_count())

    def restore(self, state, before=math.inf):
        """The latest state saved, earlier than step `before`, placed as `state` is.

        `state` itself if there is none.
        """
        steps = [step for step in self.steps() if step < before]
        if not steps:
            return state
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )
        loaded = self.on_disk.load(steps[-1], abstract)
        # Orbax returns PRNG keys under a sharding that is equal but written otherwise.
        return jax.device_put(loaded, jax.tree.map(lambda x: x.sharding, state))

    def hold(self, before):
        """From now on, keep the latest one that was saved earlier than step `before`, too."""
        self.held.steps = [step for step in self.steps() if step < before][-1:]

    def restore_before(self, state, step):
        """The latest good state saved earlier than `step`, as `restore`; None if there is none."""
        self.wait()
        self.discard_broken()
        self.on_disk.reload()
        restored = self.restore(state, before=step)
        return None if restored is state else restored

    def wait(self):
        """Return once everything is written and sealed.

        Raises: InputError that names the last good checkpoint if it cannot be written.
        """
        if self.sealed is not None:
            with self.failures_told():
                self.sealed.result()
                self.on_disk.wait()

    @contextmanager
    def failures_told(self):
        try:
            yield
        except Exception as error:  # whatever the file system and the libraries above it say
            finished = saved_steps(self.folder)
            last = f"the last good one is step {finished[-1]}" if finished else "none is there yet"
            raise InputError(
                f"{self.folder}: a checkpoint cannot be saved: {first_line(error)}; {last}. "
                "Make room and run it again"
            ) from error

    def close(self):
        self.wait()
        self.beside.shutdown()
        self.on_disk.close()


def steps_in(folder):
    """The steps of all checkpoints below `folder`, finished or not, in order."""
    names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted(int(name) for name in names if name.isdigit())


def saved_steps(folder):
    """The steps of the finished checkpoints below `folder`, in order; makes nothing."""
    return [step for step in steps_in(folder) if is_finished(folder / str(step))]


def examined(folder):
    """The steps that are good, in order, and {step: what is wrong} of the others."""
    faults = {step: fault(folder / str(step)) for step in steps_in(folder)}
    good = [step for step, wrong in faults.items() if not wrong]
    return good, {step: wrong for step, wrong in faults.items() if wrong}


def note_unusable(folder, step, wrong, instead):
    used = "from the start" if instead is None else f"{folder / str(instead)} is used instead"
    if is_first():
        note(folder / str(step), f"cannot be used: {wrong}; {used}")


def rank(scores, *, score, higher_is_better):
    """A number that is the larger the better `scores` are; the least of all for NaN."""
    value = scores[score] if higher_is_better else -scores[score]
    return -math.inf if math.isnan(value) else value


def scored(folder, steps):
    """{step: scores} of the checkpoints at `steps` that were saved with scores."""
    files = {step: folder / str(step) / "metrics" / "metrics" for step in steps}
    return {step: json.loads(file.read_bytes()) for step, file in files.items() if file.exists()}


def load_generator(folder, step, *, score, higher_is_better):
    """(params, stats) of the generator saved under `folder`, as host arrays; averages if kept.

    Args:
        step: "best" by `score`, "last", or a number as text.

    Raises: InputError if that step is not there, naming those that are.
    """
    folder = Path(folder).absolute()
    best = functools.partial(rank, score=score, higher_is_better=higher_is_better)
    good, broken = examined(folder)
    scores = scored(folder, good)
    names = {str(step): step for step in good}
    if good:
        names["last"] = good[-1]
    if scores:
        names["best"] = max(reversed(scores), key=lambda step: best(scores[step]))
    if str(step) not in names:
        wrong = broken.get(int(step)) if str(step).isdigit() else None
        there = ", ".join(names) or "none"
        told = f" ({wrong})" if wrong else ""
        raise InputError(f"{folder}: no good checkpoint {str(step)!r}{told}; there are: {there}")
    chosen = names[str(step)]
    if not str(step).isdigit():
        for other, wrong in broken.items():
            note_unusable(folder, other, wrong, chosen)
    stored = ocp.metadata(folder / str(chosen), checkpointable_name="state").metadata["generator"]
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    averaged = "average" in stored
    stored = stored["average"] if averaged else stored
    wanted = {
        part: {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
            for name, leaf in stored[part].items()
        }
        for part in ("params", "stats")
    }
    wanted = {"average": wanted} if averaged else wanted
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        loaded = ocp.load(folder / str(chosen), {"generator": wanted}, checkpointable_name="state")
    loaded = jax.device_get(loaded["generator"])
    loaded = loaded["average"] if averaged else loaded
    return loaded["params"], loaded["stats"]
