"""Curves and pictures for TensorBoard, where the package `tensorboardX` is installed."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import Any

import numpy as np

from emjax import pictures
from emjax.parallel import processes


@contextmanager
def open_writer(folder: Path, done: int) -> Iterator["TensorBoardWriter | None"]:
    """Yield the writer of `folder`; None without tensorboardX and on all processes but the first.

    Args: as TensorBoardWriter.
    """
    writer = None
    if processes.is_first():
        try:
            writer = TensorBoardWriter(folder, done)
        except ImportError:
            pass
    try:
        yield writer
    finally:
        if writer:
            writer.close()


@contextmanager
def without_its_package() -> Iterator[None]:
    """Import modules of tensorboardX inside without running its __init__.

    That imports PyTorch wherever it is installed, which takes seconds. Others import the package
    afterwards as if it had not been touched.
    """
    spec = None if "tensorboardX" in sys.modules else find_spec("tensorboardX")
    if not spec:
        yield
        return
    sys.modules["tensorboardX"] = module_from_spec(spec)
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboardX"]:
            del sys.modules[name]


class TensorBoardWriter:
    """Writes event files, each event at once.

    Differs from tensorboardX's SummaryWriter, which writes from a thread: that loses the last
    events of a run that is killed, and waits forever once the disk is full.

    Args:
        folder: made if it does not exist.
        done: updates done; TensorBoard hides what earlier files have of later ones.
    """

    def __init__(self, folder: Path, done: int) -> None:
        with without_its_package():
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto import event_pb2, summary_pb2

        # Any: the classes of these modules are made when they are imported.
        self.event_pb2: Any = event_pb2
        self.summary_pb2: Any = summary_pb2
        folder.mkdir(parents=True, exist_ok=True)
        # The name has seconds: a run that continues in the same second must not overwrite it.
        self.writer = EventsWriter(str(folder / "events"), filename_suffix=f".{done}")
        session_log = self.event_pb2.SessionLog
        self.add(done + 1, session_log=session_log(status=session_log.START))

    def add(self, step: int, **content: Any) -> None:
        """Write one event to the disk."""
        event = self.event_pb2.Event(step=step, wall_time=time.time(), **content)
        self.writer.write_event(event)
        self.writer.flush()

    def scalars(self, step: int, row: Mapping[str, float]) -> None:
        """Write the numbers of a row of the metrics log."""
        summary = self.summary_pb2.Summary
        values = [summary.Value(tag=name, simple_value=value) for name, value in row.items()]
        self.add(step, summary=summary(value=values))

    def picture(self, step: int, name: str, grey: np.ndarray) -> None:
        """Write a picture, uint8 [h, w]."""
        summary = self.summary_pb2.Summary
        height, width = grey.shape
        image = summary.Image(
            height=height,
            width=width,
            colorspace=1,
            encoded_image_string=pictures.png(grey),
        )
        self.add(step, summary=summary(value=[summary.Value(tag=name, image=image)]))

    def close(self) -> None:
        """Close the file."""
        self.writer.close()
