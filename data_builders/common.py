"""What all datasets share: how they are described, splits by source, building in one piece.

A dataset is a class with
    about                  where it comes from
    add_options(parser)    its own flags (static)
    __init__(options)      refuses what cannot be, lists and hashes its files; quick.
                           options.dataset is the name it was asked for by
    folder                 where it lies below --data_dir
    options, files_sha256  what it is built from; the same two, the same records
    prepare() -> Contents  finds out what the records will be
    records(split, units)  yields records as writer.features() describes them, one in memory at a
                           time, a writer.LeftOut in place of a record that cannot be, or a
                           writer.Count. Only of those files, or what else is read in one go, whose
                           places are in the range `units` (default ALL); keeps nothing
    notes(counts, records) only where records() yields a Count: notes for the card, from a Counter
                           of what was counted and the number of records written
"""

import contextlib
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import emjax
from data_builders.writer import VERSION, Writer, check_unusable_share
from emjax.errors import InputError
from emjax.files import lock_folder

ALL = range(sys.maxsize)  # units of a dataset
TARGETS = ("mask", "denoised", "background_removed", "superresolved")
SPLITS = ("train", "val", "test")
LIBRARIES = (
    *("numpy", "tensorflow-datasets", "array_record"),
    *("tifffile", "imagecodecs", "h5py", "mrcfile", "zarr"),
)

# The share of images that may be unusable before a build stops: a few broken ones happen in any
# collection; at half of the smallest split (10 %) something is wrong with all of it, such as a
# download that broke off or another folder.
LEFT_OUT_SHARE = 0.05


class About(NamedTuple):
    """Where a dataset comes from, for its card."""

    title: str
    licence: str
    citation: str
    address: str  # where its files are, for people


class Contents(NamedTuple):
    """What is known of a dataset's records before they are written."""

    splits: dict[str, int]  # records due in each split that has any
    dtype: str  # of the image and its restoration targets: uint8, uint16 or float32
    shape: tuple[int, int] | None  # h, w; None where they vary
    targets: tuple[str, ...]
    range_rule: str
    units: int  # what records() can be told to take a part of
    left_out: list[tuple[str, str]]  # path, reason: by the rules of the dataset
    unusable: Sequence[tuple[str, str]] = ()  # path, reason: unreadable, constant, of a wrong size
    images: int = 0  # that should be usable, `unusable` among them
    notes: Sequence[str] = ()  # for the card
    dropped: dict[str, int] = {}  # reason: records that are good but of no use, in no split
    pictures: dict[str, bytes] = {}  # name: PNG, written beside the card


def within(units, iterable):
    """Those things of `iterable` whose places are in the range `units`."""
    return itertools.islice(iterable, units.start, units.stop)


def by_hash(names):
    """The different `names`, ordered by their SHA-256.

    The order knows nothing of the names' meaning and stays the same on every machine.
    """
    return sorted(set(names), key=lambda name: hashlib.sha256(name.encode()).digest())


def split_by_source(sources):
    """{source: split}: in the order by_hash, 70 % train, 10 % val, the rest test.

    A single source goes to train.
    """
    ordered = by_hash(sources)
    train = max(1, 7 * len(ordered) // 10)
    val = train + len(ordered) // 10
    return {
        source: "train" if place < train else "val" if place < val else "test"
        for place, source in enumerate(ordered)
    }


def file_sha256(path):
    """Hex SHA-256 of the content of the file at `path`."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(files):
    """Hex SHA-256 over (label, content) of `files`, an iterable of (label, path)."""
    total = hashlib.sha256()
    for label, path in sorted(files):
        content = b"missing"
        if Path(path).is_file():
            content = bytes.fromhex(file_sha256(path))
        total.update(label.encode() + b"\0" + content + b"\0")
    return total.hexdigest()


def build(dataset, data_dir, *, left_out=LEFT_OUT_SHARE, writer=Writer):
    """(card, whether it was there already) of the records of `dataset` below `data_dir`.

    The records are written to a hidden folder and moved to their place when they are complete, so
    a folder that is there is finished. What a killed build left is removed by the next. `writer`
    makes the Writer; data_builders.beam has another.

    Raises: InputError if more than the share `left_out` of the images cannot be used, or the
        records cannot be written.
    """
    home = Path(data_dir) / dataset.folder
    final = home / VERSION
    with disk_errors(home):
        if final.exists():
            return _same_or_refused(dataset, home), True
    contents = dataset.prepare()
    check_unusable_share(dataset, contents.unusable, contents.images, left_out)
    made = [folder for folder in (home, *home.parents) if not folder.exists()]
    try:
        with disk_errors(home):
            home.mkdir(parents=True, exist_ok=True)
            with lock_folder(home, "it is being built; wait for that"):
                if final.exists():  # another build finished while this one was reading
                    return _same_or_refused(dataset, home), True
                _write(dataset, contents, home, left_out, writer)
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):  # not empty: somebody else's
                folder.rmdir()
        raise
    return read_card(home), False


def _write(dataset, contents, home, left_out, make_writer):
    """Write the records and the card to a hidden folder of `home`, and move them to their place."""
    for leftover in home.glob(".building-*"):
        shutil.rmtree(leftover)
    partial = home / f".building-{os.getpid()}"
    try:
        partial.mkdir()
        writer = make_writer(dataset, contents, data_dir=partial, share=left_out)
        writer.write()
        written = partial / Writer.name / VERSION
        card = json.dumps(_card(dataset, contents, writer), indent=2)
        (written / "card.json").write_text(card + "\n")
        for name, png in contents.pictures.items():
            (written / name).write_bytes(png)
        written.rename(home / VERSION)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def disk_errors(home):
    """Tell in one line that the disk did not take what was written to `home`."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # array_record says it by a RuntimeError.
        said = re.search(r"\b\w+\(\) failed: ([^;]+)", str(error))
        if not isinstance(error, OSError) and not said:
            raise
        reason = said[1] if said else error.strerror or error
        raise InputError(
            f"{home}: {reason}; a folder to write to, with room for the records, was due"
        ) from None


def _card(dataset, contents, writer):
    """What card.json says of the records that `writer` has written."""
    known = contents._asdict()
    del known["pictures"], known["units"]
    unusable = [*known.pop("unusable"), *writer.unusable]
    splits = {split: info.num_examples for split, info in writer.info.splits.items()}
    notes = list(contents.notes)
    if hasattr(dataset, "notes"):
        notes += dataset.notes(writer.counts, sum(splits.values()))
    return {
        "name": dataset.folder,
        "about": dataset.about._asdict(),
        "options": dataset.options,
        "files_sha256": dataset.files_sha256,
        **known,
        "splits": splits,
        "left_out": sorted([*known["left_out"], *unusable]),
        "unusable": len(unusable),
        "notes": notes,
        "nm_per_pixel": writer.pixel_sizes(),
        "near_duplicates": writer.near_duplicates(),
        "versions": emjax.versions(LIBRARIES) | {"python": platform.python_version()},
    }


def read_card(home):
    """The card.json of the dataset in `home`, which a build wrote last of all."""
    path = Path(home) / VERSION / "card.json"
    if not path.is_file():
        raise InputError(
            f"{path.parent} was not written by data_builders.build: it has no card.json"
        )
    return json.loads(path.read_text())


def _same_or_refused(dataset, home):
    card = read_card(home)
    old = {**card["options"], "files": card["files_sha256"][:12]}
    new = {**json.loads(json.dumps(dataset.options)), "files": dataset.files_sha256[:12]}
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if changed:

        def told(values):
            return ", ".join(f"{key}={values.get(key, 'none')}" for key in changed)

        raise InputError(
            f"{home} exists, built with {told(old)}; this call has {told(new)}. "
            f"Choose another {dataset.other_name} or delete it."
        )
    return card
