"""Print the scores of models that restore images: python -m tests.score_restorations MODEL TARGET

On atomagined of $EMJAX_REAL_DATA (simulated by others, MIT), whose images have the TARGET
`denoised`, `background_removed` or `superresolved`; and for `denoised` on real micrographs binned
by four, which have little noise left, as the truth, with the noise of counted electrons added.

Each model stands beside the image as it is, beside a Gaussian filter of one pixel, and beside the
one whose width is best by the truth, which a user does not have. L1 is in standard deviations of
the truth, after the gain and offset that are best by it. The mean over images, with a 95 % interval
(bootstrap over images). For docs/background/models.md.
"""

import csv
import os
import sys
from pathlib import Path

import numpy as np
from skimage.filters import gaussian

import emjax
from tests.score_models import interval

REAL = ("np_sintering", "au_hrtem_750C", "au_tetrahedra", "pt_alumina")
COUNTS = (10, 40)  # electrons per pixel in the mean
WIDTHS = (0.5, 0.7, 1, 1.4, 2, 2.8, 4)  # pixels


def pairs(target):
    """Yield (image, truth) of the test images of atomagined."""
    root = Path(os.environ["EMJAX_REAL_DATA"])
    with open(root / "tables/atomagined.csv", newline="") as file:
        for row in csv.DictReader(file):
            if row["split"] == "test" and row[target]:
                yield tuple(emjax.read(root / row[name]).image for name in ("image", target))


def counted(table, counts):
    """Yield (image, truth) of a table: binned by four, and as so many electrons show it."""
    root, rng = Path(os.environ["EMJAX_REAL_DATA"]), np.random.default_rng(0)
    with open(root / f"tables/{table}.csv", newline="") as file:
        for row in csv.DictReader(file):
            image = emjax.read(root / row["image"]).image.astype(np.float32)
            h, w = (side // 4 for side in image.shape)
            truth = image[: 4 * h, : 4 * w].reshape(h, 4, w, 4).mean((1, 3)) + 1
            yield rng.poisson(truth * (counts / truth.mean())).astype(np.uint16), truth


def distance(found, truth):
    """Return the L1 between an image, with the best gain and offset, and the truth."""
    found, truth = found.astype(float).ravel(), truth.astype(float).ravel()
    gain, offset = np.polyfit(found, truth, 1)
    return np.abs(gain * found + offset - truth).mean() / truth.std()


def main(name, target):
    """Print a table."""
    model = emjax.load_model(name)
    sets = {"atomagined": pairs(target)}
    if target == "denoised":
        sets |= {f"{table}, {counts} electrons per pixel": counted(table, counts)
                 for table in REAL for counts in COUNTS}  # fmt: skip
    print(f"| set | images | {name} | as it is | Gaussian of 1 pixel | best Gaussian |")
    print("|---|---|---|---|---|---|")
    for title, found in sets.items():
        scores = []
        for image, truth in found:
            filtered = [distance(gaussian(image.astype(float), w), truth) for w in WIDTHS]
            scores.append((
                distance(model.predict(image), truth),
                distance(image, truth),
                filtered[WIDTHS.index(1)],
                min(filtered),
            ))  # fmt: skip
        cells = " | ".join(interval(np.array(each)) for each in zip(*scores, strict=True))
        print(f"| {title} | {len(scores)} | {cells} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
