"""Measure particles: python -m emjax.measure --out=DIR FILE_OR_FOLDER...

The files are micrographs, which --model segments, by default `particles` of those that come with
emjax; with --masks they are masks or label images of any program. With --atoms the positions of
atomic columns are measured instead, and their lattice and strain. DIR gets particles.csv and
particles.parquet (one row per particle), summary.json (the size distribution with its intervals)
and report.html. Sizes are in nm where the files state their pixel size, else in pixels. Particles
at the border are listed, and count in no statistic. No file is replaced but results of this command
that nobody has changed.
"""

import argparse
import contextlib
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_builders import beam_flags
from emjax import cli, micrographs
from emjax.errors import InputError, UsageError, counted, note
from emjax.files import check_writable
from emjax.inference import options as flags
from emjax.measurement import SPLIT, masks, page, results
from emjax.measurement.atom_results import AtomResults
from emjax.measurement.results import Collected, Plane, Results, Settings
from emjax.micrographs import made_by, names
from emjax.micrographs.units import SAME, PixelSize, is_known

LABELS = ".labels.tif"  # of x.tif, as emjax predict calls them
BESIDE_MASKS = ("overlay", "probability", "spread")


def split_depth(text: str) -> float:
    """Return the depth of --split."""
    with contextlib.suppress(ValueError):
        if 0 < (depth := float(text)) < 1:
            return depth
    raise UsageError(
        f"--split={text}: expected the relative depth of a neck, above 0 and below 1; to split "
        "nothing give --no_split"
    )


def smallest(text: str) -> int:
    """Return the pixels of --min_size."""
    if text.isascii() and text.isdecimal() and 0 < int(text) < 1 << 53:
        return int(text)
    raise UsageError(f"--min_size={text}: expected a number of pixels, 1 or more")


def find_inputs(inputs: Sequence[str], *, are_masks: bool = False) -> dict[Path, str]:
    """Return {file: its name in the results} of files and folders; each file once.

    A name is the path below the folder that was named, or, where several are alike, below the
    folder that all files have in common. Files of one name with several suffixes are noted.

    Args:
        are_masks: as --masks says.

    Raises: InputError for a folder without any.
    """
    found: dict[str, tuple[Path, str]] = {}  # by what it is without links
    for given in map(Path, inputs):
        is_folder = given.is_dir() and not micrographs.is_zarr(given)
        for file in in_folder(given, are_masks) if is_folder else [given]:
            name = given.name if file == given else file.relative_to(given).as_posix()
            found.setdefault(os.path.realpath(file), (file, name))
    if are_masks:
        left_out = twins(found)
        found = {key: each for key, each in found.items() if key not in left_out}
    if exports := names.exported(file for file, _ in found.values()):
        first, second, *_ = [file for file in exports if exports[file] == min(exports.values())]
        note(
            first,
            f"has the name of {second.name}, as {len(exports)} of {len(found)} files have that of "
            "another: if they are of one image, its particles count more than once; name one",
        )
    if len({name for _, name in found.values()}) < len(found):
        places = {file: Path(os.path.abspath(file)) for file, _ in found.values()}
        root = os.path.commonpath([path.parent for path in places.values()])
        return {file: path.relative_to(root).as_posix() for file, path in places.items()}
    return dict(found.values())


def in_folder(folder: Path, are_masks: bool) -> list[Path]:
    """Return the files of a folder that `find_inputs` takes: those that count once.

    Raises: InputError if there is none.
    """
    kinds = {file: made_by.kind(file) for file in micrographs.find(folder)}
    left_out = made_by.restored_of(kinds)
    for file, kind in kinds.items():
        is_result = made_by.RESULTS in file.relative_to(folder).parts  # also if it was corrected
        if kind in (BESIDE_MASKS if are_masks else made_by.OF_MASKS):
            left_out.add(file)
        elif is_result and (kind == "restored" or not are_masks):
            left_out.add(file)
    kept = [file for file in kinds if file not in left_out]
    if not kept:
        raise InputError(f"{folder} holds only results of emjax; name the ones to measure")
    if left_out:
        note(folder, f"{len(left_out)} results of emjax in it are left out")
    return kept


def twins(found: Mapping[str, tuple[Path, str]]) -> set[str]:
    """Return which files to leave out, so that of x.tif and x.labels.tif one is measured.

    That is the one that was corrected: the other is as emjax wrote it. If neither was, it is the
    mask; if both were, there is a note. A micrograph beside a label image is no mask of it.

    Args:
        found: {path without links: (file, its name)}.
    """
    left_out = set()
    for key in found:
        mask = key.removesuffix(LABELS) + ".tif"
        if not key.endswith(LABELS) or mask not in found or not _is_mask(Path(mask)):
            continue
        if made_by.kind(Path(key)) == "labels":
            left_out.add(key)
        elif made_by.kind(Path(mask)) == "mask":
            left_out.add(mask)
        else:
            note(found[key][0], f"is beside {found[mask][0].name}: their particles count twice; "
                 "name one of them")  # fmt: skip
    if left_out:
        note(found[min(left_out)][0], f"left out, as {len(left_out)} of {len(found)} files are: "
             "the particles of a mask and its label image count once")  # fmt: skip
    return left_out


def _is_mask(path: Path) -> bool:
    """Return whether a file is a mask of two values, as emjax wrote it or corrected."""
    if made_by.kind(path) == "mask":
        return True
    with contextlib.suppress(InputError):
        first = next(micrographs.planes(path, None, as_mask=True))
        return masks.find(first.image).kind in ("mask", "edges")
    return False


def without_images(files: Mapping[Path, str], folder: Path) -> dict[Path, str]:
    """Return `files` without those that are the images of others, by their names.

    Args:
        folder: that of the images; files elsewhere stay.
    """
    root = os.path.realpath(folder)
    places = {file: Path(os.path.relpath(os.path.realpath(file), root)) for file in files}
    inside = {file: place for file, place in places.items() if ".." not in place.parts}
    named = names.targets_among(inside.values(), "mask")
    masks_there = {
        file: place
        for file, place in inside.items()
        if place in named
        or made_by.RESULTS in place.parts
        or made_by.kind(file) in ("mask", "labels")
    }
    others = {file: place for file, place in inside.items() if file not in masks_there}
    images, _ = names.pair("mask", others, masks_there, "rename one, or name fewer masks")
    if images:
        note(folder, f"{len(images)} of {len(files)} files are the images of others, by their "
             "names, and are not measured")  # fmt: skip
    return {file: name for file, name in files.items() if file not in images}


def pair_images(files: Mapping[Path, str], folder: Path) -> dict[Path, Path]:
    """Return {mask: its image in `folder`}, by their names.

    Raises: InputError if no mask has one, or if several could be that of one.
    """
    images = {
        path: path.relative_to(folder)
        for path in micrographs.find(folder)
        if made_by.kind(path) not in made_by.OF_MASKS
    }
    own = {path.resolve() for path in files}
    images = {path: place for path, place in images.items() if path.resolve() not in own}
    places = {file: Path(name) for file, name in files.items()}
    partners, loose = names.pair("mask", images, places, "rename one, or name fewer masks")
    found = {mask: image for image, mask in partners.items()}
    if loose:
        note(folder, f"{len(loose)} of {len(partners)} images have a mask of another name, such as "
             f"{images[loose[0]]} and {places[partners[loose[0]]]}")  # fmt: skip
    if not found:
        raise InputError(f"{folder} holds no image that is named like one of the masks")
    if missing := [file for file in files if file not in found]:
        note(missing[0], f"no image in {folder}, as {len(missing)} of {len(files)} masks: "
             "mean grey is empty")  # fmt: skip
    return found


class Masks:
    """Yields the planes of masks, as the options ask for it."""

    def __init__(self, options: argparse.Namespace, limit: int, files: Mapping[Path, str]) -> None:
        self.options, self.limit = options, limit
        self.images = pair_images(files, options.images) if options.images else {}

    def planes(self, file: Path) -> Iterator[micrographs.Micrograph]:
        """Yield the planes of `file`; --index and --channel are of --images, if there are."""
        options = self.options
        return micrographs.planes(
            file,
            None if options.images else options.index,
            self.limit,
            mrc_rows=options.mrc_rows,
            as_mask=True,
            channel=None if options.images else options.channel,
        )

    def __call__(self, file: Path) -> Iterator[Plane]:
        options = self.options
        made = made_by.read(file) or {}
        is_ours = made.get("kind") == "mask"  # its values are classes
        made_with = made.get("options", {}) if is_ours else {}
        pictures: Iterator[micrographs.Micrograph] | None = None
        if file in self.images:
            pictures = micrographs.planes(
                self.images[file],
                options.index,
                self.limit,
                mrc_rows=options.mrc_rows or made_with.get("mrc_rows") or None,
                channel=options.channel,
            )
        if made_with.get("cut_banner"):
            note(
                file,
                "a mask without what --cut_banner cut: particles that end there count as whole",
            )
        planes = self.planes(file)
        first = [*islice(planes, 2)]
        numbered = options.foreground is None and not is_ours and len(first) > 1
        as_labels = numbered and masks.has_labels(p.image for p in chain(first, planes))
        whole = first if len(first) < 2 else self.planes(file)  # one plane is not read again
        for index, plane in enumerate(whole):
            values, remark = masks.read(
                file,
                plane.image,
                as_labels=as_labels,
                as_classes=is_ours,
                foreground=options.foreground,
            )
            if remark:
                note(file, remark)
            size, origin, image = plane.nm_per_pixel, plane.origin, None
            if pictures:
                picture = next(pictures, None)
                if picture is None:
                    raise InputError(f"{file}: its image {self.images[file]} has {index} planes")
                image = picture.image
                size, origin = common_size(file, plane, picture)
            yield Plane(values, size, origin, image, as_labels=as_labels)
        if pictures and next(pictures, None):
            raise InputError(f"{file}: its image {self.images[file]} has more planes")


def common_size(
    file: Path, mask: micrographs.Micrograph, image: micrographs.Micrograph
) -> tuple[PixelSize, str]:
    """Return (nm per pixel, origin) of a mask: its own or its image's."""
    if not is_known(mask.nm_per_pixel) or not is_known(image.nm_per_pixel):
        known = image if is_known(image.nm_per_pixel) else mask
        return known.nm_per_pixel, known.origin
    if not np.allclose(mask.nm_per_pixel, image.nm_per_pixel, rtol=SAME):
        note(file, f"{mask.nm_per_pixel[1]:.6g} nm per pixel, its image "
             f"{image.nm_per_pixel[1]:.6g}: that of the image is taken")  # fmt: skip
    return image.nm_per_pixel, image.origin


class Seen:
    """Yields the planes of micrographs as they are, or as a model restores them, for --atoms."""

    def __init__(self, options: argparse.Namespace, limit: int, files: Mapping[Path, str]) -> None:
        self.options, self.limit = options, limit
        self.job: Any = None
        if options.model:
            self.job = job_of(options, limit, files)
            if self.job.model.is_mask:
                raise UsageError(
                    f"--model={options.model}: expected a model that restores images, got one that "
                    "segments; leave it out to measure the images as they are"
                )

    def __call__(self, file: Path) -> Iterator[micrographs.Micrograph]:
        options, limit = self.options, self.limit
        if not self.job:
            yield from micrographs.planes(
                file, options.index, limit, mrc_rows=options.mrc_rows, channel=options.channel
            )
            return
        found = self.job.survey(file)
        self.job.remark(file, found)
        for plane in self.job.planes(file):
            restored = self.job.model(plane.image, found.intensity_range)
            yield found.first._replace(image=restored)


def job_of(options: argparse.Namespace, limit: int, files: Mapping[Path, str]) -> Any:
    """Return the Job of predict that shows micrographs to --model."""
    from emjax.predict import Job  # of which masks need nothing

    job = Job(flags.predictor(options, limit), options, limit, ["mask"])
    if options.range == "shared":
        job.share_range(files)
    return job


class Segmented:
    """Yields the planes of micrographs with the mask of a model.

    Args:
        predicted: the probabilities of files that were predicted by these options before, as
            `emjax predict --probabilities` writes them.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        limit: int,
        files: Mapping[Path, str],
        predicted: Mapping[Path, Path],
    ) -> None:
        self.predicted = predicted
        self.job = job_of(options, limit, files)
        self.model, name = self.job.model, flags.model(options)
        self.model.check_finds_particles(f"--model={name}")

    def __call__(self, file: Path) -> Iterator[Plane]:
        found = self.job.survey(file)
        first = found.first.image  # of a stack, it may be empty
        if first.min() < first.max() and masks.find(first).kind in ("mask", "labels"):
            raise InputError(f"{file}: looks like a mask, expected a micrograph: add --masks")
        self.job.remark(file, found)
        area = found.picture if self.job.options.cut_banner else (slice(0, None), slice(0, None))
        corner = area[0].start or 0, area[1].start or 0
        known: Iterator[micrographs.Micrograph] | None = None
        if file in self.predicted:
            known = micrographs.planes(self.predicted[file], None, self.job.limit)
        for plane in self.job.planes(file):
            image = np.ascontiguousarray(plane.image[area])
            if known:
                probability = np.ascontiguousarray(next(known).image[area])
            else:
                probability = self.model(image, found.intensity_range, self.job.scale(found))
            size, origin = found.first.nm_per_pixel, found.first.origin
            yield Plane(probability > 0.5, size, origin, image, probability, corner)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options.

    Raises: UsageError for those that do not go together.
    """
    parser = cli.Parser(prog="emjax measure", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--masks", action="store_true", help="the files are masks or label images")
    add("--atoms", action="store_true", help="measure the positions of atomic columns instead")
    flags.add_model(parser)
    add("--out", required=True, type=Path, help="folder for the results")
    add("--images", type=Path, help="folder with the micrographs of the masks, for mean grey")
    add("--split", type=split_depth, metavar="DEPTH", help="split touching particles where the "
        f"neck is narrower than 1 - DEPTH times the smaller one; default: {SPLIT}")  # fmt: skip
    add("--foreground", type=int, metavar="VALUE", help="in masks: the one value that is particle, "
        "as of a class")  # fmt: skip
    add("--no_split", action="store_true", help="particles that touch are one")
    add("--border_weights", action="store_true", help="Miles-Lantuejoul weights: correct for large "
        "particles being at the border more often")  # fmt: skip
    add("--min_size", type=smallest, metavar="PIXELS", help="leave out smaller particles")
    flags.add(parser)
    beam_flags.add_options(parser)
    add("--overwrite", action="store_true", help="replace files that are not results, too")
    add("inputs", nargs="+", metavar="FILE_OR_FOLDER")
    options = parser.parse_args(arguments)
    if options.no_split and options.split:
        raise UsageError("--split and --no_split: expected one of them")
    seen = {"--range": options.range, "--cut_banner": options.cut_banner,
            "--no_resample": options.no_resample}  # fmt: skip
    network = {"--engine": options.engine}
    particles = {"--masks": options.masks, "--split": options.split, "--no_split": options.no_split,
                 "--border_weights": options.border_weights, "--min_size": options.min_size,
                 "--images": options.images, "--foreground": options.foreground}  # fmt: skip
    if options.atoms:
        refuse({**particles, "--cut_banner": options.cut_banner}, "particles, not for --atoms")
        if not options.model:
            refuse({**network, **seen}, "--atoms with a --model")
    elif options.masks:
        refuse({"--model": options.model, **network, **seen}, "micrographs, without --masks")
    else:
        refuse({"--images": options.images, "--foreground": options.foreground},
               "masks, with --masks")  # fmt: skip
    return options


def refuse(given: Mapping[str, Any], what: str) -> None:
    """Raise UsageError for the first flag that has a value; they are only for `what`."""
    for flag, value in given.items():
        if value is not None and value is not False:
            raise UsageError(f"{flag}: only for {what}; leave it out")


class Started(NamedTuple):
    """A measurement that has begun.

    Attributes:
        results: what is measured is added to.
        empty: makes the like, without anything in them.
        add: measures a file of a name, adds it to results, and returns a line that says so.
        job: of predict; None of masks.
    """

    results: Collected
    empty: Callable[[], Any]
    add: Callable[[Any, Path, str], str]
    job: Any


def started(
    options: argparse.Namespace,
    limit: int,
    files: Mapping[Path, str],
    predicted: Mapping[Path, Path],
) -> Started:
    """Return a measurement of {file: its name in the results}, as the options ask for it.

    Args:
        predicted: as `Segmented` takes it.
    """
    if options.atoms:
        seen, of_atoms = Seen(options, limit, files), partial(AtomResults, options.pixel_size)
        return Started(
            of_atoms(),
            of_atoms,
            lambda found, file, name: found.add(file, name, seen(file)),
            seen.job,
        )
    split = None if options.no_split else options.split or SPLIT
    settings = Settings(split, options.min_size, options.pixel_size, options.border_weights)
    masks_of = Masks(options, limit, files) if options.masks else None
    planes = masks_of or Segmented(options, limit, files, predicted)
    return Started(
        Results(settings),
        partial(Results, settings),
        lambda found, file, name: found.add(file, name, planes(file)),
        None if isinstance(planes, Masks) else planes.job,
    )


@contextlib.contextmanager
def on_beam(
    options: argparse.Namespace,
    begun: Started,
    files: Mapping[Path, str],
    runner: beam_flags.Runner,
) -> Iterator[Callable[[Path, str], str]]:
    """Measure all files on Apache Beam; yield what adds each to the results, in their order."""
    from data_builders import beam  # which loads TFDS
    from emjax import measure  # by this name also where it is __main__

    job, results = begun.job, begun.results
    asked = job.options_there() if job else options
    work = partial(measure.measure_there, pickle.dumps((asked, files)))
    with beam.outcomes(work, [*files.items()], options.out, runner, os.path.abspath(".")) as done:

        def add(file: Path, name: str) -> str:
            outcome = next(done)
            if len(results.fields) < results.shown:  # pictures are not sent: these are done here
                for subject, text, kind in outcome.notes:
                    if not kind:  # some are given once in a process, which a worker may share
                        note(subject, text)
                return begun.add(results, file, name)
            line, part, needed = beam.replayed(outcome, job.tell if job else note)
            results.join(part)
            if job:
                job.model.memory_for_whole = max(needed, job.model.memory_for_whole)
            return line

        yield add


def measure_there(given: bytes, item: tuple[Path, str]) -> tuple[str, Any, int]:
    """Measure a file on a worker; return (its line, its results, as `Predictor.memory_for_whole`).

    Args:
        given: options and files, pickled.
        item: the file and its name in the results.
    """
    begun = started_there(given)
    found = begun.empty()
    found.shown = 0
    line = begun.add(found, *item)
    return line, found, begun.job.model.memory_for_whole if begun.job else 0


@cache
def started_there(given: bytes) -> Started:
    """Return the measurement of a worker: one for all its files."""
    options, files = pickle.loads(given)
    begun = started(options, cli.memory(options.memory_limit), files, {})
    if begun.job:
        begun.job.named = np.inf
    return begun


@cli.command
def main(arguments: Sequence[str]) -> int:
    """Measure every input; returns 0, or 3 if some could not be read (they are named)."""
    options = parse(arguments)
    files = find_inputs(options.inputs, are_masks=options.masks)
    return measure_files(
        options, without_images(files, options.images) if options.images else files
    )


def measure_files(
    options: argparse.Namespace,
    files: Mapping[Path, str],
    predicted: Mapping[Path, Path] | None = None,
) -> int:
    """Measure {file: its name in the results} as the options ask for it; returns the exit code.

    Args:
        predicted: as `Segmented` takes it.
    """
    limit, runner = cli.memory(options.memory_limit), beam_flags.runner_of(options)
    check_writable(options.out)
    if not options.overwrite:
        results.check_replaceable(options.out, (AtomResults if options.atoms else Results).name)
    begun = started(options, limit, files, predicted or {})
    here = contextlib.nullcontext(partial(begun.add, begun.results))
    with on_beam(options, begun, files, runner) if runner else here as work:
        unread = cli.for_each(files, work)
    if begun.job:
        begun.job.sum_up()
    if begun.results.tables:
        summary = results.write(options.out, begun.results, how(options, begun.job))
        report(options.out, summary, options.atoms)
    if unread:
        print(f"error: {unread} of {len(files)} inputs were not measured", file=sys.stderr)
    return InputError.code if unread else 0


def how(options: argparse.Namespace, job: Any) -> dict[str, Any]:
    """Return what files were read and segmented with, JSON values for summary.json.

    Args:
        job: of predict; None of masks.
    """
    names = ("index", "channel", "mrc_rows", "pixel_size", "foreground")
    found = {name: getattr(options, name) for name in names}
    if not job:
        return {**found, "model": None}
    shown = {name: getattr(options, name) for name in ("cut_banner", "no_resample")}
    range_ = job.range and list(job.range)
    return {
        **found,
        **shown,
        "range": range_,
        "model": job.model.digest,
        "engine": job.model.engine,
    }


def report(out: Path, summary: Mapping[str, Any], atoms: bool) -> None:
    """Print the main results and note what is special."""
    for remark in summary["remarks"]:
        note(out, remark.rstrip("."))
    unit, number, median = summary["unit"], summary["number"], summary["median"]
    if atoms:
        size = f", median distance to the nearest {median:.5g} {unit}" if median else ""
        print(f"{number} columns with a neighbour{size}\n{out / 'report.html'}")
        return
    bounds = summary["intervals"]["median"]
    size = f", median diameter {page.number(median, bounds)} {unit}" if median else ""
    print(f"{counted(number)}{size}\n{out / 'report.html'}")


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
