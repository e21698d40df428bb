"""Kill finetunings at random moments: python -m tests.soak_finetune --kills=20

`emjax finetune` of simulated micrographs, with images held out and a base that is tried, and with a
cross-validation, is killed and started again until it ends; then again, until there were enough
kills. The end must equal that of an uninterrupted run: weights, scores, splits, settings and curves
of every training, and a report.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from emjax.runs import metrics_log
from tests.test_end_to_end import untimed
from tests.test_finetune import write_pairs

SHORTEST, LONGEST = 0.1, 0.7  # life, of the time of the whole
KINDS = {"held out": (10, "--base=auto"), "cross-validated": (4, "--base=particles")}
EQUAL = ("model.safetensors", "finetune.json", "settings.json", "pairs.csv")


def started(pairs, out, base):
    """Return the running command."""
    line = [sys.executable, "-m", "emjax.finetune", f"--images={pairs}", f"--out={out}", base]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen([*line, "--steps=40"], **pipes)


def wait_for(process, seconds=None):
    """Wait until a command ends; raises RuntimeError if with an error, TimeoutExpired if later."""
    said, _ = process.communicate(timeout=seconds)
    if process.returncode:
        raise RuntimeError(f"ended with {process.returncode}:\n{said}")


def whole(pairs, out, base):
    """Run to the end; return the seconds that it took."""
    start = time.monotonic()
    wait_for(started(pairs, out, base))
    return time.monotonic() - start


def end(out):
    """Return all that must be equal."""
    found = {
        str(path.relative_to(out)): path.read_bytes()
        for name in EQUAL
        for path in out.rglob(name)
        if "checkpoints" not in path.parts
    }
    for path in out.rglob("metrics.jsonl"):
        found[str(path.relative_to(out))] = untimed(metrics_log.read(path))
    return found, (out / "report.html").exists()


def killed_until_done(pairs, out, base, took, rng):
    """Kill and start again until the command ends; return how often it was killed."""
    kills = 0
    while True:
        process = started(pairs, out, base)
        try:
            wait_for(process, rng.uniform(SHORTEST, LONGEST) * took)
            return kills
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1


def main(arguments):
    """Print what was done, or raise what went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    began, rng = time.monotonic(), random.Random(options.seed)
    kills, runs = dict.fromkeys(KINDS, 0), 0
    with tempfile.TemporaryDirectory() as name:
        expected, took = {}, {}
        for kind, (count, base) in KINDS.items():
            pairs, out = write_pairs(Path(name) / kind, count), Path(name) / f"{kind}, once"
            whole(pairs, Path(name) / f"{kind}, compiling", base)
            took[kind] = whole(pairs, out, base)
            expected[kind] = end(out)
        while sum(kills.values()) < options.kills:
            for kind, (_, base) in KINDS.items():
                out = Path(name) / f"{kind}, killed {runs}"
                kills[kind] += killed_until_done(Path(name) / kind, out, base, took[kind], rng)
                if end(out) != expected[kind]:
                    raise RuntimeError(f"{kind}: the end differs from that of the whole run")
            runs += 1
    listed = ", ".join(f"{count} {kind}" for kind, count in kills.items())
    print(
        f"{sum(kills.values())} kills ({listed}) in {len(KINDS) * runs} finetunings: all ended as "
        f"the uninterrupted ones; {time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
