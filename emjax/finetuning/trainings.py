"""Trainings of a finetuning: one, those of a cross-validation, or trials of bases."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from data_builders.micrographs import pairs
from data_builders.micrographs.checking import Checked
from data_builders.micrographs.pairs import Splits
from emjax.config import Config, find_recipe, generator_of, read_recipe
from emjax.errors import InputError, UsageError
from emjax.files import write_atomically
from emjax.finetuning import records, rounds
from emjax.finetuning.bases import BASES, Base, base_of
from emjax.finetuning.options import AUTO, NONE, Options
from emjax.models import pretrained
from emjax.models.build import build_abstract
from emjax.runs.run import read_run
from emjax.training import choices
from emjax.training.train import train

RECIPES = {
    "segmentation": ("segment_au", None),
    "denoise": ("restore_temimagenet", "denoise,unet_4_424"),
    "background": ("restore_temimagenet", "background,unet_4_424"),
    "superresolution": ("restore_temimagenet", "superresolution,unet_4_424"),
}
SETTINGS = "settings.json"  # of a training, each with its reason
TRIAL = 10  # --base=auto tries each for this part of the updates


class Part(NamedTuple):
    """One training: of a cross-validation, or the one that is the model."""

    folder: Path
    split_of: Splits
    start: Base


def divide(checked: Checked, before: Splits | None = None) -> list[Splits]:
    """Return what each training has of the pairs: one, or those of a cross-validation and the last.

    Of a cross-validation's, only those that have foreground and background.

    Args:
        before: of an earlier round; what it held out stays so.

    Raises: InputError if there is nothing to train on.
    """
    splits = pairs.divide(checked.kept, checked.cluster_of, before)
    return trainable(splits, checked.foreground)


def trainable(splits: Sequence[Splits], foreground: Mapping[str, float] | None) -> list[Splits]:
    """Return those of a cross-validation's trainings that have foreground and background; the last.

    Raises: InputError if there is nothing to train on.
    """
    kept: list[Splits] = []
    for number, split_of in enumerate(splits, 1):
        names = [name for name, split in split_of.items() if split == "train"]
        if not names:
            raise InputError("no pair is in the split train; name some in the table")
        shares = [foreground[name] for name in names] if foreground else [0.5]
        if number == len(splits) or (any(shares) and min(shares) < 1):
            kept.append(split_of)
    return kept


def check_divisible(checked: Checked, options: Options) -> None:
    """Raise what the pairs do not permit, before anything is written.

    Raises: InputError if there is nothing to train on; UsageError if there is nothing to choose a
        base by.
    """
    splits = divide(checked)
    if options.base == AUTO:
        check_chooses(splits[0])


def check_chooses(split_of: Splits) -> None:
    """Raise UsageError if no image is left to choose a base by."""
    if "val" not in split_of.values():
        raise UsageError(f"--base={AUTO}: no image is left to choose by; name a base, or {NONE}")


def train_part(
    part: Part,
    checked: Checked,
    options: Options,
    steps: int | None = None,
    changed: Sequence[str] = (),
) -> list[str]:
    """Build the records of one training and train; return notes on the records.

    What is finished is left as it is.

    Args:
        steps: updates, instead of those of the options.
        changed: names of pairs that half of what is trained on are.
    """
    data = part.folder / "data"
    pairs.write_table(data / "pairs.csv", checked.kept, part.split_of)
    card = records.built(data, checked.shapes, part.start.rule, options)
    if (part.folder / "config.json").exists():  # it continues as it was begun, on any device
        train(read_recipe(part.folder / "config.json", None), part.folder)
        return card["notes"]
    again, more = records.changed_slices(data, options.images, changed)
    config = config_of(part, card, options, again)
    shares = checked.foreground or {}
    val = [name for name, split in part.split_of.items() if split == "val"]
    settings = choices.choose(
        choices.Data(
            checked.shapes,
            float(np.mean([*shares.values()])) if shares else None,
            options.classes or 2,
        ),
        platform=jax.default_backend(),
        has_base=part.start.does,
        steps=steps or options.steps,
        divisor=build_abstract(generator_of(config)).divisor,
        # A val without foreground cannot choose, and what chooses gives no honest score.
        selects=rounds.held_out(part.split_of) == "test"
        and any(shares.get(name, 1) for name in val),
    )
    settings = choices.apply(config, settings, card["splits"]["train"] + more)
    rows = [{"setting": c.field, "value": str(c.value), "why": c.why} for c in settings]
    for row in rows:
        print(f"  {row['setting']} = {row['value']}: {row['why']}")
    write_atomically(part.folder / SETTINGS, json.dumps(rows, indent=1).encode())
    train(config, part.folder)
    return card["notes"]


def config_of(
    part: Part,
    card: Mapping[str, Any],
    options: Options,
    again: Sequence[tuple[str, float]],
) -> Config:
    """Return the config of a training, before the settings that rules choose.

    Args:
        card: of the records.
        again: slices of the split train that together are half of what is trained on, and the
            share of each in it.
    """
    recipe, variant = RECIPES[options.task]
    config = read_recipe(find_recipe(recipe), variant)
    config.seed = options.seed
    config.log_every = 20
    data = os.path.abspath(part.folder / "data")
    parts = [
        (records.DATASET, "train", 1.0),
        *((records.DATASET, some, share) for some, share in again),
    ]
    with config.ignore_type():
        if part.start.model:
            config.model = part.start.model
        config.data.train = tuple(parts) if again else (records.DATASET, "train")
    config.data.dir = data
    config.data.evals = {"val": (records.DATASET, "val" if "val" in card["splits"] else "train")}
    if part.start.name != NONE:
        workdir = part.start.name
        own = workdir in pretrained.DIGESTS and os.path.lexists(workdir)  # a folder of the user's
        config.initialise.workdir = str(pretrained.BOX / workdir) if own else workdir
        config.initialise.fresh = part.start.fresh
    return config


def better_base(checked: Checked, split_of: Splits, options: Options, folder: Path) -> Base:
    """Return that of BASES which has the best score after a short training.

    Raises: UsageError if there is no validation.
    """
    check_chooses(split_of)
    steps = max(1, (options.steps or choices.updates(jax.default_backend())) // TRIAL)
    tried: dict[str, float] = {}
    bases = {name: base_of(name, options) for name in BASES[options.task]}
    for base in bases.values():
        part = Part(folder / base.name, split_of, base)
        train_part(part, checked, options, steps)
        run = read_run(part.folder, folder)
        tried[base.name] = max(run.sign * row[run.score] for row in run.evaluations)
    chosen = max(tried, key=lambda name: tried[name])
    listed = ", ".join(f"{name} {abs(value):.4f}" for name, value in tried.items())
    print(f"--base={AUTO} takes {chosen}: after {steps} updates each, {run.score}: {listed}")
    return bases[chosen]
