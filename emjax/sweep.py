"""Run a matrix of runs: python -m emjax.sweep --config=configs/paper.py --runs=DIR [--dry_run].

The config file has `runs(seeds)`: {name: a function that makes the run's config}, in which
`initialise.workdir` is the name of another run. Each run is `emjax.main` in a process of its own,
in the folder DIR/<name>, with its output in log.txt there; one run at a time on each local GPU or
TPU chip, one in all on a CPU, or as many as --at_once says: small networks leave a large GPU idle.
Then the first run of a kind compiles for all, before others of it start. What is finished is left
alone, what was interrupted goes on.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import jax

from emjax import cli, plan, runs
from emjax.errors import EmjaxError, InputError, Interrupted, UsageError
from emjax.files import write_atomically
from emjax.parallel import processes

POLL_SECONDS = 0.2


def main(arguments):
    """Run what is missing of a matrix; returns the exit code."""
    parser = cli.Parser(
        prog="emjax.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="file with runs(seeds)")
    parser.add_argument("--runs", required=True, type=Path, help="folder for the workdirs")
    parser.add_argument("--only", help="names, with * and ?, joined by commas; and what they need")
    parser.add_argument("--seeds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--share", default="0/1", help="I/N: the I-th, from 0 on, of N sweeps that "
                        "share the runs, each on a machine of its own; default: all")  # fmt: skip
    parser.add_argument("--at_once", type=int, default=1, help="runs at a time on a device; on a "
                        "TPU chip only one can be; default: %(default)s")  # fmt: skip
    parser.add_argument("--dry_run", action="store_true", help="print the plan and stop")
    options = parser.parse_args(arguments)
    if options.at_once < 1:
        raise UsageError(f"--at_once={options.at_once}; at least 1 was due")
    jax.config.update("jax_platforms", "cpu")  # the devices are for the runs
    configs, expected = plan.matrix(options.config, options.seeds)
    everything = plan.chosen(configs, options.only)
    configs = plan.shared(everything, options.share)
    counts, missing = plan.records(configs, expected)
    problem = "\n".join([f"{len(missing)} datasets or splits are missing:", *missing])
    if missing and not options.dry_run:
        raise InputError(problem)
    jobs = plan.jobs_of(configs, counts, options.runs)
    device = json.loads(
        subprocess.run(
            [sys.executable, "-c", "from emjax import plan; plan.probe()"],
            check=True, capture_output=True, text=True,
        ).stdout.splitlines()[-1]
    )  # fmt: skip
    if device["platform"] == "tpu" and options.at_once > 1:
        raise UsageError(
            f"--at_once={options.at_once}; a TPU chip takes one run at a time, 1 was due"
        )
    plan.tell(jobs, options.runs, device)
    if missing:
        print(f"\n{problem}")
    if not options.dry_run:
        options.runs.mkdir(parents=True, exist_ok=True)
        if options.share.startswith("0/"):  # the others would write the same
            names = dict.fromkeys([*runs.matrix(options.runs), *everything])
            path = options.runs / "matrix.json"  # what a report is to find
            write_atomically(path, json.dumps([*names], indent=1).encode())
        run(jobs, options.config, options.runs, device, options.at_once)
    return 0


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


def run(jobs, config, root, device, at_once=1):
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


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
