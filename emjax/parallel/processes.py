"""Several processes that are one run: how they find each other, stop and end.

One process a host is due, with all its devices. Batches and results are those of one process;
process 0 alone writes the run's records and says how it goes.
"""

import importlib.util
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from contextlib import contextmanager, suppress

import jax
from jax._src import distributed  # its keys and barriers, which work where collectives fail
from jax.experimental import multihost_utils

from emjax import cli, errors
from emjax.errors import EmjaxError, UsageError

HEARTBEAT_SECONDS = 30  # a process that is silent for so long is gone
MEET_SECONDS = 600
ALIKE_SECONDS = 5  # in which processes that fail alike do so
GONE = "another process is gone or did not come; its last line may say why. Run all of them again"


def split_flags(arguments):
    """(--coordinator, --processes and --process of a command line; its other arguments)."""
    parser = cli.Parser(prog="emjax.main", add_help=False, allow_abbrev=False)
    parser.add_argument("--coordinator")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int)
    flags, others = parser.parse_known_args(arguments)
    given = (flags.coordinator, flags.processes, flags.process)
    if None in given and given not in ((None, None, None), (None, 1, None)):
        raise UsageError(
            "--coordinator=HOST:PORT, --processes=N and --process=I belong together; "
            "--processes=1 by itself is a run without others"
        )
    if None not in given and not 0 <= flags.process < flags.processes:
        raise UsageError(f"--process={flags.process}; 0 to {flags.processes - 1} was due")
    return flags, others


def cluster_arguments(environment):
    """What a scheduler tells jax.distributed.initialize; None if there is none.

    More careful than JAX's own search, which takes an allocation of SLURM with one task, and any
    pod, for a cluster, and gives a task of SLURM one GPU.

    Raises: UsageError in an indexed Job of Kubernetes without the package that JAX needs to ask it.
    """
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        count = int(environment["SLURM_STEP_NUM_TASKS"])
        return dict(cluster_detection_method="slurm", num_processes=count, local_device_ids=[])
    if importlib.util.find_spec("libtpu"):
        return {}  # JAX looks whether there is a TPU
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys():
        if not importlib.util.find_spec("kubernetes"):
            raise UsageError(
                "this is a pod of an indexed Job: give --coordinator=HOST:PORT, --processes=N and "
                "--process=I, or install kubernetes; or --processes=1 for a run without others"
            )
        return dict(cluster_detection_method="k8s")
    return None


@contextmanager
def connected(flags):
    """Inside, this is one of the processes that `flags` or a scheduler name, or the only one.

    If what happens inside fails, this process ends at once, since an orderly end waits for the
    others, which may be waiting for this one. An error that several have is told once.
    """
    how = None if flags.processes == 1 else cluster_arguments(os.environ)
    if flags.coordinator and flags.processes > 1:
        how = dict(coordinator_address=flags.coordinator, num_processes=flags.processes,
                   process_id=flags.process, local_device_ids=[])  # fmt: skip
    if how is None:
        yield
        return
    # JAX aborts a process that has lost process 0. Then the shell says in a line what it means.
    line = f"error: {GONE}"
    watcher = subprocess.Popen(
        ["sh", "-c", 'read -r ended || echo "$0" >&2', line],
        stdin=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        try:
            jax.distributed.initialize(**how, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
        except ValueError:
            if how:  # else JAX found no TPU
                raise
        yield
    except BaseException as error:
        if distributed.global_state.client is not None:
            abort(error, watcher)
        watcher.communicate(b"ended\n")
        raise
    watcher.communicate(b"ended\n")


def abort(error, watcher):
    """Say `error`, unless another process has said the same, and end with its code.

    The watcher is let go only then: JAX may abort this process before it has said anything.
    """
    if isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
        error = EmjaxError(f"{GONE} ({errors.first_line(error)})")
    code, line = cli.exit_code_and_line(error)
    client = distributed.global_state.client
    try:
        client.key_value_set(f"error: {line}", "")
    except jax.errors.JaxRuntimeError as refused:
        said = "ALREADY_EXISTS" in str(refused)
    else:
        said = False
    if line is None:
        traceback.print_exception(error)
    elif not said:
        print(f"error: {line}", file=sys.stderr, flush=True)
    watcher.communicate(b"ended\n")
    with suppress(jax.errors.JaxRuntimeError):
        client.wait_at_barrier("ended", ALIKE_SECONDS * 1000)
    time.sleep(is_first())  # the others need it until they have ended: JAX aborts them without it
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def is_first():
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def print_once(*words):
    if is_first():
        print(*words, flush=True)


def barrier():
    """Return once all processes are here; in a first sum, gloo waits 30 s for the others."""
    if jax.process_count() > 1:
        distributed.global_state.client.wait_at_barrier("here", MEET_SECONDS * 1000)


def stop_agreed():
    """A function that all processes call once a step: whether to stop after this one.

    True at the same step everywhere, soon after one of them got SIGTERM, which JAX listens for. It
    costs a look at a number in memory.
    """
    steps = itertools.count()
    return lambda: multihost_utils.reached_preemption_sync_point(next(steps))


@contextmanager
def signals_received(*signals):
    """A function that tells whether one of `signals` has come; they end nothing by themselves."""
    came = threading.Event()
    before = [signal.signal(each, lambda *_: came.set()) for each in signals]
    try:
        yield came.is_set
    finally:
        for each, handler in zip(signals, before, strict=True):
            signal.signal(each, handler)
