"""How long a matrix takes: speed as measured, else estimated from the device."""

import collections
import statistics
from collections.abc import Sequence
from pathlib import Path

from emjax.experiments.plan import Job, crop_of, without_seed
from emjax.experiments.runner import Device
from emjax.models.build import build_abstract
from emjax.models.cost import multiply_adds
from emjax.runs import metrics_log

UTILISATION = 0.3  # of a large matrix product's speed: what hours are estimated with


def images_per_second(job: Job, root: Path, tflops: float, known: dict[str, float]) -> float:
    """Return the images per second of a run: measured if a similar run exists, else estimated.

    Args:
        tflops: speed of the device in float32.
        known: {kind of run: images per second}; what is found is added.
    """
    config, path = job.config, root / job.name / "metrics.jsonl"
    if path.exists():
        rows = [
            row for row in metrics_log.read(path) if any(key.startswith("train/") for key in row)
        ]
        rates = [
            (b["step"] - a["step"]) * config.data.batch_size / (b["seconds"] - a["seconds"])
            for a, b in zip(rows, rows[1:], strict=False)
            if b["seconds"] > a["seconds"]
        ]
        if rates:
            known[job.kind] = statistics.median(rates)
    if job.kind not in known:
        module = build_abstract(config.model.to_dict())
        side = crop_of(config)
        flops = 6 * multiply_adds(module, 64) * (side / 64) ** 2
        if "discriminator" in config:
            module = build_abstract(config.discriminator.to_dict())
            flops += 16 * multiply_adds(module, 224) * (side / 224) ** 2
        known[job.kind] = UTILISATION * tflops * 1e12 / flops
    return known[job.kind]


def print_plan(jobs: Sequence[Job], root: Path, device: Device) -> None:
    """Print the plan: a line for all seeds of a run, then the sums."""
    known: dict[str, float] = {}
    groups: dict[str, list[tuple[Job, float]]] = collections.defaultdict(list)
    ordered = sorted(jobs, key=lambda job: not (root / job.name / "metrics.jsonl").exists())
    for job in ordered:  # measured ones first
        speed = images_per_second(job, root, device["tflops"], known)
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
        print(
            f"{name:{width}}  {len(members):5} {steps:>9}  {finished:8}  {hours:7.2f}"
            f"  {without_seed(job.after) or '-'}"
        )
    hours = sum(hours for members in groups.values() for _, hours in members)
    finished = sum(job.finished for job in jobs)
    print(
        f"{len(jobs)} runs, {finished} finished; {hours / device['count']:.1f} hours left on "
        f"{device['count']} x {device['kind']} ({device['platform']}): images/s as measured here, "
        f"else {UTILISATION:.0%} of {device['tflops']:.2f} TFLOP/s"
    )
