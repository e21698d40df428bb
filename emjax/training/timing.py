"""Step timing and profiling without blocking the training loop: docs/how-to/monitor-a-run.md."""

import re
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import jax
import numpy as np

from emjax.errors import UsageError
from emjax.parallel import devices

Batch = TypeVar("Batch")


class Profile(NamedTuple):
    """Which updates are traced, both ends included, and the folder of the trace."""

    first: int
    last: int
    folder: str


def parse_profile(text: str | None, folder: Path) -> Profile | None:
    """Return the Profile of `FROM:TO`; None for None.

    Raises: UsageError for any other text.
    """
    if text is None:
        return None
    ends = re.fullmatch(r"(\d{1,15}):(\d{1,15})", text)
    first, last = map(int, ends.groups()) if ends else (0, 0)
    if not 1 <= first <= last:
        raise UsageError(
            f"--profile={text}, expected FROM:TO, the first and last step, as in 20:25"
        )
    return Profile(first, last, str(folder))


class StepTimer:
    """Records when each update ends on the device, in a thread that waits for it.

    The loop runs ahead of the device: its own clock shows when updates were submitted, not how long
    they take.

    Args:
        profile: the Profile to trace, or None.
        flops: operations per update, over all devices; 0 if unknown.
    """

    def __init__(self, profile: Profile | None = None, flops: float = 0) -> None:
        self.waiter = ThreadPoolExecutor(1)
        self.profile, self.is_tracing, self.flops = profile, False, flops
        self.restart()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.end_trace()

    def restart(self) -> None:
        """Leave the time until now out of the next row."""
        self.began, self.ends, self.waited = time.monotonic(), list[Future[float]](), 0.0

    def read(self, reader: Iterator[Batch], step: int) -> Batch:
        """Return the next batch; starts the trace before the batch of its first update."""
        if self.profile and step == self.profile.first:
            if self.ends:
                self.ends[-1].result()
            jax.profiler.start_trace(self.profile.folder)
            self.is_tracing = True
        began = time.monotonic()
        batch = next(reader)
        self.waited += time.monotonic() - began
        return batch

    def stepped(self, step: int, terms: Any) -> None:
        """Record that update `step` was submitted; `terms` are some of its results."""
        self.ends.append(self.waiter.submit(finish_time, terms))
        if self.profile and step == self.profile.last:
            self.end_trace()

    def end_trace(self) -> None:
        """Write the trace, if one is being taken."""
        if self.is_tracing:
            self.is_tracing = False
            if self.ends:
                self.ends[-1].result()
            jax.profiler.stop_trace()

    def row(self) -> dict[str, float]:
        """Return {"pace/...": number} since the last row or restart; waits for the last update."""
        ends = [end.result() for end in self.ends]
        seconds = max(ends[-1] - self.began, 1e-9)
        p50, p95 = np.percentile(np.diff([self.began, *ends]), [50, 95])
        row = {"step_ms_p50": 1e3 * p50, "step_ms_p95": 1e3 * p95}
        row["data_wait"] = min(self.waited / seconds, 1)
        if self.flops:
            rate = self.flops * len(ends) / seconds / jax.device_count()
            row["tflops"] = rate / 1e12
            if peak := devices.peak(jax.devices()[0].device_kind):
                row["mfu"] = rate / peak
        if used := devices.memory().get("peak_bytes_in_use"):
            row["peak_memory_gb"] = used / 1e9
        self.restart()
        return {f"pace/{name}": float(f"{value:.4g}") for name, value in row.items()}


def finish_time(terms: Any) -> float:
    """Return the time at which `terms` are computed, in seconds; waits for them."""
    jax.block_until_ready(terms)
    return time.monotonic()
