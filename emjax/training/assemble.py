"""The pieces of a run from its config. Whatever can be refused is refused here."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from emjax.config import Config, check_ranges, generator_of
from emjax.data.augment import Augmentation
from emjax.data.batches import EvalBatches, TrainBatches
from emjax.data.corruptions import Corruption, Masking
from emjax.data.records import Records, has_split, open_mixture, open_records
from emjax.errors import InputError, UsageError, choose, note
from emjax.models.build import build_abstract
from emjax.models.model import Model
from emjax.objectives import OBJECTIVES, Objective
from emjax.parallel import sharding
from emjax.runs.provenance import DEFAULTS
from emjax.tasks import TASKS, Task
from emjax.tasks.segmentation import segmentation
from emjax.training import optimizers


@dataclasses.dataclass(frozen=True)
class Pieces:
    """What a run is made of, before anything is computed or written.

    Attributes:
        module: the generator, with shapes in place of arrays.
        divisor: of the sides of images that the generator accepts.
        mixture: the records to train on.
        held_out: split name to its records, `val` among them.
        batches: training batches over `mixture`.
        evals: split name to its evaluation batches.
        records: how many records are trained on.
        total_steps: updates of the whole run.
        select: the config's `select`; "last" where the masks of `val` are empty.
    """

    mesh: jax.sharding.Mesh
    module: Model
    divisor: int
    objective: Objective
    mixture: list[Records]
    held_out: dict[str, Records]
    batches: TrainBatches
    evals: dict[str, EvalBatches]
    records: int
    steps_per_epoch: int
    total_steps: int
    select: str


def assemble(config: Config) -> Pieces:
    """Return the pieces of the run that `config` describes.

    Raises: UsageError for fields that do not fit each other, the devices or the network; InputError
        for records that are missing or lack the task's target.
    """
    check_ranges(config)
    mesh = sharding.data_mesh(**config.get("mesh", {}))
    batch_size = config.data.batch_size
    mixture = open_mixture(config.data.dir, config.data.train)
    held_out = open_held_out(config)
    module: Any = build_abstract(generator_of(config))
    count = sum(len(records.source) for records in mixture)
    steps_per_epoch, total_steps = count_steps(config, count)
    if batch_size > count * config.get("passes_per_epoch", 1):
        note(
            f"data.batch_size={batch_size}",
            f"more than an epoch of {count} records; they repeat in each batch",
        )
    objective = build_objective(config, mixture, module.divisor, total_steps)
    check_targets(config, [*mixture, *held_out.values()])
    check_range_rules(mixture[0], held_out.values())
    batches = TrainBatches(
        mixture,
        batch_size=batch_size,
        seed=config.seed,
        mesh=mesh,
        resident=config.data.get("resident"),
    )
    check_equal_parts(objective.accumulate, batch_size, sharding.row_devices(mesh))
    multiple = sharding.side_multiple(module.divisor, mesh.shape["space"])
    evals = {
        split: EvalBatches(held, batch_size=batch_size, divisor=multiple, mesh=mesh)
        for split, held in held_out.items()
    }
    check_classes(config, [*mixture, *held_out.values()])
    select = config.get("select", "best")
    if select not in ("best", "last"):
        raise UsageError(f"select={config.select!r}, expected best or last")
    if config.get("task") and TASKS[config.task].is_mask:
        empty = [split for split, held in held_out.items() if not has_foreground(held)]
        for split in empty:
            chosen = "; it does not choose the model, which is the last one" * (split == "val")
            note(
                held_out[split].source.name,
                f"no mask has foreground, so its scores say nothing about particles{chosen}",
            )
        select = "last" if "val" in empty else select
    if select == "last" and config.get("early_stopping", 0):
        raise UsageError(
            f"early_stopping={config.early_stopping} with a val score that does not choose the "
            "network (select=last, or no mask of val has foreground); expected select=best and a "
            "val split that says something about it, or early_stopping=0"
        )
    return Pieces(
        mesh=mesh,
        module=module,
        divisor=module.divisor,
        objective=objective,
        mixture=mixture,
        held_out=held_out,
        batches=batches,
        evals=evals,
        records=count,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        select=select,
    )


def open_held_out(config: Config) -> dict[str, Records]:
    """Return {split: its Records} of `data.evals`.

    A split other than `val` that a dataset of few sources was built without is left out, with a
    note.

    Raises: InputError as open_records.
    """
    held_out: dict[str, Records] = {}
    for split, (name, part) in config.data.evals.items():
        if split != "val" and not has_split(config.data.dir, name, part):
            note(f"{name}:{part}", f"no record is in this split; {split} is not evaluated")
        else:
            held_out[split] = open_records(config.data.dir, name, part)
    return held_out


def has_foreground(records: Records) -> bool:
    """Return whether any mask of `records` has foreground; it reads them up to the first."""
    return any(records.source[index]["mask"].any() for index in range(len(records.source)))


def check_equal_parts(n_microbatches: int, batch_size: int, n_devices: int) -> None:
    """Raise UsageError unless a batch can be cut into equal microbatches on so many devices."""
    if n_microbatches < 1 or batch_size % (n_microbatches * n_devices):
        raise UsageError(
            f"data.accumulate={n_microbatches}, expected a whole number that divides "
            f"{batch_size / n_devices:g}: data.batch_size={batch_size} is cut into so many equal "
            f"parts on {n_devices} devices"
        )


def count_steps(config: Config, count: int) -> tuple[int, int]:
    """Return (steps per epoch, steps in all) of a run on `count` records.

    A partial last batch of an epoch is dropped. Of fewer records than a batch, an epoch is one
    batch, in which they repeat.

    Raises: UsageError for a batch of no record.
    """
    passes, batch_size = config.get("passes_per_epoch", 1), config.data.batch_size
    if not 1 <= batch_size:
        raise UsageError(
            f"data.batch_size={batch_size}, but an epoch is {passes} x {count} records"
        )
    per_epoch = max(1, passes * count // batch_size)
    return per_epoch, config.epochs * per_epoch


def build_objective(
    config: Config, mixture: Sequence[Records], divisor: int, updates: int | None = None
) -> Objective:
    """Return the objective of `config`, to be trained on `mixture`.

    Args:
        divisor: of the sides of images that the network accepts.
        updates: those of the whole run, which the learning rate may depend on.

    Raises: UsageError for fields that do not fit each other or the network; InputError for records
        that are too small.
    """
    check_foreground_crops(config)
    arguments = config.objective.to_dict()
    constructor = choose("objective", arguments.pop("name"), OBJECTIVES)
    if "corruption" in arguments:
        arguments["corrupt"] = Corruption(**arguments.pop("corruption"))
    if "masking" in arguments:
        arguments["corrupt"] = Masking(**arguments.pop("masking"))
    if "discriminator" in config:
        arguments["discriminator"] = config.discriminator.to_dict()
    if "task" in config:
        arguments["task"] = with_settings(config, choose("task", config.task, TASKS))
    augment = config.augment.to_dict()
    shape = mixture[0].source[0]["image"].shape[:2]
    space = config.get("mesh", {}).get("space", 1)
    augment["crop"] = fitting_crop(augment["crop"], shape, divisor, space)
    return constructor(
        generator=generator_of(config),
        optimizer=optimizers.build(config.optimizer.to_dict(), updates),
        augment=Augmentation(**augment),
        precision=config.precision,
        accumulate=config.data.get("accumulate", 1),
        **arguments,
    )


def with_settings(config: Config, task: Task) -> Task:
    """Return `task` as the fields `segmentation` of a config ask for it.

    Raises: UsageError for fields that do not fit each other or the task.
    """
    settings: dict[str, Any] = config.get("segmentation", ConfigDict()).to_dict()
    if not task.is_mask:
        for field, value in settings.items():
            if value != DEFAULTS[f"segmentation.{field}"]:
                raise UsageError(
                    f"segmentation.{field}={value}, but the task is {config.task}, expected "
                    "segmentation; leave it out"
                )
        if (outputs := config.model.get("out_channels") or 1) != 1:
            raise UsageError(
                f"model.out_channels={outputs}, but the task is {config.task}, which has one "
                "output; leave it out"
            )
        return task
    classes, outputs = settings.get("classes", 2), config.model.get("out_channels") or 1
    if outputs not in ((1, 2) if classes == 2 else (1, classes)):
        raise UsageError(
            f"model.out_channels={outputs} with segmentation.classes={classes}, expected an output "
            "per class; leave model.out_channels out"
        )
    if settings.get("loss") == "dice" and settings.get("foreground_weight", 1) != 1:
        raise UsageError(
            f"segmentation.foreground_weight={settings['foreground_weight']} with "
            "segmentation.loss=dice, which has no cross-entropy that it could weight; expected "
            "another loss, or a weight of 1"
        )
    return segmentation(**settings)


def check_targets(config: Config, opened: Iterable[Records]) -> None:
    """Raise InputError unless all records have the target of the config's task."""
    if "task" not in config:
        return
    target = choose("task", config.task, TASKS).target
    for records in opened:
        if target not in records.card["targets"]:
            has = ", ".join(records.card["targets"]) or "none"
            raise InputError(
                f"{records.source.name}: task {config.task!r} needs the target {target!r}; the "
                f"dataset's targets: {has}"
            )


def check_range_rules(trained: Records, held_out: Iterable[Records]) -> None:
    """Raise InputError unless all records are seen in intensity ranges by one rule."""
    rule = trained.card["range_rule"]
    for records in held_out:
        if records.card["range_rule"] != rule:
            raise InputError(
                f"{records.source.name}: intensity ranges by the rule "
                f"{records.card['range_rule']!r}, but {trained.source.name} has {rule!r}; a model "
                f"sees every micrograph by one: build it again with --range={rule}"
            )


def check_classes(config: Config, opened: Sequence[Records]) -> None:
    """Raise UsageError unless the masks of all records have the classes of the config."""
    if not config.get("task") or not TASKS[config.task].is_mask:
        return
    wanted = (config.get("segmentation") or {}).get("classes", 2)
    for records in opened:
        classes = records.card.get("options", {}).get("classes", 2)
        if classes != wanted:
            raise UsageError(
                f"{records.source.name}: its masks have {classes} classes, expected "
                f"segmentation.classes={wanted}; set it to {classes}, or build the dataset with "
                f"--classes={wanted}"
            )


def check_foreground_crops(config: Config) -> None:
    """Raise UsageError if `augment.foreground_crops` asks for what there is not."""
    share = config.augment.get("foreground_crops", 0)
    if not share:
        return
    task = TASKS.get(config.get("task", ""))
    if task is None or not task.is_mask:
        raise UsageError(
            f"augment.foreground_crops={share}, but there are no masks to train on; expected the "
            "task segmentation, or 0"
        )
    if not (config.augment.crop or config.augment.get("resize", 0)):
        raise UsageError(
            f"augment.foreground_crops={share}, but augment.crop=0 takes whole patches; expected a "
            "crop, or 0"
        )


def fitting_crop(crop: int, shape: Sequence[int], divisor: int, space: int = 1) -> int:
    """Return the side of the training crops: `crop`, or less if the records, [h, w], are smaller.

    0 stays 0 (whole patches) if the network accepts them, with its height over `space` devices.

    Raises: UsageError naming the nearest sides if the network does not accept the crop; InputError
        if the records are smaller than any crop that it accepts.
    """
    divisor = sharding.side_multiple(divisor, space)
    if crop == 0 and all(side % divisor == 0 for side in shape):
        return 0
    wanted = crop or min(shape)
    if wanted % divisor:
        below, above = wanted // divisor * divisor, (wanted // divisor + 1) * divisor
        spread = f", with mesh.space={space}" if space > 1 else ""
        raise UsageError(
            f"augment.crop={crop} on records of {shape[0]} x {shape[1]}: the network accepts sides "
            f"divisible by {divisor}{spread}; the nearest are {below} and {above}"
        )
    largest = min(shape) // divisor * divisor
    if not largest:
        raise InputError(
            f"records of {shape[0]} x {shape[1]}, expected at least {divisor} pixels per side; "
            "build them with larger patches"
        )
    return min(crop, largest)
