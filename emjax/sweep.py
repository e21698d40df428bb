"""Run a matrix of runs: python -m emjax.sweep --config=configs/paper.py --runs=DIR [--dry_run].

The config file has `runs(seeds)`: {name: a function that makes the run's config}, in which
`initialise.workdir` is the name of another run. Each run is `emjax.main` in a process of its own,
in the folder DIR/<name>, with its output in log.txt there; one run at a time on each local GPU or
TPU chip, one in all on a CPU, or --at_once=N per device: small networks leave a large GPU idle.
Then the first run of a kind compiles for all, before others of it start. Finished runs are left
alone, interrupted ones continue.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from emjax import cli
from emjax.config import find_recipe
from emjax.errors import InputError, UsageError
from emjax.experiments import estimate, plan
from emjax.experiments.runner import probe_device, run_jobs
from emjax.files import check_writable, write_atomically
from emjax.runs.run import read_matrix


@cli.command
def main(arguments: Sequence[str]) -> int:
    """Run the unfinished runs of a matrix; returns the exit code."""
    parser = cli.Parser(
        prog="emjax.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config", required=True, help="recipe, or file, with runs(seeds)")
    add("--runs", required=True, type=Path, help="folder for the workdirs")
    add("--only", help="names, with * and ?, joined by commas; and what they need")
    add("--seeds", type=int, default=3, help="default: %(default)s")
    add(
        "--share",
        default="0/1",
        help="I/N: the I-th, from 0 on, of N sweeps that share the runs, each on a machine of its "
        "own; default: all",
    )
    add(
        "--at_once",
        type=int,
        default=1,
        help="runs at a time on a device; on a TPU chip only one is possible; default: %(default)s",
    )
    add("--dry_run", action="store_true", help="print the plan and stop")
    options = parser.parse_args(arguments)
    if options.at_once < 1:
        raise UsageError(f"--at_once={options.at_once}, expected at least 1")
    check_writable(options.runs)
    jax.config.update("jax_platforms", "cpu")  # the devices are for the runs
    recipe = str(find_recipe(options.config))
    matrix, expected = plan.load_matrix(recipe, options.seeds)
    selected = plan.select_runs(matrix, options.only)
    configs = plan.select_share(selected, options.share)
    counts, missing = plan.count_records(configs, expected)
    problem = "\n".join([f"{len(missing)} datasets or splits are missing:", *missing])
    if missing and not options.dry_run:
        raise InputError(problem)
    if not configs:
        print(f"--share={options.share}: no run, as there are fewer starts than shares")
        return 0
    jobs = plan.plan_jobs(configs, counts, options.runs)
    device = probe_device()
    if device["platform"] == "tpu" and options.at_once > 1:
        raise UsageError(
            f"--at_once={options.at_once}, expected 1: a TPU chip takes one run at a time"
        )
    estimate.print_plan(jobs, options.runs, device)
    if missing:
        print(f"\n{problem}")
    if not options.dry_run:
        options.runs.mkdir(parents=True, exist_ok=True)
        if options.share.startswith("0/"):  # the others would write the same
            names = dict.fromkeys([*read_matrix(options.runs), *selected])
            path = options.runs / "matrix.json"  # the runs that a report expects
            write_atomically(path, json.dumps([*names], indent=1).encode())
        run_jobs(jobs, recipe, options.runs, device, options.at_once)
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
