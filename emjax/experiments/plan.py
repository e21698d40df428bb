"""What a matrix of runs has and how much of it is done."""

import fnmatch
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from emjax.config import Config, load_file, parts_of, plain, recipe_errors, settle
from emjax.data.records import open_records
from emjax.errors import InputError, UsageError
from emjax.runs.provenance import check_same_run
from emjax.runs.run import read_run
from emjax.training.assemble import count_steps

CEM500K_PATCH = 224  # pixels

Configs = Mapping[str, Config]  # {name of the run: its config}
Expected = Mapping[tuple[str, str], int]  # {(dataset, split): records}
Counts = Mapping[tuple[str, str, str], int | None]  # {(folder, dataset, split): records}


class Job(NamedTuple):
    """One run of the matrix."""

    name: str
    config: Config
    after: str  # the run of the matrix whose weights it starts from, or ""
    steps: int | None  # in all; None where the records are not built and their number is unknown
    done: int
    finished: bool
    kind: str  # runs of one kind have the same cost and, mostly, the same programs


def load_matrix(path: str, seeds: int) -> tuple[Configs, Expected]:
    """Return ({name: config}, {(dataset, split): expected number of records}) of a config file.

    Raises: UsageError if there is no such file, or no matrix in it.
    """
    if seeds < 1:
        raise UsageError(f"--seeds={seeds}, expected at least 1")
    if not Path(path).is_file():
        raise UsageError(f"--config={path}: no such file")
    module = load_file(path)
    if "runs" not in module:
        raise UsageError(
            f"{path} is not a matrix: it has no runs(seeds); emjax.main takes single recipes"
        )
    with recipe_errors(path):
        configs = {name: make() for name, make in module["runs"](seeds).items()}
    for config in configs.values():
        settle(config)
    return configs, module.get("RECORDS", {})


def select_runs(configs: Configs, only: str | None) -> Configs:
    """Return the configs with names that match `only`, and those they start from; all if empty.

    Raises: UsageError naming a pattern that matches nothing.
    """
    if not only:
        return configs
    names = set()
    for pattern in only.split(","):
        found = fnmatch.filter(configs, pattern)
        if not found:
            near = ", ".join(sorted({without_seed(name) for name in configs})[:12])
            raise UsageError(f"--only={pattern} matches no run; there are {near}, ...")
        names.update(found)
    while missing := {start_of(configs[name]) for name in names if name in configs} - names - {""}:
        names |= missing
    return {name: config for name, config in configs.items() if name in names}


def select_share(configs: Configs, share: str) -> Configs:
    """Return the configs of share "I/N". A run and all that start from it stay together.

    Raises: UsageError if `share` is not of that form.
    """
    try:
        part, count = map(int, share.split("/"))
    except ValueError:
        part, count = 0, 0
    if not 0 <= part < count:
        raise UsageError(f"--share={share}, expected I/N with I from 0 to N - 1, such as 0/4")

    def root_of(name: str) -> str:
        return root_of(start_of(configs[name])) if start_of(configs[name]) in configs else name

    roots = dict.fromkeys(map(root_of, configs))
    mine = [*roots][part::count]
    return {name: config for name, config in configs.items() if root_of(name) in mine}


def start_of(config: Config) -> str:
    """Return the name of the run a config starts from; empty for random weights."""
    return config.initialise.workdir if "initialise" in config else ""


def count_records(configs: Configs, expected: Expected) -> tuple[Counts, list[str]]:
    """Return the number of records of each split, and what is missing and how to build it.

    A split that is not built counts as `expected`, or as None.
    """
    counts: dict[tuple[str, str, str], int | None] = {}
    missing: dict[str, None] = {}
    for config in configs.values():
        for name, split, *_ in [*parts_of(config.data.train), *config.data.evals.values()]:
            key = (config.data.dir, name, split)
            if key in counts:
                continue
            counts[key] = expected.get((name, split))
            try:
                counts[key] = len(open_records(*key).source)
            except InputError as error:
                missing[str(error)] = None
    return counts, [*missing]


def plan_jobs(configs: Configs, counts: Counts, root: Path) -> list[Job]:
    """Return the Jobs, in the order of `configs`, with what is done of them in `root`.

    Raises: UsageError naming every workdir that holds a run of another config.
    """
    jobs, others = [], []
    for name, config in configs.items():
        parts = parts_of(config.data.train)
        known = [counts[config.data.dir, dataset, split] for dataset, split, _ in parts]
        count = total(known)
        steps = None if count is None else count_steps(config, count)[1]
        done, finished = 0, False
        try:
            check_same_run(config, root / name)
        except UsageError as error:
            others.append(str(error))
        if (root / name / "metrics.jsonl").exists():
            run = read_run(root / name, root)
            done, finished = run.done, run.finished and (run.done == steps or run.stopped_early)
        after = start_of(config) if start_of(config) in configs else ""
        jobs.append(Job(name, config, after, steps, done, finished, kind_of(config)))
    if others:
        raise UsageError("\n".join(others))
    return jobs


def total(counts: Sequence[int | None]) -> int | None:
    """Return the sum; None if one of them is unknown."""
    return None if None in counts else sum(count for count in counts if count is not None)


def kind_of(config: Config) -> str:
    """Return the Job's `kind` of a run, as text."""
    fields = plain(config)
    parts = ("model", "objective", "task", "precision", "discriminator")
    sizes = crop_of(config), config.data.batch_size
    return json.dumps([*(fields.get(part) for part in parts), *sizes])


def crop_of(config: Config) -> int:
    """Return the side of a training image in pixels; whole patches are taken for CEM500K's."""
    return config.augment.crop or CEM500K_PATCH


def without_seed(name: str) -> str:
    """Return a run's name without its seed."""
    return re.sub(r"/seed_\d+$", "", name)
