"""From a config to a trained run."""

import signal
from contextlib import nullcontext

import jax

from emjax.data.batches import EvalBatches, TrainBatches
from emjax.data.records import open_mixture, open_records
from emjax.errors import UsageError
from emjax.files import lock_folder
from emjax.models import cost
from emjax.models.build import build_abstract
from emjax.models.network import replace_in_networks
from emjax.models.saved import write
from emjax.parallel import processes, sharding
from emjax.parallel.processes import signals_received
from emjax.runs import tensorboard
from emjax.runs.checkpoints import Checkpoints, saved_steps
from emjax.runs.metrics_log import MetricsLog
from emjax.runs.provenance import check_same_run, describe, ranking
from emjax.training import preview
from emjax.training.assemble import build_objective, check_equal_parts, count_steps
from emjax.training.initialise import transfer_weights
from emjax.training.loop import fit
from emjax.training.timing import StepTimer


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
    steps_per_epoch, total_steps = count_steps(config, count)
    objective = build_objective(config, mixture, divisor, total_steps)
    batches = TrainBatches(
        mixture,
        batch_size=batch_size,
        seed=config.seed,
        mesh=mesh,
        resident=config.data.get("resident"),
    )
    check_equal_parts(objective.accumulate, batch_size, sharding.row_devices(mesh))
    multiple = sharding.sides(divisor, mesh.shape["space"])
    evals = {
        split: EvalBatches(held, batch_size=batch_size, divisor=multiple, mesh=mesh)
        for split, held in held_out.items()
    }
    select = config.get("select", "best")
    if select not in ("best", "last"):
        raise UsageError(f"select={select!r}; best or last was due")
    check_same_run(config, workdir)
    if profile and profile.last > total_steps:
        raise UsageError(
            f"--profile={profile.first}:{profile.last}, but the run has {total_steps} steps"
        )

    state = objective.init(config.seed)
    score, higher_is_better = ranking(config)
    saved = workdir / "checkpoints"
    if "initialise" in config and config.initialise.workdir and not saved_steps(saved):
        state = state.replace(
            generator=transfer_weights(state.generator, module, config.initialise)
        )
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
    with alone, stopping as stop, StepTimer(profile, flops) as stopwatch:
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
        events = tensorboard.open_writer(workdir / "tensorboard", done)
        journal = MetricsLog(
            workdir / "metrics.jsonl", done=done, total=total_steps, images=batch_size, board=events
        )  # fmt: skip
        grid = preview.PreviewGrid(objective, held_out["val"], divisor) if events else None
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
