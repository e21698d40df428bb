"""Multi-process runs: start-up, the same results as one process, agreed stop, shutdown.

$HOSTS processes with one device each, by default 2; `make soak` uses 4.
"""

import importlib.util
import math
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import jax
import pytest

from emjax.errors import UsageError
from emjax.parallel.processes import (
    HEARTBEAT_SECONDS,
    agreed_stop,
    cluster_arguments,
    connection,
    split_flags,
)
from emjax.runs import metrics_log
from emjax.runs.checkpoints import saved_steps
from tests.conftest import SMALL

COUNT = int(os.environ.get("HOSTS", 2))
LOST_ERROR = "error: lost contact with another process, or it never started"
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "n[1-4]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


def test_flags_are_taken_from_the_command_line():
    flags, others = split_flags(["--config=x", "--coordinator=a:1", "--processes=2", "--process=1"])
    assert (flags.coordinator, flags.processes, flags.process) == ("a:1", 2, 1)
    assert others == ["--config=x"]
    assert split_flags(["--processes=1"])[0].processes == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--coordinator=a:1"], "expected all of .* and --process=I, got some"),
        (["--processes=2"], "--processes=1 by itself is a run of one process"),
        (["--coordinator=a:1", "--processes=2", "--process=2"], "--process=2, expected 0 to 1"),
        (["--processes=two"], "invalid int value: 'two'"),
    ],
)
def test_wrong_flags(arguments, message):
    with pytest.raises(UsageError, match=message):
        split_flags(arguments)


@pytest.mark.parametrize(
    ("environment", "packages", "expected"),
    [
        ({}, "", None),
        # An allocation without srun, and a shell in it: not four processes that never start.
        (SLURM, "", None),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, "", None),
        (
            SLURM | {"SLURM_STEP_NUM_TASKS": "4"},
            "",
            dict(cluster_detection_method="slurm", num_processes=4, local_device_ids=[]),
        ),
        ({}, "libtpu", {}),
        ({"KUBERNETES_SERVICE_HOST": "x"}, "kubernetes", None),  # a pod, not of an indexed Job
        (
            {"KUBERNETES_SERVICE_HOST": "x", "JOB_COMPLETION_INDEX": "0"},
            "kubernetes",
            dict(cluster_detection_method="k8s"),
        ),
    ],
)
def test_arguments_under_schedulers(environment, packages, expected, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name in packages.split())
    assert cluster_arguments(environment) == expected
    if expected and "k8s" in expected.values():
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(UsageError, match="indexed Job: give --coordinator=HOST:PORT"):
            cluster_arguments(environment)


def test_flags_go_before_what_a_scheduler_says(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    pod = {"KUBERNETES_SERVICE_HOST": "x", "JOB_COMPLETION_INDEX": "2"}
    named, _ = split_flags(
        ["--coordinator=emjax-hosts-0-0.emjax:12355", "--processes=4", "--process=2"]
    )
    assert connection(named, pod) == dict(
        coordinator_address="emjax-hosts-0-0.emjax:12355",
        num_processes=4,
        process_id=2,
        local_device_ids=[],
    )
    assert connection(split_flags(["--processes=1"])[0], pod | SLURM) is None
    with pytest.raises(UsageError, match="indexed Job"):
        connection(split_flags([])[0], pod)


@contextmanager
def several(count, *line, last=()):
    """Yield `count` processes of a command, killed at the end; the last also has options `last`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"--coordinator=localhost:{free.getsockname()[1]}"
    flags = [[]]
    if count > 1:
        flags = [[coordinator, f"--processes={count}", f"--process={i}"] for i in range(count)]
    flags[-1] += last
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen([sys.executable, *line, *each], stdout=pipe, stderr=pipe, text=True)
        for each in flags
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()


def train(workdir, data, count, *changes, last=()):
    """Yield `count` processes of the pix2pix smoke run in `workdir`."""
    options = (
        "--config=configs/pretrain.py:smoke",
        f"--workdir={workdir}",
        f"--config.data.dir={data}",
        "--config.log_every=1",
        "--config.eval_every=1000",
        "--config.save_every=2",
        *SMALL,
    )
    return several(count, "-m", "emjax.main", *options, *changes, last=list(last))


def ended(processes, within=600):
    """Return ([exit code], [stdout], stderr of all) once the processes have ended."""
    output = [process.communicate(timeout=within) for process in processes]
    codes = [process.returncode for process in processes]
    return codes, [out for out, _ in output], "".join(err for _, err in output)


def rows(workdir):
    file = workdir / "metrics.jsonl"
    return metrics_log.read(file) if file.exists() else []


def wait_for(step, workdir, processes):
    deadline = time.monotonic() + 1200
    while not any(row["step"] >= step for row in rows(workdir)):
        assert not any(process.poll() for process in processes), ended(processes)
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.long
def test_several_processes_are_one_run(tiny_records, tmp_path):
    """They have the losses of one process; SIGTERM to one stops all."""
    one, workdir = tmp_path / "one", tmp_path / "several"
    with train(one, tiny_records, 1, "--config.epochs=2") as processes:
        codes, _, stderr = ended(processes)
    assert codes == [0], stderr

    run = (workdir, tiny_records, COUNT, "--config.epochs=1000")
    with train(*run) as processes:
        wait_for(6, workdir, processes)
        processes[-1].send_signal(signal.SIGTERM)
        codes, stdout, stderr = ended(processes)
    assert codes == [75] * COUNT, stderr
    (stopped,) = re.findall(r"^error: stopped at step (\d+) of 3000, all saved; run", stderr, re.M)
    stopped = int(stopped)
    assert saved_steps(workdir / "checkpoints")[-1] == stopped
    assert f"{COUNT} x cpu (cpu) of {COUNT} processes" in stdout[0]
    assert not re.search("step|done", "".join(stdout[1:])), stdout
    assert [row["step"] for row in rows(workdir)] == [*range(1, stopped + 1)]
    for ours, theirs in zip(rows(one)[:6], rows(workdir), strict=False):
        # Not those of the validation: the gradient of a bias before a norm is nothing but rounding,
        # Adam makes steps of it, and the running statistics follow late.
        terms = {name for name in ours if name.startswith("train/")}
        assert len(terms) == 4
        for name in terms:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5), (name, ours["step"])

    if COUNT == 2:
        return
    with train(*run) as processes:  # it also continues after a SIGKILL; in make soak
        wait_for(stopped + 12, workdir, processes)  # a checkpoint later
        processes[-1].kill()
        codes, stdout, stderr = ended(processes)
    assert f"continues from step {stopped}" in stdout[0]
    assert codes[-1] == -signal.SIGKILL and all(codes) and LOST_ERROR in stderr, (codes, stderr)
    with train(*run, f"--config.epochs={stopped // 3 + 6}") as processes:
        codes, stdout, stderr = ended(processes)
    assert codes == [0] * COUNT, stderr
    assert int(re.search(r"continues from step (\d+)", stdout[0])[1]) > stopped
    steps = [row["step"] for row in rows(workdir) if any("train/" in name for name in row)]
    assert steps == [*range(1, len(steps) + 1)]


class Coordinator:
    """The keys of JAX's coordinator, which does not answer now and then."""

    def __init__(self):
        self.keys, self.looks = {}, 0

    def key_value_set(self, key, value, allow_overwrite):
        self.keys[key] = value

    def key_value_dir_get(self, folder):
        self.looks += 1
        if self.looks % 5 == 0:
            raise jax.errors.JaxRuntimeError("UNAVAILABLE")
        return [pair for pair in list(self.keys.items()) if pair[0].startswith(f"{folder}/")]


@pytest.mark.parametrize("steps", [40, 10**6], ids=["the end is near", "it is far"])
def test_all_processes_stop_after_the_same_call(steps, monkeypatch):
    monkeypatch.setattr("emjax.parallel.processes.LOOK_SECONDS", 0.001)
    coordinator = Coordinator()

    def one(here, delay):
        """Return the number of calls until `stop` returns true, or `steps`."""
        pauses, end = random.Random(here), time.monotonic() + delay
        with agreed_stop(coordinator, here, 4, lambda: time.monotonic() > end) as stop:
            for call in range(1, steps + 1):
                time.sleep(pauses.random() * 0.004)
                if stop():
                    return call
        return steps

    for delay in (0, 0.02, 0.08):
        coordinator.keys.clear()
        with ThreadPoolExecutor(4) as pool:
            calls = list(pool.map(one, range(4), [math.inf, math.inf, delay, math.inf]))
        assert len(set(calls)) == 1, calls


def test_an_error_of_all_at_one_step_is_not_held_up_by_a_stop(monkeypatch):
    monkeypatch.setattr("emjax.parallel.processes.LOOK_SECONDS", 0.001)
    coordinator = Coordinator()

    def one(here):
        with agreed_stop(coordinator, here, 4, lambda: here == 3) as stop:
            for call in range(here == 3, 2):
                time.sleep(0.02 * (here == 3))
                if stop() or call:
                    raise ValueError(here)

    with ThreadPoolExecutor(4) as pool:
        ends = [pool.submit(one, here) for here in range(4)]
    assert [str(end.exception(timeout=10)) for end in ends] == [*"0123"]


SUMS = """
import sys, time, jax, numpy as np
from emjax import cli
from emjax.parallel import processes, sharding

def main(arguments):
    with processes.connected(processes.split_flags(arguments)[0]):
        mesh = sharding.data_mesh()
        total = jax.jit(lambda x: x.sum(), out_shardings=sharding.replicated(mesh))
        processes.barrier()
        while True:
            ones = sharding.to_devices({"x": np.ones(1, np.float32)}, mesh)["x"]
            print("sum", float(total(ones)), flush=True)
            time.sleep(0.1)

cli.run(main, sys.argv[1:])
"""


@pytest.mark.parametrize("which", [0, -1])
def test_when_one_is_killed_the_others_end(which):
    with several(COUNT, "-c", SUMS) as processes:
        for process in processes:
            while not (line := process.stdout.readline()).startswith("sum"):
                assert line, ended(processes)
            assert line == f"sum {COUNT}.0\n"
        processes[which].kill()
        began = time.monotonic()
        codes, _, stderr = ended(processes)
    assert time.monotonic() - began < HEARTBEAT_SECONDS + 30
    assert codes[which] == -signal.SIGKILL and all(codes), (codes, stderr)
    assert len(re.findall(f"^{LOST_ERROR}", stderr, re.M)) >= 1, stderr


def test_an_error_of_all_is_printed_once(tiny_records, tmp_path):
    run = (tmp_path / "run", tiny_records, COUNT, "--config.augment.crop=31")
    with train(*run) as processes:
        codes, _, stderr = ended(processes)
    assert codes == [2] * COUNT, stderr
    assert (
        stderr.count("error: ") == stderr.count("error: augment.crop=31 on records of 64 x 64") == 1
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(COUNT == 2, reason="takes a heartbeat; in make soak")
def test_an_error_of_one_ends_all(tiny_records, tmp_path):
    run = (tmp_path / "run", tiny_records, COUNT)
    with train(*run, last=["--config.data.dir=nowhere"]) as processes:
        codes, _, stderr = ended(processes)
    assert codes[-1] == 3 and all(codes), (codes, stderr)
    assert "error: nowhere/simulated/unlabelled: dataset 'simulated/unlabelled' is not" in stderr
    assert LOST_ERROR in stderr
