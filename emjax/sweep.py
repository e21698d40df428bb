"""Run a matrix of runs: python -m emjax.sweep --config=configs/paper.py --runs=DIR [--dry_run].

The config file has `runs(seeds)`: {name: a function that makes the run's config}, in which
`initialise.workdir` is the name of another run. Each run is `emjax.main` in a process of its own,
in the folder DIR/<name>, with its output in log.txt there; one run at a time on each local GPU or
TPU chip, one in all on a CPU, or as many as --at_once says: small networks leave a large GPU idle.
Then the first run of a kind compiles for all, before others of it start. What is finished is left
alone, what was interrupted goes on.
"""

import argparse
import collections
import fnmatch
import json
import os
import re
import runpy
import shlex
import signal
import statistics
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from emjax import errors, journal, networks, runs, weights
from emjax import main as train
from emjax.errors import BadInput, EmjaxError, Stopped, Usage
from emjax.models.__main__ import multiply_adds
from emjax.provenance import plain, refuse_other
from emjax.records import open_records, parts_of

UTILISATION = 0.3  # of a large matrix product's speed: what hours are guessed by
POLL_SECONDS = 0.2


class Job(NamedTuple):
    """One run of the matrix."""

    name: str
    config: object  # ConfigDict
    after: str  # the run of the matrix whose weights it starts from, or ""
    steps: int | None  # in all; None where the records are not built and nobody knows how many
    done: int
    finished: bool
    kind: str  # runs of one kind have the same cost and, mostly, the same programs


def main(arguments):
    """Run what is missing of a matrix; returns the exit code."""
    parser = errors.Parser(
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
        raise Usage(f"--at_once={options.at_once}; at least 1 was due")
    jax.config.update("jax_platforms", "cpu")  # the devices are for the runs
    configs, expected = matrix(options.config, options.seeds)
    everything = chosen(configs, options.only)
    configs = shared(everything, options.share)
    counts, missing = records(configs, expected)
    problem = "\n".join([f"{len(missing)} datasets or splits are missing:", *missing])
    if missing and not options.dry_run:
        raise BadInput(problem)
    jobs = plan(configs, counts, options.runs)
    device = json.loads(
        subprocess.run(
            [sys.executable, "-c", "from emjax import sweep; sweep.probe()"],
            check=True, capture_output=True, text=True,
        ).stdout.splitlines()[-1]
    )  # fmt: skip
    if device["platform"] == "tpu" and options.at_once > 1:
        raise Usage(f"--at_once={options.at_once}; a TPU chip takes one run at a time, 1 was due")
    tell(jobs, options.runs, device)
    if missing:
        print(f"\n{problem}")
    if not options.dry_run:
        options.runs.mkdir(parents=True, exist_ok=True)
        if options.share.startswith("0/"):  # the others would write the same
            names = dict.fromkeys([*runs.matrix(options.runs), *everything])
            path = options.runs / "matrix.json"  # what a report is to find
            weights.replace(path, json.dumps([*names], indent=1).encode())
        run(jobs, options.config, options.runs, device, options.at_once)
    return 0


def matrix(path, seeds):
    """({name: ConfigDict}, {(dataset, split): expected number of records}) of a config file."""
    if seeds < 1:
        raise Usage(f"--seeds={seeds}; at least 1 was due")
    if not Path(path).is_file():
        raise Usage(f"--config={path} is no file")
    module = runpy.run_path(str(path))
    if "runs" not in module:
        raise Usage(f"{path} is no matrix: it has no runs(seeds); emjax.main takes single recipes")
    return {name: make() for name, make in module["runs"](seeds).items()}, module.get("RECORDS", {})


def chosen(configs, only):
    """The configs whose names match `only`, and those they start from; all if it is empty.

    Raises: Usage naming a pattern that matches nothing.
    """
    if not only:
        return configs
    names = set()
    for pattern in only.split(","):
        found = fnmatch.filter(configs, pattern)
        if not found:
            near = ", ".join(sorted({without_seed(name) for name in configs})[:12])
            raise Usage(f"--only={pattern} matches no run; there are {near}, ...")
        names.update(found)
    names |= {start(configs[name]) for name in names} - {""}
    return {name: config for name, config in configs.items() if name in names}


def shared(configs, share):
    """The configs of share "I/N". A run and all that start from it, or from these, stay together.

    Raises: Usage if `share` is not of that form.
    """
    try:
        part, count = map(int, share.split("/"))
    except ValueError:
        part, count = 0, 0
    if not 0 <= part < count:
        raise Usage(f"--share={share}; I/N with I from 0 to N - 1 was due, e.g. 0/4")

    def origin(name):
        return origin(start(configs[name])) if start(configs[name]) in configs else name

    origins = dict.fromkeys(map(origin, configs))
    mine = [*origins][part::count]
    return {name: config for name, config in configs.items() if origin(name) in mine}


def start(config):
    return config.initialise.workdir if "initialise" in config else ""


def records(configs, expected):
    """({(folder, dataset, split): records or None}, [what is missing and how to build it])."""
    counts, missing = {}, {}
    for config in configs.values():
        for name, split, *_ in [*parts_of(config.data.train), *config.data.evals.values()]:
            key = (config.data.dir, name, split)
            if key in counts:
                continue
            counts[key] = expected.get((name, split))
            try:
                counts[key] = len(open_records(*key).source)
            except BadInput as error:
                missing[str(error)] = None
    return counts, [*missing]


def plan(configs, counts, root):
    """The Jobs, in the order of `configs`.

    Raises: Usage naming every workdir that holds a run of another config.
    """
    jobs, others = [], []
    for name, config in configs.items():
        parts = parts_of(config.data.train)
        known = [counts[config.data.dir, dataset, split] for dataset, split, _ in parts]
        steps = None if None in known else train.steps(config, sum(known))[1]
        done, finished = 0, False
        try:
            refuse_other(config, root / name)
        except Usage as error:
            others.append(str(error))
        if (root / name / "metrics.jsonl").exists():
            run = runs.read(root / name, root)
            done, finished = run.done, run.finished and run.done == steps
        after = start(config) if start(config) in configs else ""
        jobs.append(Job(name, config, after, steps, done, finished, kind(config)))
    if others:
        raise Usage("\n".join(others))
    return jobs


def kind(config):
    """The Job's `kind` of a run, as text."""
    fields = plain(config)
    parts = ("model", "objective", "task", "precision", "discriminator")
    sizes = crop(config), config.data.batch_size
    return json.dumps([*(fields.get(part) for part in parts), *sizes])


def crop(config):
    """The side of what a run is trained on, in pixels; whole patches are taken for CEM500K's."""
    return config.augment.crop or 224


def without_seed(name):
    return re.sub(r"/seed_\d+$", "", name)


def probe():
    """Print what runs will find: platform, local devices, TFLOP/s of a large matrix product."""
    side = 4096 if jax.default_backend() != "cpu" else 2048
    product = jax.jit(lambda a: a @ a)
    array = product(jnp.ones((side, side), jnp.float32)).block_until_ready()
    began = time.monotonic()
    for _ in range(3):
        array = product(array)
    array.block_until_ready()
    facts = {"platform": jax.default_backend(), "count": jax.local_device_count()}
    speed = 3 * 2 * side**3 / (time.monotonic() - began) / 1e12
    print(json.dumps({**facts, "kind": jax.devices()[0].device_kind, "tflops": speed}))


def images_a_second(job, root, tflops, known):
    """Of a run: as measured in the folder of one of its kind, else guessed."""
    config, path = job.config, root / job.name / "metrics.jsonl"
    if path.exists():
        rows = [row for row in journal.read(path) if any(key.startswith("train/") for key in row)]
        rates = [
            (b["step"] - a["step"]) * config.data.batch_size / (b["seconds"] - a["seconds"])
            for a, b in zip(rows, rows[1:], strict=False) if b["seconds"] > a["seconds"]
        ]  # fmt: skip
        if rates:
            known[job.kind] = statistics.median(rates)
    if job.kind not in known:
        module = networks.build_abstract(config.model.to_dict())
        side = crop(config)
        flops = 6 * multiply_adds(module, 64) * (side / 64) ** 2
        if "discriminator" in config:
            module = networks.build_abstract(config.discriminator.to_dict())
            flops += 16 * multiply_adds(module, 224) * (side / 224) ** 2
        known[job.kind] = UTILISATION * tflops * 1e12 / flops
    return known[job.kind]


def tell(jobs, root, device):
    """Print the plan: a line for all seeds of a run, then the sums."""
    known, groups = {}, collections.defaultdict(list)
    ordered = sorted(jobs, key=lambda job: not (root / job.name / "metrics.jsonl").exists())
    for job in ordered:  # measured ones first
        speed = images_a_second(job, root, device["tflops"], known)
        left = 0 if job.steps is None else max(job.steps - job.done, 0)
        hours = left * job.config.data.batch_size / speed / 3600
        groups[without_seed(job.name)].append((job, hours))
    width = max(map(len, groups))
    print(f"{'run':{width}}  seeds     steps  finished    hours  starts from")
    for name in dict.fromkeys(without_seed(job.name) for job in jobs):
        members = groups[name]
        job = members[0][0]
        finished = sum(job.finished for job, _ in members)
        hours = sum(hours for _, hours in members)
        steps = "?" if job.steps is None else f"{job.steps:,}"
        print(f"{name:{width}}  {len(members):5} {steps:>9}  {finished:8}  {hours:7.2f}"
              f"  {without_seed(job.after) or '-'}")  # fmt: skip
    hours = sum(hours for members in groups.values() for _, hours in members)
    finished = sum(job.finished for job in jobs)
    print(
        f"{len(jobs)} runs, {finished} finished; {hours / device['count']:.1f} hours left on "
        f"{device['count']} x {device['kind']} ({device['platform']}): images/s as measured here, "
        f"else {UTILISATION:.0%} of {device['tflops']:.2f} TFLOP/s"
    )


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

    with train.asked_by(signal.SIGTERM, signal.SIGINT) as stop:
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
            raise Stopped(f"{root}: stopped; the same command goes on from there")
    if failed:
        told = "\n".join(f"{name}: {why}" for name, why in failed.items())
        raise EmjaxError(f"{len(failed)} of {len(jobs)} runs did not finish:\n{told}")
    print(f"{root}: all {len(jobs)} runs are finished")


if __name__ == "__main__":
    errors.run(main, sys.argv[1:])
