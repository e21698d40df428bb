"""Does it pay to label first what a model is unsure of? python -m tests.label_next SET IMAGES DIR

SET is a table of $EMJAX_REAL_DATA. The model `particles` predicts its images in their eight flips
and turns. Printed are the rank correlation of their spread with 1 - Dice, and the Dice on the test
split of `emjax finetune` with IMAGES images of the train split: those of the largest spread, the
mean over the image and for each pixel of predicted particle, and those of two random orders. DIR
gets the trainings; they are continued when the command is run again. For
docs/background/evidence/few_images.md.
"""

import csv
import json
import os
import random
import sys
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from emjax import finetune
from emjax.inference.predictor import THRESHOLD, Predictor
from tests.score_models import dice, rows

UPDATES = 120
FIELDS = ("image", "mask", "split")


def main(name, images, folder):
    """Print a table of the orders."""
    model, root = Predictor("particles"), Path(os.environ["EMJAX_REAL_DATA"])
    errors, mean, relative = [], [], []
    for _, image, mask, _ in rows(name):
        seen = model.intensity_range([image])
        probability, spread = model(image, seen), model.spread(image, seen)
        errors.append(1 - dice(probability > THRESHOLD, mask))
        mean.append(spread.mean())
        relative.append(spread.sum() / max(probability.sum(), 1))
    with open(root / f"tables/{name}.csv", newline="") as file:
        table = [*csv.DictReader(file)]
    train = [place for place, row in enumerate(table) if row["split"] == "train"]
    orders = {}
    for what, values in {"mean spread": mean, "spread of particles": relative}.items():
        orders[what] = sorted(train, key=lambda place, values=values: -values[place])
        print(f"{what}: rank correlation with 1 - Dice {spearmanr(values, errors)[0]:.2f}")
    for seed in range(2):
        orders[f"random {seed}"] = random.Random(seed).sample(train, len(train))
    for what, order in orders.items():
        out = Path(folder, f"{name}_{images}_{what.replace(' ', '_')}")
        out.mkdir(parents=True, exist_ok=True)
        path, kept = out.with_suffix(".csv"), {*order[: int(images)]}
        with open(path, "w", newline="") as file:
            written = csv.DictWriter(file, FIELDS, extrasaction="ignore")
            written.writeheader()
            written.writerows(
                row for place, row in enumerate(table) if place in kept or row["split"] != "train"
            )
        finetune.main(
            [f"--images={root}", f"--table={path}", f"--out={out}", f"--steps={UPDATES}",
             "--base=particles", "--foreground=nonzero"]
        )  # fmt: skip
        scores = json.loads((out / "finetune.json").read_text())["images"].values()
        print(f"{what}: Dice {np.mean([each['score'] for each in scores]):.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
