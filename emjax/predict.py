"""Apply a trained model: python -m emjax.predict --model=DIR --out=DIR FILE_OR_FOLDER...

DIR/<name>.tif is a mask (uint8, 0 and 255) next to DIR/<name>.overlay.png, or the restored
micrograph in the values and dtype of the input. Size and pixel size are those of the input. A stack
is predicted plane by plane, in one intensity range, and written as a stack. Large images are
predicted in tiles, with the values of the whole image; if that is impossible, a note on stderr says
so.
"""

import contextlib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from emjax import cli, micrographs
from emjax.errors import InputError, UsageError, note
from emjax.files import check_writable, write_atomically
from emjax.inference.predictor import Predictor, predict_file
from emjax.micrographs import Micrograph, units
from emjax.micrographs.writers import Planes
from emjax.pictures import overlay, png

GIB = 2**30


def find_inputs(names: Iterable[str], out: Path) -> list[Path]:
    """Return the micrograph files of `names`, which are files and folders.

    Raises: UsageError if two have the same stem, or if a result would overwrite its input.
    """
    files: list[Path] = []
    for name in map(Path, names):
        folder = name.is_dir() and not micrographs.is_zarr(name)
        files += micrographs.find(name) if folder else [name]
    by_stem: dict[str, Path] = {}
    for file in files:
        other = by_stem.setdefault(file.stem, file)
        if other is not file:
            raise UsageError(f"{other} and {file} would both become {out / file.stem}.tif")
        if file.resolve() == (out / f"{file.stem}.tif").resolve():
            raise UsageError(f"{file} would be overwritten by its result; choose another --out")
    return files


def pixel_size(text: str) -> tuple[float, float]:
    """Return (y, x) in nm of --pixel_size: one positive number, or y,x."""
    with contextlib.suppress(ValueError, UsageError):
        sizes = units.pixel_size([float(part) for part in text.split(",")])
        if not np.isnan(sizes).any():
            return sizes
    raise UsageError(f"--pixel_size={text}: expected nm per pixel, one positive number or y,x")


def write_result(
    out: Path, file: Path, result: Planes, first: Micrograph, *, is_mask: bool, info: str = ""
) -> str:
    """Write what `predict_file` returned to `out`, a mask with its overlay; say so.

    Args:
        info: what the TIFF is to keep about its making.
    """
    written = out / f"{file.stem}.tif"
    sizes = first.nm_per_pixel
    micrographs.write(written, result, sizes, info=info)
    facts = f"{result.dtype}"
    if is_mask:
        mask = result if result.ndim == 2 else result[0]
        write_atomically(out / f"{file.stem}.overlay.png", png(overlay(first.image, mask)))
        facts = f"{100 * np.mean(result > 0):.1f} % foreground"
    if np.isfinite(sizes).all():
        facts += f", {' x '.join(f'{size:.6g}' for size in sizes)} nm per pixel ({first.origin})"
    facts += f", {info}" if info else ""
    return f"{file} -> {written}  {' x '.join(map(str, result.shape))}, {facts}"


@cli.command
def main(arguments: Sequence[str]) -> int:
    """Predict every input; returns 0, or 3 if some could not be read (they are named)."""
    parser = cli.Parser(prog="emjax predict", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--model", required=True, help="a run's workdir or its model/ folder")
    add("--out", required=True, type=Path, help="folder for the results")
    add("--index", type=int, help="which image, of files that hold several")
    add("--channel", help="which channel, by name or number, of images that have several")
    add("--cut_banner", action="store_true", help="leave out banners, borders and scale bars")
    add("--pixel_size", type=pixel_size, help="nm per pixel (or y,x), instead of what files say")
    add("--mrc_rows", choices=micrographs.MRC_ROWS, help="where the first row of MRC files belongs")
    add("--memory_limit", type=float, default=4, help="GiB for an image, and the network on it")
    add("inputs", nargs="+", metavar="FILE_OR_FOLDER")
    options = parser.parse_args(arguments)
    if not 0 < options.memory_limit < np.inf:
        raise UsageError(f"--memory_limit={options.memory_limit}: expected GiB, more than 0")
    check_writable(options.out)
    limit = int(options.memory_limit * GIB)
    files = find_inputs(options.inputs, options.out)
    model = Predictor(options.model, limit)
    unread = 0
    for file in files:
        try:
            rows = "" if micrographs.top_row_is_stated(file) else options.mrc_rows or "top"
            result, first = predict_file(
                model,
                file,
                options.index,
                limit,
                rows or None,
                options.channel,
                cut_banner=options.cut_banner,
            )
        except InputError as error:
            line = f"error: {file}: {cli.message(error)}"
            print(line.replace(f"{file}: {file}", str(file)), file=sys.stderr)
            unread += 1
            continue
        if options.pixel_size:
            first = first._replace(nm_per_pixel=options.pixel_size, origin="--pixel_size")
        if rows and not options.mrc_rows:
            note(
                "MRC files",
                "their first row becomes the top row of the results (--mrc_rows=top); IMOD, 3dmod "
                "and Fiji show it at the bottom (--mrc_rows=bottom)",
            )
        info = f"first row of the MRC file at the {rows} (--mrc_rows={rows})" if rows else ""
        print(write_result(options.out, file, result, first, is_mask=model.is_mask, info=info))
    if needed := model.memory_for_whole:
        note("approximate predictions", f"--memory_limit={-(-needed // GIB)} avoids them")
    if unread:
        print(f"error: {unread} of {len(files)} inputs were not predicted", file=sys.stderr)
    return InputError.code if unread else 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
