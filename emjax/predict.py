"""Apply a trained model: python -m emjax.predict FILE_OR_FOLDER...

The model is --model=DIR, of your own, or a name of those that come with emjax; by default
`particles`, which finds nanoparticles. DIR is --out, by default emjax-results/ beside the files.
DIR/<name>.tif is a mask (uint8, 0 and 255, or the number of each pixel's class) next to
DIR/<name>.overlay.png, or the restored micrograph in the values and dtype of the input, next to
DIR/<name>.check.html, which shows what was taken away, and says what is alarming in it.
--probabilities and --labels write DIR/<name>.probability.tif and DIR/<name>.labels.tif, a number
per particle, next to a mask. Size and pixel size are those of the input. A
folder keeps its tree below DIR. A stack is predicted plane by plane, in one intensity range, and
written as a stack. Large images are predicted in tiles, with the values of the whole image; if that
is impossible, a note on stderr says so. What is finished is skipped when the command is run again,
and no file is replaced but results of emjax.
"""

import argparse
import contextlib
import functools
import os
import pickle
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import emjax
from data_builders import beam_flags
from emjax import cli, code_digest, micrographs
from emjax.errors import InputError, UsageError, counted, note
from emjax.files import check_writable, write_atomically
from emjax.inference import options as flags
from emjax.inference import results
from emjax.inference.labels import label_particles
from emjax.inference.predictor import (
    SAME,
    THRESHOLD,
    Outputs,
    Predictor,
    Scale,
    Survey,
    predict_planes,
    survey,
)
from emjax.inference.training_data import GIVE_A_RANGE, scaled
from emjax.micrographs import Micrograph, banner, made_by
from emjax.micrographs.intensity import Range
from emjax.micrographs.units import PixelSize
from emjax.pictures import overlay, png

if TYPE_CHECKING:  # masks have none
    from emjax.measurement.residuals import Check

NAMED = 3  # inputs of which a remark of one kind is printed


def threshold(text: str) -> float:
    """Return P of --threshold=P."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) < 1:
            return float(text)
    raise UsageError(f"--threshold={text}: expected a probability above 0 and below 1")


def share(text: str) -> tuple[int, int]:
    """Return (I, N) of --share=I/N."""
    first, _, step = text.partition("/")
    if first.isdecimal() and step.isdecimal() and 1 <= int(first) <= int(step):
        return int(first), int(step)
    raise UsageError(f"--share={text}: expected I/N, the I-th of N parts, such as 1/4")


def size_in_words(nm_per_pixel: PixelSize) -> str:
    """Return a pixel size (y, x) as "0.5 x 0.5"."""
    return " x ".join(f"{size:.6g}" for size in nm_per_pixel)


def write_results(
    written: Path,
    file: Path,
    outputs: Outputs,
    first: Micrograph,
    made: Mapping[str, Any],
    kinds: Sequence[str],
    *,
    classes: int = 2,
    info: str = "",
    check: "Check | None" = None,
) -> str:
    """Write what `predict_planes` returned to `written` and the files next to it; say so.

    Args:
        made: what it was made from, for `made_by.line`.
        kinds: as `results.files_of` takes them.
        classes: of a mask.
        info: what a TIFF is to keep about its making, for people.
        check: of a restoration, for its page.
    """
    sizes, result = first.nm_per_pixel, outputs[kinds[0]]
    facts = f"{result.dtype}"
    if kinds[0] == "mask":
        facts = f"{100 * np.mean(result > 0):.1f} % foreground"
        if classes > 2:
            shares = (f"{k}: {100 * np.mean(result == k):.1f} %" for k in range(1, classes))
            facts = f"classes {', '.join(shares)}"
    for path, kind in results.files_of(written, kinds).items():
        if kind == "overlay":
            picture = overlay(first.image, result if result.ndim == 2 else result[0])
            write_atomically(path, png(picture, made_by.line(made, kind, picture)))
            continue
        if check and kind == "check":
            from emjax.measurement import residuals

            spread = outputs.get("spread")
            spread = spread if spread is None or spread.ndim == 2 else spread[0]
            write_atomically(
                path, made_by.sealed(made, kind, residuals.render(file.name, check, spread))
            )
            continue
        pixels = outputs[kind] if kind in outputs else label_particles(result)
        if kind == "labels":
            facts += f", {counted(int(pixels.max()))}"
        line = made_by.line(made, kind, pixels)
        micrographs.write(path, pixels, sizes, info=info, software=line)
    if np.isfinite(sizes).all():
        facts += f", {size_in_words(sizes)} nm per pixel ({first.origin})"
    facts += f", {info}" if info else ""
    if check and check.is_alarming:
        facts += "; something in the residual is alarming, see its .check.html"
    return f"{file} -> {written}  {' x '.join(map(str, result.shape))}, {facts}"


class Job:
    """Predicts one input after another as the options ask for it.

    Args:
        options: of the command line.
        limit: bytes that an image may take.
        kinds: of the files that an input becomes, as `results.files_of` takes them.
    """

    def __init__(
        self, model: Predictor, options: argparse.Namespace, limit: int, kinds: Sequence[str]
    ) -> None:
        self.model, self.options, self.limit, self.kinds = model, options, limit, kinds
        self.range: Range | None = None if options.range == "shared" else options.range
        self.remarks: Counter[str] = Counter()  # by kind
        self.named: float = NAMED
        self.version = f"{emjax.__version__} {code_digest()}"

    def rows(self, file: Path) -> str:
        """Return where the first row of a file is put; "" if the file says it."""
        stated = micrographs.top_row_is_stated(file, self.limit)
        return "" if stated else self.options.mrc_rows or "top"

    def planes(self, file: Path) -> Iterator[Micrograph]:
        """Yield the planes of `file` that the options choose."""
        options = self.options
        return micrographs.planes(
            file,
            options.index,
            self.limit,
            mrc_rows=self.rows(file) or None,
            channel=options.channel,
            whole_numbers=not self.model.is_mask,
        )

    def survey(self, file: Path) -> Survey:
        """Return what reading `file` once shows, with the pixel size of the options."""
        found = survey(
            self.model,
            self.planes(file),
            cut_banner=self.options.cut_banner,
            intensity_range=self.range,
        )
        if not self.options.pixel_size:
            return found
        sizes = dict(nm_per_pixel=self.options.pixel_size, origin="--pixel_size")
        return found._replace(first=found.first._replace(**sizes))

    def share_range(self, files: Iterable[Path]) -> None:
        """Take the lowest and the highest end of the ranges of all readable `files`.

        Raises: UsageError if their number formats differ.
        """
        ranges: list[Range] = []
        by_dtype: dict[str, Path] = {}
        for file in files:
            with contextlib.suppress(InputError):  # it is named when it is predicted
                found = self.survey(file)
                ranges.append(found.intensity_range)
                by_dtype.setdefault(found.levels.dtype, file)
        if len(by_dtype) > 1:
            got = " and ".join(f"{dtype} ({file})" for dtype, file in by_dtype.items())
            raise UsageError(
                f"--range=shared: expected one number format, got {got}; predict each by itself"
            )
        if ranges:
            self.range = min(low for low, _ in ranges), max(high for _, high in ranges)
            low, high = self.range
            print(f"intensity range of all inputs: {low:g} to {high:g}")

    def predict(self, file: Path, written: Path) -> str:
        """Predict `file` unless its result is finished; return a line that says so.

        Raises: InputError if it cannot be read.
        """
        model, options, rows = self.model, self.options, self.rows(file)
        found = self.survey(file)
        made = {
            "input": found.digest,
            "model": model.digest,
            "engine": model.engine,
            "version": self.version,
            "options": {
                "index": options.index,
                "channel": options.channel,
                "cut_banner": options.cut_banner,
                # What is approximate depends on the memory, of a device if it has its own.
                "memory_limit": model.memory if model.device_memory else options.memory_limit,
                "mrc_rows": rows,
                "no_resample": options.no_resample,
                "pixel_size": options.pixel_size and list(options.pixel_size),
                "range": self.range and list(self.range),
                "threshold": options.threshold,
            },
        }
        if results.is_finished(written, made, self.kinds):
            return f"{file} -> {written}  is finished"
        values, scale = found.intensity_range, self.scale(found)
        self.remark(file, found)
        info = f"first row of the MRC file at the {rows} (--mrc_rows={rows})" if rows else ""
        check = None
        if not model.is_mask:
            from emjax.measurement.residuals import Check

            check = Check()
        outputs = predict_planes(
            model,
            self.planes(file),
            intensity_range=values,
            picture=found.picture if options.cut_banner else None,
            scale=scale,
            threshold=options.threshold,
            with_probability=options.probabilities,
            with_spread=options.uncertainty,
            watch=check.add if check else None,
        )
        for path in results.left_from_before(written, self.kinds):
            note(path, "it is of an earlier prediction, and stays as it is; delete it")
        first, classes = found.first, model.classes
        return write_results(
            written, file, outputs, first, made, self.kinds, classes=classes, info=info, check=check
        )

    def scale(self, found: Survey) -> Scale:
        """Return how many times as many pixels per length the network is to see of an input."""
        first = found.first
        if self.options.no_resample:
            return SAME
        return self.model.scale(first.nm_per_pixel, first.image.shape)

    def remark(self, file: Path, found: Survey) -> None:
        """Note how an input is far from the training images, of each kind the first few inputs.

        Also what is drawn into it, and how the rows of MRC files are taken.
        """
        values, scale, own = found.intensity_range, self.scale(found), found.first.nm_per_pixel
        seen = scaled(own, scale)
        texts = dict(self.model.remarks(values, found.levels, seen))
        if scale != SAME:
            texts["resampled for the network"] = (
                f"{size_in_words(own)} nm per pixel, which the network sees resampled to "
                f"{size_in_words(seen)}, the nearest of its training images; --no_resample shows "
                "it as it is"
            )
        if found.remark:
            texts["hardly more than noise"] = found.remark
        for kind, text in texts.items():
            self.tell(file, text.replace(GIVE_A_RANGE, "--range=LOW,HIGH or --range=shared"), kind)
        drawn = banner.described(found.first.image.shape, found.picture)
        if drawn and not self.options.cut_banner:
            note(file, f"a banner, border or scale bar is in {drawn}; --cut_banner leaves it out")
        if self.rows(file) and not self.options.mrc_rows:
            note(
                "MRC files",
                "their first row becomes the top row of the results (--mrc_rows=top); IMOD, 3dmod "
                "and Fiji show it at the bottom (--mrc_rows=bottom)",
            )

    def options_there(self) -> argparse.Namespace:
        """Return the options for workers, with what this process has found out for all of them."""
        found = {"range": self.range, "engine": self.model.engine}
        return argparse.Namespace(**{**vars(self.options), **found})

    def tell(self, subject: object, text: str, kind: str = "") -> None:
        """Print a note; of those of one kind the first `self.named`."""
        if kind:
            self.remarks[kind] += 1
        if self.remarks[kind] <= self.named:
            note(subject, text, kind)

    def sum_up(self) -> None:
        """Note how many inputs have a remark of which not all were named, and how to avoid it."""
        for kind, count in self.remarks.items():
            if count > self.named:
                note(f"{count} inputs", kind)
        if needed := self.model.memory_for_whole:
            note("approximate predictions", f"--memory_limit={-(-needed // cli.GIB)} avoids them")


def kinds_of(model: Predictor, options: argparse.Namespace) -> list[str]:
    """Return the kinds of the files that an input becomes, as `results.files_of` takes them.

    Raises: UsageError for options that a model does not have.
    """
    if model.classes > 2 and options.threshold != THRESHOLD:
        raise UsageError(
            f"--threshold={options.threshold}: the model has {model.classes} classes, of which the "
            "most likely one is taken, expected two; leave it out"
        )
    if model.is_mask:
        classes = [f"probability_{k}" for k in range(1, model.classes)]
        probabilities = classes if model.classes > 2 else ["probability"]
        return [
            *("mask", "overlay"),
            *(["labels"] if options.labels else []),
            *(probabilities if options.probabilities else []),
            *(["spread"] if options.uncertainty else []),
        ]
    if options.labels or options.probabilities or options.threshold != THRESHOLD:
        raise UsageError(
            "--threshold, --probabilities and --labels are of masks: expected a model of the task "
            "segmentation, got one that restores images; leave them out, or use another --model"
        )
    return ["restored", "check", *(["spread"] if options.uncertainty else [])]


@contextlib.contextmanager
def on_beam(
    options: argparse.Namespace, job: Job, files: Mapping[Path, Path], runner: beam_flags.Runner
) -> Iterator[Callable[[Path, Path], str]]:
    """Predict all files on Apache Beam; yield what gives the line of each, in their order.

    Args:
        job: of this process, which prints the notes of all.
    """
    from data_builders import beam  # which loads TFDS
    from emjax import predict  # by this name also where it is __main__

    work = functools.partial(predict.predict_there, pickle.dumps(job.options_there()))
    with beam.outcomes(work, [*files.items()], options.out, runner, os.path.abspath(".")) as done:

        def line_of(file: Path, written: Path) -> str:
            line, needed = beam.replayed(next(done), job.tell)
            job.model.memory_for_whole = max(needed, job.model.memory_for_whole)
            return line

        yield line_of


def predict_there(options: bytes, item: tuple[Path, Path]) -> tuple[str, int]:
    """Predict a file on a worker; return (its line, what `Predictor.memory_for_whole` is).

    Args:
        options: pickled.
    """
    job = job_there(options)
    return job.predict(*item), job.model.memory_for_whole


@functools.cache
def job_there(options: bytes) -> Job:
    """Return the Job of a worker: one for all its files."""
    chosen = pickle.loads(options)
    limit = cli.memory(chosen.memory_limit)
    model = flags.predictor(chosen, limit)
    job = Job(model, chosen, limit, kinds_of(model, chosen))
    job.named = np.inf
    return job


@cli.command
def main(arguments: Sequence[str]) -> int:
    """Predict every input; returns 0, or 3 if some could not be read (they are named)."""
    parser = cli.Parser(prog="emjax predict", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    flags.add_model(parser)
    add("--out", type=Path, help="folder for the results; default: emjax-results/ beside the files")
    flags.add(parser)
    add("--threshold", type=threshold, default=THRESHOLD,
        help="the probability above which a pixel is foreground; default: 0.5")  # fmt: skip
    add("--probabilities", action="store_true", help="also write NAME.probability.tif, float32")
    add("--labels", action="store_true", help="also write NAME.labels.tif, a number per particle "
        "(pixels that touch at edges or corners)")  # fmt: skip
    add("--uncertainty", action="store_true", help="also write NAME.spread.tif, float32: the "
        "standard deviation of what the eight flips and turns of the image give")  # fmt: skip
    add("--share", type=share, default=(1, 1), metavar="I/N", help="predict every N-th file, from "
        "the I-th on: for N processes or machines with one --out")  # fmt: skip
    beam_flags.add_options(parser)
    add("--overwrite", action="store_true", help="replace files that are not results of emjax, too")
    add("inputs", nargs="+", metavar="FILE_OR_FOLDER")
    options = parser.parse_args(arguments)
    limit, runner = cli.memory(options.memory_limit), beam_flags.runner_of(options)
    options.out = options.out or results.default_folder(options.inputs)
    check_writable(options.out)
    model = flags.predictor(options, limit)
    kinds = kinds_of(model, options)
    found = results.find_inputs(options.inputs, options.out, kinds)
    first, step = options.share
    files = dict(list(found.items())[first - 1 :: step])
    if not options.overwrite:
        made_by.check_replaceable(
            path for written in files.values() for path in results.files_of(written, kinds)
        )
    job = Job(model, options, limit, kinds)
    if options.range == "shared":
        job.share_range(found)
    here = contextlib.nullcontext(job.predict)
    with on_beam(options, job, files, runner) if runner else here as work:
        unread = cli.for_each(files, work)
    job.sum_up()
    if unread:
        print(f"error: {unread} of {len(files)} inputs were not predicted", file=sys.stderr)
    return InputError.code if unread else 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
