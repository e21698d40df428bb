"""Builds on several processes or machines, by Apache Beam: the same bytes as in one process.

The workers write the records of a part of the files each, in any order; what the card says of them
comes back to the process that was called, which puts it together in the order of the files and
sorts the records by key: some 150 bytes a record. The workers then write the shards. Records go
through files beside the shards and never through Beam itself, whose local runner would hold them
all in one process. So all workers must see --source and --data_dir under the same paths.
"""

import contextlib
import functools
import io
import math
import pickle
import shlex
import signal
import threading
import uuid
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tensorflow_datasets.core import example_serializer, file_adapters, hashing, splits
from tensorflow_datasets.core.utils import shard_utils

from data_builders import common
from data_builders.writer import Writer
from emjax.errors import EmjaxError, InputError, UsageError, choose

RUNNERS = ("DirectRunner", "DataflowRunner", "FlinkRunner", "PortableRunner", "SparkRunner")
QUIET = "--default_sdk_harness_log_level=ERROR"  # what fails is told here
SECONDS_TO_END = 10  # for Beam, once a worker is lost, before it is interrupted again
PARTS = 256  # of a dataset at most: enough for as many workers; each shard reads from so many files
ENTRY = np.dtype([(name, "u8") for name in ("high", "low", "part", "offset", "size")])


class Part(NamedTuple):
    """What a worker has to say of the records of a split in its part of the files."""

    entries: np.ndarray  # ENTRY [n]: key, place and size of each, in the order of the files
    fingerprints: bytes  # uint64 [n]
    left_out: list
    sizes: list[float]  # nm per pixel: smallest and largest
    without_size: int
    counts: dict[str, int]
    error: EmjaxError | None  # what ended it


def add_options(parser):
    """Add the flags of Beam to `parser`."""
    add = parser.add_argument
    add("--beam_runner", metavar="RUNNER", help=f"build on Apache Beam: {', '.join(RUNNERS)}")
    add("--workers", type=int, metavar="N", help="processes of DirectRunner; default: 1")
    add("--beam_options", metavar="'--FLAG=VALUE ...'", help="for Beam itself: launch/beam.md")


def writer_of(options):
    """What makes the Writer that `options` ask for: this process by itself, or Beam.

    Raises: UsageError if Beam is not installed, or does not know the runner or an option.
    """
    runner, workers, flags = options.beam_runner, options.workers, options.beam_options
    if runner is None:
        for flag in ("workers", "beam_options"):
            if getattr(options, flag) is not None:
                given = f"--{flag}={getattr(options, flag)}"
                raise UsageError(
                    f"{given} without --beam_runner; one of {', '.join(RUNNERS)} was due"
                )
        return Writer
    choose("runner", runner, dict.fromkeys(RUNNERS))
    if workers is not None and workers < 1:
        raise UsageError(f"--workers={workers}; at least 1 was due")
    if workers is not None and runner != "DirectRunner":
        raise UsageError(
            f"--workers={workers} is for DirectRunner; {runner} was given. Say it in its own way, "
            "by --beam_options: launch/beam.md"
        )
    try:
        flags = shlex.split(flags or "")
    except ValueError as error:
        raise UsageError(f"--beam_options={flags}: {error}") from None
    if not all(flag.startswith("--") for flag in flags):
        raise UsageError(f"--beam_options={shlex.join(flags)}; --FLAG=VALUE was due for each")
    if workers is not None and workers > 1:
        # Threads share one interpreter, which decoding in Python holds.
        flags = [
            QUIET,
            f"--direct_num_workers={workers}",
            "--direct_running_mode=multi_processing",
            *flags,
        ]
    return functools.partial(BeamWriter, runner=runner, flags=_checked(runner, flags))


def _checked(runner, flags):
    """`flags`, which Beam would only warn of if it did not know them."""
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
        from apache_beam.runners import create_runner
    except ImportError:
        raise UsageError(
            "--beam_runner needs Apache Beam, which is not installed: pip install -e '.[beam]', "
            "in an environment of its own"
        ) from None
    try:
        create_runner(runner)
    except ImportError as error:
        raise UsageError(f"--beam_runner={runner}: {error}") from None
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            known = PipelineOptions([]).get_all_options()
            got = PipelineOptions(flags).get_all_options(retain_unknown_options=True)
    except SystemExit:
        raise UsageError(
            f"--beam_options: {said.getvalue().splitlines()[-1].partition('error: ')[2]}"
        ) from None
    unknown = sorted(got.keys() - known.keys())
    if unknown:
        raise UsageError(
            f"--beam_options: Beam has no option {', '.join(f'--{key}' for key in unknown)}"
        )
    return flags


class BeamWriter(Writer, skip_registration=True):
    """A Writer whose records and shards are written by the workers of Beam."""

    name, __module__ = Writer.name, Writer.__module__  # dataset_info.json has them

    def __init__(self, dataset, contents, *, data_dir, share, runner, flags):
        super().__init__(dataset, contents, data_dir=data_dir, share=share)
        self.runner, self.flags = runner, flags

    def _generate_splits(self, dl_manager, download_config):
        """What TFDS calls for the records to be written; the SplitInfo of each split."""
        folder = self.partial.resolve() / "parts"
        folder.mkdir()
        contents = self.contents._replace(pictures={})
        count = min(contents.units, PARTS)
        bounds = [contents.units * n // count for n in range(count + 1)]
        write = functools.partial(write_part, self.dataset, contents, folder)
        told = self._spread(write, list(enumerate(pairwise(bounds))))
        infos, shards = [], []
        for split in contents.splits:
            entries = self._take(split, [part.get(split) for part in told])
            np.save(folder / f"{split}.npy", entries[np.lexsort((entries["low"], entries["high"]))])
            size, template = int(entries["size"].sum()), self._get_filename_template(split)
            count = shard_utils.ShardConfig().get_number_shards(size, len(entries))
            bounds = [0, *shard_utils.get_shard_boundaries(len(entries), count)]
            for number, (start, end) in enumerate(pairwise(bounds)):
                path = template.sharded_filepath(shard_index=number, num_shards=count)
                shards.append((split, Path(path).resolve(), start, end))
            infos.append(
                splits.SplitInfo(
                    name=split,
                    shard_lengths=[end - start for start, end in pairwise(bounds)],
                    num_bytes=size,
                    filename_template=template,
                )
            )
        self._spread(functools.partial(write_shard, folder), shards)
        return infos

    def _take(self, split, parts):
        """Remember what the workers say of `split`, as if its files had been read here in order."""
        with open(self.partial / f"{split}.names", "wb") as names:
            for number, part in enumerate(parts):
                for record in part.left_out:
                    self._leave_out(record)
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

    def _spread(self, function, items):
        """[function(item) for item in items], by the workers, in any order.

        What it returns comes back through files; it may raise an EmjaxError.
        """
        folder = self.partial.resolve() / f"results-{uuid.uuid4().hex}"
        folder.mkdir()
        (folder / "task").write_bytes(pickle.dumps((function, items)))
        work = functools.partial(_work, folder=str(folder), home=str(self.partial.parent))
        on_workers(work, len(items), self.runner, self.flags)
        results = []
        for number in range(len(items)):
            result, error = pickle.loads((folder / str(number)).read_bytes())
            if error:
                raise error
            results.append(result)
        return results


def on_workers(work, count, runner, flags):
    """Call `work` with 0, 1, ... `count` - 1 on the workers of Beam, in any order."""
    import apache_beam
    from apache_beam.options.pipeline_options import PipelineOptions

    options = PipelineOptions(flags)
    runner = _local(options) if runner == "DirectRunner" else runner
    with _no_worker_lost(), apache_beam.Pipeline(runner, options=options) as pipeline:
        numbers = pipeline | apache_beam.Create(range(count)) | apache_beam.Reshuffle()
        numbers | apache_beam.Map(work)


@contextlib.contextmanager
def _no_worker_lost():
    """End with an error when a worker is killed: Beam's local runner would wait for it for ever."""
    lost, before, ended = [], threading.excepthook, threading.Event()

    def interrupt():  # again and again: Beam waits for its workers while it ends, too
        while not ended.is_set():
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            ended.wait(SECONDS_TO_END)

    def hook(failed):
        if "Worker subprocess exited" in str(failed.exc_value):
            lost.append(failed.exc_value)
            threading.Thread(target=interrupt, daemon=True).start()
        else:
            before(failed)

    threading.excepthook = hook
    try:
        yield
    except KeyboardInterrupt:
        ended.set()
        if not lost:
            raise
        raise InputError(
            f"{lost[0]}: it was killed, perhaps for its memory; fewer --workers need less"
        ) from None
    finally:
        ended.set()
        threading.excepthook = before


def _local(options):
    """The runner on this machine; what Beam calls DirectRunner would try to download another."""
    from apache_beam.portability.api import beam_provision_api_pb2
    from apache_beam.runners.portability import portable_runner
    from apache_beam.runners.portability.fn_api_runner import fn_runner

    told = portable_runner.JobServiceHandle.encode_pipeline_options(
        options.get_all_options(drop_default=True)
    )
    info = beam_provision_api_pb2.ProvisionInfo(pipeline_options=told)
    return fn_runner.FnApiRunner(provision_info=fn_runner.ExtendedProvisionInfo(info))


@functools.lru_cache(1)
def _task(folder):
    return pickle.loads((Path(folder) / "task").read_bytes())


def _work(number, folder, home):
    """Do item `number` of the task in `folder`, and leave its result there."""
    function, items = _task(folder)
    result, error = None, None
    try:
        with common.disk_errors(home):
            result = function(items[number])
    except EmjaxError as said:
        error = said
    with _in_one_piece(Path(folder) / str(number)) as path:
        path.write_bytes(pickle.dumps((result, error)))


@contextlib.contextmanager
def _in_one_piece(path):
    """Yield the path of a file or folder to make that is then moved to `path`.

    A runner may do the same thing twice, even at once; all come to the same.
    """
    made = path.with_name(f"{uuid.uuid4().hex}.tmp")
    yield made
    try:
        made.replace(path)
    except OSError:  # a folder that is there
        if not path.is_dir():
            raise


def _folder_of(folder, number):
    return folder / f"{number:05d}"


def write_part(dataset, contents, folder, part):
    """Write the records of `part` (its number, (first unit, end)) into `folder`; {split: Part}."""
    number, units = part[0], range(*part[1])
    told = {}
    with _in_one_piece(_folder_of(folder, number)) as made:
        made.mkdir()
        # How many may be left out is for the process that knows them all.
        for split in contents.splits:
            writer = Writer(dataset, contents, data_dir=made, share=math.inf)
            entries, error = [], None
            serializer = example_serializer.ExampleSerializer(
                writer.info.features.get_serialized_info()
            )
            hasher = hashing.Hasher(split)
            try:
                with common.disk_errors(folder.parent.parent), open(made / split, "wb") as file:
                    for key, record in writer.remembered(split, dataset.records(split, units)):
                        data = serializer.serialize_example(
                            writer.info.features.encode_example(record)
                        )
                        high, low = divmod(hasher.hash_key(key), 1 << 64)
                        entries.append((high, low, number, file.tell(), len(data)))
                        file.write(data)
            except EmjaxError as said:
                error = said
            told[split] = Part(
                np.array(entries, ENTRY),
                writer.fingerprints[split].tobytes(),
                writer.unusable,
                writer.sizes,
                writer.without_size,
                dict(writer.counts),
                error,
            )
    return told


def write_shard(folder, shard):
    """Write the shard (split, path, first record, end) from the parts in `folder`."""
    split, path, start, end = shard
    entries = np.load(folder / f"{split}.npy", mmap_mode="r")[start:end]
    made = folder / f"{uuid.uuid4().hex}.tmp"
    with contextlib.ExitStack() as stack:
        files = {
            number: stack.enter_context(open(_folder_of(folder, number) / split, "rb"))
            for number in np.unique(entries["part"])
        }

        def read(part, offset, size):
            files[part].seek(offset)
            return files[part].read(size)

        adapter = file_adapters.ADAPTER_FOR_FORMAT[file_adapters.FileFormat.ARRAY_RECORD]
        adapter.write_examples(made, ((None, read(*entry.item()[2:])) for entry in entries))
    made.replace(path)
