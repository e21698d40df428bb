"""What a matrix of runs has, how much of it is done and what the rest costs."""

import collections
import fnmatch
import json
import re
import runpy
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from emjax import journal, runs
from emjax.config import parts_of, plain
from emjax.data.records import open_records
from emjax.errors import InputError, UsageError
from emjax.models.build import build_abstract
from emjax.models.cost import multiply_adds
from emjax.provenance import refuse_other
from emjax.training.assemble import count_steps

UTILISATION = 0.3  # of a large matrix product's speed: what hours are guessed by


class Job(NamedTuple):
    """One run of the matrix."""

    name: str
    config: object  # ConfigDict
    after: str  # the run of the matrix whose weights it starts from, or ""
    steps: int | None  # in all; None where the records are not built and nobody knows how many
    done: int
    finished: bool
    kind: str  # runs of one kind have the same cost and, mostly, the same programs


def matrix(path, seeds):
    """({name: ConfigDict}, {(dataset, split): expected number of records}) of a config file."""
    if seeds < 1:
        raise UsageError(f"--seeds={seeds}; at least 1 was due")
    if not Path(path).is_file():
        raise UsageError(f"--config={path} is no file")
    module = runpy.run_path(str(path))
    if "runs" not in module:
        raise UsageError(
            f"{path} is no matrix: it has no runs(seeds); emjax.main takes single recipes"
        )
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
            raise UsageError(f"--only={pattern} matches no run; there are {near}, ...")
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
        raise UsageError(f"--share={share}; I/N with I from 0 to N - 1 was due, e.g. 0/4")

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
            except InputError as error:
                missing[str(error)] = None
    return counts, [*missing]


def jobs_of(configs, counts, root):
    """The Jobs, in the order of `configs`.

    Raises: Usage naming every workdir that holds a run of another config.
    """
    jobs, others = [], []
    for name, config in configs.items():
        parts = parts_of(config.data.train)
        known = [counts[config.data.dir, dataset, split] for dataset, split, _ in parts]
        steps = None if None in known else count_steps(config, sum(known))[1]
        done, finished = 0, False
        try:
            refuse_other(config, root / name)
        except UsageError as error:
            others.append(str(error))
        if (root / name / "metrics.jsonl").exists():
            run = runs.read(root / name, root)
            done, finished = run.done, run.finished and run.done == steps
        after = start(config) if start(config) in configs else ""
        jobs.append(Job(name, config, after, steps, done, finished, kind(config)))
    if others:
        raise UsageError("\n".join(others))
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
        module = build_abstract(config.model.to_dict())
        side = crop(config)
        flops = 6 * multiply_adds(module, 64) * (side / 64) ** 2
        if "discriminator" in config:
            module = build_abstract(config.discriminator.to_dict())
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
