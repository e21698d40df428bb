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
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_builders.micrographs import pairs
from data_builders.micrographs.reading import ReadOptions, foreground_of
from emjax import cli, micrographs
from emjax.config import RANGES, advice
from emjax.errors import UsageError, choose, note
from emjax.files import write_atomically
from emjax.finetuning import page, records, rounds, scores, trainings
from emjax.finetuning.bases import BASES, Base, base_of, model_without_training, start_of
from emjax.finetuning.examination import Examined, examine
from emjax.finetuning.options import AUTO, NONE, Options
from emjax.finetuning.trainings import RECIPES, Part
from emjax.models import saved
from emjax.parallel import devices
from emjax.runs.run import Run, read_run


@cli.command
def main(arguments: Sequence[str]) -> int:
    """Finetune; returns 0."""
    options = parse(arguments)
    devices.keep_memory()
    devices.keep_compiled()
    out = options.out
    rounds.check_out(out, options.told())
    base = base_of(BASES[options.task][0] if options.base == AUTO else options.base, options)
    listing = pairs.find(
        options.images, options.targets or options.images, options.table, options.target
    )
    print(f"{len(listing.sources)} pairs of an image and a {options.target}")
    examined = examine(listing, base, options)
    trainings.check_divisible(examined.checked, options)
    base = examined.in_a_range_that_fits(base)
    record = rounds.begin(out, options.told(), pairs.digests(listing.sources))
    with rounds.hold(out):
        complete(record, base, listing.notes, examined, options)
    return 0


def complete(
    record: dict[str, Any],
    base: Base,
    notes: Sequence[str],
    examined: Examined,
    options: Options,
) -> None:
    """Train what is not trained yet, score it, and write the report and the finished record.

    Args:
        notes: of the list of pairs.
    """
    out, checked = options.out, examined.checked
    earlier = rounds.earlier_of(record)
    splits = trainings.divide(checked, earlier.splits if earlier else None)
    across = pairs.across(checked.kept, checked.cluster_of)
    for line in across:
        note(options.table, line)
    print(page.divided_in_words(splits))
    if options.base == AUTO:
        # Chosen before this run was stopped, or in the round before.
        chosen = record.get("base") or (earlier and rounds.read_record(earlier.folder).get("base"))
        if chosen:
            base = base_of(chosen, options)
        else:
            base = trainings.better_base(checked, splits[0], options, out / "trials")
        record["base"] = base.name
        rounds.write_record(out, record)

    start = start_of(base, earlier, splits, options)
    parts = [Part(out / "folds" / str(n), each, base) for n, each in enumerate(splits[:-1], 1)]
    parts.append(Part(out, splits[-1], start))
    without = model_without_training(parts[0].start, options)
    scored: list[scores.Scored] = []
    untrained: list[scores.Scored] = []  # by what is there without finetuning
    runs: dict[str, Run] = {}
    card_notes: list[str] = []
    for part in parts:
        continues = earlier and part.folder == out and start is not base
        changed = earlier.changed if earlier and continues else []
        card_notes = trainings.train_part(part, checked, options, changed=changed)
        name = "all pairs" if part.folder == out else f"part {part.folder.name}"
        runs["the model" if len(parts) == 1 else name] = read_run(part.folder, out)
        held = [s for s in checked.kept if part.split_of[s.name] == rounds.held_out(part.split_of)]
        scored += scores.scored(part.folder, held, options.reading)
        if without:
            untrained += scores.scored(without, held, options.reading)

    chose = {name for name, split in splits[0].items() if split == "val"}
    summary = page.in_words(
        scored,
        chose_the_base=chose if options.base == AUTO else set(),
        is_mask=options.is_mask,
        folds=len(parts) - 1,
        before={without.name if isinstance(without, Path) else str(without): untrained}
        if untrained
        else {},
    )
    facts = page.Facts(
        title=f"{out.name}: a finetuned model",
        base=start.name,
        task=options.task,
        pairs=len(checked.kept),
        settings=json.loads((out / trainings.SETTINGS).read_text()),
        labels=examined.labels(),
        notes=[*notes, *across, *card_notes],
        corrections=records.corrected(earlier, out, options.images) if earlier else [],
    )
    html = page.render(facts, runs, scored, summary=summary)
    write_atomically(out / "report.html", html.encode())
    saved.annotate(out / "model", {"held_out": summary})
    middle = scores.interval_of(scored)._asdict()
    record |= {
        "base": base.name,
        "splits": splits[0] if len(splits) == 1 else None,
        "continued": start is not base,
        "finished": True,
        "score": {name: None if np.isnan(value) else value for name, value in middle.items()},
        "images": {s.name: {"score": s.score, "found": s.found, "drawn": s.drawn} for s in scored},
        "findings": [one._asdict() for one in checked.findings],
    }
    rounds.write_record(out, record)
    print(f"\n{summary}")
    print(f"{out / 'report.html'}\nemjax predict --model={out} FILE_OR_FOLDER")


def parse(arguments: Sequence[str]) -> Options:
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
    given = parser.parse_args(arguments)
    choose("task", given.task, RECIPES)
    by_default = given.base in (None, AUTO)
    given.base = given.base or rounds.base_of(given.out) or BASES[given.task][0]
    reading = ReadOptions(
        given.index,
        micrographs.LIMIT,
        foreground_of(given.foreground or "nonzero"),
        None,
        given.mrc_rows,
        given.channel,
        given.cut_banner,
        given.classes,
    )
    options = Options(**vars(given), by_default=by_default, reading=reading)
    if options.steps is not None and options.steps < 1:
        raise UsageError(f"--steps={options.steps}, expected at least 1")
    if not RANGES["seed"].holds(options.seed):
        raise UsageError(f"--seed={options.seed}, {advice('seed')}")
    if options.classes is not None and not 2 <= options.classes <= 255:
        raise UsageError(f"--classes={options.classes}, expected 2 to 255, the background too")
    if options.classes and options.foreground:
        raise UsageError("--classes and --foreground: expected one of them")
    if not options.is_mask and (options.foreground or options.classes):
        raise UsageError(
            f"--foreground and --classes are of masks, but the task is {options.task}; leave them "
            "out"
        )
    return options


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
