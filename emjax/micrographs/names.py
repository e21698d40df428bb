"""Which target belongs to which image, by names as people and programs give them.

The same relative path decides, then that of the target without a word for a target: a.tif and
a_mask.tif, images/a.tif and masks/a.tif. Last, both are compared without the words for an image or
a target: img01.png and mask01.png, s1/image.tif and s1/mask.tif.
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
Key = Callable[[PurePath], object]

TRUTH = ("gt", "ground truth", "truth", "target")
# Of Fiji (Mask of a, Classified image of a), Cellpose (a_cp_masks), ilastik (a_Simple
# Segmentation), Labkit (segmentation of a), and of people.
WORDS = {
    "mask": (
        *("cp masks", "mask", "masks", "mask of", "label", "labels", "label image", "lbl"),
        *("simple segmentation", "segmentation", "segmentation of", "segmented", "seg", "segm"),
        *("classified image", "classified image of", "labels of", "binary"),
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
    start, end = rf"^(?:{either})(?:{BETWEEN}+|(?=\d)|$)", rf"(?:{BETWEEN}+|(?<=\d))(?:{either})$"
    return re.compile(f"{start}|{end}", re.IGNORECASE)


PATTERNS = {target: _pattern(words) for target, words in WORDS.items()}
OF_IMAGES = _pattern(IMAGE)
SIGN = re.compile(r"(?:^|(?<=[\s._-]))-(?=\d)")  # T_-20 is not T_20
MINUS = "\N{MINUS SIGN}"
FIRST, SECOND = "_0000", "_0001"  # nnU-Net's channels, in the names of images alone


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
    bare = {path: path.parent / without_formats(path.stem) for path in paths}
    same = Counter(bare.values())
    return {path: stem.as_posix() for path, stem in bare.items() if same[stem] > 1}


def without(pattern: re.Pattern[str], parts: Iterable[str]) -> tuple[tuple[str, ...], int]:
    """Return (`parts` of a path without the words of `pattern`, the number of words)."""
    short, count = [], 0
    for part in parts:
        part = SIGN.sub(MINUS, part)
        while found := pattern.search(part):
            part = part[: found.start()] + part[found.end() :]
            count += 1
        short.append(re.sub(f"{BETWEEN}+", "_", without_formats(part)).strip("_"))
    return tuple(part for part in short if part), count


def bare(path: PurePath, target: str) -> tuple[str, ...]:
    """Return a path as it is but for its suffix and for words of images and targets in folders."""
    *folders, stem = path.with_suffix("").parts
    shared, _ = without(OF_IMAGES, without(PATTERNS[target], map(plain, folders))[0])
    stem = SIGN.sub(MINUS, unicodedata.normalize("NFC", stem))
    return (*shared, without_formats(stem))


def marked(path: PurePath, target: str) -> tuple[str, ...]:
    """Return what `bare` is of the image of a path that has a word for a `target`; () of others.

    That word is the last one: target_1_mask is of target_1.
    """
    *folders, stem = bare(path, target)
    words = [*PATTERNS[target].finditer(stem)]
    if not words:
        return ()
    image = without_formats(stem[: words[-1].start()] + stem[words[-1].end() :])
    return (*folders, image) if image else ()


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
    """Return ({image: its target}, the images of these whose target has another name).

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

    def stem(path: PurePath) -> str:
        return path.stem

    def as_is(path: PurePath) -> tuple[str, ...]:
        return bare(path, target)

    def unmarked(path: PurePath) -> tuple[str, ...]:
        return marked(path, target)

    def shared(path: PurePath) -> tuple[str, ...]:
        return key(path, target)[0]

    def shared_stem(path: PurePath) -> tuple[str, ...]:
        return shared(path)[-1:]

    def only_channel(path: PurePath) -> tuple[str, ...]:
        if not path.stem.endswith(FIRST):
            return ()
        rest = path.stem.removesuffix(FIRST)
        if path.with_name(rest + SECOND + path.suffix) in everything:
            return ()
        return shared(path.with_name(rest + path.suffix))

    everything = {*images.values()}
    one, alike = "have one stem", "are named alike"
    levels: Sequence[tuple[Key, Key, str]] = (
        (whole, whole, one),
        (PurePath.as_posix, whole, one),  # x.tif and x.tif.png, as programs call what they make
        (as_is, unmarked, alike),
        (as_is, as_is, one),
        (shared, shared, alike),
        (stem, stem, one),
        (shared_stem, shared_stem, alike),
        (only_channel, shared, alike),
    )
    of_masks = {unmarked(path): file for file, path in targets.items()}
    for level, (of_image, of_target, how) in enumerate(levels):
        groups: dict[object, tuple[list[Path], list[Path]]] = defaultdict(lambda: ([], []))
        for file, path in images.items():
            groups[of_image(path)][0].append(file)
        for file, path in targets.items():
            groups[of_target(path)][1].append(file)
        for same, (some, theirs) in groups.items():
            taken = used.intersection(theirs) or any(image in partners for image in some)
            if not (same and some and theirs) or (taken and level > 1):
                continue
            some = [image for image in some if image not in partners]
            theirs = [file for file in theirs if file not in used]
            if of_target is unmarked and len(theirs) == 1:  # a, a_mask and a_mask_labels
                of_it = of_masks.get(as_is(targets[theirs[0]]))
                theirs += [of_it] if of_it and of_it not in used else []
            if len(some) == len(theirs) == 1:
                partners[some[0]] = theirs[0]
                used.add(theirs[0])
                image, partner = images[some[0]], targets[theirs[0]]
                if level > 1 and (image.stem, shared(image)) != (partner.stem, shared(partner)):
                    loose += some
            elif some and theirs:
                first, second, *_ = some if len(some) > 1 else theirs
                other = theirs[0] if len(some) > 1 else some[0]
                raise InputError(
                    f"{first} and {second} {how}, and either may belong to {other}; {advice}"
                )
    return partners, loose
