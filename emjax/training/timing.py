"""How fast a run goes, seen without making its loop wait: docs/observability.md."""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np

from emjax.errors import UsageError
from emjax.parallel import devices


class Profile(NamedTuple):
    """Which updates are traced, both ends included, and where the trace goes."""

    first: int
    last: int
    folder: str


def parse_profile(text, folder):
    """The Profile of `FROM:TO`; None of None.

    Raises: UsageError for anything else.
    """
    if text is None:
        return None
    ends = re.fullmatch(r"(\d+):(\d+)", text)
    first, last = map(int, ends.groups()) if ends else (0, 0)
    if not 1 <= first <= last:
        raise UsageError(f"--profile={text}; FROM:TO was due, the first and last step, as in 20:25")
    return Profile(first, last, str(folder))


class StepTimer:
    """Notes when each update ends on the device, by a thread that waits for it.

    The loop itself runs ahead of the device, so that its own clock would tell when updates were
    handed over, not how long they take.

    Args:
        profile: the Profile to trace, or None.
        flops: operations of an update, over all devices; 0 where that is not known.
    """

    def __init__(self, profile=None, flops=0):
        self.waiting = ThreadPoolExecutor(1)
        self.profile, self.tracing, self.flops = profile, False, flops
        self.resume()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.end_trace()

    def resume(self):
        """Leave what happened until now out of the next row."""
        self.began, self.ends, self.waited = time.monotonic(), [], 0.0

    def read(self, reader, step):
        """The next batch; the trace begins before that of its first update."""
        if self.profile and step == self.profile.first:
            if self.ends:
                self.ends[-1].result()
            jax.profiler.start_trace(self.profile.folder)
            self.tracing = True
        began = time.monotonic()
        batch = next(reader)
        self.waited += time.monotonic() - began
        return batch

    def stepped(self, step, terms):
        """Update `step` was handed over; `terms` are some of its results."""
        self.ends.append(self.waiting.submit(ended, terms))
        if self.profile and step == self.profile.last:
            self.end_trace()

    def end_trace(self):
        if self.tracing:
            self.tracing = False
            if self.ends:
                self.ends[-1].result()
            jax.profiler.stop_trace()

    def row(self):
        """{"pace/...": number} since the last row or `resume`; waits for the last update."""
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
        self.resume()
        return {f"pace/{name}": float(f"{value:.4g}") for name, value in row.items()}


def ended(terms):
    """The time when `terms` are there."""
    jax.block_until_ready(terms)
    return time.monotonic()
