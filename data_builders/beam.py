"""Build on several processes or machines with Apache Beam: the same bytes as in one process.

Each worker writes the records of a part of the files, in any order. What the card needs comes back
to the calling process, which joins it in the order of the files and sorts the records by key: some
150 bytes per record. The workers then write the shards. Records go through files next to the shards
and never through Beam itself: its local runner would hold them all in one process. So all workers
must see --source and --data_dir under the same paths.
"""

import argparse
import contextlib
import functools
import math
import os
import pickle
import shutil
import signal
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_builders import common, tfds_patches
from data_builders.beam_flags import Runner, imported, runner_of
from data_builders.common import Contents, Dataset, MakeWriter
from data_builders.writer import Writer
from emjax.errors import EmjaxError, InputError, kept_notes, note

SECONDS_TO_END = 10  # for Beam, once a worker is lost, before it is interrupted again
MAX_PARTS = 256  # of a dataset: enough for as many workers; each shard reads from so many files
ENTRY = np.dtype([(name, "u8") for name in ("high", "low", "part", "offset", "size")])


class Part(NamedTuple):
    """What a worker returns about the records of a split in its part of the files."""

    entries: np.ndarray  # ENTRY [n]: key, position and size of each, in the order of the files
    fingerprints: bytes  # uint64 [n]
    skipped: list[tuple[str, str]]  # path, reason
    sizes: list[float]  # nm per pixel: smallest and largest
    without_size: int
    counts: dict[str, int]
    error: EmjaxError | None  # what ended it


class Outcome(NamedTuple):
    """What a worker did about one item."""

    result: Any
    error: EmjaxError | OSError | None  # what ended it
    notes: list[tuple[str, str, str]]  # subject, text and kind of each


def writer_of(options: argparse.Namespace) -> MakeWriter:
    """Return what makes the Writer that `options` ask for: of one process, or of Beam.

    Raises: UsageError as `runner_of`.
    """
    runner = runner_of(options)
    return functools.partial(BeamWriter, runner=runner) if runner else Writer


class BeamWriter(Writer, skip_registration=True):
    """A Writer that leaves the writing of records and shards to the workers of Beam."""

    name, __module__ = Writer.name, Writer.__module__  # dataset_info.json has them

    def __init__(
        self,
        dataset: Dataset,
        contents: Contents,
        *,
        data_dir: Path,
        max_skipped: float,
        runner: Runner,
    ) -> None:
        """Prepare to write, as Writer, on `runner`."""
        super().__init__(dataset, contents, data_dir=data_dir, max_skipped=max_skipped)
        self.runner = runner

    def _generate_splits(self, dl_manager: Any, download_config: Any) -> list[Any]:
        """Write the records, when TFDS calls for it; return the SplitInfo of each split."""
        folder = self.partial.resolve() / "parts"
        folder.mkdir()
        contents = self.contents._replace(pictures={})
        count = min(contents.units, MAX_PARTS)
        bounds = [contents.units * n // count for n in range(count + 1)]
        write = functools.partial(write_part, self.dataset, contents, folder)
        written = self._spread(write, list(enumerate(pairwise(bounds))))
        infos, shards = [], []
        for split in contents.splits:
            entries = self._take(split, [parts[split] for parts in written])
            np.save(folder / f"{split}.npy", entries[np.lexsort((entries["low"], entries["high"]))])
            info, of_split = tfds_patches.plan_shards(
                self, split, n_bytes=int(entries["size"].sum()), n_records=len(entries)
            )
            infos.append(info)
            shards += of_split
        self._spread(functools.partial(write_shard, folder), shards)
        return infos

    def _take(self, split: str, parts: Sequence[Part]) -> np.ndarray:
        """Remember the Parts of `split` as if its files had been read here, in their order.

        Returns: ENTRY [n] of all parts.
        """
        with open(self.partial / f"{split}.names", "wb") as names:
            for number, part in enumerate(parts):
                for skipped in part.skipped:
                    self._skip(skipped)
                if part.error:
                    raise part.error
                self.fingerprints[split].frombytes(part.fingerprints)
                self.counts.update(part.counts)
                self.without_size += part.without_size
                sizes = [*self.sizes, *part.sizes]
                self.sizes = [min(sizes), max(sizes)] if sizes else []
                names.write(
                    (_folder_of(self.partial / "parts", number) / f"{split}.names").read_bytes()
                )
        self._check_not_empty(split)
        return np.concatenate([part.entries for part in parts])

    def _spread(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """Return [function(item) for item in items], computed by the workers in any order.

        `function` may raise an EmjaxError.
        """
        work = functools.partial(_on_disk, function, self.partial.parent)
        with outcomes(work, items, self.partial.resolve(), self.runner) as done:
            return [*map(replayed, done)]


@contextlib.contextmanager
def outcomes(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    folder: Path,
    runner: Runner,
    here: str | None = None,
) -> Iterator[Iterator[Outcome]]:
    """Yield the Outcomes of function(item) for each item, in their order; workers have any order.

    Args:
        function: pickled, as the items are; it may raise an EmjaxError or OSError.
        folder: that all workers see; what they return goes through files in it.
        here: the folder that workers work in, where paths are relative to it.
    """
    existed = folder.exists()
    exchange = folder / f"results-{uuid.uuid4().hex}"
    exchange.mkdir(parents=True)
    try:
        (exchange / "task").write_bytes(pickle.dumps((function, items)))
        work = functools.partial(_work, folder=str(exchange), here=here)
        on_workers(work, len(items), *runner)
        yield (pickle.loads((exchange / str(number)).read_bytes()) for number in range(len(items)))
    finally:
        shutil.rmtree(exchange, ignore_errors=True)
        with contextlib.suppress(OSError):  # something else is in it
            if not existed:
                folder.rmdir()


def replayed(outcome: Outcome, tell: Callable[[str, str, str], None] = note) -> Any:
    """Give the notes of a worker to `tell`; return its result, or raise its error."""
    for each in outcome.notes:
        tell(*each)
    if outcome.error:
        raise outcome.error
    return outcome.result


def on_workers(work: Callable[[int], None], count: int, runner: str, flags: list[str]) -> None:
    """Call `work` with 0, 1, ... `count` - 1 on the workers of Beam, in any order."""
    beam = imported("")
    options = imported(".options.pipeline_options").PipelineOptions(flags)
    made = _local(options) if runner == "DirectRunner" else runner
    with _no_worker_lost(), beam.Pipeline(made, options=options) as pipeline:
        numbers = pipeline | beam.Create(range(count)) | beam.Reshuffle()
        _ = numbers | beam.Map(work)


@contextlib.contextmanager
def _no_worker_lost() -> Iterator[None]:
    """Raise InputError when a worker is killed; Beam's local runner would wait for it forever."""
    lost, before, ended = [], threading.excepthook, threading.Event()

    def interrupt() -> None:  # repeatedly: Beam waits for its workers while it ends, too
        main_thread = threading.main_thread().ident
        while main_thread is not None and not ended.is_set():
            signal.pthread_kill(main_thread, signal.SIGINT)
            ended.wait(SECONDS_TO_END)

    def hook(failed: threading.ExceptHookArgs) -> None:
        if "Worker subprocess exited" in str(failed.exc_value):
            lost.append(failed.exc_value)
            threading.Thread(target=interrupt, daemon=True).start()
        else:
            before(failed)

    threading.excepthook = hook
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # for as many as it takes
    try:
        yield
    except KeyboardInterrupt:
        ended.set()
        if not lost:
            raise
        raise InputError(
            f"{lost[0]}: it was killed, perhaps for its memory; use fewer --workers"
        ) from None
    finally:
        ended.set()
        threading.excepthook = before
        signal.signal(signal.SIGINT, handler)


def _local(options: Any) -> Any:
    """Return the runner of this machine; Beam's own DirectRunner would try to download another.

    Args:
        options: PipelineOptions.
    """
    provision_api = imported(".portability.api").beam_provision_api_pb2
    portable_runner = imported(".runners.portability.portable_runner")
    fn_runner = imported(".runners.portability.fn_api_runner.fn_runner")
    encoded = portable_runner.JobServiceHandle.encode_pipeline_options(
        options.get_all_options(drop_default=True)
    )
    info = provision_api.ProvisionInfo(pipeline_options=encoded)
    return fn_runner.FnApiRunner(provision_info=fn_runner.ExtendedProvisionInfo(info))


@functools.lru_cache(1)
def _task(folder: str) -> tuple[Callable[[Any], Any], Sequence[Any]]:
    """Return (function, items) of the task in `folder`."""
    return pickle.loads((Path(folder) / "task").read_bytes())


def _work(number: int, folder: str, here: str | None) -> None:
    """Do item `number` of the task in `folder`, and leave its Outcome there.

    Args:
        here: the folder to work in; None: any.
    """
    if here and os.path.abspath(os.curdir) != here:
        os.chdir(here)
    function, items = _task(folder)
    result, error = None, None
    notes: list[tuple[str, str, str]] = []
    token = kept_notes.set(notes)
    try:
        result = function(items[number])
    except (EmjaxError, OSError) as raised:
        error = raised
    finally:
        kept_notes.reset(token)
    outcome = Path(folder) / str(number)
    if not outcome.exists():  # else the item was done twice, and the first time tells what was new
        with _as_a_whole(outcome) as path:
            path.write_bytes(pickle.dumps(Outcome(result, error, notes)))


def _on_disk(function: Callable[[Any], Any], home: Path, item: Any) -> Any:
    """Return function(item); raise InputError where the disk of `home` is full."""
    with common.disk_errors(home):
        return function(item)


@contextlib.contextmanager
def _as_a_whole(path: Path) -> Iterator[Path]:
    """Yield the path of a file or folder to make, which is then moved to `path`.

    A runner may do the same item twice, even at once; the results are equal.
    """
    made = path.with_name(f"{uuid.uuid4().hex}.tmp")
    yield made
    try:
        made.replace(path)
    except OSError:  # an existing folder
        if not path.is_dir():
            raise


def _folder_of(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}"


def write_part(
    dataset: Dataset, contents: Contents, folder: Path, part: tuple[int, tuple[int, int]]
) -> dict[str, Part]:
    """Write the records of one part into `folder`; return {split: Part}.

    Args:
        part: (its number, (first unit, end)).
    """
    number, units = part[0], range(*part[1])
    parts = {}
    with _as_a_whole(_folder_of(folder, number)) as made:
        made.mkdir()
        # Only the calling process, which knows all of them, can limit the number of skipped ones.
        for split in contents.splits:
            writer = Writer(dataset, contents, data_dir=made, max_skipped=math.inf)
            serialized = tfds_patches.serializer_of(writer)
            hash_of_key = tfds_patches.hash_of_keys(split)
            entries, error = [], None
            try:
                with common.disk_errors(folder.parent.parent), open(made / split, "wb") as file:
                    for key, record in writer.remembered(split, dataset.records(split, units)):
                        data = serialized(record)
                        high, low = divmod(hash_of_key(key), 1 << 64)
                        entries.append((high, low, number, file.tell(), len(data)))
                        file.write(data)
            except EmjaxError as raised:
                error = raised
            parts[split] = Part(
                np.array(entries, ENTRY),
                writer.fingerprints[split].tobytes(),
                writer.unusable,
                writer.sizes,
                writer.without_size,
                dict(writer.counts),
                error,
            )
    return parts


def write_shard(folder: Path, shard: tfds_patches.Shard) -> None:
    """Write `shard` from the parts in `folder`."""
    entries = np.load(folder / f"{shard.split}.npy", mmap_mode="r")[shard.start : shard.stop]
    made = folder / f"{uuid.uuid4().hex}.tmp"
    with contextlib.ExitStack() as stack:
        files = {
            number: stack.enter_context(open(_folder_of(folder, number) / shard.split, "rb"))
            for number in np.unique(entries["part"])
        }

        def read(part: int, offset: int, size: int) -> bytes:
            files[part].seek(offset)
            return files[part].read(size)

        records = (read(*entry.item()[2:]) for entry in entries)
        tfds_patches.write_array_record(made, records)
    made.replace(shard.path)
