"""Multi-process runs: start-up, agreed stop, shutdown.

Start one process per host, with all its devices. Batches and results are those of one process;
process 0 alone writes the run's records and prints its progress.
"""

import argparse
import importlib.util
import math
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # its keys and barriers, which work where collectives fail
from jax.experimental import multihost_utils

from emjax import cli, errors
from emjax.errors import EmjaxError, UsageError

HEARTBEAT_SECONDS = 30  # a process that is silent for so long counts as lost
BARRIER_SECONDS = 600
TWICE_SENT = 0.5  # seconds within which a signal that comes again is one
LOOK_SECONDS = 0.2  # between two looks whether another process stops
STOP, CALLS = "emjax/stop", "emjax/calls"  # keys of the coordinator
SAME_ERROR_SECONDS = 5  # within which processes with the same error report it
LOST = (
    "lost contact with another process, or it never started (see its last line); "
    "restart all processes"
)


def split_flags(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return (--coordinator, --processes and --process of a command line, its other arguments).

    Raises: UsageError for flags that do not fit each other.
    """
    parser = cli.Parser(prog="emjax.main", add_help=False, allow_abbrev=False)
    parser.add_argument("--coordinator")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int)
    flags, others = parser.parse_known_args(arguments)
    given = (flags.coordinator, flags.processes, flags.process)
    if None in given and given not in ((None, None, None), (None, 1, None)):
        raise UsageError(
            "expected all of --coordinator=HOST:PORT, --processes=N and --process=I, got some; "
            "--processes=1 by itself is a run of one process"
        )
    if None not in given and not 0 <= flags.process < flags.processes:
        raise UsageError(f"--process={flags.process}, expected 0 to {flags.processes - 1}")
    return flags, others


def cluster_arguments(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the arguments of jax.distributed.initialize under a scheduler; None without one.

    More careful than JAX's own search, which takes an allocation of SLURM with one task, and any
    pod, for a cluster, and gives a task of SLURM one GPU.

    Raises: UsageError in an indexed Job of Kubernetes without the package that JAX needs for it.
    """
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        count = int(environment["SLURM_STEP_NUM_TASKS"])
        return dict(cluster_detection_method="slurm", num_processes=count, local_device_ids=[])
    if importlib.util.find_spec("libtpu"):
        return {}  # JAX checks whether there is a TPU
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys():
        if not importlib.util.find_spec("kubernetes"):
            raise UsageError(
                "this is a pod of an indexed Job: give --coordinator=HOST:PORT, --processes=N and "
                "--process=I, or install kubernetes; or --processes=1 for a run of one process"
            )
        return dict(cluster_detection_method="k8s")
    return None


def connection(flags: argparse.Namespace, environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the arguments of jax.distributed.initialize; None for a run of one process.

    What `flags`, those of `split_flags`, say goes before what a scheduler says.

    Raises: UsageError as `cluster_arguments`.
    """
    if flags.processes is None:
        return cluster_arguments(environment)
    if flags.processes == 1:
        return None
    return dict(
        coordinator_address=flags.coordinator,
        num_processes=flags.processes,
        process_id=flags.process,
        local_device_ids=[],
    )


@contextmanager
def connected(flags: argparse.Namespace) -> Iterator[None]:
    """Connect this process to those that `flags` or a scheduler name, until the end of the `with`.

    After an error inside, this process ends at once: an orderly end waits for the others, which may
    be waiting for this one. An error that several processes have is printed once.
    """
    arguments = connection(flags, os.environ)
    if arguments is None:
        yield
        return
    # JAX aborts a process that has lost process 0. This shell then prints a line that explains it.
    watcher = subprocess.Popen(
        ["sh", "-c", 'read -r ended || echo "$0" >&2', f"error: {LOST}"],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        jax.config.update("jax_enable_preemption_service", False)  # see `agreed_stop`
        try:
            jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
        except ValueError:
            if arguments:  # else JAX found no TPU
                raise
        yield
    except BaseException as error:
        if distributed.global_state.client is not None:
            abort(error, watcher)
        watcher.communicate(b"ended\n")
        raise
    watcher.communicate(b"ended\n")


def coordinator_client() -> Any:
    """Return JAX's client of the coordinator, which has keys and barriers; None without one."""
    return distributed.global_state.client


def abort(error: BaseException, watcher: "subprocess.Popen[bytes]") -> None:
    """Print `error`, unless another process has printed the same, and exit with its code.

    The watcher ends only after that: JAX may abort this process before it has printed anything.
    """
    if isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
        error = EmjaxError(f"{LOST} ({errors.first_line(error)})")
    code, line = cli.exit_code_and_line(error)
    client = coordinator_client()
    try:
        client.key_value_set(f"error: {line}", "")
    except jax.errors.JaxRuntimeError as refused:
        is_printed = "ALREADY_EXISTS" in str(refused)
    else:
        is_printed = False
    if line is None:
        traceback.print_exception(error)
    elif line and not is_printed:
        print(f"error: {line}", file=sys.stderr, flush=True)
    watcher.communicate(b"ended\n")
    with suppress(jax.errors.JaxRuntimeError):
        client.wait_at_barrier("ended", SAME_ERROR_SECONDS * 1000)
    if is_first():
        time.sleep(1)  # the others need it until they have ended: JAX aborts them without it
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def is_first() -> bool:
    """Return whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def print_once(*words: object) -> None:
    """Print `words` in the first process alone."""
    if is_first():
        print(*words, flush=True)


def from_first(number: int) -> int:
    """Return the `number` that the first process has, in all of them."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def barrier() -> None:
    """Return once all processes are here; in a first sum, gloo waits 30 s for the others."""
    if jax.process_count() > 1:
        coordinator_client().wait_at_barrier("here", BARRIER_SECONDS * 1000)


@contextmanager
def stop_asked(closed: Callable[[], bool]) -> Iterator[Callable[[], bool]]:
    """Yield a function that all processes call once per step: whether to stop after this one.

    SIGINT, SIGTERM and SIGHUP ask for it, a second one ends the process at once. Of several
    processes all stop at the same step, soon after one of them was asked.

    Args:
        closed: whether the output is closed, which asks for a stop, too.
    """
    with signals_received(*cli.STOPS) as received:

        def asked() -> bool:
            return received() or closed()

        if jax.process_count() == 1:
            yield asked
            return
        here, client = jax.process_index(), coordinator_client()
        with agreed_stop(client, here, jax.process_count(), asked) as stop:
            yield stop


@contextmanager
def agreed_stop(
    client: Any, here: int, count: int, asked: Callable[[], bool]
) -> Iterator[Callable[[], bool]]:
    """Yield a function that each of `count` processes calls once per step, as `stop_asked` does.

    A thread asks the coordinator now and then whether any process is to stop. Then each process
    waits at its next call until all have told how many they have made; the one after the most
    returns true, and no process has passed it. No collective is needed: a process may wait for
    another one in the middle of a step.

    Not JAX's service for this: Orbax calls it, too, with steps of its own, and then the agreed one
    may never come.

    Args:
        client: as `coordinator_client`.
        here: this process, 0 to `count` - 1.
        asked: whether this process is asked to stop.
    """
    between_calls, ended = threading.Lock(), threading.Event()
    calls, last = 0, math.inf

    def stop() -> bool:
        nonlocal calls
        with between_calls:
            calls += 1
            return calls >= last

    def tell() -> None:
        client.key_value_set(f"{CALLS}/{here}", str(calls), allow_overwrite=True)

    def watch() -> None:
        nonlocal last
        unanswered = suppress(jax.errors.JaxRuntimeError)  # asked again
        while not ended.wait(LOOK_SECONDS):
            with unanswered:
                if asked():
                    client.key_value_set(f"{STOP}/{here}", "", allow_overwrite=True)
                if client.key_value_dir_get(STOP):
                    break
        with between_calls:
            while not ended.wait(LOOK_SECONDS):
                with unanswered:
                    tell()
                    told = client.key_value_dir_get(CALLS)
                    if len(told) == count:
                        last = 1 + max(int(number) for _, number in told)
                        return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield stop
    finally:
        ended.set()
        watcher.join()
        if last == math.inf:  # one that is asked now waits for it
            with suppress(jax.errors.JaxRuntimeError):
                tell()


@contextmanager
def signals_received(
    *signals: signal.Signals, before_end: Callable[[], object] = lambda: None
) -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether one of `signals` has come.

    The first has no other effect; the second ends the process at once, also while the main thread
    waits for a long computation. The same one again within TWICE_SENT seconds is none: `timeout`
    and schedulers send theirs to a process and to its group. Signals that the process was started
    to ignore, as by nohup, stay ignored. The former handlers are restored at the end of the `with`.

    Args:
        before_end: called before the second signal ends the process.
    """
    handled = [each for each in signals if signal.getsignal(each) is not signal.SIG_IGN]
    received = threading.Event()
    first: tuple[int, float] = 0, 0.0  # its number and time
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def say(line: str) -> None:
        with suppress(OSError):  # the terminal may be closed
            os.write(2, f"{line}\n".encode())

    def watch() -> None:
        nonlocal first
        while number := os.read(reader, 1):  # Python writes the number of each signal at once
            if number[0] not in handled:
                continue
            if received.is_set():
                if number[0] == first[0] and time.monotonic() < first[1] + TWICE_SENT:
                    continue
                before_end()
                say(f"error: stopped by a second {signal.Signals(number[0]).name}, nothing saved")
                os._exit(cli.BY_SIGNAL + number[0])
            first = number[0], time.monotonic()
            received.set()
            if os.isatty(2):
                say("stopping and saving; once more stops without saving")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    former = [signal.signal(each, lambda *_: None) for each in handled]
    former_writer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield received.is_set
    finally:
        signal.set_wakeup_fd(former_writer)
        for each, handler in zip(handled, former, strict=True):
            signal.signal(each, handler)
        os.close(writer)
        watcher.join()
        os.close(reader)
