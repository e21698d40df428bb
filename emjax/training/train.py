"""From a config to a trained run: assemble, put on the devices, restore, fit."""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import jax

from emjax import cli
from emjax.config import Config, generator_of
from emjax.data.records import Records, without_slices
from emjax.errors import UsageError
from emjax.files import check_writable, lock_folder
from emjax.inference import training_data
from emjax.models import cost, saved
from emjax.models.network import Network, replace_in_networks
from emjax.objectives.objective import State
from emjax.parallel import processes, sharding
from emjax.runs import tensorboard
from emjax.runs.checkpoints import Checkpoints, saved_steps
from emjax.runs.metrics_log import MetricsLog
from emjax.runs.provenance import (
    check_same_data,
    check_same_run,
    data_digests,
    describe,
    ranking,
)
from emjax.runs.tensorboard import TensorBoardWriter
from emjax.training.assemble import Pieces, assemble
from emjax.training.initialise import note_pixel_size, transfer_weights
from emjax.training.loop import Schedule, fit, update_program
from emjax.training.preview import PreviewGrid
from emjax.training.timing import Profile, StepTimer


def train(config: Config, workdir: Path, profile: Profile | None = None) -> None:
    """Train the run of `config` in `workdir`, from the start or from its latest checkpoint.

    Whatever can be refused is refused before anything is written.

    Raises: UsageError for a profile beyond the last step; OSError if the workdir cannot be
        written to; else as `assemble`, `check_same_run`, `check_same_data`, `transfer_weights` and
        `fit`.
    """
    check_writable(workdir)
    pieces = assemble(config)
    check_same_run(config, workdir)
    opened = (*pieces.mixture, *pieces.held_out.values())
    data = data_digests(records.card for records in opened)
    check_same_data(workdir, data)
    if not (workdir / "config.json").exists():  # a run that is killed may leave half a model
        saved.check_replaceable(workdir / "model", "choose another --workdir")
    total_steps = pieces.total_steps
    if profile and profile.last > total_steps:
        raise UsageError(
            f"--profile={profile.first}:{profile.last}, but the run has {total_steps} steps"
        )
    score, higher_is_better = ranking(config)
    saved_at = workdir / "checkpoints"
    processes.barrier()  # all have looked at the workdir before one writes
    resumes = bool(processes.from_first(len(saved_steps(saved_at))))
    state = initial_state(config, pieces, resumes=resumes)
    state = sharding.place_state(state, pieces.mesh)
    train_step = update_program(pieces.objective, pieces.batches, state)
    # Traced here to refuse what does not fit. JAX does not trace it again for the first update.
    flops = cost.operations(train_step.trace(state, pieces.batches.shapes).jaxpr)

    workdir.mkdir(parents=True, exist_ok=True)
    with (
        alone_in(workdir),
        cli.lasting_output() as closed,
        processes.stop_asked(closed) as stop,
        StepTimer(profile, flops) as timer,
    ):
        describe(workdir, config, data, pieces.select)
        checkpoints = Checkpoints(saved_at, score=score, higher_is_better=higher_is_better)
        state = checkpoints.restore(state)
        done = int(state.step)
        processes.print_once(
            f"{workdir}: {sharding.devices_in_use(pieces.mesh)}, {pieces.records} records, "
            f"{pieces.steps_per_epoch} steps per epoch, {total_steps} in all"
            + (f"; continues from step {done}" if done else "")
        )
        if profile and done >= profile.first:
            processes.print_once(f"step {profile.first} is done already: nothing is traced")
        with tensorboard.open_writer(workdir / "tensorboard", done) as events:
            log = MetricsLog(
                workdir / "metrics.jsonl",
                done=done,
                total=total_steps,
                images=config.data.batch_size,
                events=events,
            )
            patience = config.get("early_stopping", 0)
            since_best = functools.partial(log.since_best, score, higher_is_better)
            schedule = Schedule(
                total_steps,
                log_every=config.log_every,
                eval_every=config.eval_every or pieces.steps_per_epoch,
                save_every=config.save_every,
            )
            state = fit(
                pieces.objective,
                state,
                pieces.batches,
                pieces.evals,
                schedule,
                checkpoints=checkpoints,
                log=log,
                publish=publisher(config, workdir, pieces, events),
                select=pieces.select,
                early_stopping=patience,
                since_best=processes.from_first(since_best()) if patience else 0,
                stop=stop,
                timer=timer,
                train_step=train_step,
            )
        checkpoints.close()
        reached, ended = int(state.step), ""
        if reached < total_steps:
            ended = f" of {total_steps}: {since_best()} evaluations without a better {score}"
        processes.print_once(f"{workdir}: done, {reached} steps{ended}")


def initial_state(config: Config, pieces: Pieces, *, resumes: bool) -> State:
    """Return the objective's state at step 0, its generator as `config.initialise` asks.

    Args:
        resumes: whether a checkpoint will replace the values, so that no old weights are read.
    """
    state = pieces.objective.init(config.seed)
    if "initialise" in config and config.initialise.workdir and not resumes:
        generator = transfer_weights(state.generator, pieces.module, config.initialise)
        state = state.replace(generator=generator)
        note_pixel_size(config.initialise.workdir, pixel_sizes(pieces.mixture))
    state = replace_in_networks(state, mesh=pieces.mesh, remat=config.get("remat", False))
    return state.replace(generator=state.generator.with_ema(config.get("ema", 0.0)))


def pixel_sizes(mixture: Sequence[Records]) -> tuple[float, float] | None:
    """Return (smallest, largest) nm per pixel of records by their cards; None if unknown."""
    known = [
        size for records in mixture for size in records.card["nm_per_pixel"].get("range") or ()
    ]
    return (min(known), max(known)) if known else None


def alone_in(workdir: Path) -> AbstractContextManager[None]:
    """Return the lock of `workdir`; only process 0 takes it."""
    if not processes.is_first():
        return nullcontext()
    return lock_folder(workdir, "wait for it, or choose another workdir")


def publisher(
    config: Config, workdir: Path, pieces: Pieces, events: TensorBoardWriter | None
) -> Callable[[Network, int, dict[str, float]], None]:
    """Return the function that writes a generator to the workdir's model/, for `fit`.

    With `events`, it also writes a picture of what the generator does.
    """
    facts_of_data = functools.cache(lambda: training_data.describe(without_slices(pieces.mixture)))
    grid = events and PreviewGrid(pieces.objective, pieces.held_out["val"], pieces.divisor)

    def publish(generator: Network, step: int, scores: dict[str, float]) -> None:
        kept = generator.ema_network.replace(memory=None)
        generator = jax.device_put(kept, sharding.replicated(pieces.mesh))
        if processes.is_first():
            facts = dict(
                title=f"{config.model.name} of {workdir}",
                model=generator_of(config),
                task=config.get("task"),
                range_rule=pieces.mixture[0].card["range_rule"],
                trained_on=", ".join(records.source.name for records in pieces.mixture),
                step=step,
                scores=scores,
                data=data_digests(records.card for records in pieces.mixture),
                **facts_of_data(),
            )
            saved.write(workdir / "model", generator, facts)
        if events and grid:
            names, picture = grid(generator)
            events.picture(step, f"val/{' | '.join(names)}", picture)

    return publish
