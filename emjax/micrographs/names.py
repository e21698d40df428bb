"""Which target belongs to which image, by names as people and programs give them.

The same relative path decides, then the same stem, then the target's without the words for a
target: a.tif and a_mask.tif. Last, both are compared without the words for an image or a target:
img01.png and mask01.png, s1/image.tif and s1/mask.tif.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TypeVar

from emjax.errors import InputError
from emjax.micrographs.reading import SUFFIXES

P = TypeVar("P", bound=PurePath)

TRUTH = ("gt", "ground truth", "truth", "target")
# Of Fiji (Mask of a), Cellpose (a_cp_masks), ilastik (a_Simple Segmentation), and of people.
WORDS = {
    "mask": (
        *("cp masks", "mask", "masks", "mask of", "label", "labels", "label image", "lbl"),
        *("simple segmentation", "segmentation", "segmented", "seg", "segm", "binary"),
        *("annotation", "annotations", "annotated", *TRUTH),
    ),
    "denoised": ("denoised", "clean", "noise free", "noiseless", *TRUTH),
    "background_removed": ("background removed", "no background", "bg removed", *TRUTH),
    "superresolved": ("superresolved", "super resolved", "sr", "hr", *TRUTH),
}
IMAGE = (
    *("image", "images", "img", "imgs", "micrograph", "micrographs"),
    *("raw", "input", "original", "orig", "noisy", "lr"),
)
BETWEEN = r"[\s._-]"


def _pattern(words: Iterable[str]) -> re.Pattern[str]:
    """Return what finds one of `words` at the start or the end of a name, or as all of it."""
    longest = sorted(words, key=len, reverse=True)
    either = "|".join(word.replace(" ", f"{BETWEEN}*") for word in longest)
    return re.compile(rf"^(?:{either})(?:{BETWEEN}+|(?=\d)|$)|(?:{BETWEEN}+|(?<=\d))(?:{either})$")


PATTERNS = {target: _pattern(words) for target, words in WORDS.items()}
OF_IMAGES = _pattern(IMAGE)
NO_WORDS = re.compile("(?!)")


def plain(name: str) -> str:
    """Return the stem `name` in small letters, without .ome and the suffix of another format."""
    text = unicodedata.normalize("NFC", name).casefold()  # macOS writes ä as two characters
    return without_formats(text)


def without_formats(stem: str) -> str:
    """Return a stem without .ome and the suffixes of formats: that of a.ome.tif is a."""
    endings = (".ome", ".gz", ".bz2", *SUFFIXES)
    while (inner := PurePath(stem).suffix) and inner.lower() in endings:
        stem = stem.removesuffix(inner)
    return stem


def exported(paths: Iterable[P]) -> dict[P, str]:
    """Return {path: its group} of micrographs and their exports in other formats.

    Their paths differ in the suffix alone. They are of one source.
    """
    bare = {path: path.with_name(without_formats(path.stem)) for path in paths}
    same = Counter(bare.values())
    return {path: stem.as_posix() for path, stem in bare.items() if same[stem] > 1}


def without(pattern: re.Pattern[str], parts: Iterable[str]) -> tuple[tuple[str, ...], int]:
    """Return (`parts` of a path without the words of `pattern`, the number of words)."""
    short, count = [], 0
    for part in parts:
        while found := pattern.search(part):
            part = part[: found.start()] + part[found.end() :]
            count += 1
        short.append(re.sub(f"{BETWEEN}+", "_", without_formats(part)).strip("_"))
    return tuple(part for part in short if part), count


def named(path: PurePath, target: str, *, words: bool = True) -> tuple[str, ...]:
    """Return `path` without words in its folders, and its stem without those of a `target`.

    Args:
        words: whether the stem may have such words; that of an image keeps them.
    """
    *folders, stem = map(plain, path.with_suffix("").parts)
    shared, _ = without(OF_IMAGES, without(PATTERNS[target], folders)[0])
    last, _ = without(PATTERNS[target] if words else NO_WORDS, [stem])
    return (*shared, *last) if last else ()


def key(path: PurePath, target: str) -> tuple[tuple[str, ...], int]:
    """Return (what the relative paths of an image and of its `target` share, words of a target)."""
    parts, count = without(PATTERNS[target], map(plain, path.with_suffix("").parts))
    return without(OF_IMAGES, parts)[0], count


def targets_among(paths: Iterable[PurePath], target: str, *, alone: bool = True) -> set[PurePath]:
    """Return those relative paths that are named as a `target`: a_mask.tif, masks/a.tif.

    Of paths that differ in such words alone, the one with the fewest is the image.

    Args:
        alone: whether one without such an image counts.
    """
    groups: dict[tuple[str, ...], dict[PurePath, int]] = defaultdict(dict)
    for path in paths:
        shared, words = key(path, target)
        groups[shared][path] = words
    found = set()
    for group in groups.values():
        fewest = min(group.values()) if len(group) > 1 or not alone else 0
        found |= {path for path, words in group.items() if words > fewest}
    return found


def pair(
    target: str,
    images: Mapping[Path, PurePath],
    targets: Mapping[Path, PurePath],
    advice: str = "pair them by a --table",
) -> tuple[dict[Path, Path], list[Path]]:
    """Return ({image: its target}, the images of these whose target has another stem).

    Args:
        images, targets: {file: its path relative to the folder}.
        advice: what to do about several partners, for the error.

    Raises: InputError if several files could be the partner.
    """
    partners: dict[Path, Path] = {}
    used: set[Path] = set()
    loose: list[Path] = []

    def whole(path: PurePath) -> str:
        return path.with_suffix("").as_posix()

    levels: Sequence[tuple[Callable[[PurePath], object], Callable[[PurePath], object]]] = (
        (PurePath.as_posix, whole),  # x.tif and x.tif.png, as programs call what they make of x.tif
        (whole, whole),
        (lambda path: path.stem, lambda path: path.stem),
        (lambda path: named(path, target, words=False), lambda path: named(path, target)),
        (lambda path: key(path, target)[0], lambda path: key(path, target)[0]),
        (lambda path: key(path, target)[0][-1:], lambda path: key(path, target)[0][-1:]),
    )
    for level, keys in enumerate(levels):
        groups: dict[object, tuple[list[Path], list[Path]]] = defaultdict(lambda: ([], []))
        for side, paths in enumerate((images, targets)):
            for file, path in paths.items():
                groups[keys[side](path)][side].append(file)
        for shared, (some, theirs) in groups.items():
            taken = used.intersection(theirs) or any(image in partners for image in some)
            if not (shared and some and theirs) or (taken and level > 1):
                continue
            some = [image for image in some if image not in partners]
            theirs = [file for file in theirs if file not in used]
            if len(some) == len(theirs) == 1:
                partners[some[0]] = theirs[0]
                used.add(theirs[0])
                if level > 0 and some[0].stem != theirs[0].stem:
                    loose += some
            elif some and theirs:
                first, second, *_ = some if len(some) > 1 else theirs
                other = theirs[0] if len(some) > 1 else some[0]
                same = "have one stem" if level < 3 else "are named alike"
                raise InputError(
                    f"{first} and {second} {same}, and either may belong to {other}; {advice}"
                )
    return partners, loose
