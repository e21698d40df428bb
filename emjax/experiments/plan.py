"""What a matrix of runs has, how much of it is done and what the rest costs."""

import fnmatch
import json
import re
import runpy
from pathlib import Path
from typing import NamedTuple

from emjax.config import parts_of, plain
from emjax.data.records import open_records
from emjax.errors import InputError, UsageError
from emjax.runs.provenance import check_same_run
from emjax.runs.run import read_run
from emjax.training.assemble import count_steps


class Job(NamedTuple):
    """One run of the matrix."""

    name: str
    config: object  # ConfigDict
    after: str  # the run of the matrix whose weights it starts from, or ""
    steps: int | None  # in all; None where the records are not built and nobody knows how many
    done: int
    finished: bool
    kind: str  # runs of one kind have the same cost and, mostly, the same programs


def matrix(path, seeds):
    """({name: ConfigDict}, {(dataset, split): expected number of records}) of a config file."""
    if seeds < 1:
        raise UsageError(f"--seeds={seeds}; at least 1 was due")
    if not Path(path).is_file():
        raise UsageError(f"--config={path} is no file")
    module = runpy.run_path(str(path))
    if "runs" not in module:
        raise UsageError(
            f"{path} is no matrix: it has no runs(seeds); emjax.main takes single recipes"
        )
    return {name: make() for name, make in module["runs"](seeds).items()}, module.get("RECORDS", {})


def chosen(configs, only):
    """The configs whose names match `only`, and those they start from; all if it is empty.

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
    names |= {start(configs[name]) for name in names} - {""}
    return {name: config for name, config in configs.items() if name in names}


def shared(configs, share):
    """The configs of share "I/N". A run and all that start from it, or from these, stay together.

    Raises: UsageError if `share` is not of that form.
    """
    try:
        part, count = map(int, share.split("/"))
    except ValueError:
        part, count = 0, 0
    if not 0 <= part < count:
        raise UsageError(f"--share={share}; I/N with I from 0 to N - 1 was due, e.g. 0/4")

    def origin(name):
        return origin(start(configs[name])) if start(configs[name]) in configs else name

    origins = dict.fromkeys(map(origin, configs))
    mine = [*origins][part::count]
    return {name: config for name, config in configs.items() if origin(name) in mine}


def start(config):
    return config.initialise.workdir if "initialise" in config else ""


def records(configs, expected):
    """({(folder, dataset, split): records or None}, [what is missing and how to build it])."""
    counts, missing = {}, {}
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


def jobs_of(configs, counts, root):
    """The Jobs, in the order of `configs`.

    Raises: UsageError naming every workdir that holds a run of another config.
    """
    jobs, others = [], []
    for name, config in configs.items():
        parts = parts_of(config.data.train)
        known = [counts[config.data.dir, dataset, split] for dataset, split, _ in parts]
        steps = None if None in known else count_steps(config, sum(known))[1]
        done, finished = 0, False
        try:
            check_same_run(config, root / name)
        except UsageError as error:
            others.append(str(error))
        if (root / name / "metrics.jsonl").exists():
            run = read_run(root / name, root)
            done, finished = run.done, run.finished and run.done == steps
        after = start(config) if start(config) in configs else ""
        jobs.append(Job(name, config, after, steps, done, finished, kind(config)))
    if others:
        raise UsageError("\n".join(others))
    return jobs


def kind(config):
    """The Job's `kind` of a run, as text."""
    fields = plain(config)
    parts = ("model", "objective", "task", "precision", "discriminator")
    sizes = crop(config), config.data.batch_size
    return json.dumps([*(fields.get(part) for part in parts), *sizes])


def crop(config):
    """The side of what a run is trained on, in pixels; whole patches are taken for CEM500K's."""
    return config.augment.crop or 224


def without_seed(name):
    return re.sub(r"/seed_\d+$", "", name)
