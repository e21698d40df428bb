"""What a workdir says of its run, in config.json and versions.json: which it is, what ran it."""

import datetime
import hashlib
import json
import os
import platform
from pathlib import Path

import emjax
from emjax.config import flat, plain
from emjax.errors import UsageError
from emjax.files import write_atomically
from emjax.parallel import devices, processes, sharding
from emjax.tasks import PRETRAINING_SCORE, TASKS

MAY_DIFFER = (
    "epochs", "log_every", "eval_every", "save_every",
    "data.dir", "data.resident", "initialise.workdir", "mesh.fsdp", "mesh.space", "remat",
)  # fmt: skip
OFF = {  # what a config that lacks these fields means
    "data.accumulate": 1,
    "ema": 0.0,
    "optimizer.clip": 0.0,
    "optimizer.schedule": "constant",
    "optimizer.warmup": 0,
}


def ranking(config):
    """Return (score, higher_is_better), which choose the best checkpoint: ("val/dice", True).

    The score is always one of the split `val`.

    Raises: UsageError if the config evaluates no split `val`.
    """
    if "val" not in config["data"]["evals"]:
        raise UsageError(
            f"data.evals has {', '.join(config['data']['evals'])}, but no val to choose by"
        )
    if "task" not in config:
        metric, higher_is_better = PRETRAINING_SCORE
    else:
        task = TASKS[config["task"]]
        metric, higher_is_better = task.best, task.higher_is_better
    return f"val/{metric}", higher_is_better


def check_same_run(config, workdir):
    """Raise UsageError naming the fields that differ if `workdir` belongs to another config."""
    if not (workdir / "config.json").exists():
        return
    theirs = OFF | dict(flat(json.loads((workdir / "config.json").read_text())))
    ours = OFF | dict(flat(plain(config)))
    fixed = ("epochs",) if ours["optimizer.schedule"] != "constant" else ()  # it ends with them
    for fields in (theirs, ours):
        fields["initialise"] = "pretrained" if fields.get("initialise.workdir") else "random"
    differ = [
        f"{name} {theirs.get(name)!r} -> {ours.get(name)!r}"
        for name in sorted(theirs.keys() | ours.keys())
        if (name not in MAY_DIFFER or name in fixed) and theirs.get(name) != ours.get(name)
    ]
    if differ:
        raise UsageError(
            f"{workdir} holds a run of another config: {'; '.join(differ)}. "
            "Choose another --workdir or delete it"
        )


def code():
    """Twelve hexadecimal digits of the SHA-256 of this package's source files."""
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def codes_before(workdir):
    """The digests of the programs that the run has been on so far."""
    path = workdir / "versions.json"
    known = json.loads(path.read_text()).get("code", "unknown") if path.exists() else ""
    return known.split("+") if known else []


def describe(workdir, config):
    """Write config.json, and versions.json: what ran it, where and when it was last started."""
    if not processes.is_first():
        return
    versions = emjax.versions(devices.LIBRARIES) | {
        "code": "+".join(dict.fromkeys([*codes_before(workdir), code()])),
        "python": platform.python_version(),
        "devices": f"{sharding.devices_in_use()}, {platform.machine()}",
        "cores": os.cpu_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "date": str(datetime.date.today()),
    }
    for name, facts in (("versions", versions), ("config", plain(config))):
        write_atomically(workdir / f"{name}.json", json.dumps(facts, indent=2).encode())
