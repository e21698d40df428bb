"""Pictures of what runs have learned: predictions on test records, restored micrographs."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float
from ml_collections import ConfigDict
from PIL import Image

from emjax import metrics, pictures
from emjax.config import generator_of
from emjax.data.batches import first_examples
from emjax.data.normalise import to_network
from emjax.data.records import has_split, open_records
from emjax.errors import EmjaxError, InputError
from emjax.experiments.arms import Arm
from emjax.experiments.page import Picture, Section
from emjax.models import saved
from emjax.models.build import build_abstract
from emjax.models.network import Network
from emjax.runs.run import Run
from emjax.tasks import task_of
from emjax.training.assemble import build_objective

RECORDS_SHOWN = 3  # of a dataset

Batch = dict[str, jax.Array]
PictureRow = list[Picture | str]  # text where a picture is missing


def examples(run: Run, split: str) -> Iterator[tuple[str, Batch]]:
    """Yield (name, batch of one) of the first records of a split."""
    where = run.config["data"]
    records = open_records(where["dir"], *where["evals"][split])
    divisor = build_abstract(run.config["model"]).divisor
    return first_examples(records, divisor, RECORDS_SHOWN)


def best_network(run: Run) -> Network:
    """Return the run's best network.

    Raises: InputError as `saved.read`.
    """
    params, stats, config = saved.read(run.folder / "model")
    definition = nnx.graphdef(build_abstract(config["model"]))
    return Network(params=params, stats=stats, definition=definition)


def first_run(arm: Arm) -> Run:
    """Return the run that stands for an arm: its first finished seed, else its first run."""
    return arm.seeds[min(arm.seeds)] if arm.seeds else arm.runs[0]


def predictions(arms: Sequence[Arm]) -> Iterator[PictureRow]:
    """Yield a row per test record: input, truth, and what each arm's first seed makes of it."""
    runs = [first_run(arm) for arm in arms]
    config = runs[0].config
    task, evals = task_of(config["task"], generator_of(config)), config["data"]["evals"]
    networks = [best_network(run) if (run.folder / "model").is_dir() else None for run in runs]
    apply = jax.jit(lambda g, image: g.apply(g.params, g.stats, image, train=False)[0])
    test = evals.get("test")
    has_test = test and has_split(runs[0].config["data"]["dir"], *test)
    for name, batch in examples(runs[0], "test" if has_test else "val"):
        example, valid = to_network(batch), batch["valid"]
        image, target = example["image"], example[task.target]
        row: PictureRow = [
            picture(image, valid, f"input: {name}"),
            picture(task.grey(target), valid, "truth", task.is_mask),
        ]
        for arm, run, network in zip(arms, runs, networks, strict=True):
            if network is None:
                row.append(f"{run.name} has no model")
                continue
            output = apply(network, image)
            score = task.metrics(output, target, valid)[task.best][0]
            caption = f"{arm.name}, seed {run.config['seed']}: {task.best} {score:.4f}"
            prediction = task.prediction(output)
            shown = (
                prediction > 0.5 if task.is_mask and task.classes == 2 else task.grey(prediction)
            )
            row.append(picture(shown, valid, caption, task.is_mask))
        yield row


def samples(run: Run) -> list[PictureRow]:
    """Return a row per record that `run` is validated on, with its targets.

    Records without targets share one row.
    """
    rows: list[PictureRow] = []
    learned = run.config.get("task")
    task = task_of(learned, generator_of(run.config)) if learned else None
    for name, batch in examples(run, "val"):
        fields = to_network(batch)
        if task and task.is_mask:
            fields["mask"] = task.grey(fields["mask"])
        rows.append(
            [
                picture(values, batch["valid"], f"{field}: {name}", field == "mask")
                for field, values in fields.items()
            ]
        )
    return [sum(rows, [])] if rows and len(rows[0]) == 1 else rows


def with_tuples(value: Any) -> Any:
    """Return a value of a config with the tuples that JSON made lists of."""
    if isinstance(value, dict):
        return {name: with_tuples(each) for name, each in value.items()}
    return tuple(value) if isinstance(value, list) else value


def restorations(run: Run) -> Iterator[PictureRow]:
    """Yield a row per validation record, corrupted as in the evaluations, restored, original.

    Raises: InputError if the run's config or model does not fit this version.
    """
    where = run.config["data"]
    records = open_records(where["dir"], *where["evals"]["val"])
    divisor = build_abstract(run.config["model"]).divisor
    try:
        objective: Any = build_objective(ConfigDict(with_tuples(run.config)), [records], divisor)
    except AttributeError as error:
        raise InputError(f"{run.name}: its config is of another version: {error}") from error
    network, restore = best_network(run), jax.jit(objective.restore)
    for name, batch in examples(run, "val"):
        micrograph, corrupted, restored = restore(network, batch)
        row: PictureRow = []
        for kind, view in {"corrupted": corrupted, "restored": restored}.items():
            l1 = metrics.l1(prediction=view, target=micrograph, valid=batch["valid"])[0]
            row.append(picture(view, batch["valid"], f"{kind}: l1 {l1:.4f}"))
        yield [*row, picture(micrograph, batch["valid"], f"original: {name}")]


def picture(
    values: Float[Array, "1 h w 1"] | Bool[Array, "1 h w 1"],
    valid: Bool[Array, "1 h w 1"],
    caption: str,
    is_mask: bool = False,
) -> Picture:
    """Return the Picture of an image, without its padding.

    Args:
        values: in [-1, 1]; of a mask, in [0, 1].
    """
    floats = np.asarray(values, np.float32)
    grey = pictures.grey(2 * floats - 1 if is_mask else floats, np.asarray(valid))
    image = Image.fromarray(grey)
    scale = max(1, 256 // max(image.size))
    width, height = image.size
    image = image.resize((scale * width, scale * height), Image.Resampling.NEAREST)
    image.thumbnail((512, 512))
    return Picture(pictures.png(np.asarray(image)), caption)


def section(title: str, rows: Callable[[], Iterable[PictureRow]], text: str = "") -> Section:
    """Return the section of the rows that `rows()` gives, or of why there are none.

    Args:
        text: a paragraph above the pictures.
    """
    try:
        return Section(title, text, pictures=list(rows()))
    except EmjaxError as error:
        reason = f"No pictures: {error}"
        return Section(title, f"{text} {reason}" if text else reason)
