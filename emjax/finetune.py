"""Finetune a model on a few images and targets of yours.

    emjax finetune --images=DIR --targets=DIR --out=DIR

Files are paired by name, as a.tif with a.png, a_mask.tif or masks/a.tif; the two folders may be
one. The pairs are examined first: what is certainly wrong is left out, what is doubtful is named.
Of eight images and more some are held out, for an honest score; of fewer each is held out once, by
a cross-validation. OUT/model is the model, for `emjax predict --model=OUT`, OUT/report.html shows
scores, pictures, curves and what was found in the pairs; OUT/config.json is the recipe, for
`emjax train --config=OUT/config.json`. Stopped and started again, the command continues.

Run again after pairs were corrected, added or taken away, it sets OUT aside as OUT.before-1 and
continues from its model; half of what is trained on then are the pairs that changed.
"""

import argparse
import itertools
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from data_builders import common
from data_builders.micrographs import Micrographs, checking, pairs
from data_builders.micrographs.checking import Checked
from data_builders.micrographs.listing import Listing, Source
from data_builders.micrographs.pairs import Splits
from data_builders.micrographs.reading import ReadOptions, foreground_of
from emjax import cli, micrographs, pictures
from emjax.config import Config, find_recipe, generator_of, read_recipe
from emjax.data.records import open_records
from emjax.errors import InputError, UsageError, choose, note
from emjax.experiments import finetuning
from emjax.experiments.finetuning import Scored, Truth
from emjax.experiments.page import Picture
from emjax.files import write_atomically
from emjax.micrographs import Micrograph
from emjax.models import pretrained, saved
from emjax.models.build import build_abstract
from emjax.parallel import devices
from emjax.runs import rounds
from emjax.runs.rounds import Earlier
from emjax.runs.run import Run, read_run
from emjax.tasks import TASKS
from emjax.training import choices
from emjax.training.train import train

FINDER = "particles"  # of the package: judges masks, and is what a user has without a training
NONE, AUTO = "none", "auto"  # values of --base
# By task: what --base=auto tries, the default first, docs/background/evidence/few_images.md.
BASES = {"segmentation": (FINDER, "pretrained", NONE)} | dict.fromkeys(
    ("denoise", "background", "superresolution"), ("pretrained", NONE)
)
RECIPES = {
    "segmentation": ("segment_au", None),
    "denoise": ("restore_temimagenet", "denoise,unet_4_424"),
    "background": ("restore_temimagenet", "background,unet_4_424"),
    "superresolution": ("restore_temimagenet", "superresolution,unet_4_424"),
}
SETTINGS = "settings.json"  # of a training, each with its reason
DATASET = "micrographs"  # of OUT/data
ENGINE = "jax"  # that scores, as it is there on every machine
JUDGED = 100  # pairs whose masks are compared with what the base predicts
TRIAL = 10  # --base=auto tries each for this part of the updates
EVERYTHING = 1.0  # share of the images that a build may leave out: they were examined before
PLANE, PATCH = r"_[zyx]\d{4,}", r"_y\d{4,}x\d{4,}"
PLACES = ("", PATCH, PLANE, PLANE + PATCH)  # of a record, at the end of its name


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


class Part(NamedTuple):
    """One training: of a cross-validation, or the one that is the model."""

    folder: Path
    split_of: Splits
    start: Base


@cli.command
def main(arguments: Sequence[str]) -> int:
    """Finetune; returns 0."""
    options = parse(arguments)
    devices.keep_memory()
    devices.keep_compiled()
    out: Path = options.out
    rounds.check_out(out, told(options))
    base = base_of(BASES[options.task][0] if options.base == AUTO else options.base, options)
    target = TASKS[options.task].target
    read_options = ReadOptions(
        options.index,
        micrographs.LIMIT,
        foreground_of(options.foreground or "nonzero"),
        None,
        options.mrc_rows,
        options.channel,
        options.cut_banner,
        options.classes,
    )
    listing = pairs.find(options.images, options.targets or options.images, options.table, target)
    print(f"{len(listing.sources)} pairs of an image and a {target}")
    checked, shown, beyond = examine(listing, read_options, base, options)
    check_divisible(checked, options)
    if outside := [f"{s.name}: {beyond[s.name]}" for s in checked.kept if s.name in beyond]:
        note(base.name, f"its intensity range is not taken, but that of each image; {outside[0]}")
        base = base._replace(rule="percentile")
    record = rounds.begin(out, told(options), pairs.digests(listing.sources))
    earlier = rounds.earlier_of(record)
    before = earlier.splits if earlier else None
    splits = trainable(pairs.divide(checked.kept, checked.cluster_of, before), checked.foreground)
    across = pairs.across(checked.kept, checked.cluster_of)
    for line in across:
        note(options.table, line)
    print(finetuning.divided_in_words(splits))
    if options.base == AUTO:
        # Of before this run was stopped, or of the round before.
        chosen = record.get("base") or (
            rounds.read_record(earlier.folder).get("base") if earlier else None
        )
        base = base_of(chosen, options) if chosen else None
        base = base or better_base(checked, splits[0], options, out / "trials")
        record["base"] = base.name
        rounds.write_record(out, record)
    parts = [
        *(Part(out / "folds" / str(n), s, base) for n, s in enumerate(splits[:-1], 1)),
        Part(out, splits[-1], start_of(base, earlier, splits, options)),
    ]
    scores: list[Scored] = []
    untrained: list[Scored] = []  # of what was started from, without finetuning
    runs: dict[str, Run] = {}
    without = model_without_training(parts[0].start, options)
    for part in parts:
        continues = earlier and part.folder == out and part.start is not base
        again = earlier.changed if earlier and continues else []
        notes = train_part(part, checked, options, changed=again)
        name = "all pairs" if part.folder == out else f"part {part.folder.name}"
        runs["the model" if len(parts) == 1 else name] = read_run(part.folder, out)
        held = [s for s in checked.kept if part.split_of[s.name] == rounds.held_out(part.split_of)]
        scores += scored(str(part.folder), held, read_options)
        if held and without:
            untrained += scored(without, held, read_options)
    record |= {
        "base": base.name,
        "splits": splits[0] if len(splits) == 1 else None,
        "continued": parts[-1].start is not base,
    }
    corrections = corrected(earlier, out, options.images) if earlier else []
    chose = {name for name, split in splits[0].items() if split == "val"}
    summary = finetuning.in_words(
        scores,
        chose_the_base=chose if options.base == AUTO else set(),
        is_mask=target == "mask",
        folds=len(parts) - 1,
        before={without.name if isinstance(without, Path) else str(without): untrained}
        if untrained
        else {},
    )
    report(record, parts[-1], checked, shown, runs, scores, summary, options,
           [*listing.notes, *across, *notes], corrections)  # fmt: skip
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line."""
    parser = cli.Parser(
        prog="emjax finetune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--images", required=True, type=Path, help="folder of micrographs; of the table's paths")
    add("--targets", type=Path, help="folder of masks or restored images; default: --images")
    add("--table", type=Path, help="CSV with the columns image and mask (or denoised, "
        "background_removed, superresolved); also source, split, nm_per_pixel")  # fmt: skip
    add("--out", required=True, type=Path, help="folder for the model and the report")
    add("--task", default="segmentation", help=f"{', '.join(RECIPES)}; default: %(default)s")
    add("--base", help="what to start from: a model that comes with emjax, a folder, a run, "
        f"{NONE}, or {AUTO}, which tries; default: {BASES['segmentation'][0]}")  # fmt: skip
    add("--foreground", help="in masks: nonzero, a value, or R,G,B")
    add("--classes", type=int, help="masks hold the numbers of so many classes, 0 to N - 1")
    add("--keep_all", action="store_true", help="leave no pair out for what its mask shows")
    add("--steps", type=int, help="updates of the training, instead of those of the rules; one "
        "pass over the data at least")  # fmt: skip
    add("--seed", type=int, default=0, help="of weights and augmentation; default: %(default)s")
    add("--index", type=int, help="which image, of files that hold several")
    add("--channel", help="which channel, by name or number, of images that have several")
    add("--cut_banner", action="store_true", help="leave out banners, borders and scale bars")
    add("--mrc_rows", choices=micrographs.MRC_ROWS, help="where the first row of MRCs belongs")
    options = parser.parse_args(arguments)
    choose("task", options.task, RECIPES)
    if options.steps is not None and options.steps < 1:
        raise UsageError(f"--steps={options.steps}, expected at least 1")
    if options.classes is not None and not 2 <= options.classes <= 255:
        raise UsageError(f"--classes={options.classes}, expected 2 to 255, the background too")
    if options.classes and options.foreground:
        raise UsageError("--classes and --foreground: expected one of them")
    if options.task != "segmentation" and (options.foreground or options.classes):
        raise UsageError(
            f"--foreground and --classes are of masks, but the task is {options.task}; leave them "
            "out"
        )
    options.by_default = options.base in (None, AUTO)
    options.base = options.base or rounds.base_of(options.out) or BASES[options.task][0]
    return options


def base_of(name: str, options: argparse.Namespace) -> Base:
    """Return what to start from.

    Args:
        name: a value of --base, but AUTO.

    Raises: InputError if it is no model.
    """
    is_mask = options.task == "segmentation"
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


def told(options: argparse.Namespace) -> dict[str, Any]:
    """Return what a run was asked for, as it reads back from JSON."""
    asked = vars(options).items()
    values = {name: value for name, value in asked if name not in ("out", "by_default")}
    return {n: os.path.abspath(v) if isinstance(v, Path) else v for n, v in values.items()}


def model_without_training(base: Base, options: argparse.Namespace) -> str | Path | None:
    """Return the model that a user has for the task without finetuning `base`; None if none.

    That is `base` itself if it does the task, and FINDER for a mask of one class.
    """
    if base.does:
        return pretrained.BOX / base.name if base.name in pretrained.DIGESTS else base.name
    is_mask = options.task == "segmentation" and (options.classes or 2) == 2
    return pretrained.BOX / FINDER if is_mask else None


def start_of(
    base: Base, earlier: Earlier | None, splits: Sequence[Splits], options: argparse.Namespace
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


def check_divisible(checked: Checked, options: argparse.Namespace) -> None:
    """Raise what the pairs do not permit, before anything is written.

    Raises: InputError if there is nothing to train on; UsageError if there is nothing to choose a
        base by.
    """
    splits = trainable(pairs.divide(checked.kept, checked.cluster_of), checked.foreground)
    if options.base == AUTO:
        check_chooses(splits[0])


def check_chooses(split_of: Splits) -> None:
    """Raise UsageError if no image is left to choose a base by."""
    if "val" not in split_of.values():
        raise UsageError(f"--base={AUTO}: no image is left to choose by; name a base, or {NONE}")


def examine(
    listing: Listing, read_options: ReadOptions, base: Base, options: argparse.Namespace
) -> tuple[Checked, dict[str, Picture], dict[str, str]]:
    """Read all pairs once and print what is wrong with them.

    Returns (what can be used, pictures, why the base's fixed intensity range does not fit), the
    last two by names of pairs.

    Raises: as `checking.check`.
    """
    is_mask = options.task == "segmentation"
    asks = is_mask and not (options.classes or options.foreground)
    judges = asks and base.name in pretrained.DIGESTS
    model = finetuning.Predictor(pretrained.BOX / FINDER, engine=ENGINE) if judges else None
    thumbnails: dict[str, Picture] = {}
    beyond: dict[str, str] = {}

    def watch(name: str, micrograph: Micrograph, target: np.ndarray) -> float | None:
        drawn = target if is_mask else np.zeros(target.shape, np.uint8)
        thumbnails[name] = finetuning.picture(pictures.overlay(micrograph.image, drawn), name)
        if base.rule == "fixed" and (reason := micrographs.beyond_fixed(micrograph.image)):
            beyond[name] = reason
        if model is None or len(thumbnails) > JUDGED:
            return None
        return finetuning.agreement(model, micrograph, target)

    checked = checking.check(
        listing,
        read_options,
        options.images,
        is_mask=is_mask,
        smallest=choices.SMALLEST,
        asks=asks,
        keep_all=options.keep_all,
        watch=watch,
    )
    return checked, thumbnails, beyond


def train_part(
    part: Part,
    checked: Checked,
    options: argparse.Namespace,
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
    card = built(data, checked.shapes, part.start.rule, options)
    if (part.folder / "config.json").exists():  # it continues as it was begun, on any device
        train(read_recipe(part.folder / "config.json", None), part.folder)
        return card["notes"]
    again, more = changed_slices(data, options.images, changed)
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


def built(
    data: Path, shapes: Sequence[tuple[int, int]], rule: str, options: argparse.Namespace
) -> dict[str, Any]:
    """Build the records of the table in a folder; return their card."""
    parser = cli.Parser()
    Micrographs.add_options(parser)
    flags = {
        "source": options.images,
        "table": data / "pairs.csv",
        "patch": choices.patch_side(shapes),
        "range": rule,
        "foreground": options.foreground,
        "classes": options.classes,
        "index": options.index,
        "channel": options.channel,
        "mrc_rows": options.mrc_rows,
    }
    words = [f"--{name}={value}" for name, value in flags.items() if value is not None]
    words += ["--cut_banner"] * options.cut_banner
    dataset = Micrographs(parser.parse_args(words))
    dataset.other_name = "--out"
    return common.build(dataset, data, max_skipped=EVERYTHING)[0]


def records_of(data: Path, split: str, images: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (name of the pair it was cut from, record) for all records of a split."""
    known = pairs.record_names(data / "pairs.csv", images)
    records = open_records(data, DATASET, split).source
    for record in (records[index] for index in range(len(records))):
        name = record["name"].decode()
        stems = (re.sub(f"{end}$", "", name) for end in PLACES)
        yield next(known[stem] for stem in stems if stem in known), record


def changed_slices(
    data: Path, images: Path, changed: Sequence[str]
) -> tuple[list[tuple[str, float]], int]:
    """Return what of the split train holds the pairs `changed`, and how many records that is.

    That is slices as "train[3:5]", each with its share of these records.
    """
    if not changed:
        return [], 0
    of = [name for name, _ in records_of(data, "train", images)]
    count = sum(name in changed for name in of)
    slices: list[tuple[str, float]] = []
    start = 0
    for is_changed, group in itertools.groupby(of, lambda name: name in changed):
        end = start + len([*group])
        if is_changed:
            slices.append((f"train[{start}:{end}]", (end - start) / count))
        start = end
    return slices, count


def config_of(
    part: Part,
    card: Mapping[str, Any],
    options: argparse.Namespace,
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
    parts = [(DATASET, "train", 1.0), *((DATASET, some, share) for some, share in again)]
    with config.ignore_type():
        if part.start.model:
            config.model = part.start.model
        config.data.train = tuple(parts) if again else (DATASET, "train")
    config.data.dir = data
    config.data.evals = {"val": (DATASET, "val" if "val" in card["splits"] else "train")}
    if part.start.name != NONE:
        workdir = part.start.name
        own = workdir in pretrained.DIGESTS and os.path.lexists(workdir)  # a folder of the user's
        config.initialise.workdir = str(pretrained.BOX / workdir) if own else workdir
        config.initialise.fresh = part.start.fresh
    return config


def better_base(
    checked: Checked, split_of: Splits, options: argparse.Namespace, folder: Path
) -> Base:
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


def scored(folder: str | Path, held: Sequence[Source], read_options: ReadOptions) -> list[Scored]:
    """Return the scores of `held` by the model of `folder`; of stacks, means over their planes."""
    if not held:
        return []
    model = finetuning.Predictor(folder, engine=ENGINE)

    def planes_of(source: Source) -> Iterator[Truth]:
        for plane in pairs.read(source, read_options):
            is_chosen = read_options.foreground or read_options.classes
            stored = plane.found.values if plane.found and not is_chosen else ()
            numbers = sum(map(any, stored))
            yield Truth(plane.micrograph, plane.target, numbers)

    return [finetuning.score(model, each.name, lambda e=each: planes_of(e)) for each in held]


def corrected(earlier: Earlier, out: Path, images: Path) -> list[dict[str, str]]:
    """Return a row for each pair that changed since: in how many pixels its target did."""
    old, new = (targets_of(folder / "data", images) for folder in (earlier.folder, out))
    rows = []
    for name in earlier.changed:
        theirs, ours = old.get(name), new.get(name)
        what = "left out" if ours is None else "new"
        if theirs is not None and ours is not None:
            what = "changed"
            if [each.shape for each in theirs] == [each.shape for each in ours]:
                differs = sum(int((a != b).sum()) for a, b in zip(theirs, ours, strict=True))
                share = 100 * differs / sum(each.size for each in ours)
                what = f"changed in {share:.2g} % of its pixels"
        rows.append({"pair": name, "": what})
    return [*rows, *({"pair": name, "": "no longer there"} for name in earlier.gone)]


def targets_of(data: Path, images: Path) -> dict[str, list[np.ndarray]]:
    """Return {name of a pair: the targets of its records} of a finetuning's data."""
    card = common.read_card(data / DATASET)
    (target,) = card["targets"]
    found: dict[str, dict[int, np.ndarray]] = {}  # by the place of the record
    for split in card["splits"]:
        for name, record in records_of(data, split, images):
            found.setdefault(name, {})[int(record["index"])] = record[target]
    return {name: [by[index] for index in sorted(by)] for name, by in found.items()}


def report(
    record: dict[str, Any],
    last: Part,
    checked: Checked,
    shown: Mapping[str, Picture],
    runs: Mapping[str, Run],
    scores: Sequence[Scored],
    summary: str,
    options: argparse.Namespace,
    notes: Sequence[str],
    corrections: Sequence[Mapping[str, str]],
) -> None:
    """Write the page, the record and the scores of the model's card; print the summary."""
    out = last.folder
    labels = [
        (
            {"file": one.name, "": "left out" if one.certain else "doubtful", "what": one.text},
            [shown[name] for name in (one.name, one.other) if name in shown],
        )
        for one in checked.findings
    ]
    facts = finetuning.Facts(
        title=f"{out.name}: a finetuned model",
        base=last.start.name,
        task=options.task,
        pairs=len(checked.kept),
        settings=json.loads((out / SETTINGS).read_text()),
        labels=labels,
        notes=notes,
        corrections=corrections,
    )
    html = finetuning.render(facts, runs, scores, summary=summary)
    write_atomically(out / "report.html", html.encode())
    middle = finetuning.interval_of(scores)._asdict()
    record |= {
        "finished": True,
        "score": {name: None if np.isnan(value) else value for name, value in middle.items()},
        "images": {s.name: {"score": s.score, "found": s.found, "drawn": s.drawn} for s in scores},
        "findings": [one._asdict() for one in checked.findings],
    }
    saved.annotate(out / "model", {"held_out": summary})
    rounds.write_record(out, record)
    print(f"\n{summary}")
    print(f"{out / 'report.html'}\nemjax predict --model={out} FILE_OR_FOLDER")


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
