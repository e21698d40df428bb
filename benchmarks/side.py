"""One side of a case in a process of its own, which keeps it prepared: python -m benchmarks.side

Two frameworks in one process would take each other's threads and memory. It reads requests from
stdin and answers on stdout, both a line of JSON; whatever else is printed goes to stderr.
"""

import contextlib
import importlib
import json
import math
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

from benchmarks.cases import Case
from benchmarks.commands import packages_of
from emjax.errors import first_line

ROOT = Path(__file__).resolve().parent.parent
WARM = 3  # steps before those that count, after the first two; none where they are long


def main(name, text):
    """Prepare all variants of a case, tell what became of each, then do the rounds asked for."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    request = json.loads(text)
    case = Case(**request["case"])
    module = importlib.import_module(f"benchmarks.{name}")
    more = {"theirs": ["modes"], "commands": ["checkout"]}.get(name, [])
    found = module.prepare(case, request["data"], *(request[field] for field in more))
    variants, told = {}, {}
    for variant, function in found.items():
        try:
            prepared = variants[variant] = function()
            steps = prepared.steps or warm_up(prepared, request["seconds"])
            told[variant] = {"steps": steps, "images": prepared.images, "facts": prepared.facts()}
        except Exception as error:  # out of memory, or what a compiler cannot do: others go on
            traceback.print_exc()
            told[variant] = {"error": f"{type(error).__name__}: {first_line(error)}"}
    print(json.dumps(told), file=answers)
    for line in sys.stdin:
        variant, steps = json.loads(line)
        try:
            answer = timed(variants[variant], steps) / steps
        except Exception as error:
            traceback.print_exc()
            answer = f"{type(error).__name__}: {first_line(error)}"
        print(json.dumps(answer), file=answers)
    os._exit(0)  # threads that read ahead have nobody to stop them


def warm_up(prepared, seconds):
    """The steps of a round that takes about so many seconds, found after some to warm up."""
    prepared.run(1)
    if timed(prepared, 1) >= seconds:
        return 1
    prepared.run(WARM)
    return max(1, math.ceil(seconds / (timed(prepared, WARM) / WARM)))


def timed(prepared, steps):
    """Seconds that so many steps take."""
    if prepared.lead:
        prepared.run(prepared.lead)
    began = time.perf_counter()
    prepared.run(steps)
    return time.perf_counter() - began


class Side:
    """The process, as its parent sees it.

    Args:
        checkout: an earlier build; its own benchmarks are run there, so what `main` reads and
            answers must stay as it is. Commands are measured by this build's, started there.
    """

    def __init__(self, name, case, data, *, seconds, modes, environment, checkout=None):
        request = {"case": vars(case), "data": str(data), "seconds": seconds, "modes": modes,
                   "checkout": str(checkout or ROOT)}  # fmt: skip
        folder = checkout if name != "commands" else None
        packages = packages_of(checkout) if folder else {}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.side", name, json.dumps(request)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=folder, env={**os.environ, **environment, **packages},
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def answer(self):
        """Raises: RuntimeError if the process is gone."""
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process ended with {self.process.wait()}")
        return json.loads(line)

    def seconds(self, variant, steps):
        """Of one step of a round; the text of an error if there was one."""
        try:
            print(json.dumps([variant, steps]), file=self.process.stdin, flush=True)
            return self.answer()
        except (BrokenPipeError, RuntimeError) as error:
            return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main(*sys.argv[1:])
