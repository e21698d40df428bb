"""A grid of a few records as a network sees and answers them."""

import jax
import numpy as np
from PIL import Image

from emjax.data.batches import first_examples
from emjax.pictures import grey

SHOWN, SIDE, GAP = 4, 256, 4  # records in the grid, the most pixels of one picture, between two


class PreviewGrid:
    """The same few records at every call, as a network sees and answers them.

    Args:
        records: the split's Records; the first SHOWN of them are taken.
    """

    def __init__(self, objective, records, divisor):
        self.views = jax.jit(objective.views)
        self.examples = list(first_examples(records, divisor, SHOWN))

    def __call__(self, generator):
        """(names of the columns, in their order, uint8 [h, w]): a row a record.

        On one device of this process, whatever holds the generator.
        """
        arrays = {part: jax.device_get(getattr(generator, part)) for part in ("params", "stats")}
        generator = generator.replace(memory=None, mesh=None, **arrays)
        rows = []
        for _, batch in self.examples:
            views = self.views(generator, batch)
            rows.append([small(grey(view, batch["valid"])) for view in views.values()])
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
        return list(views), np.concatenate(lines)[:-GAP]


def small(picture):
    picture = Image.fromarray(picture)
    picture.thumbnail((SIDE, SIDE))
    return np.asarray(picture)
