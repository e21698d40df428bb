"""Print which faults of masks are found: python -m tests.inject_faults [SETS].

SETS are tables of $EMJAX_REAL_DATA, joined by commas. Each fault is put into one fifth of the pairs
of a set at a time, until every pair had it once. A finding on an untouched pair that it has without
any fault is a false alarm, unless the picture shows it to be right. For docs/reference.
"""

import csv
import io
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np

import emjax
from data_builders.micrographs.checking import too_many
from data_builders.micrographs.examination import Examination, Finding, Pair
from data_builders.micrographs.masks import interpret
from data_builders.micrographs.summary import summarise
from tests.score_models import FOREGROUND, colours

MOST = 25  # pairs of a set
FIFTH = 5
TUNED = ("np_sintering", "au_patchy_nanoprism", "emps")  # thresholds were chosen with these
HELD_OUT = ("au_hrtem_750C", "au_tetrahedra", "pt_alumina", "emps:1")


def pairs(name):
    """Return at most MOST pairs of a table; "emps:1" begins one row later than "emps"."""
    table, _, start = name.partition(":")
    root = Path(os.environ["EMJAX_REAL_DATA"])
    with open(root / f"tables/{table}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found = []
    for row in rows[int(start or 0) :: max(1, len(rows) // MOST)][:MOST]:
        path = root / row["mask"]
        if table == "emps":
            drawn = (emjax.read(path).image > 0).astype(np.uint8) * 255
        else:
            drawn = colours(path) if path.suffix == ".png" else emjax.read(path).image
        classes = 3 if table == "pt_alumina" else None
        mask, _ = interpret(path, drawn, FOREGROUND.get(table), classes)
        image = emjax.read(root / row["image"]).image
        found.append(Pair(row["image"], image, mask, drawn, row["source"], (1.0, 1.0)))
    return found


def two_values(mask):
    return np.where(mask > 0, 255, 0).astype(np.uint8)


def lies(pair, mask):
    return pair._replace(mask=mask, drawn=two_values(mask))


def shifted(pair, rng):
    """Shift by 2 to 10 % of the sides, with background where nothing comes in."""
    y, x = (int(rng.uniform(0.02, 0.1) * side) * rng.choice([-1, 1]) for side in pair.mask.shape)
    h, w = pair.mask.shape
    moved = np.zeros_like(pair.mask)
    moved[max(y, 0) : h + min(y, 0), max(x, 0) : w + min(x, 0)] = pair.mask[
        max(-y, 0) : h + min(-y, 0), max(-x, 0) : w + min(-x, 0)
    ]
    return lies(pair, moved)


def turned(pair, rng):
    mask = pair.mask
    views = [mask[:, ::-1], mask[::-1], mask[::-1, ::-1]]
    if mask.shape[0] == mask.shape[1]:
        views += [mask.T, np.rot90(mask), np.rot90(mask, -1)]
    return lies(pair, np.ascontiguousarray(views[rng.integers(len(views))]))


def inverted(pair, rng):
    return lies(pair, (pair.mask == 0).astype(np.uint8))


def with_bar(pair, rng):
    """Draw a scale bar into the image, and label it."""
    image, mask = pair.image.copy(), pair.mask.copy()
    h, w = mask.shape
    y, x, wide = int(0.93 * h), int(0.06 * w), int(rng.uniform(0.12, 0.3) * w)
    box = slice(y, y + max(4, h // 80)), slice(x, x + wide)
    image[box] = rng.choice([image.min(), image.max()])
    mask[box] = 1
    return lies(pair._replace(image=image), mask)


def with_banner(pair, rng):
    """Draw a banner below the image, and label it."""
    image, mask = pair.image.copy(), pair.mask.copy()
    rows = len(image) // 14
    image[-rows:] = rng.choice([0, 255])
    image[-rows // 2 - 4 : -rows // 2 + 4, 10:80:3] = 128
    mask[-rows:] = 1
    return lies(pair._replace(image=image), mask)


def empty(pair, rng):
    return lies(pair, np.zeros_like(pair.mask))


def full(pair, rng):
    return lies(pair, np.ones_like(pair.mask))


def copy(pair, rng):
    return pair._replace(drawn=pair.image, mask=(pair.image > 0).astype(np.uint8))


def again(pair, rng):
    return pair._replace(name=pair.name + " again", source="another")


def again_other_mask(pair, rng):
    return again(pair, rng)._replace(mask=np.roll(pair.mask, 9, 0))


def again_turned(pair, rng):
    """Turn both, other brightness and noise: no pixel is as it was."""
    image, mask = (np.ascontiguousarray(each[::-1].T) for each in (pair.image, pair.mask))
    image = np.clip(image * 0.8 + rng.normal(10, 3, image.shape), 0, 255).astype(np.uint8)
    return lies(again(pair, rng)._replace(image=image), mask)


def as_jpeg(values, quality):
    """Return uint8 `values` as JPEG of this quality keeps them; as they are for None."""
    from PIL import Image

    if quality is None:
        return values
    file = io.BytesIO()
    Image.fromarray(values).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def jpeg(pair, rng):
    return pair._replace(drawn=as_jpeg(two_values(pair.mask), int(rng.integers(60, 95))))


def rare_class(pair, rng):
    mask = pair.mask.copy()
    mask[mask > 0] = 100 + int(rng.integers(100))
    return pair._replace(mask=mask)


def size(pair, rng):
    return pair._replace(nm_per_pixel=(5.0, 5.0))


def saturated(pair, rng):
    low, high = np.quantile(pair.image, [0.3, 0.6])
    scaled = (pair.image - low) / max(high - low, 1) * 255
    return pair._replace(image=np.clip(scaled, 0, 255).astype(np.uint8))


def constant(pair, rng):
    return pair._replace(image=np.full_like(pair.image, 7))


def drawn_large(pair, rng):
    """No fault: an outline drawn 3 pixels too large."""
    from scipy import ndimage

    return lies(pair, ndimage.grey_dilation(pair.mask, (7, 7)))


def drawn_loosely(pair, rng):
    """No fault that this looks for: an outline 8 pixels too large."""
    from scipy import ndimage

    return lies(pair, ndimage.grey_dilation(pair.mask, (17, 17)))


def boxes(pair, rng):
    """No fault that this looks for: the rectangle around each particle."""
    from scipy import ndimage

    mask = np.zeros_like(pair.mask)
    for box in ndimage.find_objects(ndimage.label(pair.mask > 0)[0]):
        mask[box] = 1
    return lies(pair, mask)


def moved_little(pair, rng):
    """No fault: drawn 3 pixels aside."""
    return lies(pair, np.roll(pair.mask, (2, -3), (0, 1)))


FAULTS = {
    shifted: ("shifted",),
    turned: ("turned",),
    inverted: ("inverted",),
    with_bar: ("drawn",),
    with_banner: ("drawn",),
    empty: ("empty",),
    full: ("full",),
    copy: ("copy",),
    again: ("repeated",),
    again_other_mask: ("contradicted",),
    again_turned: ("alike",),
    jpeg: ("grey edges",),
    rare_class: ("rare class",),
    size: ("pixel size",),
    saturated: ("saturated",),
    constant: ("constant",),
    drawn_large: (),
    drawn_loosely: (),
    boxes: (),
    moved_little: (),
}
ADDED = (again, again_other_mask, again_turned)


def examined(summaries) -> list[Finding]:
    examination = Examination()
    examination.summaries += summaries
    return examination.findings()


def of_all(summaries) -> str | None:
    examination = Examination()
    examination.summaries += summaries
    return examination.of_the_set() or too_many(examination.findings(), len(summaries))


def measure(name, counts, untouched, lines):
    """Add to `counts` what is found in one set, to `untouched` what it has without faults.

    And to `lines` what is said of the whole set if all pairs have a fault.
    """
    known = pairs(name)
    plain = [summarise(pair) for pair in known]
    before = {(one.name, one.kind): one for one in examined(plain)}
    untouched[name] = (len(known), list(before.values()))
    lines["none", name] = of_all(plain)
    for fault, kinds in FAULTS.items():
        every = []
        for fold in range(min(FIFTH, len(known))):
            summaries, touched = list(plain), set()
            for i in range(fold, len(known), FIFTH):
                changed = summarise(fault(known[i], np.random.default_rng(i)))
                if fault in ADDED:
                    summaries.append(changed)
                else:
                    summaries[i] = changed
                touched.add(changed.name)
                every.append(changed)
            found = examined(summaries)
            right = {one.name: one for one in found if one.kind in kinds and one.name in touched}
            count = counts.setdefault((fault, name), Counter())
            count["injected"] += len(touched)
            count["found"] += len(right)
            count["certain"] += sum(one.certain for one in right.values())
            new = [one for one in found if (one.name, one.kind) not in before]
            count["other certain"] += len(
                {one.name for one in new
                 if one.certain and one.name in touched and one.kind not in kinds}
            )  # fmt: skip
            aside = [one for one in new if one.name not in touched and one.other not in touched]
            count["false certain"] += sum(one.certain for one in aside)
            count["false doubtful"] += sum(not one.certain for one in aside)
            if os.environ.get("VERBOSE"):
                for one in new:
                    if one.kind not in kinds:
                        print("  ", name, fault.__name__, *one, file=sys.stderr)
                for missed in sorted(touched - set(right)) if kinds else ():
                    print("   missed", name, fault.__name__, missed, file=sys.stderr)

        if fault not in ADDED:
            lines[fault.__name__, name] = of_all(every)


COLUMNS = ("injected", "found", "certain", "other certain", "false certain", "false doubtful")


def main(sets=""):
    counts, untouched, lines = {}, {}, {}
    names = sets.split(",") if sets else TUNED + HELD_OUT
    for name in names:
        measure(name, counts, untouched, lines)
    print("| fault | sets | " + " | ".join(COLUMNS) + " |")
    print("|---" * (2 + len(COLUMNS)) + "|")
    for fault in FAULTS:
        for what, some in (("tuned", TUNED), ("held out", HELD_OUT)):
            total = sum((counts[fault, name] for name in names if name in some), Counter())
            if total:
                cells = " | ".join(str(total[column]) for column in COLUMNS)
                print(f"| {fault.__name__.replace('_', ' ')} | {what} | {cells} |")
    print("\n| set | pairs | certain as they are | doubtful as they are |\n|---|---|---|---|")
    for name, (number, found) in untouched.items():
        kinds = [Counter(one.kind for one in found if one.certain == c) for c in (True, False)]
        cells = [", ".join(f"{n} {kind}" for kind, n in each.items()) or "0" for each in kinds]
        print(f"| {name} | {number} | {cells[0]} | {cells[1]} |")
    print(f"\n| fault of all pairs | {' | '.join(names)} |\n|---" + "|---" * len(names) + "|")
    for fault in dict.fromkeys(fault for fault, _ in lines):
        cells = [(lines[fault, name] or "-").replace("|", "/")[:90] for name in names]
        print(f"| {fault.replace('_', ' ')} | {' | '.join(cells)} |")
    print()
    for name, (_, found) in untouched.items():
        for one in found:
            print(f"- {name}: {one.name}: {one.kind}{'' if one.certain else '?'}: {one.text}")


if __name__ == "__main__":
    main(*sys.argv[1:])
