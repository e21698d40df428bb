"""What a finetuning starts from."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_builders.micrographs.pairs import Splits
from emjax import micrographs
from emjax.errors import InputError
from emjax.finetuning.options import AUTO, NONE, Options
from emjax.finetuning.rounds import Earlier
from emjax.models import pretrained, saved

FINDER = "particles"  # of the package: judges masks, and is what a user has without a training
# By task: what --base=auto tries, the default first, docs/background/evidence/few_images.md.
BASES = {"segmentation": (FINDER, "pretrained", NONE)} | dict.fromkeys(
    ("denoise", "background", "superresolution"), ("pretrained", NONE)
)


class Base(NamedTuple):
    """The weights that a training starts from.

    Attributes:
        name: of a model of the package, or a folder; NONE for random weights.
        model: the field `model` of its config; {} for that of the recipe.
        fresh: patterns of the layers that start at random.
        does: whether it does the task already.
        rule: of its intensity range.
    """

    name: str
    model: dict[str, Any]
    fresh: tuple[str, ...] = ()
    does: bool = False
    rule: str = "percentile"


def base_of(name: str, options: Options) -> Base:
    """Return what to start from.

    Args:
        name: a value of --base, but AUTO.

    Raises: InputError if it is no model.
    """
    is_mask = options.is_mask
    if name == NONE:
        return Base(NONE, base_of(str(pretrained.BOX / FINDER), options).model if is_mask else {})
    own = options.by_default and name in pretrained.DIGESTS  # whatever is called so here
    folder = pretrained.BOX / name if own else saved.inside(name)
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
        model: dict[str, Any] = dict(config["model"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"--base={name}: expected a model, the workdir of a run, one of "
            f"{', '.join(pretrained.DIGESTS)}, {NONE} or {AUTO}; {path}: {error}"
        ) from None
    task, outputs = config.get("task"), model.get("out_channels") or 1
    classes = options.classes or 2
    possible = ((1, 2) if classes == 2 else (classes,)) if is_mask else (1,)
    fits = outputs in possible
    if not fits or classes > 2:
        model.pop("out_channels", None)
    keeps_head = fits and (task == "segmentation") == is_mask
    untrained = tuple(map(re.escape, config.get("untrained", ())))
    rule = config.get("range_rule")
    return Base(
        name if name in pretrained.DIGESTS else os.path.abspath(folder),
        model,
        untrained if keeps_head else ("head/.*", *untrained),
        keeps_head and task == options.task,
        rule if rule in micrographs.RULES else "percentile",
    )


def model_without_training(base: Base, options: Options) -> str | Path | None:
    """Return the model that a user has for the task without finetuning `base`; None if none.

    That is `base` itself if it does the task, and FINDER for a mask of one class.
    """
    if base.does:
        return pretrained.BOX / base.name if base.name in pretrained.DIGESTS else base.name
    is_mask = options.is_mask and (options.classes or 2) == 2
    return pretrained.BOX / FINDER if is_mask else None


def start_of(
    base: Base, earlier: Earlier | None, splits: Sequence[Splits], options: Options
) -> Base:
    """Return what the model starts from: the earlier model, unless it has seen what is held out."""
    if not earlier:
        return base
    held = {name for name, split in splits[-1].items() if split != "train"}
    if held & earlier.seen:
        print(f"{earlier.folder} was trained on what is held out now, and is not continued")
        return base
    print(f"continues from {earlier.folder}")
    return base_of(str(earlier.folder), options)
