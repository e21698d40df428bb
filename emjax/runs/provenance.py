"""What a workdir records of its run: config.json, data.json (its records) and versions.json."""

import datetime
import json
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import emjax
from emjax import code_digest
from emjax.config import Config, flat, plain
from emjax.errors import UsageError, first_line
from emjax.files import write_atomically
from emjax.parallel import devices, processes, sharding
from emjax.tasks import PRETRAINING_SCORE, TASKS

MAY_DIFFER = {  # fields that may change when a run continues
    "data.dir",
    "data.resident",
    "early_stopping",
    "epochs",
    "eval_every",
    "initialise.workdir",
    "log_every",
    "mesh.fsdp",
    "mesh.space",
    "remat",
    "save_every",
}
RECORDED = ("versions.json", "data.json", "metrics.jsonl", "images.jsonl")
DEFAULTS = {  # what a config means that lacks these fields
    "augment.foreground_crops": 0.0,
    "data.accumulate": 1,
    "early_stopping": 0,
    "ema": 0.0,
    "optimizer.clip": 0.0,
    "optimizer.schedule": "constant",
    "optimizer.warmup": 0,
    "segmentation.classes": 2,
    "segmentation.foreground_weight": 1.0,
    "segmentation.loss": "cross_entropy",
}


def ranking(config: Mapping[str, Any]) -> tuple[str, bool]:
    """Return (score, higher_is_better), which choose the best checkpoint: ("val/dice", True).

    The score is always one of the split `val`.

    Raises: UsageError if the config evaluates no split `val`.
    """
    splits = config["data"]["evals"]
    if "val" not in splits:
        raise UsageError(
            f"data.evals has {', '.join(splits) or 'no split'}, but no val to choose by"
        )
    if "task" not in config:
        metric, higher_is_better = PRETRAINING_SCORE
    else:
        task = TASKS[config["task"]]
        metric, higher_is_better = task.best, task.higher_is_better
    return f"val/{metric}", higher_is_better


def read_json(path: Path) -> dict[str, Any]:
    """Return what a JSON file of a workdir holds.

    Raises: UsageError if it is not the record of a run.
    """
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path}: not the record of a run ({first_line(error)}); choose another workdir"
        ) from error
    if not isinstance(found, dict):
        raise UsageError(f"{path}: not the record of a run; choose another workdir")
    return found


def data_digests(cards: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return {dataset: what it was built from}, the digest of its files and its options."""
    return {
        card["name"]: {"files": card["files_sha256"][:12], **card["options"]}
        for card in cards
        if {"name", "files_sha256", "options"} <= card.keys()
    }


def check_same_data(workdir: Path, data: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise UsageError if the run in `workdir` has had other records of the datasets `data`.

    Args:
        data: as `data_digests` returns it.
    """
    path = workdir / "data.json"
    known = read_json(path) if path.exists() else {}
    differ: list[str] = []
    for name in known.keys() & data.keys():
        theirs, ours = (dict(flat(json.loads(json.dumps(one[name])))) for one in (known, data))
        differ += [
            f"{name} {field} {theirs.get(field)!r} -> {ours.get(field)!r}"
            for field in sorted(theirs.keys() | ours.keys())
            if theirs.get(field) != ours.get(field)
        ]
    if differ:
        raise UsageError(
            f"{workdir} holds a run on other records, the dataset was built again: "
            f"{'; '.join(sorted(differ))}. Choose another workdir, or build the same records"
        )


def check_same_run(config: Config, workdir: Path) -> None:
    """Raise UsageError naming the fields that differ if `workdir` belongs to another config."""
    if not (workdir / "config.json").exists():
        if there := [name for name in RECORDED if (workdir / name).exists()]:
            raise UsageError(
                f"{workdir} holds {there[0]}, but no run with its config.json, so it may be "
                "another's; choose another workdir"
            )
        return
    theirs = DEFAULTS | dict(flat(read_json(workdir / "config.json")))
    ours = DEFAULTS | dict(flat(plain(config)))
    # A schedule ends with the last epoch, so the number of epochs is then fixed.
    fixed = {"epochs"} if ours["optimizer.schedule"] != "constant" else set()
    for fields in (theirs, ours):
        fields["initialise"] = "pretrained" if fields.get("initialise.workdir") else "random"
    differ = [
        f"{name} {theirs.get(name)!r} -> {ours.get(name)!r}"
        for name in sorted(theirs.keys() | ours.keys())
        if name not in MAY_DIFFER - fixed and theirs.get(name) != ours.get(name)
    ]
    if differ:
        raise UsageError(
            f"{workdir} holds a run of another config: {'; '.join(differ)}. "
            "Choose another workdir or delete this one"
        )


def versions_of(workdir: Path) -> dict[str, Any]:
    """Return what the versions.json of a run holds; {} if there is none."""
    path = workdir / "versions.json"
    return json.loads(path.read_text()) if path.exists() else {}


def selection(versions: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Return which network a run keeps, "best" or "last", by its versions.json and config.json.

    That is what its config says, or "last" where the masks of `val` were empty.
    """
    return versions.get("select") or config.get("select", "best")


def earlier_digests(workdir: Path) -> list[str]:
    """Return the digests of the programs that have run it so far."""
    there = (workdir / "versions.json").exists()
    known = versions_of(workdir).get("code", "unknown") if there else ""
    return known.split("+") if known else []


def describe(
    workdir: Path,
    config: Config,
    data: Mapping[str, Mapping[str, Any]] | None = None,
    select: str | None = None,
) -> None:
    """Write config.json, data.json, and versions.json: what runs it, where, and since when.

    Args:
        data: of its records, as `data_digests` returns it.
        select: which network it keeps, where that is not what the config says.
    """
    if not processes.is_first():
        return
    versions = emjax.versions(devices.LIBRARIES) | {
        "code": "+".join(dict.fromkeys([*earlier_digests(workdir), code_digest()])),
        "python": platform.python_version(),
        "devices": f"{sharding.devices_in_use()}, {platform.machine()}",
        "cores": os.cpu_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "date": str(datetime.date.today()),
        "select": select or config.get("select", "best"),
    }
    recorded = {"config": plain(config), "data": dict(data or {}), "versions": versions}
    for name, facts in recorded.items():
        write_atomically(workdir / f"{name}.json", json.dumps(facts, indent=2).encode())
