"""emjax, PyTorch and an earlier emjax at the same work, in turn: python -m benchmarks.run --out=DIR

Each side is a process of its own; medians with quartiles, JSON, tables and a plot go to DIR, where
later calls replace and add cases. docs/background/performance.md says what is measured and how.
"""

import contextlib
import datetime
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks import commands, tables
from benchmarks.cases import EARLIER, chosen, everything, limits
from benchmarks.side import Side
from emjax import cli
from emjax.errors import UsageError

RECORDS = 800  # simulated, of 224 x 224 pixels; seven of ten to train on
SETTLE = {"read": 1.0, "read_augmented": 1.0, "end_to_end": 1.0}  # s, to fill the buffers again
WITH_DATA = (*SETTLE, "startup", *commands.KINDS)
LABELS = {"ours": "emjax", "earlier": EARLIER, "theirs": "PyTorch"}  # of sides without variants
MOST_STARTS = 3  # rounds of whole processes
# JAX takes three quarters of a GPU at once unless told not to; here two share it.
ENVIRONMENT = {
    "cpu": {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""},
    "gpu": {"JAX_PLATFORMS": "cuda", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
}


def main(arguments):
    """Measure the chosen cases; returns the exit code."""
    start = time.monotonic()
    parser = cli.Parser(prog="benchmarks.run", description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, type=Path, help="folder for results and records")
    parser.add_argument("--device", choices=("cpu", "gpu"), help="default: gpu where one is")
    parser.add_argument("--only", help="names of cases, with * and ?, joined by commas")
    parser.add_argument("--repeats", type=int, default=9, help="rounds; default: %(default)s")
    parser.add_argument("--seconds", type=float, default=1.0, help="a round; default: %(default)s")
    parser.add_argument("--host_cores", type=int, help="hold both sides to so many; default: all")
    parser.add_argument(
        "--minutes",
        type=float,
        default=float("inf"),
        help="no case begins later than so many after the start; default: no end",
    )
    parser.add_argument("--compile", type=str, help="modes of torch.compile, joined by commas, or "
                        "nothing; default: `default` on a GPU, nothing on a CPU")  # fmt: skip
    parser.add_argument("--without_torch", action="store_true", help="leave PyTorch out")
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT",
                        help="folder with an earlier checkout, which becomes a side")  # fmt: skip
    parser.add_argument("--at_least", type=float, metavar="RATIO",
                        help="fail where the upper quartile of earlier / ours is less; nothing "
                        "else is measured: what else a process runs slows it down")  # fmt: skip
    options = parser.parse_args(arguments)
    device = options.device or ("gpu" if Path("/dev/nvidia0").exists() else "cpu")
    cases = chosen(everything(device), options.only)
    modes = options.compile if options.compile is not None else "default" * (device == "gpu")
    modes = [mode for mode in modes.split(",") if mode]
    if options.repeats < 1 or options.seconds <= 0 or not options.minutes > 0:
        raise UsageError(
            f"--repeats={options.repeats} --seconds={options.seconds} --minutes={options.minutes}: "
            "expected at least 1 repeat, and more than 0 seconds and minutes"
        )
    if options.at_least is not None and not (options.beside and options.at_least > 0):
        raise UsageError(
            f"--at_least={options.at_least}; expected a ratio above 0, and --beside=CHECKOUT, the "
            "earlier build that it holds for"
        )
    beside = options.beside and options.beside.resolve()
    compared = cases_of(beside, device) if beside else set()
    cores = hold_to(options.host_cores)
    sides = ["ours"] if options.without_torch else ["ours", "theirs"]
    if not options.without_torch and not importlib.util.find_spec("torch"):
        sides = ["ours"]
        print("note: PyTorch is not installed (the extra `torch`): emjax alone is measured")
    options.out.mkdir(parents=True, exist_ok=True)
    data = (options.out / "data").resolve()  # the earlier build runs in another folder
    if any(case.kind in WITH_DATA for case in cases):
        build(data)

    def measured(case):
        earlier = beside if case.name in compared else None
        alone = earlier is not None and options.at_least is not None
        result = measure(
            case, data, sides, modes, options.repeats, options.seconds, earlier, alone=alone
        )
        return {**result, "host_cores": cores, "date": str(datetime.date.today())}

    capacity = [measured(case) for case in limits(device)]
    results, left_out = [], []
    machine = described(capacity, cores)
    for case in cases:
        began = time.monotonic()
        if began - start > 60 * options.minutes:
            left_out.append(f"{case.name}: not measured, the time of --minutes is over")
            print(f"note: {left_out[-1]}")
            continue
        if beside and case.name not in compared:
            print(f"note: {case.name} is not a case of the earlier build; measured without it")
        result = {**measured(case), "machine": machine, "limits": tables.capacity(capacity)}
        keep(options.out, result)
        results.append(result)
        rows = tables.rows([result])
        print(tables.plain(rows), f"({time.monotonic() - began:.0f} s)", flush=True)
    print(f"{options.out / 'results.md'} has all tables")
    slower = [*tables.slower(results, options.at_least), *left_out] if options.at_least else []
    for line in slower:
        print(f"error: --at_least={options.at_least:g}: {line}", file=sys.stderr)
    return 1 if slower else 0


def cases_of(checkout, device):
    """The names of the cases that a checkout can be measured with: of its benchmarks, and commands.

    Raises: UsageError if it has no benchmarks.
    """
    code = f"from benchmarks.cases import *; print(*[case.name for case in everything({device!r})])"
    environment = {**os.environ, **commands.packages_of(checkout)}
    if (checkout / "benchmarks" / "side.py").is_file():
        line = [sys.executable, "-c", code]
        asked = subprocess.run(line, cwd=checkout, env=environment, capture_output=True, text=True)
        if asked.returncode == 0:
            whole = {case.name for case in everything(device) if case.kind in commands.KINDS}
            return whole | set(asked.stdout.split())
    raise UsageError(
        f"--beside={checkout}; expected an earlier checkout of emjax, with its benchmarks/"
    )


def hold_to(cores):
    """Hold this process, and those it starts, to so many cores; returns how many it has."""
    own = sorted(os.sched_getaffinity(0))
    if cores is not None:
        if not 1 <= cores <= len(own):
            raise UsageError(f"--host_cores={cores}; expected 1 to {len(own)}")
        os.sched_setaffinity(0, own[:cores])
    return cores or len(own)


def build(data):
    """Records and, for PyTorch, the same images as TIFF files and as one array; once."""
    if (data / "patches.npy").exists():
        return
    shutil.rmtree(data, ignore_errors=True)
    name, records = "simulated/unlabelled", f"--data_dir={data / 'records'}"
    run("data_builders.build", name, records, "--patch=224", f"--records={RECORDS}")
    run("data_builders.export", name, records, "--split=train", f"--out={data / 'exported'}")
    (data / "exported" / "image").rename(data / "files")
    from emjax.data.records import open_records

    source = open_records(data / "records", name, "train").source
    np.save(data / "draft.npy", [source[place]["image"][..., 0] for place in range(len(source))])
    (data / "draft.npy").rename(data / "patches.npy")


def run(module, *arguments):
    subprocess.run([sys.executable, "-m", module, *arguments], check=True, stdout=sys.stderr)


def measure(case, data, sides, modes, repeats, seconds, beside=None, *, alone=False):
    """{"case", "variants": {name: {"images", "seconds": [of a step, a round], "facts"}}}.

    A variant that failed has "error" instead.

    Args:
        beside: an earlier checkout; its first variant is one of this case's.
        alone: whether only that and our first are measured.
    """
    how = dict(seconds=seconds, modes=modes, environment=ENVIRONMENT[case.device])
    ours, *others = sides
    sides = [ours, *(["earlier"] if beside else []), *others]
    variants, owner = {}, {}
    with contextlib.ExitStack() as processes:
        for name in sides:  # one after the other: libraries choose their kernels by timing them
            side = processes.enter_context(started(name, case, data, beside, how))
            try:
                told = side.answer()
            except RuntimeError as error:  # killed, for memory most likely
                told = {LABELS[name]: {"error": str(error)}}
            for own_name, found in told.items():
                label = EARLIER if name == "earlier" else own_name
                variants[label], owner[label] = found, (side, own_name)
                if name == "earlier":
                    break
        going = [name for name, told in variants.items() if "error" not in told]
        first = next(iter(variants))
        going.sort(key=lambda name: name not in (first, EARLIER))  # next to each other
        if alone:
            going = [name for name in going if name in (first, EARLIER)]
            variants = {name: told for name, told in variants.items() if name in (first, EARLIER)}
        for name in going:
            variants[name]["seconds"] = []
        for number in range(min(repeats, MOST_STARTS) if case.kind == "startup" else repeats):
            for name in going[:: -1 if number % 2 else 1]:
                side, own_name = owner[name]
                took = side.seconds(own_name, variants[name]["steps"])
                variants[name]["seconds"].append(took)
                time.sleep(SETTLE.get(case.kind, 0))
    for name in going:
        if broken := [took for took in variants[name]["seconds"] if isinstance(took, str)]:
            variants[name] = {"error": broken[0]}
    return {"case": vars(case), "variants": variants}


def started(name, case, data, beside, how):
    """The Side called "ours", "earlier" or "theirs" of a Case."""
    module = "ours" if name == "earlier" else name
    if case.kind in commands.KINDS and module == "ours":
        module = "commands"
    return Side(module, case, data, checkout=beside if name == "earlier" else None, **how)


def described(capacity, cores):
    """A line on the machine and the versions."""
    variants = capacity[0]["variants"].values()
    facts = [variant["facts"] for variant in variants if "error" not in variant]
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    versions = {name: version for fact in facts for name, version in fact["versions"].items()}
    devices = " and ".join(fact["machine"] for fact in facts[:1])
    return (
        f"{devices}; host {cpu[1] if cpu else platform.machine()}, {cores} cores; "
        f"Python {platform.python_version()}, "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
    )


def keep(out, result):
    """Put a result in the place of an older one of the same case and cores; write all tables."""
    path = out / "results.json"
    results = json.loads(path.read_text()) if path.exists() else []

    def key(result):
        return result["case"]["name"], result["case"]["device"], result["host_cores"]

    places = [key(other) for other in results]
    if key(result) in places:
        results[places.index(key(result))] = result
    else:
        results.append(result)
    draft = path.with_suffix(".partial")
    draft.write_text(json.dumps(results, indent=1))
    draft.replace(path)
    (out / "results.md").write_text(tables.page(results))
    if picture := tables.growth(results):
        (out / "growth.png").write_bytes(picture)


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
