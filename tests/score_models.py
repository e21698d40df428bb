"""Print the scores of models that segment: python -m tests.score_models SETS MODEL...

SETS are tables of $EMJAX_REAL_DATA, joined by commas. Each model stands beside what somebody would
do instead: thresholds by Otsu and by local means, with the smoothing and the polarity that are best
by the labels.
Dice is the mean over images, with a 95 % interval (bootstrap over images); counts are those of
`emjax measure`, in all images together. For docs/background/models.md.
"""

import csv
import os
import sys
from pathlib import Path

import numpy as np
from skimage.filters import gaussian, threshold_local, threshold_otsu

import emjax
from emjax.measurement import label

FOREGROUND = {"au_patchy_nanoprism": (255, 0, 0)}  # else what is not 0
SPLITS = ("test", "train", "val")


def rows(table):
    """Yield (split, image, mask, its particles) of a table; None where labels tell none apart."""
    root = Path(os.environ["EMJAX_REAL_DATA"])
    with open(root / f"tables/{table}.csv", newline="") as file:
        for row in csv.DictReader(file):
            values = emjax.read(root / row["mask"]).image if table == "emps" else None
            drawn = colours(root / row["mask"]) if values is None else values
            mask = (drawn == FOREGROUND[table]).all(-1) if table in FOREGROUND else drawn > 0
            mask = mask.any(-1) if mask.ndim == 3 else mask
            particles = len(np.unique(values[values > 0])) if values is not None else None
            yield row["split"], emjax.read(root / row["image"]).image, mask, particles


def colours(path):
    from PIL import Image

    return np.asarray(Image.open(path))


def dice(a, b):
    return 2 * (a & b).sum() / max(a.sum() + b.sum(), 1)


def best(masks, truth):
    """Return the mask, of those given and their inverses, that is nearest to the labels."""
    return max((m for mask in masks for m in (mask, ~mask)), key=lambda m: dice(m, truth))


def smoothed(image):
    return [gaussian(image.astype(float), sigma) for sigma in (0, 1, 2, 4)]


def otsu(image, truth):
    return best([each > threshold_otsu(each) for each in smoothed(image)], truth)


def local(image, truth):
    side = 2 * (min(image.shape) // 8) + 1
    return best([each > threshold_local(each, side) for each in smoothed(image)], truth)


def found_by(model, image):
    """Return (mask, number of particles) of a model."""
    probability = model.predict(image)
    mask = probability > 0.5
    return mask, len(label(mask).without_unsure(probability).names)


def counted(method):
    """Return a method that returns (mask, number of particles) for one that returns the mask."""

    def both(image, truth):
        mask = method(image, truth)
        return mask, len(label(mask).names)

    return both


def interval(values):
    """Return "mean [low, high]" of the mean, by drawing images with replacement."""
    rng = np.random.default_rng(0)
    means = rng.choice(values, (2000, len(values))).mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{np.mean(values):.3f} [{low:.3f}, {high:.3f}]"


def main(sets, *names):
    models = {name: emjax.load_model(name) for name in names}
    methods = {name: lambda image, _, model=model: found_by(model, image)
               for name, model in models.items()}  # fmt: skip
    methods |= {"Otsu": counted(otsu), "local mean": counted(local)}
    print("| set | images | " + " | ".join(f"{name}: Dice | count" for name in methods) + " |")
    print("|---" * (2 + 2 * len(methods)) + "|")
    for table in sets.split(","):
        images = list(rows(table))
        for splits in (("test",), SPLITS):
            chosen = [row for row in images if row[0] in splits]
            cells = []
            for method in methods.values():
                found = [method(image, truth) for _, image, truth, _ in chosen]
                scores = [dice(m, row[2]) for (m, _), row in zip(found, chosen, strict=True)]
                true = sum(row[3] or len(label(row[2]).names) for row in chosen)
                cells += [interval(scores), f"{sum(count for _, count in found)} of {true}"]
            kind = "held out" if len(splits) == 1 else "all"
            print(f"| {table} | {len(chosen)} {kind} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
