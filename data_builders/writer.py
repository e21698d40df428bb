"""Write records into ArrayRecord shards and collect the facts for the card."""

import array
import contextlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int

from data_builders import duplicates, tfds_patches
from emjax.errors import InputError

if TYPE_CHECKING:
    from data_builders.common import Contents, Dataset

VERSION = "1.0.0"
PAIRS_NAMED = 5  # near-duplicates of two splits that the card names

Record = dict[str, Any]  # as `features` describes it; arrays are NumPy's


class Skipped(NamedTuple):
    """A file, or a part of one, that cannot be used, and why."""

    path: str
    reason: str


class Count(NamedTuple):
    """Something that the card counts, such as a file dropped by a rule."""

    what: str


def features(
    dtype: str, shape: tuple[int, int] | None, targets: Iterable[str]
) -> tfds.features.FeaturesDict:
    """Return the features of a record.

    Images are raw bytes: PNG saves nothing on noise and reads slowly.

    Args:
        dtype: of the image and its restoration targets; masks are uint8.
        shape: (h, w) of all images, None where they vary.
    """

    def image(dtype: str) -> tfds.features.Tensor:
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


def check_unusable_share(
    dataset: "Dataset", unusable: Sequence[tuple[str, str]], images: int, max_skipped: float
) -> None:
    """Raise InputError if more than `max_skipped` of the `images` of a dataset are `unusable`.

    Args:
        unusable: (path, reason) of each.
        max_skipped: a share, 0 to 1.
    """
    if len(unusable) <= max_skipped * images:
        return
    first = "; ".join(f"{path}: {reason}" for path, reason in unusable[:3])
    rest = f"; and {len(unusable) - 3} more" if len(unusable) > 3 else ""
    raise InputError(
        f"{dataset.folder}: {len(unusable)} of {images} images cannot be used, over the "
        f"{max_skipped:.1%} that may be left out: {first}{rest}. "
        "Repair or remove them, or raise --left_out"
    )


class Writer(tfds.core.GeneratorBasedBuilder):
    """Write ArrayRecord shards with TFDS and remember the facts for the card.

    Its module's name is written into the data, so it must not move.

    Raises: UsageError if the installed TFDS does not fit data_builders.tfds_patches.
    """

    name = "records"
    VERSION = tfds.core.Version(VERSION)

    def __init__(
        self, dataset: "Dataset", contents: "Contents", *, data_dir: Path, max_skipped: float
    ) -> None:
        """Prepare to write `dataset` below `data_dir`; `max_skipped` as check_unusable_share."""
        tfds_patches.apply()
        self.dataset, self.contents, self.partial = dataset, contents, data_dir
        self.max_skipped = max_skipped
        self.unusable: list[tuple[str, str]] = []  # found while the records were written
        # One for each record of the first split; of the others, which are compared with it, eight.
        self.fingerprints = {split: array.array("Q") for split in contents.splits}
        self.sizes: list[float] = []  # nm per pixel: the smallest and the largest
        self.without_size = 0
        self.counts: Counter[str] = Counter()
        super().__init__(data_dir=data_dir, file_format="array_record")

    def write(self) -> None:
        """Write all records."""
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints a download and our folder
            self.download_and_prepare(download_dir=self.partial / "downloads")

    def _info(self) -> tfds_patches.Info:
        dtype, shape, targets = self.contents.dtype, self.contents.shape, self.contents.targets
        return tfds_patches.Info(builder=self, features=features(dtype, shape, targets))

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, Record]]]:
        return {split: self._generate_examples(split) for split in self.contents.splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, Record]]:
        yield from self.remembered(split, self.dataset.records(split))
        self._check_not_empty(split)

    def remembered(
        self, split: str, records: Iterable[Record | Skipped | Count]
    ) -> Iterator[tuple[int, Record]]:
        """Yield (key, record) of those of `records` that can be used, and remember them.

        TFDS orders the records of a split by a hash of the key: train[:n] is a random subset.
        """
        with open(self.partial / f"{split}.names", "w", encoding="utf-8") as names:
            for record in records:
                if isinstance(record, Skipped):
                    self._skip(record)
                elif isinstance(record, Count):
                    self.counts[record.what] += 1
                else:
                    self._remember(split, record, names)
                    yield int(record["index"]), record

    def _check_not_empty(self, split: str) -> None:
        if not self.fingerprints[split]:
            last = "".join(f"; {path}: {reason}" for path, reason in self.unusable[-1:])
            raise InputError(f"{self.dataset.folder}: nothing is left of the split {split}{last}")

    def _skip(self, skipped: tuple[str, str]) -> None:
        self.unusable.append(skipped)
        before, images = self.contents.unusable, self.contents.images
        if len(before) + len(self.unusable) > self.max_skipped * images:
            unusable = [*before, *self.unusable]
            check_unusable_share(self.dataset, unusable, images, self.max_skipped)

    def _remember(self, split: str, record: Record, names: TextIO) -> None:
        image = record["image"][..., 0]
        if split == next(iter(self.fingerprints)):
            self.fingerprints[split].append(duplicates.fingerprint(image))
        else:
            self.fingerprints[split].extend(duplicates.turned_fingerprints(image))
        names.write(json.dumps(record["name"]) + "\n")
        sizes = [float(size) for size in record["nm_per_pixel"] if np.isfinite(size)]
        self.without_size += not sizes
        if sizes:
            sizes += self.sizes
            self.sizes = [min(sizes), max(sizes)]

    def pixel_sizes(self) -> dict[str, Any]:
        """Return the smallest and largest nm per pixel, and the number of records without one."""
        return {"range": self.sizes, "unknown": self.without_size}

    def near_duplicates(self) -> list[dict[str, Any]]:
        """Return, for each pair of splits, how many records of the second resemble the first's.

        Flips and quarter turns of a record of the second count as the record.
        """
        pairs_of_splits = []
        turned = {split: np.array(kept, np.uint64) for split, kept in self.fingerprints.items()}
        for first, second in combinations(turned, 2):
            among = turned[first] if first == next(iter(turned)) else turned[first][::8]
            every = duplicates.look_alikes(of=turned[second], among=among).reshape(-1, 8)
            found = every[np.arange(len(every)), (every >= 0).argmax(axis=1)]
            alike = np.flatnonzero(found >= 0)[:PAIRS_NAMED]
            pairs = zip(self._names(first, found[alike]), self._names(second, alike), strict=True)
            pairs_of_splits.append(
                {
                    "splits": [first, second],
                    "records": int((found >= 0).sum()),
                    "of": len(found),
                    "first": [list(pair) for pair in pairs],
                }
            )
        return pairs_of_splits

    def _names(self, split: str, indices: Int[np.ndarray, " n"]) -> list[str]:
        """Return the names of the records of `split`, by their `indices` in order of writing."""
        names_of: dict[int, str] = dict.fromkeys(map(int, indices), "")
        with open(self.partial / f"{split}.names", encoding="utf-8") as names:
            for index, name in enumerate(names):
                if index in names_of:
                    names_of[index] = json.loads(name)
        return [names_of[int(index)] for index in indices]
