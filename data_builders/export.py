"""Write records back as micrographs, to look at them or to build them again.

    python -m data_builders.export simulated/nanoparticles --data_dir=data --split=test --out=DIR

writes DIR/image/NAME.tif and DIR/TARGET/NAME.tif for each target; masks are 0 and 255, or class
numbers of a dataset that was built with --classes.
`micrographs --source=DIR/image --target mask=DIR/mask` builds records with the same pixels from it.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emjax import micrographs
from emjax.cli import Parser, command, run
from emjax.data.records import open_records
from emjax.errors import InputError, UsageError
from emjax.files import check_writable
from emjax.micrographs import made_by


@command
def main(arguments: Sequence[str]) -> int:
    """Write the records of one split and print where they are."""
    description = (__doc__ or "").partition("\n")[0]
    parser = Parser(prog="python -m data_builders.export", description=description)
    parser.add_argument("name", help="of the dataset, below --data_dir")
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--split", required=True, help="test, train[:20], ...")
    parser.add_argument("--out", required=True)
    parser.add_argument("--first", type=int, help="write only the first so many, by index")
    parser.add_argument("--overwrite", action="store_true", help="replace files of others, too")
    options = parser.parse_args(arguments)

    if options.first is not None and options.first < 1:
        raise UsageError(f"--first={options.first}, expected at least 1")
    check_writable(Path(options.out))
    source, card, _ = open_records(options.data_dir, options.name, options.split)
    rows: Sequence[int] = range(len(source))
    if options.first is not None:
        rows = sorted(rows, key=lambda row: int(source[row]["index"]))[: options.first]

    def images(row: int) -> Iterator[tuple[Path, np.ndarray, Any]]:
        """Yield (path, pixels, nm per pixel) of the image of a record and of its targets."""
        record = source[row]
        name = f"{record['name'].decode()}.tif"
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise InputError(
                f"record {name.removesuffix('.tif')} of {options.name} is named by a path outside "
                f"of --out; build it again"
            )
        for key in ("image", *card["targets"]):
            pixels = record[key][..., 0]
            if key == "mask" and "classes" not in card["options"]:
                pixels = pixels * np.uint8(255)
            yield Path(options.out) / key / name, pixels, record["nm_per_pixel"]

    if not options.overwrite and Path(options.out).exists():
        made_by.check_replaceable(path for row in rows for path, *_ in images(row))
    for row in rows:
        for path, pixels, size in images(row):
            line = made_by.line({"dataset": options.name}, "record", pixels)
            micrographs.write(path, pixels, size, software=line)
    folders = ", ".join(("image", *card["targets"]))
    print(f"{len(rows)} records of {options.name}, {options.split}: {folders} in {options.out}")
    return 0


if __name__ == "__main__":
    run(main, sys.argv[1:])
