"""Records from TEM-ImageNet v1.3 and its multislice sibling: PNG folders paired by file stem."""

import argparse
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from data_builders import fetch
from data_builders.common import (
    ALL,
    SPLITS,
    About,
    Contents,
    sha256_of,
    split_by_source,
    within,
)
from data_builders.writer import Record
from emjax import micrographs
from emjax.errors import InputError, note

FOLDERS = {  # a record's feature and the folder it is read from
    "image": "image",
    "denoised": "noNoise",
    "background_removed": "noBackgroundnoNoise",
    "superresolved": "noNoiseNoBackgroundSuperresolution",
}
SIDE = 256
COMPLETE = 14364  # images of the complete set v1.3, 00001 to 14364
COMPLETE_MD5 = "34fc3dda6080f89bc90d49e36695cf24"  # of their stems, see stems_md5
CITATION = (
    "Lin, R., Zhang, R., Wang, C., Yang, X.-Q., Xin, H. L.: TEMImageNet training library and "
    "AtomSegNet deep-learning models for high-precision atom segmentation, localization, "
    "denoising, and deblurring of atomic-resolution images. Scientific Reports 11, 5386 (2021), "
    "doi 10.1038/s41598-021-84499-w"
)


class TEMImageNet:
    """Simulated ADF-STEM images and their three restoration targets, 256x256, 8 bits.

    Download it first: git clone https://github.com/xinhuolin/TEM-ImageNet-v1.3 (about 2 GB), or
    unzip .../archive/refs/heads/master.zip of that address. The folders read are image, noNoise
    (denoised), noBackgroundnoNoise (background_removed) and noNoiseNoBackgroundSuperresolution
    (superresolved). Images go 70 % to train, 10 % to val and 20 % to test by the SHA-256 of the
    stem; grey values 0 to 255 become -1 to 1.
    """

    folder = "temimagenet"
    other_name = "--data_dir"
    address, size = "https://github.com/xinhuolin/TEM-ImageNet-v1.3", "about 2 GB"
    optional: tuple[str, ...] = ()  # targets that the set may lack
    about = About(
        title="TEM-ImageNet v1.3",
        licence="none stated in the repository",
        citation=CITATION,
        address=address,
    )

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        """Add the flags of this dataset to `parser`."""
        parser.add_argument("--source", required=True, help="the clone, or the unzipped snapshot")
        parser.add_argument(
            "--fetch", action="store_true", help="download the snapshot into --source first"
        )

    def __init__(self, options: argparse.Namespace) -> None:
        """List and hash the files, after fetching them if asked to.

        Raises: InputError if a folder or all images are missing, or the download fails.
        """
        if options.fetch:
            fetch.from_github(self.address.removeprefix(f"{fetch.GITHUB}/"), options.source)
        self.root = self._root(Path(options.source))
        found = {folder.name for folder in self.root.iterdir() if folder.is_dir()}
        folders = {t: f for t, f in FOLDERS.items() if f in found or t not in self.optional}
        missing = [folder for folder in folders.values() if folder not in found]
        if missing:
            raise InputError(
                f"{self.root} has no folder {', '.join(missing)}; it has "
                f"{', '.join(sorted(found))}. {self._what_to_do()}"
            )
        self.paths = {target: pngs(self.root / folder) for target, folder in folders.items()}
        self.targets = tuple(target for target in folders if target != "image")
        self.stems = sorted(self.paths["image"])
        if not self.stems:
            raise InputError(f"{self.root / 'image'} holds no PNG file. {self._what_to_do()}")
        self.files_sha256 = sha256_of(
            (f"{target}/{stem}", path)
            for target, paths in self.paths.items()
            for stem, path in paths.items()
        )
        self.options: dict[str, Any] = {"targets": list(self.targets), **self._found()}

    def _root(self, source: Path) -> Path:
        """Return `source`, or the one folder in it that has any of FOLDERS.

        Of several, that which is called as the repository.

        Raises: InputError if there is none, or several.
        """
        if not source.is_dir():
            what = "is a file, not a folder" if source.exists() else "is not a folder"
            raise InputError(f"--source={source} {what}. {self._what_to_do()}")
        below = sorted(path for path in source.iterdir() if path.is_dir())
        found = [
            path
            for path in (source, *below)
            if any((path / folder).is_dir() for folder in FOLDERS.values())
        ]
        if not found:
            has = ", ".join(path.name for path in below) or "none"
            raise InputError(
                f"--source={source}: neither it nor a folder in it has the folder image; "
                f"its folders: {has}. {self._what_to_do()}"
            )
        if len(found) > 1 and found[0] != source:
            repository = self.address.rpartition("/")[2]
            own = [path for path in found if path.name in (repository, f"{repository}-master")]
            if len(own) == 1:
                return own[0]
            raise InputError(
                f"--source={source} holds several: {', '.join(path.name for path in found)}; "
                "give the folder of one"
            )
        return found[0]

    def _what_to_do(self) -> str:
        return (
            f"Run git clone {self.address} ({self.size}), or unzip "
            f"{self.address}/archive/refs/heads/master.zip, and give its folder as --source; "
            "--fetch does it for you"
        )

    def _notes(self) -> list[str]:
        """Return the digest of the snapshot, if --fetch downloaded it."""
        record = self.root.parent / f"{self.address.rpartition('/')[2]}.sha256"
        return [f"snapshot: SHA-256 {record.read_text().strip()}"] if record.exists() else []

    def _found(self) -> dict[str, Any]:
        """Return, for the card, the number of images and whether the set is complete."""
        complete = stems_md5(self.stems) == COMPLETE_MD5
        if not complete:
            note(
                self.root / "image",
                f"{len(self.stems)} of {COMPLETE} images; not the complete set",
            )
        return {"found": f"{len(self.stems)} of {COMPLETE}", "complete": complete}

    def prepare(self) -> Contents:
        """Decode every file once; return which stems can be used, and their splits.

        Raises: InputError if no image can be used.
        """
        unusable, skipped = [], []
        self.usable: list[str] = []
        for stem in self.stems:
            fault = self._fault(stem)
            if fault:
                unusable.append(fault)
            else:
                self.usable.append(stem)
        for target in self.targets:
            for stem in sorted(self.paths[target].keys() - self.paths["image"].keys()):
                path = self.paths[target][stem]
                skipped.append((str(path), f"a {target} without an image of this stem"))
        if not self.usable:
            first = ": ".join(unusable[0])
            raise InputError(
                f"{self.root}: no image can be used; {len(unusable)} left out, {first}"
            )
        # Over all stems: skipping one moves no other to another split.
        self.split_of = split_by_source(self.stems)
        splits = [self.split_of[stem] for stem in self.usable]
        return Contents(
            splits={split: splits.count(split) for split in SPLITS if split in splits},
            dtype="uint8",
            shape=(SIDE, SIDE),
            targets=self.targets,
            range_rule="fixed",
            units=len(self.usable),
            left_out=skipped,
            unusable=unusable,
            images=len(self.stems),
            notes=self._notes(),
        )

    def _fault(self, stem: str) -> tuple[str, str] | None:
        """Return (path, reason) if the image and targets of `stem` make no record, else None."""
        missing = [target for target, paths in self.paths.items() if stem not in paths]
        if missing:
            folders = ", ".join(FOLDERS[target] for target in missing)
            return str(self.paths["image"][stem]), f"no file of this stem in {folders}"
        for paths in self.paths.values():
            path = str(paths[stem])
            try:
                pixels = grey(paths[stem])
            except InputError as error:
                return path, str(error).removeprefix(f"{path}: ")
            if pixels.min() == pixels.max():
                return path, f"all pixels are {pixels.flat[0]}"
        return None

    def records(self, split: str, units: range = ALL) -> Iterator[Record]:
        """Yield the records of `split`; a record's index is that of its stem among all."""
        index_of = {stem: index for index, stem in enumerate(self.stems)}
        for stem in within(units, self.usable):
            if self.split_of[stem] == split:
                yield {
                    **{
                        target: grey(paths[stem])[..., None] for target, paths in self.paths.items()
                    },
                    "intensity_range": np.array((0, 255), np.float32),
                    "nm_per_pixel": np.full(2, np.nan, np.float32),
                    "name": stem,
                    "source": stem,
                    "index": index_of[stem],
                }


class Multislice(TEMImageNet):
    """The multislice sibling of temimagenet, in the same layout; its numbering has gaps.

    Download it first: git clone https://github.com/xinhuolin/TEM-ImageNet-Multislice-v1.3 (about
    1 GB), or unzip .../archive/refs/heads/master.zip of that address. The folders read are image,
    noNoise (denoised), noBackgroundnoNoise (background_removed) and, where there is one,
    noNoiseNoBackgroundSuperresolution (superresolved). Split and range are those of temimagenet.
    """

    folder = "temimagenet/multislice"
    address, size = "https://github.com/xinhuolin/TEM-ImageNet-Multislice-v1.3", "about 1 GB"
    optional = ("superresolved",)
    about = TEMImageNet.about._replace(title="TEM-ImageNet Multislice v1.3", address=address)

    def _found(self) -> dict[str, Any]:
        return {"found": str(len(self.stems))}  # the number of the complete set is not published


def pngs(folder: Path) -> dict[str, Path]:
    """Return {stem: path} of the PNG files in `folder`; hidden files are ignored."""
    return {
        path.stem: path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() == ".png" and not path.name.startswith(".")
    }


def stems_md5(stems: Iterable[str]) -> str:
    """Return the hex MD5 of the sorted stems, joined by "|".

    Source of its value for the complete set: a benchmark by others, which found it in four folders.
    """
    joined = "|".join(sorted(stems)).encode()
    return hashlib.md5(joined, usedforsecurity=False).hexdigest()


def grey(path: Path) -> UInt8[np.ndarray, "256 256"]:
    """Return the pixels of a PNG file; raise InputError for anything but 8-bit grey."""
    pixels = micrographs.read_pixels(path)
    if pixels.ndim == 3:
        raise InputError(f"{path}: in colours, expected 8-bit grey")
    if pixels.dtype != np.uint8:
        raise InputError(f"{path}: {pixels.dtype} values, expected 8-bit grey")
    if pixels.shape != (SIDE, SIDE):
        h, w = pixels.shape
        raise InputError(f"{path}: {h}x{w}, expected {SIDE}x{SIDE}")
    return pixels
