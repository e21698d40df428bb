"""Train: python -m emjax.main --config=configs/X.py[:variant] [--workdir=DIR] [--config.a.b=v].

Takes up whatever the workdir holds, from its latest checkpoint. --deterministic: bit for bit the
same run on a GPU, too, which is slower. --require=gpu or tpu: never on anything else.
--profile=FROM:TO: a trace of these steps, in the workdir's profile/.

On several hosts, the same command on each: on a TPU pod and under SLURM they find each other;
elsewhere by --coordinator=HOST:PORT --processes=N --process=I. --processes=1 is a run without
others, wherever it is.
"""

import json
import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags

from emjax import board, cli, optimizers, watch
from emjax.checkpoints import Checkpoints, load_generator, saved_steps
from emjax.data.augment import Augmentation
from emjax.data.batches import EvalBatches, TrainBatches
from emjax.data.corruptions import Corruption, Masking
from emjax.data.records import open_mixture, open_records
from emjax.errors import InputError, UsageError, choose
from emjax.files import lock_folder
from emjax.journal import Journal
from emjax.models import cost, transfer
from emjax.models.build import build_abstract
from emjax.models.network import replace_in_networks
from emjax.models.saved import read, write
from emjax.objectives import OBJECTIVES
from emjax.parallel import devices, processes, sharding
from emjax.parallel.processes import signals_received
from emjax.provenance import describe, ranking, refuse_other
from emjax.tasks import TASKS
from emjax.train import fit

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"  # rules out autotuning and atomic sums


def main(arguments):
    """Parse the command line and train; returns the exit code."""
    flags, arguments = processes.split_flags(arguments)
    config, workdir, values = command_line(arguments)
    profile = watch.profile(values["profile"].value, workdir / "profile")
    with processes.connected(flags):
        devices.require(values["require"].value)
        devices.keep_compiled()
        train(config, workdir, profile)
    return 0


def parse(arguments):
    """(config, workdir) of a command line."""
    return command_line(arguments)[:2]


def command_line(arguments):
    """(config, workdir, all flags) of one; --deterministic goes to XLA, which has not begun yet.

    Raises: Usage in place of every error absl, ml_collections and the config file have.
    """
    argv = ["emjax.main", *arguments]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "The recipe.", lock_config=True, flag_values=values, sys_argv=argv
    )
    flags.DEFINE_string(
        "workdir", None, "Default: runs/<config>/<variant>.", flag_values=values
    )  # fmt: skip
    flags.DEFINE_boolean("deterministic", False, "The same bits on a GPU.", flag_values=values)
    flags.DEFINE_enum(
        "require", None, ["gpu", "tpu"], "Run on nothing else.", flag_values=values
    )  # fmt: skip
    flags.DEFINE_string("profile", None, "FROM:TO, steps to trace.", flag_values=values)
    if {"--help", "-help", "-h"} & set(argv):
        print(f"{__doc__}\nconfigs: {', '.join(map(str, sorted(Path('configs').glob('*.py'))))}")
        sys.exit(0)
    try:
        extra = values(argv)[1:]
        config = values["config"].value
        if config is not None:
            config.is_locked  # noqa: B018  a config that did not load raises here
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        lines = str(error.args[0]).split("\n")
        raise UsageError(lines[-1].strip() if "Traceback" in lines[0] or isinstance(error, OSError)
                    else " ".join(lines)) from error  # fmt: skip
    if extra or config is None:
        what = f"{extra[0]!r} is no option." if extra else "--config is missing."
        raise UsageError(
            f"{what} Give --config=configs/X.py[:variant] [--workdir=DIR] [--config.a.b=v]"
        )
    if values["deterministic"].value:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()
    recipe, _, variant = values["config"].config_filename.partition(":")
    default = Path("runs") / Path(recipe).stem / (variant or "default")
    return config, Path(values["workdir"].value or default), values


def train(config, workdir, profile=None):
    """Do the run of `config` in `workdir`, from the start or from where it is.

    Everything that can be refused is refused before anything is written.
    """
    mesh = sharding.data_mesh(**config.get("mesh", {}))
    batch_size = config.data.batch_size
    mixture = open_mixture(config.data.dir, config.data.train)
    held_out = {
        split: open_records(config.data.dir, *where) for split, where in config.data.evals.items()
    }
    module = build_abstract(config.model.to_dict())
    divisor = module.divisor
    count = sum(len(records.source) for records in mixture)
    steps_per_epoch, total_steps = steps(config, count)
    objective = assemble(config, mixture, divisor, total_steps)
    batches = TrainBatches(
        mixture,
        batch_size=batch_size,
        seed=config.seed,
        mesh=mesh,
        resident=config.data.get("resident"),
    )
    refuse_unequal_parts(objective.accumulate, batch_size, sharding.row_devices(mesh))
    multiple = sharding.sides(divisor, mesh.shape["space"])
    evals = {
        split: EvalBatches(held, batch_size=batch_size, divisor=multiple, mesh=mesh)
        for split, held in held_out.items()
    }
    select = config.get("select", "best")
    if select not in ("best", "last"):
        raise UsageError(f"select={select!r}; best or last was due")
    refuse_other(config, workdir)
    if profile and profile.last > total_steps:
        raise UsageError(
            f"--profile={profile.first}:{profile.last}, but the run has {total_steps} steps"
        )

    state = objective.init(config.seed)
    score, higher_is_better = ranking(config)
    saved = workdir / "checkpoints"
    if "initialise" in config and config.initialise.workdir and not saved_steps(saved):
        state = state.replace(generator=transferred(state.generator, module, config.initialise))
    state = replace_in_networks(state, mesh=mesh, remat=config.get("remat", False))
    state = state.replace(generator=state.generator.averaging(config.get("ema", 0.0)))
    # Traced here once to refuse what does not fit.
    flops = cost.operations(objective.train_step, state, batches.shapes)
    state = sharding.placed(state, mesh)

    workdir.mkdir(parents=True, exist_ok=True)
    busy = "wait for it, or choose another --workdir"
    several = jax.process_count() > 1
    stopping = nullcontext(processes.stop_agreed()) if several else signals_received(signal.SIGTERM)
    alone = lock_folder(workdir, busy) if processes.is_first() else nullcontext()
    with alone, stopping as stop, watch.Watch(profile, flops) as stopwatch:
        describe(workdir, config)
        processes.barrier()
        checkpoints = Checkpoints(saved, score=score, higher_is_better=higher_is_better)
        state = checkpoints.restore(state)
        done = int(state.step)
        processes.print_once(
            f"{workdir}: {sharding.devices_in_use(mesh)}, "
            f"{count} records, {steps_per_epoch} steps an epoch, {total_steps} in all"
            + (f"; continues from step {done}" if done else "")
        )
        if profile and done >= profile.first:
            processes.print_once(f"step {profile.first} is done: nothing is traced")
        events = board.opened(workdir / "tensorboard", done)
        journal = Journal(
            workdir / "metrics.jsonl", done=done, total=total_steps, images=batch_size, board=events
        )  # fmt: skip
        grid = board.Grid(objective, held_out["val"], divisor) if events else None
        publish = publisher(config, workdir, mesh, mixture, events, grid)
        fit(
            objective,
            state,
            batches,
            evals,
            total_steps=total_steps,
            log_every=config.log_every,
            eval_every=config.eval_every or steps_per_epoch,
            save_every=config.save_every,
            checkpoints=checkpoints,
            journal=journal,
            publish=publish,
            select=select,
            stop=stop,
            watch=stopwatch,
        )
        checkpoints.close()
        processes.print_once(f"{workdir}: done, {max(total_steps, done)} steps")


def publisher(config, workdir, mesh, mixture, events, grid):
    """What `fit` calls with the best generator so far: it goes to the workdir's model/.

    A picture of what it does goes to TensorBoard, if there are `events`.
    """

    def publish(generator, step, scores):
        kept = generator.averaged.replace(memory=None)
        generator = jax.device_put(kept, sharding.replicated(mesh))
        if processes.is_first():
            facts = dict(
                title=f"{config.model.name} of {workdir}",
                model=config.model.to_dict(),
                task=config.get("task"),
                range_rule=mixture[0].card["range_rule"],
                trained_on=", ".join(records.source.name for records in mixture),
                step=step,
                scores=scores,
            )
            write(workdir / "model", generator, facts)
        if events:
            names, picture = grid(generator)
            events.picture(step, f"val/{' | '.join(names)}", picture)

    return publish


def refuse_unequal_parts(parts, batch_size, devices):
    """Raise Usage unless a batch can be cut into `parts` equal ones on so many devices."""
    if parts < 1 or batch_size % (parts * devices):
        raise UsageError(
            f"data.accumulate={parts}: data.batch_size={batch_size} was to be cut into so many "
            f"equal parts on {devices} devices; a whole number that divides "
            f"{batch_size / devices:g} was due"
        )


def steps(config, count):
    """(steps an epoch, steps in all) of a run on `count` records; a partial batch is dropped.

    Raises: Usage if an epoch has no whole batch.
    """
    passes, batch_size = config.get("passes_per_epoch", 1), config.data.batch_size
    if not 1 <= batch_size <= passes * count:
        raise UsageError(
            f"data.batch_size={batch_size}, but an epoch is {passes} x {count} records"
        )
    per_epoch = passes * count // batch_size
    return per_epoch, config.epochs * per_epoch


def assemble(config, mixture, divisor, updates=None):
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

    Raises: Usage naming the nearest sides if the network cannot take the crop.
    """
    divisor = sharding.sides(divisor, space)
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


def transferred(generator, module, initialise):
    """`generator`, a Network of `module`, with the weights that `initialise` names."""
    params, stats, model = old_weights(initialise)
    transfer.check_same_wiring(build_abstract(model), module)
    generator, account = transfer.fill(generator, params, stats, fresh=initialise.fresh)
    processes.print_once(f"from {initialise.workdir}: {account}")
    return generator


def old_weights(initialise):
    """(params, stats, model) of the run or the converted model that `initialise.workdir` names.

    Without what a converted file lacked: that has initial values, which are each run's own.
    """
    folder = Path(initialise.workdir)
    if (folder / "model.safetensors").exists():
        *parts, config = read(folder)
        lacking = config.get("untrained", ())
        params, stats = (
            {path: value for path, value in part.items() if path not in lacking} for part in parts
        )
        return params, stats, config["model"]
    if not (folder / "config.json").exists():
        raise InputError(f"{folder}: neither a run (config.json) nor a model (model.safetensors)")
    config = json.loads((folder / "config.json").read_text())
    score, higher = ranking(config)
    params, stats = load_generator(
        folder / "checkpoints", initialise.step, score=score, higher_is_better=higher
    )
    return params, stats, config["model"]


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
