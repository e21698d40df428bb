"""Find mistakes in pairs of a micrograph and its mask, before a network learns from them.

A finding is certain where the evidence is clear, and the pair is then to be left out. It is
doubtful where a person should look. What a pair shows is compared with the pair itself and with
the other pairs: no absolute contrast or size is expected. tests/inject_faults.py measures what is
found, and how often in vain.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

from data_builders.micrographs.alignment import SLACK, VIEWS, turned_to, way
from data_builders.micrographs.summary import KINDS, SMALL, Finding, Pair, Summary, summarise

__all__ = ["KINDS", "Examination", "Finding", "Pair"]

SHIFT = 6  # pixels; a shorter shift of one mask is none: outlines are drawn as inexactly
COMMON_SHIFT = 4  # a shift of all masks is one from here
# Limits of alignment.Fit: (height at least, as_is and second at most).
CERTAIN, DOUBTFUL = (9.0, 0.45, 0.7), (8.0, 0.6, 0.8)
POLAR = 0.3  # correlation of mask and image along outlines from which it has a sign
AGREE, MOST = 0.8, 0.9  # of the other pairs at least, for a doubt and to be certain
FEW = 4  # other pairs at least to compare one with
LOOKS = 0.8  # correlation of small pictures that look alike
SATURATED = 0.3  # of the pixels at one end, and three times the share that is usual in the set
FACTOR = 2.0  # between pixel sizes


class Examination:
    """The mistakes of a set of pairs, added one at a time."""

    def __init__(self, rotations: bool = True) -> None:
        """Look for turned masks and turned copies of images too, or only for others."""
        self.rotations = rotations
        self.summaries: list[Summary] = []

    def add(self, pair: Pair) -> None:
        """Keep what there is to know of `pair`, some 6 kB.

        Raises: ValueError if the image and its mask differ in size.
        """
        self.summaries.append(summarise(pair, self.rotations))

    def findings(self) -> list[Finding]:
        """Return what was found so far, in order of names."""
        known = sorted(self.summaries, key=lambda one: one.name)
        found = [finding for one in known for finding in one.found]
        useless = {one.name for one in found if one.certain and one.kind in ("copy", "constant")}
        rest = [one for one in known if one.name not in useless]
        for search in (_lies, _inverted, _full, _copies, _rare, _sizes, _saturated):
            found += search(rest)
        order = list(KINDS)
        return sorted(found, key=lambda one: (one.name, order.index(one.kind), one.other))

    def of_the_set(self) -> str | None:
        """Return the fault that all pairs share, in one line, or None."""
        known = self.summaries
        if not known:
            return None
        return _all_empty_or_full(known) or _all_shifted(known) or _all_inverted(known)

    def alike(self) -> list[tuple[str, str]]:
        """Return the names of all pairs whose images are the same or look alike, turned or not."""
        known = self.summaries
        found = []
        for i, one in enumerate(known[1:], start=1):
            likeness = _likeness(one, known[:i])
            same = [one.image == other.image for other in known[:i]]
            found += [
                (known[j].name, one.name)
                for j in range(i)
                if (same[j] or likeness[j] >= LOOKS) and known[j].name != one.name
            ]
        return found


def _lies(known: Sequence[Summary]) -> Iterator[Finding]:
    """Yield the masks that are shifted or turned."""
    for one in known:
        fit = one.fit
        if fit is None or not fit.misfits(DOUBTFUL):
            continue
        certain = fit.misfits(CERTAIN)
        if fit.view:
            text = f"mask is {VIEWS[fit.view]} against its image"
            yield Finding(one.name, "turned", text, certain)
        elif max(map(abs, fit.shift)) >= SHIFT:
            text = f"mask is shifted by {way(fit.shift)} against its image"
            text += "" if certain else ", or drawn far outside of the edges"
            yield Finding(one.name, "shifted", text, certain)


def _inverted(known: Sequence[Summary]) -> Iterator[Finding]:
    """Yield the masks of the other polarity than the set's that fit it better if inverted."""
    signed = [one for one in known if abs(one.polarity) >= POLAR]
    for one in known:
        others = [other for other in signed if other is not one]
        inner = [other for other in others if other.border < 0.5]
        border = float(np.median([other.border for other in known]))
        text = (
            f"mask labels what is {'brighter' if one.polarity > 0 else 'darker'}, unlike most "
            f"others, and {100 * one.border:.0f} % of the image's border: the background "
            "seems to be labelled; invert it"
        )
        among_inner, among_all = (
            np.mean([other.polarity * one.polarity < 0 for other in group] or [0])
            if len(group) >= FEW and abs(one.polarity) >= POLAR
            else 0
            for group in (inner, others)
        )
        fits_inverted = abs(one.border - border) > abs(1 - one.border - border)
        encloses = one.border >= 0.8 and one.share > 0.5
        if encloses and among_inner >= MOST and among_all > 0.5:
            yield Finding(one.name, "inverted", text, True)
        elif fits_inverted and max(among_inner, among_all) >= AGREE and among_all > 0.5:
            yield Finding(one.name, "inverted", text, False)
        elif one.border >= 0.95 and one.share > 0.5 and len(known) > FEW:
            usual = np.mean([other.border < 0.6 for other in known if other is not one])
            if one.share < 1 and usual >= 2 / 3:
                text = "mask labels the whole border of its image, unlike the others; look at it"
                yield Finding(one.name, "inverted", text, False)


def _full(known: Sequence[Summary]) -> Iterator[Finding]:
    """Yield the masks that label every pixel; certain if no other mask comes near it."""
    for one in known:
        if one.share == 1:
            rest = [other.share for other in known if other is not one and other.share < 1]
            certain = len(rest) >= FEW and max(rest) < 0.9
            text = "mask labels every pixel; export it again, with 0 for the background"
            yield Finding(one.name, "full", text, certain)


def _copies(known: Sequence[Summary]) -> Iterator[Finding]:
    """Yield images that stand in the set twice, and those that look alike.

    An image with an equal mask adds nothing, so only the first of these stays. Of different masks
    nobody but a person can say which is right, so all stay.
    """
    groups: dict[bytes, list[Summary]] = {}
    for one in known:
        groups.setdefault(one.image, []).append(one)
    for group in groups.values():
        first_of: dict[bytes, Summary] = {}
        for one in group:
            first = first_of.setdefault(one.mask, one)
            if first is not one:
                text = f"image and mask are those of {first.name} again{_turned(one, first)}"
                yield Finding(one.name, "repeated", text, True, first.name)
        firsts = list(first_of.values())
        for i, one in enumerate(firsts if len(firsts) > 1 else []):
            other = firsts[1 if i == 0 else 0]
            text = f"image is that of {other.name} again{_turned(one, other)}, with another mask"
            yield Finding(one.name, "contradicted", text, False, other.name)
    shown = [group[0] for group in groups.values() if group[0].small.size == SMALL**2]
    for i, one in enumerate(shown[1:], start=1):
        alike = _likeness(one, shown[:i])
        alike[[bool(one.source) and one.source == other.source for other in shown[:i]]] = 0
        other = shown[int(alike.argmax())]
        if alike.max() >= LOOKS:
            text = (
                f"image looks like {other.name}, correlation {alike.max():.2f}; if both show one "
                "place, give them one source, so that none tests the other"
            )
            yield Finding(one.name, "alike", text, False, other.name)


def _likeness(one: Summary, others: Sequence[Summary]) -> Float[np.ndarray, " n"]:
    """Return the largest correlation of the small picture of `one`, turned, with each of `others`.

    0 where one of both has fewer pixels than a small picture.
    """
    if one.small.size < SMALL**2:
        return np.zeros(len(others))
    views = np.array([turned_to(one.small, k).ravel() for k in range(one.views)])
    blank = np.zeros(SMALL**2)
    pictures = np.array([o.small.ravel() if o.small.size == SMALL**2 else blank for o in others])
    return (pictures @ views.T).max(axis=1)


def _turned(one: Summary, other: Summary) -> str:
    return "" if one.own == other.own else ", mirrored or turned"


def _rare(known: Sequence[Summary]) -> Iterator[Finding]:
    """Yield the classes that one mask only has."""
    counts = Counter(number for one in known for number in one.classes)
    if len(known) <= FEW:
        return
    for one in known:
        alone = [number for number in one.classes if counts[number] == 1]
        if alone:
            listed = ", ".join(map(str, alone[:10])) + (", ..." if len(alone) > 10 else "")
            plural = "es" if len(alone) > 1 else ""
            text = f"mask alone has the class{plural} {listed}; no score of it can be trusted"
            yield Finding(one.name, "rare class", text, False)


def _sizes(known: Sequence[Summary]) -> Iterator[Finding]:
    """Yield the pixel sizes far from the median, if most are near it."""
    sizes = np.array([one.size for one in known if np.isfinite(one.size) and one.size > 0])
    if len(sizes) <= FEW:
        return
    usual = float(np.median(sizes))
    if np.mean(np.abs(np.log(sizes / usual)) <= np.log(FACTOR)) < 2 / 3:
        return
    for one in known:
        if one.size > 0 and abs(np.log(one.size / usual)) > np.log(FACTOR):
            text = (
                f"pixel size is {one.size:.3g} nm, {one.size / usual:.3g} times the usual "
                f"{usual:.3g} nm; check its unit, or resample all to one size"
            )
            yield Finding(one.name, "pixel size", text, False)


def _saturated(known: Sequence[Summary]) -> Iterator[Finding]:
    """Yield the images with more pixels at the ends of their values than is usual in the set."""
    usual = np.median([one.ends for one in known] or [(0, 0)], axis=0)
    for one in known:
        for share, often, end in zip(one.ends, usual, ("lowest", "highest"), strict=True):
            if 1 > share >= max(SATURATED, 3 * (often if len(known) > FEW else 0)):
                text = f"{100 * share:.0f} % of the image's pixels have its {end} value"
                yield Finding(one.name, "saturated", text, False)


def _all_empty_or_full(known: Sequence[Summary]) -> str | None:
    for share, kind in ((0, "empty"), (1, "full")):
        if all(one.share == share for one in known):
            return f"all {len(known)} masks: {KINDS[kind]}; name the foreground's value or colour"
    return None


def _all_shifted(known: Sequence[Summary]) -> str | None:
    """Return the fault if nearly all masks lie wrong in the same way."""
    fits = [one.fit for one in known if one.fit and one.fit.height >= CERTAIN[0]]
    wrong = [fit for fit in fits if fit.as_is < 0.8]
    if len(wrong) < max(FEW, AGREE * len(fits), len(known) / 2):
        return None
    view, count = Counter(fit.view for fit in wrong).most_common(1)[0]
    what, do = VIEWS[view], "turn them all back"
    if not view:
        factor = max(fit.factor for fit in wrong)
        y, x = np.median([fit.shift for fit in wrong], axis=0).round().astype(int).tolist()
        far = [max(abs(fit.shift[0] - y), abs(fit.shift[1] - x)) for fit in wrong]
        count = sum(distance <= SLACK * factor for distance in far)
        if max(abs(y), abs(x)) < COMMON_SHIFT * factor:
            return None
        what, do = f"shifted by {way((y, x))}", "move them all back"
    if count < AGREE * len(fits):
        return None
    return f"the masks of {count} of {len(known)} pairs are {what} against their images; {do}"


def _all_inverted(known: Sequence[Summary]) -> str | None:
    """Return the fault if nearly all masks label the border of the image and most of the rest."""
    count = sum(one.border >= 0.95 and one.share > 0.5 and len(one.classes) == 1 for one in known)
    if len(known) < FEW or count < 0.9 * len(known):
        return None
    return (
        f"{count} of {len(known)} masks label the whole border of their image and most of the "
        "rest: the background seems to be labelled; invert the masks, or name the foreground's "
        "value"
    )
