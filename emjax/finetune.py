"""Finetune a model on a few images and targets of yours.

    emjax finetune --images=DIR --targets=DIR --out=DIR

Files are paired by name, as a.tif with a.png, a_mask.tif or masks/a.tif; the two folders may be
one. The pairs are examined first: what is certainly wrong is left out, what is doubtful is named.
Of eight images and more some are held out, for an honest score; of fewer each is held out once, by
a cross-validation. OUT/model is the model, for `emjax predict --model=OUT`, OUT/report.html shows
scores, pictures, curves and what was found in the pairs; OUT/config.json is the recipe, for
`emjax train --config=OUT/config.json`. Stopped and started again, the command goes on.

Run again after targets were corrected, added or taken away, it sets OUT aside as OUT.before-1 and
goes on from its model; half of what is trained on then are the pairs that changed.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from data_builders import common
from data_builders.micrographs import Micrographs, checking, pairs
from data_builders.micrographs.examination import Finding
from data_builders.micrographs.listing import Listing, Source
from data_builders.micrographs.reading import ReadOptions, foreground_of
from emjax import cli, micrographs, pictures
from emjax.config import SPLITS, Config, find_recipe, generator_of, read_recipe
from emjax.data.records import has_split, open_records
from emjax.errors import InputError, UsageError, choose
from emjax.experiments import finetuning
from emjax.experiments.page import Picture
from emjax.files import check_writable, write_atomically
from emjax.models import pretrained, saved
from emjax.models.build import build_abstract
from emjax.runs.run import Run, read_run
from emjax.tasks import TASKS
from emjax.training import choices
from emjax.training.train import train

BASE = "particles"  # of the package, for segmentation; other tasks start from random weights
RECIPES = {
    "segmentation": ("segment_au", None),
    "denoise": ("restore_temimagenet", "denoise,unet_4_424"),
    "background": ("restore_temimagenet", "background,unet_4_424"),
    "superresolution": ("restore_temimagenet", "superresolution,unet_4_424"),
}
RECORD = "finetune.json"  # what the command was called with, and what came of it
JUDGED = 100  # pairs whose masks are compared with what the base predicts
CHANGED = "changed"  # micrographs/CHANGED are the records of what was corrected
TRIAL = 10  # --base=auto tries each for this part of the updates
EVERYTHING = 1.0  # share of the images that a build may leave out: they were examined before


class Examined(NamedTuple):
    """The pairs that can be used, and what was found in all of them."""

    kept: list[Source]
    findings: list[Finding]
    shown: dict[str, list[Picture]]  # by name, of those with a finding
    data: choices.Data


class Earlier(NamedTuple):
    """A finished finetuning, set aside, some of whose targets have changed since."""

    folder: Path
    splits: dict[str, str] | None  # by name; None after a cross-validation
    changed: list[str]  # names of pairs that are new or have another target
    gone: list[str]

    @classmethod
    def of(cls, begun: Mapping[str, Any]) -> "Earlier":
        """Return what the one that `begun`, a record, goes on from says of itself."""
        folder = Path(begun["earlier"])
        record = read_record(folder)
        old, new = record["targets"], begun["targets"]
        changed = [name for name in new if old.get(name) != new[name]]
        return cls(folder, record["splits"], changed, [name for name in old if name not in new])


@cli.command
def main(arguments: Sequence[str]) -> int:
    """Finetune; returns 0."""
    options = parse(arguments)
    out: Path = options.out
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
    check_out(out, options)
    listing = pairs.find(options.images, options.targets or options.images, options.table, target)
    pairs.check_some(listing, options.images)
    print(f"{len(listing.sources)} pairs of an image and a {target}")
    base = options.base or (BASE if target == "mask" else "none")
    examined = examine(listing, read_options, BASE if base == "auto" else base, options)
    begun = begin(out, options, pairs.target_digests(listing.sources))
    earlier = Earlier.of(begun) if begun["earlier"] else None
    parts = pairs.divide(examined.kept, earlier.splits if earlier else None)
    begun["splits"] = parts[0] if len(parts) == 1 else None
    print(divided_in_words(parts))
    if base == "auto":
        base = better_base(examined, parts[0], options, out / "trials")
    runs: dict[str, Run] = {}
    scores: list[finetuning.Scored] = []
    untrained: list[finetuning.Scored] = []  # of the base, without finetuning
    notes: list[str] = []
    settings: list[choices.Choice] = []
    for number, split_of in enumerate(parts, 1):
        last = number == len(parts)
        folder = out if last else out / "folds" / str(number)
        # What has seen all pairs may go on, but not be scored on them.
        goes_on = earlier and last and (len(parts) > 1 or earlier.splits)
        start = str(earlier.folder) if earlier and goes_on else base
        changed = earlier.changed if earlier and last else ()
        card, settings = train_part(folder, examined, split_of, start, options, changed=changed)
        notes = card["notes"]
        runs["all" if len(parts) > 1 and last else f"part {number}"] = read_run(folder, out)
        held_out = "test" if len(parts) == 1 else "val"
        held = [source for source in examined.kept if split_of[source.name] == held_out]
        scores += scored(folder, held, read_options)
        if base_model(start, options.task)[1] and (options.classes or 2) == 2:
            untrained += scored(start, held, read_options)
    before = {start: finetuning.interval_of(untrained).mean} if untrained else {}
    is_mask = target == "mask"
    folds = len(parts) - 1
    summary = finetuning.in_words(scores, is_mask=is_mask, folds=folds, before=before)
    corrections = corrected(earlier, out) if earlier else []
    begun["base"] = base
    report(
        out, examined, listing, runs, scores, settings, begun, options, notes, summary, corrections
    )
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
    add("--base", help="what to start from: a model that comes with emjax, a folder, a run, none, "
        f"or auto, which tries; default: {BASE} for masks, else none")  # fmt: skip
    add("--foreground", help="in masks: nonzero, a value, or R,G,B")
    add("--classes", type=int, help="masks hold the numbers of so many classes, 0 to N - 1")
    add("--keep_all", action="store_true", help="leave no pair out for what its mask shows")
    add("--steps", type=int, help="updates of the training, instead of those of the rules")
    add("--seed", type=int, default=0, help="of weights and augmentation; default: %(default)s")
    add("--index", type=int, help="which image, of files that hold several")
    add("--channel", help="which channel, by name or number, of images that have several")
    add("--cut_banner", action="store_true", help="leave out banners, borders and scale bars")
    add("--mrc_rows", choices=micrographs.MRC_ROWS, help="where the first row of MRCs belongs")
    options = parser.parse_args(arguments)
    choose("task", options.task, RECIPES)
    if options.steps is not None and options.steps < 1:
        raise UsageError(f"--steps={options.steps}, expected at least 1")
    if options.task != "segmentation" and (options.foreground or options.classes):
        raise UsageError(
            f"--foreground and --classes are of masks, but the task is {options.task}; leave them "
            "out"
        )
    return options


def told(options: argparse.Namespace) -> dict[str, Any]:
    """Return what a run was asked for, as it reads back from JSON."""
    values = {name: value for name, value in vars(options).items() if name != "out"}
    return {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}


def read_record(out: Path) -> dict[str, Any]:
    """Return the record of a finetuning; {} of a folder that is not there or empty.

    Raises: UsageError for a folder of something else.
    """
    if not out.exists() or not any(out.iterdir()):
        return {}
    try:
        record = json.loads((out / RECORD).read_text())
        return {key: record[key] for key in ("options", "targets", "earlier", "splits", "score")}
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(
            f"--out={out}: expected a new folder or one of emjax finetune, got other files; choose "
            "another"
        ) from None


def begin(out: Path, options: argparse.Namespace, targets: dict[str, str]) -> dict[str, Any]:
    """Return the record of a finetuning, new or begun before, and write it if it is new.

    A finished one in `out` with other `targets` is set aside first.

    Args:
        targets: {name: digest}.
    """
    record = read_record(out)
    earlier = None
    if record and record["score"] is not None and record["targets"] != targets:
        taken = len([*out.parent.glob(f"{out.name}.before-*")])
        earlier = out.with_name(f"{out.name}.before-{taken + 1}")
        out.rename(earlier)
        print(f"targets have changed: {out} is {earlier} now, and its model is gone on from")
        record = {}
    if not record:
        record = {
            "options": told(options),
            "targets": targets,
            "earlier": str(earlier) if earlier else None,
            "splits": None,
            "score": None,
        }
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / RECORD, json.dumps(record, indent=1).encode())
    return record


def check_out(out: Path, options: argparse.Namespace) -> None:
    """Raise UsageError unless `out` is new, or of this command with the same options."""
    check_writable(out)
    record = read_record(out)
    if not record:
        return
    before = record["options"]
    asked = told(options)
    changed = sorted(name for name in {**before, **asked} if before.get(name) != asked.get(name))
    if changed:
        listed = ", ".join(f"--{name}={before.get(name)}" for name in changed)
        raise UsageError(f"--out={out} was begun with {listed}; choose another --out or delete it")


def examine(
    listing: Listing, read_options: ReadOptions, base: str, options: argparse.Namespace
) -> Examined:
    """Read all pairs once; print what is wrong with them; return what can be used.

    Raises: as `checking.check`.
    """
    is_mask = options.task == "segmentation"
    judges = base in pretrained.DIGESTS and base_model(base, options.task)[1]
    judges = judges and not (options.classes or options.foreground)
    model = finetuning.Predictor(base) if judges else None
    thumbnails: dict[str, Picture] = {}

    def watch(name: str, micrograph: micrographs.Micrograph, target: np.ndarray) -> float | None:
        drawn = target if is_mask else np.zeros(target.shape, np.uint8)
        thumbnails[name] = finetuning.picture(pictures.overlay(micrograph.image, drawn), name)
        if model is None or len(thumbnails) > JUDGED or np.ptp(micrograph.image) == 0:
            return None
        return finetuning.agreement(model, micrograph, target)

    checked = checking.check(
        listing,
        read_options,
        options.images,
        is_mask=is_mask,
        smallest=choices.SMALLEST,
        asks=is_mask and not (options.classes or options.foreground),
        keep_all=options.keep_all,
        watch=watch,
    )
    shown = {
        one.name: [thumbnails[name] for name in (one.name, one.other) if name in thumbnails]
        for one in checked.findings
    }
    shapes, foreground = checked.shapes, checked.foreground
    data = choices.Data(len(checked.kept), shapes, foreground, options.classes or 2)
    return Examined(checked.kept, checked.findings, shown, data)


def divided_in_words(parts: Sequence[Mapping[str, str]]) -> str:
    """Return what is trained on what, for the terminal."""
    if len(parts) == 1:
        splits = [*parts[0].values()]
        counts = ", ".join(f"{splits.count(s)} {words}" for s, words in (
            ("train", "to train on"), ("val", "to choose by"), ("test", "held out for the score"))
            if s in splits)  # fmt: skip
        single = ": a single source, so there will be no score" if {*splits} == {"train"} else ""
        return f"{counts}{single}"
    return (
        f"{len(parts[0])} pairs are few: each is held out once, by {len(parts) - 1} trainings; one "
        "more, on all of them, is the model"
    )


def train_part(
    folder: Path,
    examined: Examined,
    split_of: Mapping[str, str],
    base: str,
    options: argparse.Namespace,
    steps: int | None = None,
    changed: Sequence[str] = (),
) -> tuple[dict[str, Any], list[choices.Choice]]:
    """Build the records of one training in `folder` and train there; return (card, settings).

    What is finished is left as it is.

    Args:
        steps: updates, instead of those of the options.
        changed: names of pairs that half of what is trained on are.
    """
    table, again = folder / "data" / "pairs.csv", folder / "data" / "changed.csv"
    pairs.write_table(table, examined.kept, split_of)
    card = built(table, examined.data, options)
    anew = [s for s in examined.kept if s.name in changed and split_of[s.name] == "train"]
    more = 0
    if anew:
        pairs.write_table(again, anew, split_of)
        more = built(again, examined.data, options, name=CHANGED)["splits"]["train"]
    config, settings = config_of(folder, examined.data, card, more, base, options, steps)
    for choice in settings:
        print(f"  {choice.field} = {choice.value}: {choice.why}")
    train(config, folder)
    return card, settings


def built(
    table: Path, data: choices.Data, options: argparse.Namespace, name: str | None = None
) -> dict[str, Any]:
    """Build the records of a table beside it; return their card."""
    parser = cli.Parser()
    Micrographs.add_options(parser)
    side, _ = choices.patch_side(data.shapes)
    flags = {
        "source": options.images,
        "table": table,
        "name": name,
        "patch": side,
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
    return common.build(dataset, table.parent, max_skipped=EVERYTHING)[0]


def config_of(
    folder: Path,
    data: choices.Data,
    card: Mapping[str, Any],
    more: int,
    base: str,
    options: argparse.Namespace,
    steps: int | None,
) -> tuple[Config, list[choices.Choice]]:
    """Return (the config of a training, the settings that the rules have chosen).

    Args:
        card: of the records.
        more: records of the pairs that changed, which are trained on once more.
    """
    recipe, variant = RECIPES[options.task]
    config = read_recipe(find_recipe(recipe), variant)
    selects = "val" in card["splits"] and "test" in card["splits"]
    model, same_task = base_model(BASE if base == "none" and not variant else base, options.task)
    config.seed = options.seed
    config.log_every = 20
    if model:
        with config.ignore_type():
            config.model = {name: v for name, v in model.items() if name != "out_channels"}
    config.data.dir = str(folder / "data")
    config.data.train = ("micrographs", "train")
    if more:
        parts = [("micrographs", "train", 1.0), (f"micrographs/{CHANGED}", "train", 1.0)]
        with config.ignore_type():
            config.data.train = tuple(parts)
    config.data.evals = {"val": ("micrographs", "val" if "val" in card["splits"] else "train")}
    if base != "none":
        keeps_head = data.foreground is None or (same_task and data.classes == 2)
        config.initialise.workdir = base
        config.initialise.fresh = () if keeps_head else ("head/.*",)
    settings = choices.choose(
        data,
        platform=jax.default_backend(),
        has_base=base != "none" and same_task,
        steps=steps or options.steps,
        divisor=build_abstract(generator_of(config)).divisor,
        selects=selects,
    )
    choices.apply(config, settings, card["splits"]["train"] + more)
    if (folder / "config.json").exists():  # it goes on as it was begun, also on another device
        config = read_recipe(folder / "config.json", None)
    return config, settings


def base_model(base: str, task: str) -> tuple[dict[str, Any], bool]:
    """Return (the field `model` of a base, whether it was trained for `task`); {} of none.

    Raises: InputError if the base is no model.
    """
    if base == "none":
        return {}, False
    path = saved.inside(base) / "config.json"
    try:
        config = json.loads(path.read_text())
        return dict(config["model"]), config.get("task") == task
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"--base={base}: expected a model, the workdir of a run, one of "
            f"{', '.join(pretrained.DIGESTS)}, none or auto; {path}: {error}"
        ) from None


def better_base(
    examined: Examined, split_of: Mapping[str, str], options: argparse.Namespace, folder: Path
) -> str:
    """Return the base, of BASE and none, whose validation score is better after a short training.

    Raises: UsageError if there is no validation.
    """
    if "val" not in split_of.values():
        raise UsageError("--base=auto: no image is left to choose by; name a base, or none")
    steps = max(1, (options.steps or choices.updates(jax.default_backend())) // TRIAL)
    best: dict[str, float] = {}
    for base, name in ((BASE, "trained"), ("none", "random")):
        train_part(folder / name, examined, split_of, base, options, steps)
        run = read_run(folder / name, folder)
        best[base] = run.sign * max(run.sign * row[run.score] for row in run.evaluations)
    sign = run.sign
    chosen = max(best, key=lambda base: sign * best[base])
    tried = ", ".join(f"{base} {value:.4f}" for base, value in best.items())
    print(f"--base=auto takes {chosen}: after {steps} updates each, {run.score}: {tried}")
    return chosen


def scored(
    folder: str | Path, held: Sequence[Source], read_options: ReadOptions
) -> list[finetuning.Scored]:
    """Return the scores of `held` by the model of `folder`, plane by plane."""
    if not held:
        return []
    model = finetuning.Predictor(folder)
    found = []
    for source in held:
        for number, plane in enumerate(pairs.read(source, read_options)):
            name = f"{source.image.name}, plane {number}" if number else source.image.name
            found.append(finetuning.score(model, name, plane.micrograph, plane.target))
    return found


def corrected(earlier: Earlier, out: Path) -> list[dict[str, str]]:
    """Return a row for each pair that changed since: in how many pixels its target did."""
    old, new = masks_of(earlier.folder), masks_of(out)
    rows = []
    for name in earlier.changed:
        parts = [key for key in new if key == name or key.startswith(f"{name}_")]
        both = [key for key in parts if key in old and old[key].shape == new[key].shape]
        differs = sum(int((old[key] != new[key]).sum()) for key in both)
        total = sum(new[key].size for key in both)
        what = f"changed in {100 * differs / total:.2g} % of its pixels" if both else "new"
        rows.append({"pair": name, "": what if parts else "left out"})
    return [*rows, *({"pair": name, "": "no longer there"} for name in earlier.gone)]


def masks_of(folder: Path) -> dict[str, np.ndarray]:
    """Return {name of a record: its target} of a finetuning's records."""
    found: dict[str, np.ndarray] = {}
    for split in SPLITS:
        if has_split(folder / "data", "micrographs", split):
            records = open_records(folder / "data", "micrographs", split)
            (target,) = records.card["targets"]
            for index in range(len(records.source)):
                record = records.source[index]
                name = record["name"]
                found[name.decode() if isinstance(name, bytes) else str(name)] = record[target]
    return found


def report(
    out: Path,
    examined: Examined,
    listing: Listing,
    runs: Mapping[str, Run],
    scores: Sequence[finetuning.Scored],
    settings: Sequence[choices.Choice],
    begun: Mapping[str, Any],
    options: argparse.Namespace,
    notes: Sequence[str],
    summary: str,
    corrections: Sequence[Mapping[str, str]],
) -> None:
    """Write the page, the record and the scores of the model's card; print the summary."""
    labels = [
        (
            {"file": f.name, "": "left out" if f.certain else "doubtful", "what": f.text},
            examined.shown.get(f.name, []),
        )
        for f in examined.findings
    ]
    facts = finetuning.Facts(
        title=f"{out.name}: a finetuned model",
        base="" if begun["base"] == "none" else begun["earlier"] or begun["base"],
        task=options.task,
        pairs=len(examined.kept),
        choices=[{"setting": c.field, "value": str(c.value), "why": c.why} for c in settings],
        labels=labels,
        notes=[*listing.notes, *notes],
        corrections=corrections,
    )
    html = finetuning.render(facts, runs, scores, summary=summary)
    write_atomically(out / "report.html", html.encode())
    middle = finetuning.interval_of(scores)
    record = {
        **begun,
        "score": {
            name: None if np.isnan(value) else value for name, value in middle._asdict().items()
        },
        "images": {s.name: {"score": s.score, "found": s.found, "drawn": s.drawn} for s in scores},
        "findings": [f._asdict() for f in examined.findings],
    }
    write_atomically(out / RECORD, json.dumps(record, indent=1).encode())
    saved.annotate(out / "model", {"held_out": summary})
    print(f"\n{summary}")
    print(f"{out / 'report.html'}\nemjax predict --model={out} FILE_OR_FOLDER")


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
