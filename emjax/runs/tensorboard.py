"""Curves and pictures for TensorBoard, where the package `tensorboard` is installed."""

import time

import jax

from emjax import pictures


def open_writer(folder, done):
    """Return the writer in `folder`; None without tensorboard and on processes but the first."""
    if jax.process_index():
        return None
    try:
        return TensorBoardWriter(folder, done)
    except ImportError:
        return None


class TensorBoardWriter:
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
