"""Print how well columns are found in what a model restores: python -m tests.score_columns MODEL

On the test images of atomagined in $EMJAX_REAL_DATA (simulated by others, MIT), which have a map of
their columns. `emjax measure --atoms` finds columns in the image as it is and as the model restores
it; a column is right within NEAR pixels of a true one, each of which counts once. The mean over
images, with a 95 % interval (bootstrap over images). For docs/background/models.md.
"""

import os
import sys
from pathlib import Path

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

import emjax
from emjax.errors import InputError
from emjax.measurement import atoms
from tests.score_models import interval

NEAR = 2.5  # pixels


def scores(image, truth):
    """Return (share of the true columns found, share of those found that are true, rms pixels)."""
    try:
        found = atoms.columns(image.astype(np.float64)).position
    except InputError:  # none
        return 0.0, 0.0, np.nan
    distances = cdist(truth, found)
    rows, columns = linear_sum_assignment(np.minimum(distances, NEAR))
    matched = distances[rows, columns]
    matched = matched[matched < NEAR]
    return len(matched) / len(truth), len(matched) / len(found), np.sqrt((matched**2).mean())


def main(name):
    """Print a table."""
    model = emjax.load_model(name)
    folder = Path(os.environ["EMJAX_REAL_DATA"]) / "temimagenet_like/atomagined/test"
    rows = {"as it is": [], name: []}
    for path in sorted((folder / "peaks").glob("*.png")):
        truth = np.argwhere(emjax.read(path).image > 0)
        image = emjax.read(folder / "input" / path.name).image
        for title, seen in (("as it is", image), (name, model.predict(image))):
            rows[title].append(scores(seen, truth))
    print(
        "| image | images | columns found | of those, true | rms, pixels |\n|---|---|---|---|---|"
    )
    for title, found in rows.items():
        columns = (np.array(each) for each in zip(*found, strict=True))
        cells = " | ".join(interval(each[np.isfinite(each)]) for each in columns)
        print(f"| {title} | {len(found)} | {cells} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
