"""Read many broken files of every format: python -m tests.soak_formats --inputs=100000

Each input is a sample with bytes flipped, fields set to extremes, parts cut off, zeroed or moved,
by a seed. They are read in subprocesses with little address space and little time. Expected is a
micrograph or an InputError; anything else is printed with the command that repeats it.
"""

import argparse
import collections
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np

from emjax import micrographs
from emjax.errors import InputError
from emjax.micrographs.reading import OUT_OF_MEMORY
from tests import format_samples

ADDRESSES = 3 << 30  # bytes of address space; importing all readers takes 1.3 GB of it
LIMIT = 64 << 20  # bytes that a file may declare
SECONDS = 10  # of the processor for one input; six times that by the clock
LARGEST = 400_000  # bytes of a real sample
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)


def broken(content, rng):
    """Return `content` with some of its bytes changed."""
    content = bytearray(content)
    if not content:
        return bytes(content)
    for _ in range(rng.integers(1, 4)):
        near = rng.random() < 0.6  # where headers are
        at = int(rng.integers(0, min(len(content), 1200) if near else len(content)))
        way = rng.choice(["flip", "byte", "field", "cut", "zero", "copy"], p=FREQUENCIES)
        if way == "flip":
            content[at] ^= 1 << int(rng.integers(8))
        elif way == "byte":
            content[at] = int(rng.integers(256))
        elif way == "field":
            size = int(rng.choice([2, 4, 8]))
            value = EXTREMES[rng.integers(len(EXTREMES))] % 256**size
            order = "little" if rng.random() < 0.7 else "big"
            content[at : at + size] = value.to_bytes(size, order)
        elif way == "cut":
            del content[max(at, 1) :]
        else:
            length = int(rng.integers(1, 64))
            start = int(rng.integers(len(content)))
            moved = content[start : start + length] if way == "copy" else bytes(length)
            content[at : at + length] = moved
    return bytes(content)


HUNGRY = "refused by the lack of memory"
FREQUENCIES = (0.25, 0.2, 0.3, 0.05, 0.1, 0.1)


def make(samples, number, folder):
    """Write input `number` to `folder`; return (its sample's name, its path).

    Of a text that lies next to an image, the text is broken and the image is good.
    """
    rng = np.random.default_rng(number)
    name = sorted(samples)[number % len(samples)]
    path = folder / f"{number}{''.join(samples[name].suffixes)}"
    if name in format_samples.TEXTS:
        path.write_bytes(broken(samples[name].read_bytes(), rng))
        path = path.with_suffix(".tif")
        shutil.copy(samples["tiled.tif"], path)
    elif samples[name].is_dir():
        shutil.copytree(samples[name], path)
        files = sorted(file for file in path.rglob("*") if file.is_file())
        file = files[rng.integers(len(files))]
        file.write_bytes(broken(file.read_bytes(), rng))
    else:
        path.write_bytes(broken(samples[name].read_bytes(), rng))
    return name, path


def outcome(path):
    """Return "read", "refused" or HUNGRY; raise whatever else happens."""
    try:
        for _ in micrographs.planes(path, 0, LIMIT):
            pass
        return "read"
    except InputError as error:
        if str(error).endswith(OUT_OF_MEMORY):
            return HUNGRY
        assert str(error).startswith(str(path)) and "\n" not in str(error), error
        return "refused"


def samples_in(folder):
    """Return {name: path} of own samples, and of real ones where $EMJAX_REAL_DATA is set."""
    found = format_samples.write_all(folder) | format_samples.write_texts(folder)
    found |= format_samples.write_more(folder)
    real = Path(os.environ.get("EMJAX_REAL_DATA", "/nowhere")) / "formats"
    for path in real.rglob("*"):
        if (
            path.is_file()
            and path.stat().st_size <= LARGEST
            and path.suffix not in (".csv", ".txt")
        ):
            found[f"{path.parent.name}/{path.name}"] = path
    return found


def worker(first, count, step, log):
    """Read inputs `first`, first + step, ...; write a line for each to `log`."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stderr = sys.stdout = open(os.devnull, "w")
    with tempfile.TemporaryDirectory() as folder, open(log, "a", buffering=1) as lines:
        folder = Path(folder)
        (folder / "samples").mkdir()
        samples = samples_in(folder / "samples")
        for number in range(first, first + count * step, step):
            name, path = make(samples, number, folder)
            lines.write(json.dumps([number, name, "began"]) + "\n")
            # They end the process: a hang may never return to Python.
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            signal.alarm(6 * SECONDS)
            try:
                result = outcome(path)
            except BaseException:
                result = "failed: " + traceback.format_exc()[-1500:]
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.alarm(0)
            lines.write(json.dumps([number, name, result]) + "\n")
            for made in folder.glob(f"{number}.*"):
                (shutil.rmtree if made.is_dir() else os.unlink)(made)


def run(inputs, processes=2, first=0):
    """Return {number: (name of the sample, outcome)}."""
    with tempfile.TemporaryDirectory() as folder:
        waiting, running, logs = [], [], []
        for index in range(processes):
            count = len(range(first + index, first + inputs, processes))
            waiting.append((first + index, count, Path(folder) / f"{index}.log"))
        results = {}
        while waiting or running:
            while waiting:
                start, count, log = waiting.pop()
                line = [sys.executable, "-m", "tests.soak_formats", "--worker"]
                line += map(str, (start, count, processes, log))
                quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
                running.append((subprocess.Popen(line, **quiet), start, count, log))
                logs.append(log)
            time.sleep(0.05)
            for item in [item for item in running if item[0].poll() is not None]:
                running.remove(item)
                process, start, count, log = item
                with process.stderr:
                    message = process.stderr.read().decode(errors="replace")
                if process.returncode:
                    lines = log.read_text().splitlines() if log.exists() else []
                    if not lines:
                        raise RuntimeError(message)
                    number, name, _ = json.loads(lines[-1])
                    died = f"failed: ended by {process.returncode}: {message[-500:]}"
                    with open(log, "a") as added:
                        added.write(json.dumps([number, name, died]) + "\n")
                    done = (number - start) // processes + 1
                    if count > done:
                        waiting.append((number + processes, count - done, log))
        for log in set(logs):
            for line in log.read_text().splitlines():
                number, name, result = json.loads(line)
                results[number] = (name, result)
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="the number of the first input")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        first, count, step, log = options.worker
        worker(int(first), int(count), int(step), log)
        return 0
    began = time.monotonic()
    results = run(options.inputs, options.processes, options.first)
    counts = collections.Counter(result.partition(":")[0] for _, result in results.values())
    for number, (name, result) in sorted(results.items()):
        if result not in ("read", "refused"):
            print(f"--first={number} --inputs=1, {name}: {result}")
    outcomes = ", ".join(f"{count} {what}" for what, count in counts.most_common())
    seconds = time.monotonic() - began
    samples = len({name for name, _ in results.values()})
    print(f"{counts.total()} inputs of {samples} samples: {outcomes}; {seconds:.0f} s")
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
