"""Run the jobs of a matrix, each as `emjax.main` in a process of its own."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple, TypedDict

from emjax import cli
from emjax.errors import EmjaxError, Interrupted, UsageError
from emjax.experiments.plan import Job
from emjax.parallel import processes

POLL_SECONDS = 0.2
PROBE = [sys.executable, "-m", "emjax.doctor", "--json"]


class Device(TypedDict):
    """What this machine offers to a run, as `emjax.doctor --json` prints it."""

    platform: str  # cpu, gpu or tpu
    count: int  # local devices
    kind: str
    tflops: float  # of a large matrix product in float32


class Running(NamedTuple):
    """A job under way."""

    job: Job
    process: subprocess.Popen
    began: float  # of time.monotonic()


def probe_device() -> Device:
    """Return the device of the runs, probed in another process so that this one occupies none.

    Raises: EmjaxError with the probe's error line if it fails; UsageError if that is one.
    """
    done = subprocess.run(PROBE, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it printed nothing"]
        reason = next((line for line in lines if line.startswith("error: ")), lines[-1])
        kind = UsageError if done.returncode == UsageError.code else EmjaxError
        raise kind(
            f"the devices cannot be probed: {reason.removeprefix('error: ')} "
            f"(exit code {done.returncode}); run python -m emjax.doctor"
        )
    return json.loads(done.stdout.splitlines()[-1])


def environment(device: Device, index: int, at_once: int = 1) -> dict[str, str]:
    """Return the variables that show a process the device `index` alone.

    Args:
        at_once: processes on that device.
    """
    if device["platform"] == "gpu":
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = seen.split(",") if seen else [*map(str, range(device["count"]))]
        # JAX reserves three quarters of a GPU at its start by default.
        shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if at_once > 1 else {}
        return {"CUDA_VISIBLE_DEVICES": names[index], **shared}
    if device["platform"] == "tpu":
        return {
            "TPU_VISIBLE_CHIPS": str(index),
            "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
            "TPU_PROCESS_BOUNDS": "1,1,1",
        }
    return {}


def command(job: Job, config: str, root: Path) -> list[str]:
    """Return the command line of a job of the matrix in the file `config`."""
    arguments = [f"--config={config}:{job.name}", f"--workdir={root / job.name}", "--processes=1"]
    if job.after:
        arguments.append(f"--config.initialise.workdir={root / job.after}")
    return [sys.executable, "-m", "emjax.main", *arguments]


def run_jobs(
    jobs: Sequence[Job], config: str, root: Path, device: Device, at_once: int = 1
) -> None:
    """Do all jobs that are not finished, at most `at_once` on a device.

    Raises: EmjaxError naming those that failed, once all others are done; Interrupted on SIGINT,
        SIGTERM or SIGHUP, which the runs under way get as SIGTERM.
    """
    waiting = {job.name: job for job in jobs if not job.finished}
    total = len(waiting)
    running: dict[int, Running] = {}  # by slot
    failed: dict[str, str] = {}  # {name: reason}
    devices = device["count"] if device["platform"] != "cpu" else 1
    free = [*range(devices * at_once)]  # slots; `slot % devices` is the device

    def startable() -> list[Job]:
        unfinished = waiting.keys() | {other.job.name for other in running.values()}
        return [job for job in waiting.values() if job.after not in unfinished]

    def is_compiling(job: Job) -> bool:
        """Whether a run of its kind, on a device with others, has yet to report for the first time.

        Processes that compile the same programs at the same time share the cores for nothing.
        """
        return at_once > 1 and any(
            other.job.kind == job.kind and not (root / other.job.name / "metrics.jsonl").exists()
            for other in running.values()
        )

    def begin(job: Job, slot: int) -> None:
        del waiting[job.name]
        if job.after in failed:
            failed[job.name] = f"{job.after} did not finish"
            return
        folder, index = root / job.name, slot % devices
        folder.mkdir(parents=True, exist_ok=True)
        line = command(job, config, root)
        with (folder / "log.txt").open("ab") as log:
            log.write(f"$ {shlex.join(line)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                line,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, **environment(device, index, at_once)},
            )
        free.remove(slot)
        running[slot] = Running(job, process, time.monotonic())
        count = total - len(waiting)
        print(f"[{count}/{total}] {job.name}: started on {device['platform']} {index}", flush=True)

    def end(slot: int) -> None:
        job, process, began = running.pop(slot)
        free.append(slot)
        took = timedelta(seconds=round(time.monotonic() - began))
        if process.returncode == 0:
            print(f"{job.name}: done in {took}", flush=True)
            return
        last = (root / job.name / "log.txt").read_text(errors="replace").strip().splitlines()[-1]
        failed[job.name] = f"exit code {process.returncode}, {last}"
        print(f"{job.name}: failed after {took}: {failed[job.name]}", flush=True)

    def stop_running() -> None:
        for each in [*running.values()]:
            each.process.send_signal(signal.SIGTERM)

    with processes.signals_received(*cli.STOPS, before_end=stop_running) as stop:
        try:
            while (waiting or running) and not stop():
                for job in startable():
                    if free and not is_compiling(job):
                        begin(job, free[0])
                ended = [slot for slot, each in running.items() if each.process.poll() is not None]
                for slot in ended:
                    end(slot)
                time.sleep(POLL_SECONDS if running else 0)
        finally:  # also if the output is closed: no run stays behind without its sweep
            stop_running()
            for each in running.values():
                each.process.wait()
        for slot in [*running]:
            end(slot)
        if stop():
            raise Interrupted(f"{root}: stopped; run the same command again to continue")
    if failed:
        reasons = "\n".join(f"{name}: {reason}" for name, reason in failed.items())
        raise EmjaxError(f"{len(failed)} of {len(jobs)} runs did not finish:\n{reasons}")
    print(f"{root}: all {len(jobs)} runs are finished")
