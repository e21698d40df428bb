"""The run's record: one JSON line a report in metrics.jsonl, one plain line on the terminal."""

import datetime
import json
import os
import shutil
import sys
import time
from pathlib import Path

from emjax.errors import InputError
from emjax.files import write_atomically
from emjax.parallel import processes

SHOWN = {  # of the pace, on the terminal
    "pace/step_ms_p50": "{:.3g} ms",
    "pace/mfu": "MFU {:.0%}",
    "pace/data_wait": "waits for data {:.0%}",
}


class MetricsLog:
    """Writes rows {"step", "total", "seconds", "<split>/<term>": value, ...}; process 0 only.

    Args:
        path: the JSONL file; beside it lies images.jsonl with the scores of single images. Rows
            after step `done` are from a lost stretch of the run and cut off.
        done: updates done when this process takes up the run.
        total: updates of the whole run.
        images: images in one update.
        board: the TensorBoardWriter that shows the same numbers, or None.
    """

    def __init__(self, path, *, done, total, images, board=None):
        self.path, self.total, self.images, self.board = Path(path), total, images, board
        self.writes = processes.is_first()
        self.start = self.lap = time.monotonic()
        self.lap_step = done
        self.line, self.last = StatusLine(sys.stderr), ""
        self.per_image = self.path.with_name("images.jsonl")
        for file in (self.path, self.per_image):
            if self.writes and file.exists():
                kept = [row for row in read(file) if row["step"] <= done]
                write_atomically(file, "".join(json.dumps(row) + "\n" for row in kept).encode())

    def train(self, step, terms, pace=None):
        """Report the terms of update `step`, with the images/s since the last report.

        Args:
            pace: {"pace/...": number} of the same stretch, as StepTimer.row gives it.
        """
        now = time.monotonic()
        rate = (step - self.lap_step) * self.images / max(now - self.lap, 1e-9)
        left = datetime.timedelta(seconds=round((self.total - step) * self.images / rate))
        row = {f"train/{name}": float(value) for name, value in terms.items()}
        pace = {"pace/images_per_s": float(f"{rate:.4g}"), **(pace or {})}
        note = f"  {rate:.1f} images/s"
        for name, form in SHOWN.items():
            note += f"  {form.format(pace[name])}" if name in pace else ""
        self.write(step, row, f"{note}  ETA {left}", pace)
        losses = (f"{name} {value:.4f}" for name, value in terms.items())
        self.last = "  ".join([f"{rate:.1f} images/s", f"ETA {left}", *losses])
        self.resume(step)

    def at(self, step):
        """Move the live line on to update `step`; what else it says is from the last report."""
        if self.writes and self.line.due():
            share = f"{step / self.total:.0%}".rjust(4)
            self.line.show(f"{share}  step {step}/{self.total}  {self.last}")

    def clear(self):
        """Take the live line away, before something is printed."""
        self.line.clear()

    def resume(self, step):
        """Leave what happened since the last report out of the next images/s."""
        self.lap, self.lap_step = time.monotonic(), step

    def write_images(self, step, split, scores):
        """One row of {index: {metric: value}}, in six digits."""
        if self.writes:
            short = {index: {name: float(f"{value:.6g}") for name, value in each.items()}
                     for index, each in scores.items()}  # fmt: skip
            append(self.per_image, {"step": step, "split": split, "images": short})

    def write(self, step, row, note="", unprinted=None):
        if not self.writes:
            return
        seconds = round(time.monotonic() - self.start, 3)
        whole = {**row, **(unprinted or {})}
        append(self.path, {"step": step, "total": self.total, "seconds": seconds, **whole})
        if self.board:
            self.board.scalars(step, whole)
        terms = "  ".join(f"{name} {value:.4f}" for name, value in row.items())
        self.clear()
        print(f"step {step}/{self.total}  {terms}{note}", flush=True)


class StatusLine:
    """A line of a terminal that is written over; nothing where the stream is none.

    The cursor stays at its start, so that whatever else is printed takes its place.
    """

    def __init__(self, stream):
        self.stream, self.next = stream, 0.0
        self.live = stream.isatty() and os.environ.get("TERM") != "dumb"

    def due(self):
        """Whether to show it again: ten times a second."""
        return self.live and time.monotonic() >= self.next

    def show(self, text):
        self.next = time.monotonic() + 0.1
        width = shutil.get_terminal_size().columns - 1
        print(f"\x1b[K{text[:width]}\r", end="", file=self.stream, flush=True)

    def clear(self):
        if self.live:
            print("\x1b[K", end="", file=self.stream, flush=True)


def append(path, row):
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def read(path):
    """The rows of a metrics.jsonl; a last line that was cut by a crash is left out.

    Raises: InputError naming the file and any other line that is no JSON.
    """
    rows = []
    lines = Path(path).read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise InputError(f"{path}, line {number}: no JSON ({error})") from error
    return rows
