"""Apply a trained model: python -m emjax.predict --model=DIR --out=DIR FILE_OR_FOLDER...

DIR/<name>.tif is a mask (uint8, 0 and 255) with DIR/<name>.overlay.png beside it, or the restored
micrograph in the values and number format of the input. Size and pixel size are the input's. A
stack is predicted plane by plane, in one intensity range, and written as a stack. Large images are
predicted in tiles, with the values of the whole; where that cannot be, a note on stderr says so.
"""

import sys
from pathlib import Path

import numpy as np

from emjax import cli, micrographs
from emjax.errors import InputError, UsageError
from emjax.files import write_atomically
from emjax.inference.predictor import Predictor, predict_file
from emjax.pictures import overlay, png


def inputs(names, out):
    """The micrograph files that `names` (files and folders) stand for.

    Raises: UsageError if two have one stem, or one would be overwritten by its own result.
    """
    files, stems = [], {}
    for name in map(Path, names):
        folder = name.is_dir() and not micrographs.is_zarr(name)
        files += micrographs.find(name) if folder else [name]
    for file in files:
        other = stems.setdefault(file.stem, file)
        if other is not file:
            raise UsageError(f"{other} and {file} would both become {out / file.stem}.tif")
        if file.resolve() == (out / f"{file.stem}.tif").resolve():
            raise UsageError(f"{file} would be overwritten by its result; choose another --out")
    return files


def pixel_size(text):
    """(y, x) in nm of one positive number, or of two: y,x."""
    try:
        sizes = [float(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if len(sizes) not in (1, 2) or not all(0 < size < np.inf for size in sizes):
        raise UsageError(f"--pixel_size={text}; nm per pixel, one positive number or y,x, were due")
    return sizes[0], sizes[-1]


@cli.command
def main(arguments):
    """Predict every input; returns 0, or 3 if some could not be read (they are named)."""
    parser = cli.Parser(prog="emjax.predict", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a run's workdir or its model/ folder")
    parser.add_argument("--out", required=True, type=Path, help="folder for the results")
    parser.add_argument("--index", type=int, help="which image, of files that hold several")
    parser.add_argument("--pixel_size", help="nm per pixel (or y,x), instead of what files say")
    parser.add_argument(
        "--memory_limit",
        type=float,
        default=4,
        help="GiB an image, and the network on it, may take",
    )
    parser.add_argument("inputs", nargs="+", metavar="FILE_OR_FOLDER")
    options = parser.parse_args(arguments)
    stated = pixel_size(options.pixel_size) if options.pixel_size else None
    if not options.memory_limit > 0:
        raise UsageError(f"--memory_limit={options.memory_limit}; more than 0 GiB were due")
    limit = int(options.memory_limit * 2**30)
    files = inputs(options.inputs, options.out)
    predictor = Predictor(options.model, limit)
    unread = 0
    for file in files:
        try:
            result, first = predict_file(predictor, file, options.index, limit)
        except InputError as error:
            line = f"error: {file}: {cli.message(error)}"
            print(line.replace(f"{file}: {file}", str(file)), file=sys.stderr)
            unread += 1
            continue
        written = options.out / f"{file.stem}.tif"
        sizes, origin = (stated, "--pixel_size") if stated else first[1:]
        micrographs.write(written, result, sizes)
        note = f"{result.dtype}"
        if predictor.is_mask:
            mask = result if result.ndim == 2 else result[0]
            write_atomically(
                options.out / f"{file.stem}.overlay.png", png(overlay(first.image, mask))
            )
            note = f"{100 * np.mean(result > 0):.1f} % foreground"
        if np.isfinite(sizes).all():
            note += f", {' x '.join(f'{size:.6g}' for size in sizes)} nm per pixel ({origin})"
        print(f"{file} -> {written}  {' x '.join(map(str, result.shape))}, {note}")
    if unread:
        print(f"error: {unread} of {len(files)} inputs were not predicted", file=sys.stderr)
    return InputError.code if unread else 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
