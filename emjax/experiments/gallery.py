"""Pictures of what runs have learned: predictions on test records, restored micrographs."""

import html

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from PIL import Image

from emjax import errors, metrics, pictures
from emjax.data.batches import first_examples
from emjax.data.normalise import to_network
from emjax.data.records import open_records
from emjax.experiments import page
from emjax.models import saved
from emjax.models.build import build_abstract
from emjax.models.network import Network
from emjax.pictures import grey
from emjax.tasks import TASKS
from emjax.training.assemble import build_objective

PICTURES = 3  # records shown of a dataset


def examples(run, split):
    """(name, batch of one) for the first records of a split."""
    where = run.config["data"]
    records = open_records(where["dir"], *where["evals"][split])
    divisor = build_abstract(run.config["model"]).divisor
    return first_examples(records, divisor, PICTURES)


def trained(run):
    """The run's best network, as Network."""
    params, stats, config = saved.read(run.folder / "model")
    definition = nnx.graphdef(build_abstract(config["model"]))
    return Network(params=params, stats=stats, definition=definition)


def first(arm):
    """The run that stands for an arm: its first seed."""
    return arm.seeds[min(arm.seeds)] if arm.seeds else arm.runs[0]


def predictions(arms):
    """A gallery row a test record: input, truth, and what each arm's first seed makes of it."""
    runs = [first(arm) for arm in arms]
    task, evals = TASKS[runs[0].config["task"]], runs[0].config["data"]["evals"]
    generators = [trained(run) if (run.folder / "model").is_dir() else None for run in runs]
    apply = jax.jit(lambda g, image: g.apply(g.params, g.stats, image, train=False)[0])
    for name, batch in examples(runs[0], "test" if "test" in evals else "val"):
        example, valid = to_network(batch), batch["valid"]
        image, target = example["image"], example[task.target]
        row = [inline(image, valid, f"input: {name}"), inline(target, valid, "truth", task.is_mask)]
        for arm, run, generator in zip(arms, runs, generators, strict=True):
            if generator is None:
                row.append(f"<figure>{html.escape(run.name)} has no model</figure>")
                continue
            output = apply(generator, image)
            score = task.metrics(output, target, valid)[task.best][0]
            caption = f"{arm.name}, seed {run.config['seed']}: {task.best} {score:.4f}"
            prediction = task.prediction(output)
            shown = prediction > 0.5 if task.is_mask else prediction
            row.append(inline(shown, valid, caption, task.is_mask))
        yield row


def samples(run):
    """What `run` is validated on: a gallery row a record and its targets; one in all without."""
    rows = []
    for name, batch in examples(run, "val"):
        fields = to_network(batch).items()
        rows.append([inline(values, batch["valid"], f"{field}: {name}", field == "mask")
                     for field, values in fields])  # fmt: skip
    return [sum(rows, [])] if rows and len(rows[0]) == 1 else rows


def tuples(config):
    """The config as it was before it became JSON."""
    if isinstance(config, dict):
        return {name: tuples(value) for name, value in config.items()}
    return tuple(config) if isinstance(config, list) else config


def restorations(run):
    """A gallery row a validation record, corrupted as in the evaluations."""
    where = run.config["data"]
    records = open_records(where["dir"], *where["evals"]["val"])
    divisor = build_abstract(run.config["model"]).divisor
    try:
        objective = build_objective(ConfigDict(tuples(run.config)), [records], divisor)
    except AttributeError as error:
        raise errors.InputError(f"{run.name} has a config of another version: {error}") from error
    generator, restore = trained(run), jax.jit(objective.restore)
    for name, batch in examples(run, "val"):
        micrograph, corrupted, restored = restore(generator, batch)
        row = []
        for kind, view in {"corrupted": corrupted, "restored": restored}.items():
            l1 = metrics.l1(prediction=view, target=micrograph, valid=batch["valid"])[0]
            row.append(inline(view, batch["valid"], f"{kind}: l1 {l1:.4f}"))
        yield [*row, inline(micrograph, batch["valid"], f"original: {name}")]


def inline(values, valid, caption, is_mask=False):
    """An HTML figure of float [1, h, w, 1] in [-1, 1], or in [0, 1] if a mask, without padding."""
    values = np.asarray(values, np.float32)
    picture = Image.fromarray(grey(2 * values - 1 if is_mask else values, valid))
    larger = max(1, 256 // max(picture.size))
    picture = picture.resize([larger * side for side in picture.size], Image.Resampling.NEAREST)
    picture.thumbnail((512, 512))
    shown = page.image(pictures.png(np.asarray(picture)), caption)
    return f"<figure>{shown}<figcaption>{html.escape(caption)}</figcaption></figure>"


def section(title, rows):
    """The HTML of the rows of figures that `rows()` gives, or why there are none."""
    try:
        body = "".join(f'<div class="row">{"".join(row)}</div>' for row in rows())
    except errors.EmjaxError as error:
        body = f"<p>No pictures: {html.escape(str(error))}</p>"
    return page.section(title, body)
