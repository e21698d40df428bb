"""SIGKILL at random moments, many times: python -m tests.soak_kills --kills=100 --minutes=10

A small pretraining run saves after every step and is killed again and again until it is done; then
another one is, until there were enough kills. Every start must continue from the last finished
checkpoint. The end must equal that of the uninterrupted run: every bit of the last state, the rows
of metrics.jsonl except their times, the best score, and model.safetensors.
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


def command_line(workdir, data):
    """Return the command that trains."""
    command = [sys.executable, "-m", "emjax.main", "--config=configs/pretrain.py:smoke"]
    return [*command, f"--workdir={workdir}", f"--config.data.dir={data}", *CHANGES]


def life(workdir, data, delay):
    """Return what a process was doing when killed, `delay` seconds after it began to train.

    Raises: RuntimeError if it did not continue from where it should, or failed by itself.
    """
    expected = max(saved_steps(workdir / "checkpoints"), default=0)
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with subprocess.Popen(command_line(workdir, data), **pipes) as process:
        line = ""
        while "steps per epoch" not in line:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"{workdir}: ended by itself: {process.wait()}")
        found = re.search(r"continues from step (\d+)", line)
        if expected != (int(found[1]) if found else 0):
            raise RuntimeError(f"{workdir}: expected to continue from step {expected}: {line}")
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
    """Return all that must be equal."""
    rows = untimed(metrics_log.read(workdir / "metrics.jsonl"))
    model = (workdir / "model" / "model.safetensors").read_bytes()
    return final_arrays(workdir, data, STEPS), rows, model


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=60, help="no kill after so many")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began, draws = time.monotonic(), random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        data, whole = Path(folder) / "data", Path(folder) / "whole"
        build = ["data_builders.build", "simulated/unlabelled", f"--data_dir={data}"]
        build = [sys.executable, "-m", *build, "--patch=64", "--records=40"]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
        took = time.monotonic()
        subprocess.run(command_line(whole, data), check=True, stdout=subprocess.DEVNULL)
        took = time.monotonic() - took
        expected, counts, runs = end(whole, data), collections.Counter(), 0
        longest = took / 5

        def goes_on():
            within = time.monotonic() - began < 60 * options.minutes
            return within and counts.total() < options.kills

        while goes_on():
            workdir = Path(folder) / f"killed{runs}"
            doing = None
            while doing != "done":
                doing = life(workdir, data, draws.uniform(0, longest) if goes_on() else None)
                if doing != "done":
                    counts[doing] += 1
            runs += 1
            if end(workdir, data) != expected:
                raise SystemExit(f"run {runs} of --seed={options.seed} ended in another state")
    where = ", ".join(f"{count} {doing}" for doing, count in counts.most_common())
    print(
        f"{counts.total()} kills in {runs} runs: {where}; all ended as the uninterrupted one; "
        f"{time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
