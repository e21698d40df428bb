"""Runs grouped into arms: which may be averaged, and which compared."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from emjax.config import flat, parts_of
from emjax.errors import InputError
from emjax.runs.provenance import DEFAULTS
from emjax.runs.run import Run, read_matrix, read_run

RunConfig = Mapping[str, Any]  # a run's config.json
Start = tuple[str, dict[str, Any]]  # what a run starts from: (label, facts of the pretraining)

RANDOM: Start = "random", {}


class Arm(NamedTuple):
    """Runs that differ in nothing but the seed, those of their pretrainings included."""

    data: str  # dataset and split it is trained on
    model: str
    start: str  # `random`, or what the pretraining was: objective and data
    setting: str  # the other fields in which it differs from arms of its group; mostly none
    pretraining: dict[str, Any]  # config, code and records of the pretraining; {} for none
    runs: list[Run]

    @property
    def name(self) -> str:
        """What tables and figures call the arm."""
        return f"{self.start}; {self.setting}" if self.setting else self.start

    @property
    def config(self) -> dict[str, Any]:
        """The config of its first run."""
        return self.runs[0].config

    @property
    def seeds(self) -> dict[int, Run]:
        """{seed: run} of the finished runs; where a seed was run twice, the first by name."""
        return {run.seed: run for run in reversed(self.runs) if run.finished}

    @property
    def recipe(self) -> tuple[str, str]:
        """What an arm shares with the one from random weights it is compared with."""
        return self.key_without("initialise")

    def key_without(self, *fields: str) -> tuple[str, str]:
        """Return a key that is equal for arms that differ in nothing but `fields` and the seeds."""
        return recipe_of({**self.config, **dict.fromkeys(fields)}), self.runs[0].code


def group_arms(runs: Sequence[Run], root: Path) -> dict[str, list[Arm]]:
    """Return {group: [Arm]} of finetuning runs; random arms come first.

    A group is one dataset, task and model. Runs of different configs, pretraining recipes or
    programs are never in one arm.

    Args:
        root: the folder of the matrix, where pretrainings are looked up.
    """
    alike: dict[tuple[str, str, str], tuple[Start, list[Run]]] = {}
    groups: dict[str, list[tuple[Start, list[Run]]]] = {}
    starts = {workdir: start_from(workdir, root) for workdir in {run.pretraining for run in runs}}
    for run in runs:
        start = starts[run.pretraining]
        key = recipe_of(run.config), json.dumps(start), run.code
        alike.setdefault(key, (start, []))[1].append(run)
    for start, same in alike.values():
        config = same[0].config
        group = f"{data_of(config)}, {config['task']}, {model_of(config)}"
        groups.setdefault(group, []).append((start, same))

    def order(arm: Arm) -> tuple[bool, str, str]:
        return arm.start != RANDOM[0], arm.start, arm.setting

    return {group: sorted(named_arms(members), key=order) for group, members in groups.items()}


def group_pretrainings(runs: Sequence[Run]) -> list[Arm]:
    """Return [Arm] of pretraining runs."""
    alike: dict[tuple[str, str], tuple[Start, list[Run]]] = {}
    for run in runs:
        label = f"{run.config['objective']['name']}, {data_of(run.config)}"
        alike.setdefault((recipe_of(run.config), run.code), ((label, {}), []))[1].append(run)
    groups: dict[tuple[str, str], list[tuple[Start, list[Run]]]] = {}
    for start, same in alike.values():
        groups.setdefault((start[0], model_of(same[0].config)), []).append((start, same))
    return [arm for members in groups.values() for arm in named_arms(members)]


def recipe_of(config: RunConfig) -> str:
    """Return what runs of one arm share, as text.

    The layout on devices is no part of it: it changes nothing but rounding.
    """
    start = {**(config.get("initialise") or {}), "workdir": ""}
    alike = {"seed": None, "initialise": start, "mesh": None, "remat": None}
    return json.dumps({**config, **alike}, sort_keys=True)


def start_from(workdir: str, root: Path) -> Start:
    """Return (label, recipe) of the pretraining in `workdir`, equal for all its seeds."""
    if not workdir:
        return RANDOM
    source = read_pretraining(workdir, root)
    if source is None:
        return f"weights of {workdir}", {}
    label = f"{source.config['objective']['name']}, {data_of(source.config)}"
    facts = {"code": source.code, "records": source.records if source.planned else 0}
    return label, {"config": json.loads(recipe_of(source.config)), **facts}


def read_pretraining(workdir: str, root: Path) -> Run | None:
    """Return the Run in `workdir`, that a run of `root` started from; None if it is not found."""
    folder = relocated(Path(workdir), root)
    try:
        return read_run(folder, root)
    except InputError:
        return None


def relocated(workdir: Path, root: Path) -> Path:
    """Return `workdir`, or where it is now if the matrix in `root` was moved or copied here."""
    if workdir.exists():
        return workdir
    ends = ("/".join(workdir.parts[part:]) for part in range(len(workdir.parts)))
    known = {*read_matrix(root)}
    return next((root / end for end in ends if end in known), workdir)


def named_arms(members: Sequence[tuple[Start, list[Run]]]) -> list[Arm]:
    """Return an Arm per (start, runs), named by the settings in which they differ."""
    settings = differences(
        [{**json.loads(recipe_of(same[0].config)), "code": same[0].code} for _, same in members]
    )
    arms = []
    for ((label, facts), same), setting in zip(members, settings, strict=True):
        others = [other for (name, other), _ in members if name == label]
        before = differences(others)[others.index(facts)]
        setting = ", ".join(filter(None, [setting, before and f"pretrained with {before}"]))
        config = same[0].config
        arms.append(Arm(data_of(config), model_of(config), label, setting, facts, same))
    return arms


def differences(configs: Sequence[RunConfig]) -> list[str]:
    """Return, for each of some nested dicts, the fields in which they are not all alike, as text.

    A value that more than half of them have is not mentioned. A field that an older config lacks
    has the value that this means.
    """
    fields = [{name: str(value) for name, value in flat(config)} for config in configs]
    texts: list[list[str]] = [[] for _ in fields]
    for name in dict.fromkeys(name for each in fields for name in each):
        default = str(DEFAULTS.get(name.removeprefix("config."), "unset"))
        values = [each.get(name, default) for each in fields]
        usual = max(values, key=values.count)
        for text, value in zip(texts, values, strict=True):
            if value != usual or values.count(usual) * 2 <= len(values):
                text.append(f"{name} {value}")
    return [", ".join(text) for text in texts]


def model_of(config: RunConfig) -> str:
    """Return a model's short name, `unet 2 44`: the values that are set, without the usual ones."""

    def name_first(field: str) -> tuple[bool, str]:
        return field != "name", field

    values = (config["model"][name] for name in sorted(config["model"], key=name_first))
    return " ".join(str(value) for value in values if value not in (None, "batch", "bilinear"))


def data_of(config: RunConfig) -> str:
    """Return what a run is trained on, `cem500k:train`, or several such with their weights."""
    parts = parts_of(config["data"]["train"])
    weights = [f":{weight}" if len(parts) > 1 else "" for *_, weight in parts]
    return " + ".join(f"{n}:{s}{w}" for (n, s, _), w in zip(parts, weights, strict=True))
