"""The metrics log of a run: one JSON line per report in metrics.jsonl, one line on the terminal."""

import datetime
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from emjax.errors import InputError
from emjax.files import write_atomically
from emjax.parallel import processes
from emjax.runs.tensorboard import TensorBoardWriter

SHOWN = {  # of the pace, on the terminal
    "pace/step_ms_p50": "{:.3g} ms",
    "pace/mfu": "MFU {:.0%}",
    "pace/data_wait": "waits for data {:.0%}",
}

Row = dict[str, Any]  # a line of the log
Scores = Mapping[int, Mapping[str, float]]  # {image: {metric: value}}


class MetricsLog:
    """Writes rows {"step", "total", "seconds", "<split>/<term>": value, ...}; process 0 only.

    Args:
        path: the JSONL file; images.jsonl in the same folder gets the scores of single images. Rows
            after step `done` are from a lost stretch of the run and are removed.
        done: updates done when this process continues the run.
        total: updates of the whole run.
        images: images per update.
        events: the TensorBoardWriter that gets the same numbers, or None.
    """

    def __init__(
        self,
        path: Path,
        *,
        done: int,
        total: int,
        images: int,
        events: TensorBoardWriter | None = None,
    ) -> None:
        self.path, self.total, self.images, self.events = Path(path), total, images, events
        self.writes = processes.is_first()
        self.start = self.lap_start = time.monotonic()
        self.lap_step = done
        self.line, self.last_report = StatusLine(sys.stderr), ""
        self.per_image = self.path.with_name("images.jsonl")
        for file in (self.path, self.per_image):
            if self.writes and file.exists():
                kept = [row for row in read(file) if row["step"] <= done]
                write_atomically(file, "".join(json.dumps(row) + "\n" for row in kept).encode())

    def since_best(self, score: str, higher_is_better: bool) -> int:
        """Return how many evaluations so far have had no better score, at the end of the file."""
        rows = read(self.path) if self.path.exists() else []
        return since_best(rows, score, higher_is_better=higher_is_better)

    def train(
        self, step: int, terms: Mapping[str, Any], pace: Mapping[str, float] | None = None
    ) -> None:
        """Report the terms of update `step`, with the images per second since the last report.

        Args:
            terms: {name: scalar}.
            pace: {"pace/...": number} of the same stretch, as StepTimer.row returns it.
        """
        now = time.monotonic()
        rate = (step - self.lap_step) * self.images / max(now - self.lap_start, 1e-9)
        left = datetime.timedelta(seconds=round((self.total - step) * self.images / rate))
        row = {f"train/{name}": float(value) for name, value in terms.items()}
        pace = {"pace/images_per_s": float(f"{rate:.4g}"), **(pace or {})}
        speed = f"  {rate:.1f} images/s"
        for name, form in SHOWN.items():
            speed += f"  {form.format(pace[name])}" if name in pace else ""
        self.write(step, row, f"{speed}  ETA {left}", pace)
        losses = (f"{name} {value:.4f}" for name, value in terms.items())
        self.last_report = "  ".join([f"{rate:.1f} images/s", f"ETA {left}", *losses])
        self.restart_clock(step)

    def show_step(self, step: int) -> None:
        """Show update `step` on the live line, with the numbers of the last report."""
        if self.writes and self.line.may_refresh():
            share = f"{step / self.total:.0%}".rjust(4)
            self.line.show(f"{share}  step {step}/{self.total}  {self.last_report}")

    def clear_line(self) -> None:
        """Remove the live line, before something is printed."""
        self.line.clear()

    def restart_clock(self, step: int) -> None:
        """Leave the time since the last report out of the next images per second."""
        self.lap_start, self.lap_step = time.monotonic(), step

    def write_images(self, step: int, split: str, scores: Scores) -> None:
        """Write one row of {image: {metric: value}}, in six digits."""
        if self.writes:
            rounded = {
                index: {name: float(f"{value:.6g}") for name, value in each.items()}
                for index, each in scores.items()
            }
            append(self.per_image, {"step": step, "split": split, "images": rounded})

    def write(
        self,
        step: int,
        row: Mapping[str, float],
        suffix: str = "",
        unprinted: Mapping[str, float] | None = None,
    ) -> None:
        """Write a row and print it.

        Args:
            suffix: text at the end of the printed line.
            unprinted: numbers for the files alone.
        """
        if not self.writes:
            return
        seconds = round(time.monotonic() - self.start, 3)
        whole = {**row, **(unprinted or {})}
        append(self.path, {"step": step, "total": self.total, "seconds": seconds, **whole})
        if self.events:
            self.events.scalars(step, whole)
        terms = "  ".join(f"{name} {value:.4f}" for name, value in row.items())
        self.clear_line()
        print(f"step {step}/{self.total}  {terms}{suffix}", flush=True)


class StatusLine:
    """A line on a terminal that is overwritten; writes nothing to a stream that is no terminal.

    The cursor stays at its start, so that other output takes its place.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.next_refresh = stream, 0.0
        self.is_live = stream.isatty() and os.environ.get("TERM") != "dumb"

    def may_refresh(self) -> bool:
        """Return whether to show it again: at most ten times per second."""
        return self.is_live and time.monotonic() >= self.next_refresh

    def show(self, text: str) -> None:
        """Write the line, cut to the width of the terminal."""
        self.next_refresh = time.monotonic() + 0.1
        width = shutil.get_terminal_size().columns - 1
        print(f"\x1b[K{text[:width]}\r", end="", file=self.stream, flush=True)

    def clear(self) -> None:
        """Erase the line."""
        if self.is_live:
            print("\x1b[K", end="", file=self.stream, flush=True)


def since_best(rows: Iterable[Row], score: str, *, higher_is_better: bool) -> int:
    """Return how many evaluations the last of `rows` are that have no better score than before.

    NaN is never better.
    """
    best, since = -math.inf, 0
    for row in rows:
        if score in row:
            value = row[score] if higher_is_better else -row[score]
            best, since = (value, 0) if value > best else (best, since + 1)
    return since


def append(path: Path, row: Row) -> None:
    """Append a row to a JSONL file."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def read(path: Path) -> list[Row]:
    """Return the rows of a JSONL file; an incomplete last line, left by a crash, is skipped.

    Raises: InputError naming the file and any other line that is not JSON.
    """
    rows = []
    lines = Path(path).read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise InputError(f"{path}, line {number}: not JSON ({error})") from error
    return rows
