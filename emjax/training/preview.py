"""A grid of a few records with what a network makes of them."""

import jax
import numpy as np
from PIL import Image

from emjax.data.batches import first_examples
from emjax.data.records import Records
from emjax.models.network import Network
from emjax.objectives.objective import Objective
from emjax.pictures import grey

SHOWN = 4  # records in the grid
SIDE = 256  # largest side of one picture in pixels
GAP = 4  # pixels between two pictures


class PreviewGrid:
    """Views of the same few records by a network that changes.

    Args:
        records: the split's Records; the first SHOWN of them are used.
        divisor: of the sides of images that the network accepts.
    """

    def __init__(self, objective: Objective, records: Records, divisor: int) -> None:
        self.views = jax.jit(objective.views)
        self.examples = list(first_examples(records, divisor, SHOWN))

    def __call__(self, generator: Network) -> tuple[list[str], np.ndarray]:
        """Return (names of the columns, picture uint8 [h, w]), one row per record.

        Computed on one device of this process, on whatever devices the generator is.
        """
        arrays = {part: jax.device_get(getattr(generator, part)) for part in ("params", "stats")}
        generator = generator.replace(memory=None, mesh=None, **arrays)
        names, rows = [], []
        for _, batch in self.examples:
            views = self.views(generator, batch)
            names = list(views)
            rows.append(
                [
                    small(grey(np.asarray(view), np.asarray(batch["valid"])))
                    for view in views.values()
                ]
            )
        widest = max(sum(picture.shape[1] + GAP for picture in row) - GAP for row in rows)
        lines = []
        for row in rows:
            height = max(picture.shape[0] for picture in row)
            line = np.full((height + GAP, widest), 255, np.uint8)
            left = 0
            for picture in row:
                line[: picture.shape[0], left : left + picture.shape[1]] = picture
                left += picture.shape[1] + GAP
            lines.append(line)
        return names, np.concatenate(lines)[:-GAP]


def small(picture: np.ndarray) -> np.ndarray:
    """Return a picture, uint8 [h, w], scaled down to sides of at most SIDE pixels."""
    image = Image.fromarray(picture)
    image.thumbnail((SIDE, SIDE))
    return np.asarray(image)
