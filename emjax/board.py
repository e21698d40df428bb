"""Curves and pictures for TensorBoard, where the package `tensorboard` is installed."""

import time

import jax
import numpy as np
from PIL import Image

from emjax import pictures
from emjax.data.batches import first_examples
from emjax.pictures import grey

SHOWN, SIDE, GAP = 4, 256, 4  # records in the grid, the most pixels of one picture, between two


def opened(folder, done):
    """The Board in `folder`; None without tensorboard, and on processes other than the first."""
    if jax.process_index():
        return None
    try:
        return Board(folder, done)
    except ImportError:
        return None


class Board:
    """Writes event files.

    Args:
        folder: where they go.
        done: updates done; TensorBoard leaves out what earlier files have of later ones.
    """

    def __init__(self, folder, done):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.Event, self.Summary = event_pb2.Event, summary_pb2.Summary
        self.writer = EventFileWriter(str(folder))
        self.add(done + 1, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

    def add(self, step, **what):
        self.writer.add_event(self.Event(step=step, wall_time=time.time(), **what))
        self.writer.flush()

    def scalars(self, step, row):
        """The numbers of a row of the journal."""
        values = [self.Summary.Value(tag=name, simple_value=x) for name, x in row.items()]
        self.add(step, summary=self.Summary(value=values))

    def picture(self, step, name, grey):
        """A picture, uint8 [h, w]."""
        height, width = grey.shape
        image = self.Summary.Image(height=height, width=width, colorspace=1,
                                   encoded_image_string=pictures.png(grey))  # fmt: skip
        self.add(step, summary=self.Summary(value=[self.Summary.Value(tag=name, image=image)]))


class Grid:
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
