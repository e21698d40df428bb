"""Kill the prediction of an archive at random moments: python -m tests.soak_archive --files=2000

`emjax predict` of simulated micrographs, of which some are damaged, is killed and started again
until it ends. What was finished must stay as it is, and the end must equal that of an uninterrupted
run: the same files, byte for byte, and nothing else. Memory must not grow with the files.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile

DAMAGED = 500  # one file of so many
EARLY = 200  # files after which memory is looked at first
GROWTH = 40  # MB from then on, at most
LONGEST = 0.6  # life, of the time of the whole; to skip finished files takes a third of it
CODE = 3  # of a command that could not read some files


def simulate(folder, count):
    """Write `count` micrographs of dark discs on noise, of two sizes; one in DAMAGED is cut."""
    rng = np.random.default_rng(0)
    for index in range(count):
        side = (96, 120)[index % 2]
        y, x = np.mgrid[:side, :side]
        image = rng.normal(150, 12, (side, side))
        for _ in range(3):
            centre, radius = rng.uniform(0, side, 2), rng.uniform(5, 12)
            image[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2] -= 60
        path = folder / f"part_{index // 500}" / f"{index:05}.tif"
        path.parent.mkdir(exist_ok=True)
        tifffile.imwrite(path, np.clip(image, 0, 255).astype(np.uint8))
        if index % DAMAGED == DAMAGED // 2:
            path.write_bytes(path.read_bytes()[:100])


def started(images, out):
    """Return the running command."""
    line = [sys.executable, "-u", "-m", "emjax.predict", f"--out={out}", str(images)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def resident(pid):
    """Return the MB in memory of a process, by its number; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    kilobytes = status.partition("VmRSS:")[2].split()
    return int(kilobytes[0]) / 1024 if kilobytes else 0


def uninterrupted(images, out):
    """Run to the end; return (MB in memory after EARLY files, at most afterwards)."""
    process, memory = started(images, out), []
    for number, _ in enumerate(process.stdout):
        if number >= EARLY and number % 50 == 0:
            memory.append(resident(process.pid))
    if process.wait() != CODE:
        raise RuntimeError(f"ended with {process.returncode}, expected {CODE}")
    return memory[0], max(memory)


def contents(folder):
    """Return {name: bytes} of all files below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def killed_until_done(images, out, longest, rng):
    """Kill and start again until the command ends; return how often it was killed.

    Raises: RuntimeError if a finished result was written again, or it ended with another code.
    """
    kills, times = 0, {}
    while True:
        process = started(images, out)
        try:
            process.communicate(timeout=rng.uniform(0, longest))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
        # A mask is the first file of a result; with its overlay the result is whole.
        whole = [path.with_name(path.name.removesuffix(".overlay.png") + ".tif")
                 for path in out.rglob("*.overlay.png")]  # fmt: skip
        for path in whole:
            if times.setdefault(path, path.stat().st_mtime_ns) != path.stat().st_mtime_ns:
                raise RuntimeError(f"{path}: was finished, and was written again")
        if process.returncode >= 0:
            if process.returncode != CODE:
                raise RuntimeError(f"ended with {process.returncode}, expected {CODE}")
            return kills


def main(arguments):
    """Print what was done, or raise what went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        images, once, often = (Path(name) / each for each in ("images", "once", "often"))
        images.mkdir()
        simulate(images, options.files)
        start = time.monotonic()
        early, most = uninterrupted(images, once)
        longest = LONGEST * (time.monotonic() - start)
        kills = killed_until_done(images, often, longest, random.Random(options.seed))
        expected, found = contents(once), contents(often)
    differ = [file for file in expected.keys() | found.keys()
              if expected.get(file) != found.get(file)]  # fmt: skip
    if differ:
        raise RuntimeError(f"{len(differ)} files differ from the uninterrupted run: {differ[:5]}")
    if most > early + GROWTH:
        raise RuntimeError(f"memory grew from {early:.0f} to {most:.0f} MB")
    print(
        f"{options.files} files, {kills} kills: {len(expected)} results equal those of the "
        f"uninterrupted run; {early:.0f} MB after {EARLY} files, at most {most:.0f} later; "
        f"{time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
