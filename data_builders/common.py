"""What all datasets share: the record's features, splits by source, and building in one piece.

A dataset is a class with
    add_options(parser)    its own flags (static)
    __init__(options)      refuses what cannot be, lists and hashes its files; quick
    folder                 where it lies below --data_dir
    options, files_sha256  what it is built from; the same two, the same records
    prepare() -> Contents  reads every file once
    records(split)         yields records as features() describes them, one in memory at a time
"""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

import emjax
from emjax.errors import BadInput

TARGETS = ("mask", "denoised", "background_removed", "superresolved")
SPLITS = ("train", "val", "test")
VERSION = "1.0.0"


class About(NamedTuple):
    """Where a dataset comes from, for its card."""

    title: str
    licence: str
    citation: str
    address: str  # where its files are, for people


class Contents(NamedTuple):
    """What is known of a dataset's records before they are written."""

    splits: dict[str, int]  # records in each split that has any
    dtype: str  # of the image and its restoration targets: uint8, uint16 or float32
    shape: tuple[int, int] | None  # h, w; None where they vary
    targets: tuple[str, ...]
    range_rule: str
    left_out: list[tuple[str, str]]  # path, reason


def features(dtype, shape, targets):
    """The features of a record; raw bytes, as PNG saves nothing on noise and reads slowly."""

    def image(dtype):
        return tfds.features.Tensor(
            shape=(*(shape or (None, None)), 1), dtype=np.dtype(dtype).type, encoding="bytes"
        )

    return tfds.features.FeaturesDict(
        {
            "image": image(dtype),
            **{target: image("uint8" if target == "mask" else dtype) for target in targets},
            "intensity_range": tfds.features.Tensor(shape=(2,), dtype=np.float32),
            "nm_per_pixel": tfds.features.Tensor(shape=(2,), dtype=np.float32),
            "name": tfds.features.Text(),
            "source": tfds.features.Text(),
            "index": np.int32,
        }
    )


def split_by_source(sources):
    """{source: split}: 70 % train, 10 % val, the rest test, by the SHA-256 of the source's name.

    Its order knows nothing of the names' meaning and stays the same on every machine. A single
    source goes to train.
    """
    ordered = sorted(set(sources), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    train = max(1, 7 * len(ordered) // 10)
    val = train + len(ordered) // 10
    return {
        source: "train" if place < train else "val" if place < val else "test"
        for place, source in enumerate(ordered)
    }


def sha256_of(files):
    """Hex SHA-256 over (label, content) of `files`, an iterable of (label, path)."""
    total = hashlib.sha256()
    for label, path in sorted(files):
        content = b"missing"
        if Path(path).is_file():
            with open(path, "rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
        total.update(label.encode() + b"\0" + content + b"\0")
    return total.hexdigest()


def build(dataset, data_dir):
    """(card, whether it was there already) of the records of `dataset` below `data_dir`.

    The records are written to a hidden folder and moved to their place when they are complete, so
    a folder that is there is finished. What a killed build left is removed by the next.
    """
    home = Path(data_dir) / dataset.folder
    final = home / VERSION
    if final.exists():
        return _same_or_refused(dataset, home), True
    contents = dataset.prepare()
    made = [folder for folder in (home, *home.parents) if not folder.exists()]
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{home}: {error.strerror}; a folder to write to was due") from None
    try:
        with _alone_in(home):
            if final.exists():  # another build finished while this one was reading
                return _same_or_refused(dataset, home), True
            for leftover in home.glob(".building-*"):
                shutil.rmtree(leftover)
            partial = home / f".building-{os.getpid()}"
            try:
                _Writer(dataset, contents, data_dir=partial).write()
                card = {
                    "name": dataset.folder,
                    "options": dataset.options,
                    "files_sha256": dataset.files_sha256,
                    **contents._asdict(),
                    "emjax": emjax.__version__,
                }
                written = partial / _Writer.name / VERSION
                (written / "card.json").write_text(json.dumps(card, indent=2) + "\n")
                written.rename(final)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):  # not empty: somebody else's
                folder.rmdir()
        raise
    return read_card(home), False


def read_card(home):
    """The card.json of the dataset in `home`, which a build wrote last of all."""
    path = Path(home) / VERSION / "card.json"
    if not path.is_file():
        raise BadInput(f"{path.parent} was not written by data_builders.build: it has no card.json")
    return json.loads(path.read_text())


def _same_or_refused(dataset, home):
    card = read_card(home)
    old = {**card["options"], "files": card["files_sha256"][:12]}
    new = {**json.loads(json.dumps(dataset.options)), "files": dataset.files_sha256[:12]}
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if changed:

        def told(values):
            return ", ".join(f"{key}={values.get(key, 'none')}" for key in changed)

        raise BadInput(
            f"{home} exists, built with {told(old)}; this call has {told(new)}. "
            f"Choose another {dataset.other_name} or delete it."
        )
    return card


@contextlib.contextmanager
def _alone_in(folder):
    """Hold the lock of `folder`; it falls with this process, so a killed build blocks nobody."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise BadInput(f"{folder} is being built by another call; wait for it") from None
    finally:
        os.close(handle)


class _Writer(tfds.core.GeneratorBasedBuilder):
    """Writes ArrayRecord shards with TFDS; TensorFlow is not needed."""

    name = "records"
    VERSION = tfds.core.Version(VERSION)

    def __init__(self, dataset, contents, *, data_dir):
        self.dataset, self.contents = dataset, contents
        super().__init__(data_dir=data_dir, file_format="array_record")

    def write(self):
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):  # it tells of a download and of our folder
            self.download_and_prepare(download_dir=Path(self._data_dir_root) / "downloads")

    def _info(self):
        dtype, shape, targets = self.contents.dtype, self.contents.shape, self.contents.targets
        return tfds.core.DatasetInfo(builder=self, features=features(dtype, shape, targets))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.contents.splits}

    def _generate_examples(self, split):
        # TFDS orders the records of a split by a hash of this key: train[:n] is a random subset.
        for record in self.dataset.records(split):
            yield int(record["index"]), record
