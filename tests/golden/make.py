"""Make the golden files: what commit 80922af writes, for tests/test_compatibility.py.

    git worktree add --detach OLD 80922af
    python tests/golden/make.py OLD

OLD's programs do it all, on one CPU device and with little optimised (FLAGS). Into 80922af.tar.xz:

    data/         records of simulated/unlabelled and simulated/nanoparticles
    stopped/      a Pix2Pix pretraining with its only checkpoint, as SIGTERM left it after step 4
    runs/         the finished runs of matrix.py, that pretraining among them, without checkpoints
    micrograph.tif and, in predictions/, what the networks of runs/ make of it

and beside it expected.json: the machine, digests of records and files, the numbers of the report;
and configs.json: the configs of the command lines of commands.txt.

Made again on the same kind of machine, only times and the names of files in checkpoints differ.
"""

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib import metadata
from pathlib import Path

COMMIT = "80922af"
HERE = Path(__file__).absolute().parent
FLAGS = "--xla_backend_optimization_level=0"
STOPPED_AT = 4
MODELS = {  # the network that predicts: the run it is of
    "restored": "pretrain/pix2pix/seed_0",
    "instance": "pretrain/instance/seed_0",
    "mask": "segment/pix2pix/seed_0",
}
WITHOUT_MODEL = ("segment/random/seed_0",)  # the report takes runs without one

# The loop asks once a step whether SIGTERM has come; here it has after step STOPPED_AT.
STOPPING = f"""
import contextlib, itertools, sys
from emjax import errors, main
@contextlib.contextmanager
def asked_by(*signals):
    steps = itertools.count(1)
    yield lambda: next(steps) >= {STOPPED_AT}
main.asked_by = asked_by
errors.run(main.main, sys.argv[1:])
"""
# TFDS's own reader, not emjax's.
RECORDS = """
import hashlib, json, sys
import numpy as np, tensorflow_datasets as tfds
found = {}
for name in ("unlabelled", "nanoparticles"):
    builder = tfds.builder_from_directory(f"data/simulated/{name}/1.0.0")
    for split in builder.info.splits:
        records = {}
        for record in builder.as_data_source(split):
            arrays = {k: np.asarray(v) for k, v in record.items() if k in ("image", "mask")}
            records[record["name"].decode()] = {
                "nm_per_pixel": [None if np.isnan(x) else float(x) for x in record["nm_per_pixel"]],
                **{k: [str(v.dtype), *v.shape[:2], hashlib.sha256(v.tobytes()).hexdigest()]
                   for k, v in arrays.items()},
            }
        found[f"simulated/{name}:{split}"] = dict(sorted(records.items()))
print(json.dumps(found))
"""
# The whole configs of the recipes, and where each command line's config is another one.
CONFIGS = """
import json, sys
from emjax import micrographs
from emjax.main import parse
from emjax.provenance import flat, plain
commands, recipes, found = json.load(sys.stdin), {}, {}
for line, arguments in commands.items():
    config, workdir = parse(arguments)
    recipe = next(a for a in arguments if a.startswith("--config=")).split("=")[1].split(":")[0]
    if recipe != "configs/real_small.py" and recipe not in recipes:
        recipes[recipe] = dict(flat(plain(parse([f"--config={recipe}"])[0])))
    usual, mine = recipes.get(recipe, {}), dict(flat(plain(config)))
    found[line] = {
        "workdir": str(workdir),
        "changed": {k: v for k, v in mine.items() if k not in usual or usual[k] != v},
        "removed": [k for k in usual if k not in mine],
    }
print(json.dumps({"recipes": recipes, "commands": found}))
"""
MATRICES = """
import importlib, json
print(json.dumps({name: sorted(importlib.import_module(f"configs.{name}").runs(1))
                  for name in ("paper", "real_small")}))
"""
MARGIN = """
import numpy as np
from emjax.micrographs import read
from emjax.predict import Predictor
values = Predictor("runs/segment/pix2pix/seed_0")(read("micrograph.tif").image)
print(float(np.abs(values - 0.5).min()))
"""
MICROGRAPH = """
import numpy as np
from emjax import micrographs
image = micrographs.read("image.tif").image[5:55, 2:63]
micrographs.write("micrograph.tif", image.astype(np.float32), (0.06, 0.06))
"""


def machine():
    """What float32 sums on a CPU depend on, so that equal machines can be told."""
    info = {}
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        info = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    caches = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    return {
        **{name: info.get(name, "unknown") for name in ("model name", "cpu family", "model")},
        "instructions": digest(" ".join(sorted(info.get("flags", "").split())).encode())[:12],
        "caches": [path.read_text().strip() for path in caches],
        "cores": os.cpu_count(),
        "jaxlib": metadata.version("jaxlib"),
        "flags": FLAGS,
    }


def digest(content):
    return hashlib.sha256(content).hexdigest()


def command_lines():
    """The lines of commands.txt as lists of words."""
    lines = (HERE / "commands.txt").read_text().splitlines()
    return {line: shlex.split(line) for line in lines if line and not line.startswith("#")}


def main(checkout):
    checkout = Path(checkout).absolute()
    git = ["git", "-C", str(checkout)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    status = subprocess.run([*git, "status", "--short"], check=True, capture_output=True)
    if not head.stdout.startswith(COMMIT) or status.stdout:
        sys.exit(f"{checkout} is at {head.stdout[:7]}, or changed; {COMMIT} as it is was expected")
    folder = Path(tempfile.mkdtemp())
    environment = {**os.environ, "PYTHONPATH": str(checkout), "XLA_FLAGS": FLAGS,
                   "JAX_PLATFORMS": "cpu"}  # fmt: skip

    def old(*words, code=0, **how):
        how = {"cwd": folder, **how}
        line = [sys.executable, *map(str, words)]
        done = subprocess.run(line, env=environment, text=True, stdout=subprocess.PIPE, **how)
        assert done.returncode == code, f"{words[:3]}: exit code {done.returncode}"
        return done.stdout

    for name in ("unlabelled", "nanoparticles"):
        old("-m", "data_builders.build", f"simulated/{name}", "--data_dir=data", "--patch=64",
            "--records=20")  # fmt: skip
    pretrain = "pretrain/pix2pix/seed_0"
    old("-c", STOPPING, f"--config={HERE / 'matrix.py'}:{pretrain}", f"--workdir=runs/{pretrain}",
        code=75)  # fmt: skip
    shutil.copytree(folder / "runs" / pretrain, folder / "stopped")
    old("-m", "emjax.sweep", f"--config={HERE / 'matrix.py'}", "--runs=runs", "--seeds=1")
    old("-m", "data_builders.export", "simulated/nanoparticles", "--data_dir=data", "--split=test",
        "--first=1", "--out=exported")  # fmt: skip
    shutil.copy(next((folder / "exported" / "image").iterdir()), folder / "image.tif")
    old("-c", MICROGRAPH)
    for what, run in MODELS.items():
        old("-m", "emjax.predict", f"--model=runs/{run}", "--out=out", "micrograph.tif")
        (folder / "predictions").mkdir(exist_ok=True)
        (folder / "out" / "micrograph.tif").rename(folder / "predictions" / f"{what}.tif")
    segmented = folder / "runs" / MODELS["mask"]
    old("-m", "emjax.convert", f"--from={segmented}", "--to=torch.safetensors")
    old("-m", "emjax.report", "--runs=runs", "--out=report")
    tables = (folder / "report" / "report.md").read_text().split("## Claims")[0]
    mains = {line: words[3:] for line, words in command_lines().items()
             if words[:3] == ["python", "-m", "emjax.main"]}  # fmt: skip

    runs = folder / "runs"
    for path in [*runs.rglob("log.txt"), *folder.rglob("tensorboard"), *runs.rglob("checkpoints"),
                 *(runs / run / "model" for run in WITHOUT_MODEL)]:  # fmt: skip
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    expected = {
        "machine": machine(),
        "records": json.loads(old("-c", RECORDS)),
        "pretrained": digest((runs / pretrain / "model" / "model.safetensors").read_bytes()),
        "converted": digest((folder / "torch.safetensors").read_bytes()),
        "report": sorted(set(re.findall(r"[+-]?\d\.\d{4}(?: \[[^]]+\])?", tables))),
        "mask is at least so far from 0.5": float(old("-c", MARGIN)),
    }
    configs = json.loads(old("-c", CONFIGS, cwd=checkout, input=json.dumps(mains)))
    configs["matrices"] = json.loads(old("-c", MATRICES, cwd=checkout))
    for name, facts in (("expected", expected), ("configs", configs)):
        (HERE / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")
    with tarfile.open(HERE / f"{COMMIT}.tar.xz", "w:xz", preset=9) as archive:
        for name in ("data", "stopped", "runs", "micrograph.tif", "predictions"):
            archive.add(folder / name, name, filter=anonymous)
    shutil.rmtree(folder)


def anonymous(entry):
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


if __name__ == "__main__":
    main(*sys.argv[1:])
