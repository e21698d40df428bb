"""Runs grouped into arms: which may be averaged, and which compared."""

import json
from pathlib import Path
from typing import NamedTuple

from emjax.config import flat, parts_of
from emjax.errors import InputError
from emjax.runs.run import read_matrix, read_run


class Arm(NamedTuple):
    """Runs that differ in nothing but the seed, those of their pretrainings included."""

    data: str  # dataset and split it is trained on
    model: str
    start: str  # `random`, or what the pretraining was: objective and data
    setting: str  # the other fields in which it differs from arms of its group; mostly none
    pretraining: dict  # config, code and records of the pretraining; {} for none
    runs: list

    @property
    def name(self):
        return f"{self.start}; {self.setting}" if self.setting else self.start

    @property
    def config(self):
        return self.runs[0].config

    @property
    def seeds(self):
        """{seed: run} of the finished runs; where a seed was run twice, the first by name."""
        return {run.seed: run for run in reversed(self.runs) if run.finished}

    @property
    def recipe(self):
        """What an arm shares with the one from random weights it is compared with."""
        return self.key_without("initialise")

    def key_without(self, *fields):
        """What decides whether two arms differ in nothing but these fields and the seeds."""
        return recipe({**self.config, **dict.fromkeys(fields)}), self.runs[0].code


RANDOM = "random", {}


def group_arms(runs, root):
    """{group: [Arm]} of finetuning runs: one group a dataset, task and model, random arms first.

    Runs of different configs, pretraining recipes or programs are never in one arm.
    """
    alike, groups = {}, {}
    origins = {workdir: origin(workdir, root) for workdir in {run.pretraining for run in runs}}
    for run in runs:
        start = origins[run.pretraining]
        key = recipe(run.config), json.dumps(start), run.code
        alike.setdefault(key, (start, []))[1].append(run)
    for start, same in alike.values():
        config = same[0].config
        group = f"{data_of(config)}, {config['task']}, {model_of(config)}"
        groups.setdefault(group, []).append((start, same))

    def order(arm):
        return arm.start != RANDOM[0], arm.start, arm.setting

    return {group: sorted(named(members), key=order) for group, members in groups.items()}


def group_pretrainings(runs):
    """[Arm] of pretraining runs."""
    alike = {}
    for run in runs:
        label = f"{run.config['objective']['name']}, {data_of(run.config)}"
        alike.setdefault((recipe(run.config), run.code), ((label, {}), []))[1].append(run)
    groups = {}
    for start, same in alike.values():
        groups.setdefault((start[0], model_of(same[0].config)), []).append((start, same))
    return [arm for members in groups.values() for arm in named(members)]


def recipe(config):
    """What runs of one arm share, as text; the layout on devices changes nothing but rounding."""
    start = {**(config.get("initialise") or {}), "workdir": ""}
    alike = {"seed": None, "initialise": start, "mesh": None, "remat": None}
    return json.dumps({**config, **alike}, sort_keys=True)


def origin(workdir, root):
    """(label, recipe) of the pretraining in `workdir`, one for all its seeds."""
    if not workdir:
        return RANDOM
    folder = placed(Path(workdir), root)
    try:
        source = read_run(folder, root)
    except InputError:
        return f"weights of {workdir}", {}
    label = f"{source.config['objective']['name']}, {data_of(source.config)}"
    facts = {"code": source.code, "records": source.records if source.planned else 0}
    return label, {"config": json.loads(recipe(source.config)), **facts}


def placed(workdir, root):
    """The folder `workdir`, or where it is now if the matrix in `root` was moved or copied here."""
    if workdir.exists():
        return workdir
    ends = ("/".join(workdir.parts[part:]) for part in range(len(workdir.parts)))
    known = {*read_matrix(root)}
    return next((root / end for end in ends if end in known), workdir)


def named(members):
    """Arms of [((label, pretraining's recipe), runs)], told apart by the settings that differ."""
    own = differing([{**json.loads(recipe(same[0].config)), "code": same[0].code}
                     for _, same in members])  # fmt: skip
    arms = []
    for ((label, old), same), setting in zip(members, own, strict=True):
        others = [other for (name, other), _ in members if name == label]
        before = differing(others)[others.index(old)]
        setting = ", ".join(filter(None, [setting, before and f"pretrained with {before}"]))
        config = same[0].config
        arms.append(Arm(data_of(config), model_of(config), label, setting, old, same))
    return arms


def differing(configs):
    """For each of some nested dicts, as text, the fields in which they are not all alike.

    What more than half of them have goes without saying.
    """
    fields = [{name: str(value) for name, value in flat(config)} for config in configs]
    texts = [[] for _ in fields]
    for name in dict.fromkeys(name for each in fields for name in each):
        values = [each.get(name, "unset") for each in fields]
        usual = max(values, key=values.count)
        for text, value in zip(texts, values, strict=True):
            if value != usual or values.count(usual) * 2 <= len(values):
                text.append(f"{name} {value}")
    return [", ".join(text) for text in texts]


def model_of(config):
    """Its short name, `unet 2 44`: the values that are set, but for the usual ones."""
    values = (config["model"][name] for name in sorted(config["model"], key=order))
    return " ".join(str(value) for value in values if value not in (None, "batch", "bilinear"))


def order(field):
    return field != "name", field


def data_of(config):
    """What a run is trained on, `cem500k:train`, or several such."""
    parts = parts_of(config["data"]["train"])
    weights = [f":{weight}" if len(parts) > 1 else "" for *_, weight in parts]
    return " + ".join(f"{n}:{s}{w}" for (n, s, _), w in zip(parts, weights, strict=True))
