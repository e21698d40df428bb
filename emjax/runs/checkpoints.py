"""The states of a run on disk: the latest two and the best are kept.

What Orbax has written is opened once, its tree and one array. Then each process seals it: it puts
the SHA-256 of the files that it wrote into a manifest of its own, `manifest.0-of-1.json`, in the
same folder. A checkpoint is valid if every manifest exists and every file matches its hash. Only
valid ones are loaded; the previous one is kept until the new one is complete.
"""

import functools
import json
import logging
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils.epath.gpath import PosixGPath
from orbax.checkpoint import v1 as ocp

from emjax.errors import InputError, first_line, note
from emjax.parallel.processes import barrier, from_first, is_first
from emjax.runs.manifests import UNFINISHED, fault, is_finished, seal

# Any: Orbax's policies do not fit the types that its Checkpointer declares.
KEEP: Any = ocp.training.preservation_policies
EVERY_CALL: Any = ocp.training.save_decision_policies.FixedIntervalPolicy(1)

State = Any  # a tree of arrays


class LiteralPath(PosixGPath):
    """A path for Orbax, with folders of any name: its own takes brackets for a pattern."""

    def glob(self, pattern: str) -> Iterator["LiteralPath"]:
        """Yield what matches `pattern` below this folder."""
        return map(type(self), Path(self).glob(pattern))


def orbax_context(*, partial: bool = False, alone: bool = False) -> ocp.Context:
    """Return a new Context of Orbax for folders of any name.

    Args:
        partial: whether a part of a tree may be loaded.
        alone: whether this process loads without waiting for the others.
    """
    context = ocp.Context()
    context.file.path_class = LiteralPath
    context.pytree.loading.partial_load = partial
    if alone and jax.process_count() > 1:
        process = jax.process_index()
        context.multiprocessing.primary_host = process
        context.multiprocessing.active_processes = {process}
        context.multiprocessing.barrier_sync_key_prefix = f"process_{process}"
    return context


REPLACES = "Attempted to create temporary directory"  # so begins a warning of Orbax


class NotReadBack(Exception):
    """A checkpoint that cannot be used although writing it raised nothing."""


class OrbaxWarnings(logging.Handler):
    """Collects the warnings of Orbax, which goes on with less than was asked for.

    That it replaces what a save that failed has left is none.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "orbax" in record.pathname and not str(record.msg).startswith(REPLACES):
            self.messages.append(record.getMessage())


class HeldSteps:
    """A policy of Orbax: preserve the checkpoints at `steps`."""

    steps: Sequence[int] = ()

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        return [kept.step in self.steps for kept in checkpoints]


class Checkpoints:
    """A folder of states by step; saving returns before the write is done.

    Args:
        folder: made if it does not exist.
        score: the score that chooses the best, `<split>/<metric>`.
        higher_is_better: whether a higher score is better.

    Raises: InputError if there are checkpoints and none is valid, see `discard_broken`.
    """

    def __init__(self, folder: Path, *, score: str, higher_is_better: bool) -> None:
        self.folder = Path(folder).absolute()
        self.rank = functools.partial(rank, score=score, higher_is_better=higher_is_better)
        self.held = HeldSteps()
        self.discard_broken()
        best = KEEP.BestN(n=1, get_metric_fn=self.rank, keep_checkpoints_without_metrics=False)
        self.checkpointer = ocp.training.Checkpointer(
            LiteralPath(self.folder),
            context=orbax_context(),
            save_decision_policy=EVERY_CALL,
            preservation_policy=KEEP.AnyPreservationPolicy([KEEP.LatestN(2), self.held, best]),
            cleanup_tmp_directories=True,
        )
        ranks = map(self.rank, read_scores(self.folder, self.steps()).values())
        self.best = max(ranks, default=-math.inf)
        self.sealer = ThreadPoolExecutor(1, "seal")
        self.sealing: Future[None] | None = None

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints, in order."""
        return [kept.step for kept in self.checkpointer.checkpoints]

    def discard_broken(self) -> None:
        """Remove the checkpoints that are not valid, so that their steps can be saved again.

        Raises: InputError if there are some and none is valid, except for a first save that was
            not completed.
        """
        if is_first():
            valid, broken = check_steps(self.folder)
            if broken and not valid and (len(broken) > 1 or UNFINISHED not in broken.values()):
                faults = "; ".join(f"{step}: {wrong}" for step, wrong in broken.items())
                raise InputError(
                    f"{self.folder}: no good checkpoint: {faults}. "
                    "Choose another workdir, or delete this one to start over"
                )
            for step, wrong in broken.items():
                note_unusable(self.folder, step, wrong, valid[-1] if valid else None)
                shutil.rmtree(self.folder / str(step))
        barrier()

    def is_best(self, scores: Mapping[str, float]) -> bool:
        """Return whether `scores` beat all seen so far; the next comparison is with these."""
        if self.rank(scores) <= self.best:
            return False
        self.best = self.rank(scores)
        return True

    def save(self, step: int, state: State, scores: dict[str, Any] | None = None) -> None:
        """Begin to save `state`. A failure of the previous save is raised here.

        Raises: InputError naming the last good checkpoint if it cannot be written.
        """
        self.wait()
        names, updates = names_of(state), int(state.step)
        with self.save_failures():
            warned = OrbaxWarnings()
            logging.getLogger("absl").addHandler(warned)
            try:
                saved = self.checkpointer.save_async(step, state, metrics=scores)
            except BaseException:
                logging.getLogger("absl").removeHandler(warned)
                raise
            self.sealing = self.sealer.submit(self.seal, step, saved, warned, names, updates)

    def seal(
        self, step: int, saved: Any, warned: OrbaxWarnings, names: set[str], updates: int
    ) -> None:
        """Wait for Orbax's response `saved`, open the checkpoint, write this process's manifest.

        Every process opens it: Orbax numbers the operations of each, and the next save waits for
        ever for processes that have come to another number.

        Raises: NotReadBack if Orbax `warned` of something; else as `read_back`.
        """
        folder = self.folder / str(step)
        try:
            saved.result()
        finally:
            logging.getLogger("absl").removeHandler(warned)
        if warned.messages:
            raise NotReadBack(warned.messages[0])
        read_back(folder, names, updates)
        seal(folder, jax.process_index(), jax.process_count())

    def restore(self, state: State, before: float = math.inf) -> State:
        """Return the latest state saved at a step below `before`, on the devices of `state`.

        Returns `state` itself if there is none.
        """
        steps = [step for step in self.steps() if step < before]
        step = from_first(steps[-1] if steps else -1)  # all load one, whatever they see
        if step < 0:
            return state
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )
        loaded = self.checkpointer.load(step, abstract)
        # Orbax returns PRNG keys under a sharding that is equal but written otherwise.
        return jax.device_put(loaded, jax.tree.map(lambda x: x.sharding, state))

    def hold(self, before: float) -> None:
        """Keep the latest checkpoint below step `before` too, from now on."""
        self.held.steps = [step for step in self.steps() if step < before][-1:]

    def restore_before(self, state: State, step: int) -> State | None:
        """Return the latest valid state below `step`, as `restore` does; None if there is none."""
        self.wait()
        barrier()  # what others have not sealed yet is not broken
        self.discard_broken()
        self.checkpointer.reload()
        restored = self.restore(state, before=step)
        return None if restored is state else restored

    def wait(self) -> None:
        """Return once everything is written and sealed.

        Raises: InputError naming the last good checkpoint if it cannot be written.
        """
        if self.sealing is not None:
            with self.save_failures():
                self.sealing.result()
                self.checkpointer.wait()

    @contextmanager
    def save_failures(self) -> Iterator[None]:
        """Turn every exception inside into an InputError naming the last good checkpoint."""
        try:
            yield
        except Exception as error:  # whatever the file system and the libraries above it raise
            finished = saved_steps(self.folder)
            last = f"the last good one is step {finished[-1]}" if finished else "there is none yet"
            unread = isinstance(error, NotReadBack)
            advice = "Choose another workdir" if unread else "Free disk space and run it again"
            raise InputError(
                f"{self.folder}: a checkpoint cannot be saved: {first_line(error)}; {last}. "
                f"{advice}"
            ) from error

    def close(self) -> None:
        """Finish the last save and end the threads."""
        self.wait()
        self.sealer.shutdown()
        self.checkpointer.close()


def names_of(tree: Any) -> set[str]:
    """Return the paths of the arrays of a tree, of a state or of what Orbax says of one."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths}


def read_back(folder: Path, names: set[str], updates: int) -> None:
    """Open the checkpoint in `folder` once, its tree and one array.

    Raises: NotReadBack unless its arrays have these `names` and its `step` is `updates`.
    """
    path = LiteralPath(folder)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with orbax_context(partial=True, alone=True):
        stored: Any = ocp.metadata(path, checkpointable_name="state").metadata
        if differ := sorted(names_of(stored) ^ names):
            raise NotReadBack(f"step {folder.name} lacks or adds {', '.join(differ[:3])}")
        count = jax.ShapeDtypeStruct(stored["step"].shape, stored["step"].dtype, sharding=here)
        loaded: Any = ocp.load(path, {"step": count}, checkpointable_name="state")
    if int(loaded["step"]) != updates:
        raise NotReadBack(f"step {folder.name} reads back as {int(loaded['step'])} updates")


def steps_in(folder: Path) -> list[int]:
    """Return the steps of all checkpoints below `folder`, finished or not, in order."""
    names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted(int(name) for name in names if name.isdigit())


def saved_steps(folder: Path) -> list[int]:
    """Return the steps of the finished checkpoints below `folder`, in order; writes nothing."""
    return [step for step in steps_in(folder) if is_finished(folder / str(step))]


def check_steps(folder: Path) -> tuple[list[int], dict[int, str]]:
    """Return the steps of the valid checkpoints, in order, and {step: fault} of the others."""
    faults = {step: fault(folder / str(step)) for step in steps_in(folder)}
    valid = [step for step, wrong in faults.items() if not wrong]
    return valid, {step: wrong for step, wrong in faults.items() if wrong}


def note_unusable(folder: Path, step: int, wrong: str, instead: int | None) -> None:
    """Note once per run that a checkpoint is not used, and what is used instead."""
    used = (
        "the run starts from step 0"
        if instead is None
        else f"{folder / str(instead)} is used instead"
    )
    if is_first():
        note(folder / str(step), f"cannot be used: {wrong}; {used}")


def rank(scores: Mapping[str, float], *, score: str, higher_is_better: bool) -> float:
    """Return a number that is the higher the better `scores` are; minus infinity for NaN."""
    value = scores[score] if higher_is_better else -scores[score]
    return -math.inf if math.isnan(value) else value


def read_scores(folder: Path, steps: Iterable[int]) -> dict[int, dict[str, float]]:
    """Return {step: scores} of the checkpoints at `steps` that were saved with scores."""
    files = {step: folder / str(step) / "metrics" / "metrics" for step in steps}
    return {step: json.loads(file.read_bytes()) for step, file in files.items() if file.exists()}


def load_generator(
    folder: Path, step: int | str, *, score: str, higher_is_better: bool
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return (params, stats) of the generator saved under `folder`; its moving averages if kept.

    Args:
        step: "best" by `score`, "last", or a number.

    Raises: InputError if there is no such step, naming those that exist.
    """
    folder = Path(folder).absolute()
    best = functools.partial(rank, score=score, higher_is_better=higher_is_better)
    valid, broken = check_steps(folder)
    scores = read_scores(folder, valid)
    names = {str(step): step for step in valid}
    if valid:
        names["last"] = valid[-1]
    if scores:
        names["best"] = max(reversed(scores), key=lambda step: best(scores[step]))
    if str(step) not in names:
        wrong = broken.get(int(step)) if str(step).isdigit() else None
        existing = ", ".join(names) or "none"
        reason = f" ({wrong})" if wrong else ""
        raise InputError(
            f"{folder}: no good checkpoint {str(step)!r}{reason}; there are: {existing}"
        )
    chosen = from_first(names[str(step)])  # the run may go on meanwhile
    if not str(step).isdigit():
        for other, wrong in broken.items():
            note_unusable(folder, other, wrong, chosen)
    path = LiteralPath(folder / str(chosen))
    stored: Any = ocp.metadata(path, checkpointable_name="state").metadata
    stored = stored["generator"]
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
    with orbax_context(partial=True):
        loaded: Any = ocp.load(path, {"generator": wanted}, checkpointable_name="state")
    loaded = jax.device_get(loaded["generator"])
    loaded = loaded["average"] if averaged else loaded
    return loaded["params"], loaded["stats"]
