"""Records of a finetuning, built from its pairs, and how those of the round before differ."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_builders import common
from data_builders.micrographs import Micrographs, pairs
from emjax import cli
from emjax.data.records import open_records
from emjax.finetuning.options import Options
from emjax.finetuning.rounds import Earlier
from emjax.training import choices

DATASET = "micrographs"  # of OUT/data
EVERYTHING = 1.0  # share of the images that a build may leave out: they were examined before
PLANE, PATCH = r"_[zyx]\d{4,}", r"_y\d{4,}x\d{4,}"
PLACES = ("", PATCH, PLANE, PLANE + PATCH)  # of a record, at the end of its name


def built(
    data: Path, shapes: Sequence[tuple[int, int]], rule: str, options: Options
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
