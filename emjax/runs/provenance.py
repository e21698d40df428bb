"""What a workdir records of its run, in config.json and versions.json: its config and program."""

import datetime
import hashlib
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import emjax
from emjax.config import Config, flat, plain
from emjax.errors import UsageError
from emjax.files import write_atomically
from emjax.parallel import devices, processes, sharding
from emjax.tasks import PRETRAINING_SCORE, TASKS

MAY_DIFFER = {  # fields that may change when a run continues
    "data.dir",
    "data.resident",
    "epochs",
    "eval_every",
    "initialise.workdir",
    "log_every",
    "mesh.fsdp",
    "mesh.space",
    "remat",
    "save_every",
}
DEFAULTS = {  # what a config means that lacks these fields
    "data.accumulate": 1,
    "ema": 0.0,
    "optimizer.clip": 0.0,
    "optimizer.schedule": "constant",
    "optimizer.warmup": 0,
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


def check_same_run(config: Config, workdir: Path) -> None:
    """Raise UsageError naming the fields that differ if `workdir` belongs to another config."""
    if not (workdir / "config.json").exists():
        return
    theirs = DEFAULTS | dict(flat(json.loads((workdir / "config.json").read_text())))
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


def code_digest() -> str:
    """Return twelve hexadecimal digits of the SHA-256 of the source files of emjax."""
    package = Path(emjax.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def earlier_digests(workdir: Path) -> list[str]:
    """Return the digests of the programs that have run it so far."""
    path = workdir / "versions.json"
    known = json.loads(path.read_text()).get("code", "unknown") if path.exists() else ""
    return known.split("+") if known else []


def describe(workdir: Path, config: Config) -> None:
    """Write config.json, and versions.json: what runs it, where, and when it was last started."""
    if not processes.is_first():
        return
    versions = emjax.versions(devices.LIBRARIES) | {
        "code": "+".join(dict.fromkeys([*earlier_digests(workdir), code_digest()])),
        "python": platform.python_version(),
        "devices": f"{sharding.devices_in_use()}, {platform.machine()}",
        "cores": os.cpu_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "date": str(datetime.date.today()),
    }
    for name, facts in (("versions", versions), ("config", plain(config))):
        write_atomically(workdir / f"{name}.json", json.dumps(facts, indent=2).encode())
