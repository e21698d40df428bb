"""Run a matrix of runs: python -m emjax.sweep --config=configs/paper.py --runs=DIR [--dry_run].

The config file has `runs(seeds)`: {name: a function that makes the run's config}, in which
`initialise.workdir` is the name of another run. Each run is `emjax.main` in a process of its own,
in the folder DIR/<name>, with its output in log.txt there; one run at a time on each local GPU or
TPU chip, one in all on a CPU, or as many as --at_once says: small networks leave a large GPU idle.
Then the first run of a kind compiles for all, before others of it start. What is finished is left
alone, what was interrupted goes on.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import jax

from emjax import cli
from emjax.config import find_recipe
from emjax.errors import InputError, UsageError
from emjax.experiments import estimate, plan
from emjax.experiments.runner import run_jobs
from emjax.files import write_atomically
from emjax.runs.run import read_matrix


@cli.command
def main(arguments):
    """Run what is missing of a matrix; returns the exit code."""
    parser = cli.Parser(
        prog="emjax.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="recipe, or file, with runs(seeds)")
    parser.add_argument("--runs", required=True, type=Path, help="folder for the workdirs")
    parser.add_argument("--only", help="names, with * and ?, joined by commas; and what they need")
    parser.add_argument("--seeds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--share", default="0/1", help="I/N: the I-th, from 0 on, of N sweeps that "
                        "share the runs, each on a machine of its own; default: all")  # fmt: skip
    parser.add_argument("--at_once", type=int, default=1, help="runs at a time on a device; on a "
                        "TPU chip only one can be; default: %(default)s")  # fmt: skip
    parser.add_argument("--dry_run", action="store_true", help="print the plan and stop")
    options = parser.parse_args(arguments)
    if options.at_once < 1:
        raise UsageError(f"--at_once={options.at_once}; at least 1 was due")
    jax.config.update("jax_platforms", "cpu")  # the devices are for the runs
    recipe = str(find_recipe(options.config))
    configs, expected = plan.matrix(recipe, options.seeds)
    everything = plan.chosen(configs, options.only)
    configs = plan.shared(everything, options.share)
    counts, missing = plan.records(configs, expected)
    problem = "\n".join([f"{len(missing)} datasets or splits are missing:", *missing])
    if missing and not options.dry_run:
        raise InputError(problem)
    jobs = plan.jobs_of(configs, counts, options.runs)
    device = json.loads(
        subprocess.run(
            [sys.executable, "-m", "emjax.doctor", "--json"],
            check=True, capture_output=True, text=True,
        ).stdout.splitlines()[-1]
    )  # fmt: skip
    if device["platform"] == "tpu" and options.at_once > 1:
        raise UsageError(
            f"--at_once={options.at_once}; a TPU chip takes one run at a time, 1 was due"
        )
    estimate.print_plan(jobs, options.runs, device)
    if missing:
        print(f"\n{problem}")
    if not options.dry_run:
        options.runs.mkdir(parents=True, exist_ok=True)
        if options.share.startswith("0/"):  # the others would write the same
            names = dict.fromkeys([*read_matrix(options.runs), *everything])
            path = options.runs / "matrix.json"  # what a report is to find
            write_atomically(path, json.dumps([*names], indent=1).encode())
        run_jobs(jobs, recipe, options.runs, device, options.at_once)
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
