"""SIGKILL at random moments, many times: python -m tests.soak_kills --kills=100 --minutes=10

A small pretraining run saves after every step and is killed again and again until it is done; then
another one is, until there were enough kills. Due at every start is that it goes on from the last
finished checkpoint, and at the end what the uninterrupted run has: every bit of the last state, the
rows of metrics.jsonl but for their times, the best score, and model.safetensors.
"""

import argparse
import collections
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from emjax.runs import metrics_log
from emjax.runs.checkpoints import saved_steps, steps_in
from emjax.runs.manifests import UNFINISHED, fault
from tests.test_end_to_end import final_arrays, untimed

STEPS = 60
CHANGES = (f"--config.epochs={STEPS // 3}", "--config.save_every=1", "--config.log_every=2")


def line(workdir, data):
    return [sys.executable, "-m", "emjax.main", "--config=configs/pretrain.py:smoke",
            f"--workdir={workdir}", f"--config.data.dir={data}", *CHANGES]  # fmt: skip


def life(workdir, data, delay):
    """What a process that is killed `delay` seconds after it began to train was doing.

    Raises: RuntimeError if it did not go on where it should, or failed by itself.
    """
    due = max(saved_steps(workdir / "checkpoints"), default=0)
    quiet = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with subprocess.Popen(line(workdir, data), **quiet) as process:
        said = ""
        while "steps an epoch" not in said:
            said = process.stdout.readline()
            if not said:
                raise RuntimeError(f"{workdir}: ended by itself: {process.wait()}")
        found = re.search(r"continues from step (\d+)", said)
        if due != (int(found[1]) if found else 0):
            raise RuntimeError(f"{workdir}: step {due} was due: {said}")
        try:
            process.wait(timeout=delay)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.stdout.read()
    if process.returncode == 0:
        return "done"
    if process.returncode != -signal.SIGKILL:
        raise RuntimeError(f"{workdir}: ended by itself: {process.returncode}")
    folder = workdir / "checkpoints"
    if any(fault(folder / str(step)) == UNFINISHED for step in steps_in(folder)):
        return "between a save and its manifest, or in a deletion"
    return "in a save" if any(folder.glob("*tmp*")) else "elsewhere"


def end(workdir, data):
    """All that must be equal."""
    rows = untimed(metrics_log.read(workdir / "metrics.jsonl"))
    model = (workdir / "model" / "model.safetensors").read_bytes()
    return final_arrays(workdir, data, STEPS), rows, model


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=60, help="no kill after these")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began, draws = time.monotonic(), random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        data, whole = Path(folder) / "data", Path(folder) / "whole"
        build = ["data_builders.build", "simulated/unlabelled", f"--data_dir={data}"]
        build = [sys.executable, "-m", *build, "--patch=64", "--records=40"]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
        took = time.monotonic()
        subprocess.run(line(whole, data), check=True, stdout=subprocess.DEVNULL)
        took = time.monotonic() - took
        due, counts, runs = end(whole, data), collections.Counter(), 0
        longest = took / 5

        def more():
            within = time.monotonic() - began < 60 * options.minutes
            return within and counts.total() < options.kills

        while more():
            workdir = Path(folder) / f"killed{runs}"
            was = None
            while was != "done":
                was = life(workdir, data, draws.uniform(0, longest) if more() else None)
                if was != "done":
                    counts[was] += 1
            runs += 1
            if end(workdir, data) != due:
                raise SystemExit(f"run {runs} of --seed={options.seed} ended in another state")
    told = ", ".join(f"{count} {was}" for was, count in counts.most_common())
    print(f"{counts.total()} kills in {runs} runs: {told}; all ended as the uninterrupted one; "
          f"{time.monotonic() - began:.0f} s")  # fmt: skip


if __name__ == "__main__":
    main()
