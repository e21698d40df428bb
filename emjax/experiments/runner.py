"""Run the jobs of a matrix, each as `emjax.main` in a process of its own."""

import os
import shlex
import signal
import subprocess
import sys
import time
from datetime import timedelta

from emjax.errors import EmjaxError, Interrupted
from emjax.parallel import processes

POLL_SECONDS = 0.2


def environment(device, place, at_once=1):
    """What shows a process the device `place` alone, with `at_once` processes on it."""
    if device["platform"] == "gpu":
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = seen.split(",") if seen else [*map(str, range(device["count"]))]
        # JAX reserves three quarters of a GPU at its start unless told not to.
        shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if at_once > 1 else {}
        return {"CUDA_VISIBLE_DEVICES": names[place], **shared}
    if device["platform"] == "tpu":
        return {
            "TPU_VISIBLE_CHIPS": str(place),
            "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
            "TPU_PROCESS_BOUNDS": "1,1,1",
        }
    return {}


def command(job, config, root):
    arguments = [f"--config={config}:{job.name}", f"--workdir={root / job.name}", "--processes=1"]
    if job.after:
        arguments.append(f"--config.initialise.workdir={root / job.after}")
    return [sys.executable, "-m", "emjax.main", *arguments]


def run_jobs(jobs, config, root, device, at_once=1):
    """Do all jobs that are not finished, at most `at_once` on a device.

    Raises: EmjaxError naming those that failed, once all others are done; Stopped on SIGTERM or
        SIGINT, which the runs under way get as SIGTERM.
    """
    waiting = {job.name: job for job in jobs if not job.finished}
    total, busy, failed = len(waiting), {}, {}
    devices = device["count"] if device["platform"] != "cpu" else 1
    free = [*range(devices * at_once)]  # places, of which `place % devices` is the device

    def startable():
        return [
            job
            for job in waiting.values()
            if job.after not in waiting.keys() | {other.name for other, *_ in busy.values()}
        ]

    def compiling(job):
        """Whether a run of its kind, on a device with others, has yet to report for the first time.

        Processes that compile the same programs side by side share the cores for nothing.
        """
        return at_once > 1 and any(
            other.kind == job.kind and not (root / other.name / "metrics.jsonl").exists()
            for other, *_ in busy.values()
        )

    def begin(job, place):
        del waiting[job.name]
        if job.after in failed:
            failed[job.name] = f"{job.after} did not finish"
            return
        folder, number = root / job.name, place % devices
        folder.mkdir(parents=True, exist_ok=True)
        line = command(job, config, root)
        with (folder / "log.txt").open("ab") as log:
            log.write(f"$ {shlex.join(line)}\n".encode())
            log.flush()
            child = subprocess.Popen(
                line, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
                env={**os.environ, **environment(device, number, at_once)},
            )  # fmt: skip
        free.remove(place)
        busy[place] = (job, child, time.monotonic())
        count = total - len(waiting)
        print(f"[{count}/{total}] {job.name}: started on {device['platform']} {number}", flush=True)

    def end(place):
        job, child, began = busy.pop(place)
        free.append(place)
        took = timedelta(seconds=round(time.monotonic() - began))
        if child.returncode == 0:
            print(f"{job.name}: done in {took}", flush=True)
            return
        last = (root / job.name / "log.txt").read_text(errors="replace").strip().splitlines()[-1]
        failed[job.name] = f"exit code {child.returncode}, {last}"
        print(f"{job.name}: failed after {took}: {failed[job.name]}", flush=True)

    with processes.signals_received(signal.SIGTERM, signal.SIGINT) as stop:
        while (waiting or busy) and not stop():
            for job in startable():
                if free and not compiling(job):
                    begin(job, free[0])
            for place in [place for place, (_, child, _) in busy.items()
                          if child.poll() is not None]:  # fmt: skip
                end(place)
            time.sleep(POLL_SECONDS if busy else 0)
        for _, child, _ in busy.values():
            child.send_signal(signal.SIGTERM)
        for place in [*busy]:
            busy[place][1].wait()
            end(place)
        if stop():
            raise Interrupted(f"{root}: stopped; the same command goes on from there")
    if failed:
        told = "\n".join(f"{name}: {why}" for name, why in failed.items())
        raise EmjaxError(f"{len(failed)} of {len(jobs)} runs did not finish:\n{told}")
    print(f"{root}: all {len(jobs)} runs are finished")
