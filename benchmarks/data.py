"""Build and read records at any size: python -m benchmarks.data --records=10000,100000 --dir=DIR

Patches of 224 x 224 noise in uint8, built as every dataset is, then read once as training batches
and thrown away. Each size is built by one new process and read by another; peak memory is theirs.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

SIDE, BATCH = 224, 128


class Noise:
    """A dataset of `count` patches, cut at random from one sheet of noise."""

    options, other_name, files_sha256 = {}, "--dir", ""

    def __init__(self, count):
        from data_builders.common import About

        self.count, self.folder = count, f"noise/{count}"
        self.about = About("noise", "none", "none", "none")

    def prepare(self):
        from data_builders.common import Contents

        return Contents({"train": self.count}, "uint8", (SIDE, SIDE), (), "fixed", self.count, [])

    def records(self, split, units=None):
        rng = np.random.default_rng(0)
        sheet = rng.integers(0, 256, (4096, 4096), np.uint8)
        for index in range(self.count):
            y, x = rng.integers(0, len(sheet) - SIDE, 2)
            yield {
                "image": sheet[y : y + SIDE, x : x + SIDE, None],
                "intensity_range": np.float32((0, 255)),
                "nm_per_pixel": np.full(2, np.nan, np.float32),
                "name": f"noise_{index:09d}",
                "source": "noise",
                "index": index,
            }


def build(count, folder):
    from data_builders import common

    common.build(Noise(count), folder)


def read(count, folder):
    from emjax.data.batches import TrainBatches
    from emjax.data.records import open_records
    from emjax.parallel import sharding

    records = open_records(folder, f"noise/{count}", "train")
    mesh = sharding.data_mesh()
    batches = iter(TrainBatches([records], batch_size=BATCH, seed=0, mesh=mesh).starting_at(0))
    for _ in range(count // BATCH):
        next(batches)


def main(arguments):
    parser = argparse.ArgumentParser(prog="benchmarks.data", description=__doc__.splitlines()[0])
    parser.add_argument("--records", default="10000,100000")
    parser.add_argument("--dir", required=True, type=Path, help="emptied of what is built there")
    parser.add_argument("--only", choices=("build", "read"), help="what a child process does")
    options = parser.parse_args(arguments)
    counts = [int(count) for count in options.records.split(",")]
    if options.only:
        start = time.perf_counter()
        (build if options.only == "build" else read)(counts[0], options.dir)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "peak": peak}))
        return
    print(
        f"{'records':>10} {'':6} {'seconds':>9} {'records/s':>10} {'MB/s':>7} {'peak GB':>8} shards"
    )
    for count in counts:
        for work in ("build", "read"):
            line = [sys.executable, "-m", "benchmarks.data", f"--records={count}",
                    f"--dir={options.dir}", f"--only={work}"]  # fmt: skip
            said = subprocess.run(line, check=True, capture_output=True, text=True).stdout
            took = json.loads(said.splitlines()[-1])
            rate = count / took["seconds"]
            shards = len(list((options.dir / "noise" / str(count)).glob("*/*.array_record*")))
            print(
                f"{count:10,} {work:6} {took['seconds']:9.1f} {rate:10,.0f} "
                f"{rate * SIDE * SIDE / 1e6:7.1f} {took['peak'] / 1e9:8.2f} {shards}",
                flush=True,
            )
        shutil.rmtree(options.dir / "noise" / str(count))


if __name__ == "__main__":
    main(sys.argv[1:])
