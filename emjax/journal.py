"""The run's record: one JSON line a report in metrics.jsonl, one plain line on the terminal."""

import datetime
import json
import time
from pathlib import Path

import jax

from emjax import weights
from emjax.errors import BadInput


class Journal:
    """Writes rows {"step", "total", "seconds", "<split>/<term>": value, ...}; process 0 only.

    Args:
        path: the JSONL file; beside it lies images.jsonl with the scores of single images. Rows
            after step `done` are from a lost stretch of the run and cut off.
        done: updates done when this process takes up the run.
        total: updates of the whole run.
        images: images in one update.
    """

    def __init__(self, path, *, done, total, images):
        self.path, self.total, self.images = Path(path), total, images
        self.writes = jax.process_index() == 0
        self.start = self.lap = time.monotonic()
        self.lap_step = done
        self.per_image = self.path.with_name("images.jsonl")
        for file in (self.path, self.per_image):
            if self.writes and file.exists():
                kept = [row for row in read(file) if row["step"] <= done]
                weights.replace(file, "".join(json.dumps(row) + "\n" for row in kept).encode())

    def train(self, step, terms):
        """Report the terms of update `step`, with the images/s since the last report."""
        now = time.monotonic()
        rate = (step - self.lap_step) * self.images / max(now - self.lap, 1e-9)
        left = datetime.timedelta(seconds=round((self.total - step) * self.images / rate))
        self.write(step, {f"train/{name}": float(value) for name, value in terms.items()},
                   f"  {rate:.1f} images/s  ETA {left}")  # fmt: skip
        self.resume(step)

    def resume(self, step):
        """Leave what happened since the last report out of the next images/s."""
        self.lap, self.lap_step = time.monotonic(), step

    def write_images(self, step, split, scores):
        """One row of {index: {metric: value}}, in six digits."""
        if self.writes:
            short = {index: {name: float(f"{value:.6g}") for name, value in each.items()}
                     for index, each in scores.items()}  # fmt: skip
            append(self.per_image, {"step": step, "split": split, "images": short})

    def write(self, step, row, note=""):
        if not self.writes:
            return
        seconds = round(time.monotonic() - self.start, 3)
        append(self.path, {"step": step, "total": self.total, "seconds": seconds, **row})
        terms = "  ".join(f"{name} {value:.4f}" for name, value in row.items())
        print(f"step {step}/{self.total}  {terms}{note}", flush=True)


def append(path, row):
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def read(path):
    """The rows of a metrics.jsonl; a last line that was cut by a crash is left out.

    Raises: BadInput naming the file and any other line that is no JSON.
    """
    rows = []
    lines = Path(path).read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise BadInput(f"{path}, line {number}: no JSON ({error})") from error
    return rows
