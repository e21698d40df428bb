"""The pieces of a run from its config. Everything that can be refused is refused here."""

import dataclasses

import jax
from flax import nnx

from emjax.config import Config
from emjax.data.augment import Augmentation
from emjax.data.batches import EvalBatches, TrainBatches
from emjax.data.corruptions import Corruption, Masking
from emjax.data.records import Records, open_mixture, open_records
from emjax.errors import InputError, UsageError, choose
from emjax.models.build import build_abstract
from emjax.objectives import OBJECTIVES, Objective
from emjax.parallel import sharding
from emjax.tasks import TASKS
from emjax.training import optimizers


@dataclasses.dataclass(frozen=True)
class Pieces:
    """What a run is made of; computes nothing and writes nothing yet.

    Attributes:
        module: the generator, with shapes in place of arrays.
        mixture: the records to train on.
        held_out: split name to its records, `val` among them.
        batches: training batches over `mixture`.
        evals: split name to its evaluation batches.
        records: how many records are trained on.
        total_steps: updates of the whole run.
    """

    mesh: jax.sharding.Mesh
    module: nnx.Module
    objective: Objective
    mixture: list[Records]
    held_out: dict[str, Records]
    batches: TrainBatches
    evals: dict[str, EvalBatches]
    records: int
    steps_per_epoch: int
    total_steps: int


def assemble(config: Config) -> Pieces:
    """Return the pieces of the run that `config` describes.

    Raises: UsageError for fields that do not fit each other, the devices or the network; InputError
        for records that are missing or lack the task's target.
    """
    mesh = sharding.data_mesh(**config.get("mesh", {}))
    batch_size = config.data.batch_size
    mixture = open_mixture(config.data.dir, config.data.train)
    held_out = {
        split: open_records(config.data.dir, *where) for split, where in config.data.evals.items()
    }
    module = build_abstract(config.model.to_dict())
    count = sum(len(records.source) for records in mixture)
    steps_per_epoch, total_steps = count_steps(config, count)
    objective = build_objective(config, mixture, module.divisor, total_steps)
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
    if config.get("select", "best") not in ("best", "last"):
        raise UsageError(f"select={config.select!r}, expected best or last")
    return Pieces(
        mesh=mesh,
        module=module,
        objective=objective,
        mixture=mixture,
        held_out=held_out,
        batches=batches,
        evals=evals,
        records=count,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
    )


def check_equal_parts(parts, batch_size, devices):
    """Raise UsageError unless a batch can be cut into `parts` equal ones on so many devices."""
    if parts < 1 or batch_size % (parts * devices):
        raise UsageError(
            f"data.accumulate={parts}: data.batch_size={batch_size} was to be cut into so many "
            f"equal parts on {devices} devices; a whole number that divides "
            f"{batch_size / devices:g} was due"
        )


def count_steps(config, count):
    """(steps an epoch, steps in all) of a run on `count` records; a partial batch is dropped.

    Raises: UsageError if an epoch has no whole batch.
    """
    passes, batch_size = config.get("passes_per_epoch", 1), config.data.batch_size
    if not 1 <= batch_size <= passes * count:
        raise UsageError(
            f"data.batch_size={batch_size}, but an epoch is {passes} x {count} records"
        )
    per_epoch = passes * count // batch_size
    return per_epoch, config.epochs * per_epoch


def build_objective(config, mixture, divisor, updates=None):
    """The objective of `config`, to be trained on `mixture`.

    Args:
        divisor: of the sides that the network takes.
        updates: those of the whole run, which the learning rate may depend on.
    """
    arguments = config.objective.to_dict()
    constructor = choose("objective", arguments.pop("name"), OBJECTIVES)
    if "corruption" in arguments:
        arguments["corrupt"] = Corruption(**arguments.pop("corruption"))
    if "masking" in arguments:
        arguments["corrupt"] = Masking(**arguments.pop("masking"))
    if "discriminator" in config:
        arguments["discriminator"] = config.discriminator.to_dict()
    if "task" in config:
        task = choose("task", config.task, TASKS)
        for records in mixture:
            if task.target not in records.card["targets"]:
                has = ", ".join(records.card["targets"]) or "none"
                raise InputError(
                    f"{records.card['name']}: task {config.task!r} needs the target "
                    f"{task.target!r}; the dataset's targets: {has}"
                )
        arguments["task"] = task
    augment = config.augment.to_dict()
    shape = mixture[0].source[0]["image"].shape[:2]
    space = config.get("mesh", {}).get("space", 1)
    augment["crop"] = fitting_crop(augment["crop"], shape, divisor, space)
    return constructor(
        generator=config.model.to_dict(),
        optimizer=optimizers.build(config.optimizer.to_dict(), updates),
        augment=Augmentation(**augment),
        precision=config.precision,
        accumulate=config.data.get("accumulate", 1),
        **arguments,
    )


def fitting_crop(crop, shape, divisor, space=1):
    """The side to cut for training: `crop`, or less where the records, all [h, w], are smaller.

    0 stays 0 (whole patches) if the network can take them, with its height over `space` devices.

    Raises: UsageError naming the nearest sides if the network cannot take the crop.
    """
    divisor = sharding.side_multiple(divisor, space)
    if crop == 0 and all(side % divisor == 0 for side in shape):
        return 0
    wanted = crop or min(shape)
    if wanted % divisor:
        below, above = wanted // divisor * divisor, (wanted // divisor + 1) * divisor
        of_it = f", with mesh.space={space}" if space > 1 else ""
        raise UsageError(
            f"augment.crop={crop} on records of {shape[0]} x {shape[1]}: the network takes sides "
            f"divisible by {divisor}{of_it}; the nearest are {below} and {above}"
        )
    largest = min(shape) // divisor * divisor
    if not largest:
        raise InputError(f"records of {shape[0]} x {shape[1]} are smaller than {divisor} pixels")
    return min(crop, largest)
