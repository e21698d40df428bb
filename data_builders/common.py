"""What all datasets share: their interface, splits by source, and building as a whole or not."""

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import emjax
from data_builders import tfds_patches
from data_builders.writer import VERSION, Count, Record, Skipped, Writer, check_unusable_share
from emjax.config import SPLITS
from emjax.errors import InputError
from emjax.files import check_writable, lock_folder

Thing = TypeVar("Thing")

ALL = range(sys.maxsize)  # units of a dataset
TARGETS = ("mask", "denoised", "background_removed", "superresolved")
FEW = 10  # sources: with fewer, a tenth is none
LIBRARIES = (
    *("numpy", "tensorflow-datasets", "array_record"),
    *("tifffile", "imagecodecs", "h5py", "mrcfile", "zarr"),
)

# The share of images that may be unusable before a build stops: a few broken ones happen in any
# collection; at half of the smallest split (10 %) something is wrong with all of it, such as an
# interrupted download or another folder.
MAX_SKIPPED = 0.05


class About(NamedTuple):
    """Where a dataset comes from, for its card."""

    title: str
    licence: str
    citation: str
    address: str  # where people find its files


class Contents(NamedTuple):
    """What is known of a dataset's records before they are written."""

    splits: dict[str, int]  # expected records of each split that has any
    dtype: str  # of the image and its restoration targets: uint8, uint16 or float32
    shape: tuple[int, int] | None  # h, w; None where they vary
    targets: tuple[str, ...]
    range_rule: str
    units: int  # parts that the argument `units` of records() picks from
    left_out: list[tuple[str, str]]  # path, reason: by the rules of the dataset
    unusable: Sequence[tuple[str, str]] = ()  # path, reason: unreadable, constant, of a wrong size
    images: int = 0  # that should be usable, `unusable` among them
    notes: Sequence[str] = ()  # for the card
    dropped: dict[str, int] = {}  # reason: records that are good but of no use, in no split
    pictures: dict[str, bytes] = {}  # name: PNG, written next to the card


class Dataset(Protocol):
    """What a dataset must have to be built.

    `options` and `files_sha256` are what it is built from: the same two give the same records.
    """

    about: About
    other_name: str  # the flag that builds it elsewhere, for errors: --data_dir or --name
    folder: str  # below --data_dir
    options: dict[str, Any]  # JSON
    files_sha256: str

    def prepare(self) -> Contents:
        """Return what the records will be."""
        ...

    def records(self, split: str, units: range = ALL) -> Iterator[Record | Skipped | Count]:
        """Yield the records of `split` as writer.features describes them, one in memory at a time.

        Where a record cannot be made, a Skipped comes instead; a Count is counted for the card.
        Nothing is kept from one call to the next.

        Args:
            units: only of those files, or other things read at once, with an index in this range.
        """
        ...


class Builder(Protocol):
    """A class of Datasets; `--help` prints its docstring."""

    def __call__(self, options: argparse.Namespace) -> Dataset:
        """Return the Dataset, after listing and hashing its files; quick.

        Args:
            options: the flags; `options.dataset` is the name on the command line.

        Raises: UsageError or InputError for what cannot be built.
        """
        ...

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Add the dataset's own flags to `parser`; a static method."""
        ...


@runtime_checkable
class Counting(Protocol):
    """A Dataset that yields Counts."""

    def notes(self, counts: Counter[str], records: int) -> list[str]:
        """Return notes for the card.

        Args:
            counts: how often each Count came.
            records: number of records written.
        """
        ...


class MakeWriter(Protocol):
    """A function that returns a Writer, such as the class Writer."""

    def __call__(
        self, dataset: Dataset, contents: Contents, *, data_dir: Path, max_skipped: float
    ) -> Writer: ...


def within(units: range, iterable: Iterable[Thing]) -> Iterator[Thing]:
    """Return an iterator over those elements of `iterable` with an index in the range `units`."""
    return itertools.islice(iterable, units.start, units.stop)


def by_hash(names: Iterable[str]) -> list[str]:
    """Return the different `names`, ordered by their SHA-256.

    The order knows nothing of the names' meaning and stays the same on every machine.
    """
    return sorted(set(names), key=lambda name: hashlib.sha256(name.encode()).digest())


def split_by_source(sources: Iterable[str]) -> dict[str, str]:
    """Return {source: split}: in the order by_hash, 70 % train, 10 % val, the rest test.

    Of fewer than ten, val gets one, then test. A single source goes to train.
    """
    ordered = by_hash(sources)
    most = max(1, len(ordered) - 2)  # leaves one for val and one for test
    train = min(max(1, 7 * len(ordered) // 10), most)
    val = train + max(1, len(ordered) // 10)
    return {
        source: "train" if index < train else "val" if index < val else "test"
        for index, source in enumerate(ordered)
    }


def few_sources(split_of: Mapping[str, str]) -> list[str]:
    """Return a note on how fewer than ten sources were split, else none.

    Args:
        split_of: what split_by_source returns.
    """
    if len(split_of) >= FEW:
        return []
    counts = Counter(split_of.values())
    listed = ", ".join(f"{split} {counts[split]}" for split in SPLITS)
    return [
        f"{len(split_of)} source{'s' if len(split_of) > 1 else ''} to split: {listed}; scores of "
        "so few depend on which they are: train on several splits (cross-validation, "
        "docs/how-to/use-your-own-data.md)"
    ]


def file_sha256(path: str | Path) -> str:
    """Return the hex SHA-256 of the content of the file at `path`."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(files: Iterable[tuple[str, str | Path]]) -> str:
    """Return the hex SHA-256 over (label, content) of `files`, which are (label, path)."""
    total = hashlib.sha256()
    for label, path in sorted(files):
        content = b"missing"
        if Path(path).is_file():
            content = bytes.fromhex(file_sha256(path))
        total.update(label.encode() + b"\0" + content + b"\0")
    return total.hexdigest()


def build(
    dataset: Dataset,
    data_dir: str | Path,
    *,
    max_skipped: float = MAX_SKIPPED,
    make_writer: MakeWriter = Writer,
) -> tuple[dict[str, Any], bool]:
    """Build the records of `dataset` below `data_dir`; return (card, whether it existed already).

    The records are written to a hidden folder and moved to the final one when they are complete, so
    a folder that exists is finished. What a killed build left is removed by the next.

    Args:
        max_skipped: the share of the images, 0 to 1, that may be unusable.
        make_writer: data_builders.beam has another.

    Raises: InputError if too many images are unusable or the records cannot be written, UsageError
        if the installed TFDS does not fit.
    """
    home = Path(data_dir) / dataset.folder
    final = home / VERSION
    with disk_errors(home):
        if final.exists():
            return _existing(dataset, home), True
        check_writable(home)
    tfds_patches.check()  # before a day of reading
    contents = dataset.prepare()
    check_unusable_share(dataset, contents.unusable, contents.images, max_skipped)
    made = [folder for folder in (home, *home.parents) if not folder.exists()]
    try:
        with disk_errors(home):
            home.mkdir(parents=True, exist_ok=True)
            with lock_folder(home, "it is being built; wait for that"):
                if final.exists():  # another build finished while this one was reading
                    return _existing(dataset, home), True
                _write(dataset, contents, home, max_skipped, make_writer)
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):  # not empty: of another build
                folder.rmdir()
        raise
    return read_card(home), False


def _write(
    dataset: Dataset, contents: Contents, home: Path, max_skipped: float, make_writer: MakeWriter
) -> None:
    """Write the records and the card to a hidden folder of `home`, then move them into `home`."""
    for leftover in home.glob(".building-*"):
        shutil.rmtree(leftover)
    partial = home / f".building-{os.getpid()}"
    try:
        partial.mkdir()
        writer = make_writer(dataset, contents, data_dir=partial, max_skipped=max_skipped)
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
def disk_errors(home: str | Path) -> Iterator[None]:
    """Raise InputError, in one line, if the disk did not take what was written to `home`."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # array_record reports it by a RuntimeError.
        failed_call = re.search(r"\b\w+\(\) failed: ([^;]+)", str(error))
        if failed_call:
            reason = failed_call[1]
        elif isinstance(error, OSError):
            reason = error.strerror or error
        else:
            raise
        raise InputError(
            f"{home}: {reason}; expected a folder to write to, with room for the records"
        ) from None


def _card(dataset: Dataset, contents: Contents, writer: Writer) -> dict[str, Any]:
    """Return the card.json of the records that `writer` has written."""
    known = contents._asdict()
    del known["pictures"], known["units"]
    unusable = [*known.pop("unusable"), *writer.unusable]
    splits = {split: info.num_examples for split, info in writer.info.splits.items()}
    notes = list(contents.notes)
    if isinstance(dataset, Counting):
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


def read_card(home: str | Path) -> dict[str, Any]:
    """Return the card.json of the dataset in `home`; a build writes it last.

    Raises: InputError if there is none.
    """
    path = Path(home) / VERSION / "card.json"
    if not path.is_file():
        raise InputError(
            f"{path.parent} was not written by data_builders.build: it has no card.json"
        )
    return json.loads(path.read_text())


def _existing(dataset: Dataset, home: Path) -> dict[str, Any]:
    """Return the card of what is in `home`.

    Raises: InputError if it was built from other options or files than `dataset` has.
    """
    card = read_card(home)
    old = {**card["options"], "files": card["files_sha256"][:12]}
    new = {**json.loads(json.dumps(dataset.options)), "files": dataset.files_sha256[:12]}
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if changed:

        def described(values: Mapping[str, Any]) -> str:
            return ", ".join(f"{key}={values.get(key, 'none')}" for key in changed)

        raise InputError(
            f"{home} exists, built with {described(old)}; this call has {described(new)}. "
            f"Choose another {dataset.other_name} or delete it."
        )
    return card
