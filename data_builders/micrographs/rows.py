"""MRC files next to others: which of their rows is the top one."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Real

from data_builders.micrographs.listing import Source
from data_builders.micrographs.reading import ReadOptions
from emjax import micrographs
from emjax.errors import InputError

PAIRS = 8  # that are compared


def check(root: Path, sources: Sequence[Source], options: ReadOptions) -> list[str]:
    """Return notes for the card: where the first row of MRC files is taken to be.

    Raises: InputError without --mrc_rows if some files are MRC that do not say where their first
        row belongs, others say so, and the first pairs fit better if it is the bottom one.
    """
    paths = {path for source in sources for path in (source.image, *source.targets.values())}
    stated = {path: _is_stated(path) for path in paths}
    silent = sum(known is False for known in stated.values())
    others = sum(known is True for known in stated.values())
    if not silent:
        return []
    files = f"{silent} MRC file{'s' if silent > 1 else ''}"
    if options.mrc_rows:
        return [f"rows of {files}: the first at the {options.mrc_rows} (--mrc_rows)"]
    if not others:
        return [f"rows of {files}: as stored"]
    pairs = [source for source in sources if _differs(source, stated)]
    scores = [score for source in pairs[:PAIRS] for score in _scores(source, stated, options)]
    if is_better([bottom - top for top, bottom in scores]):
        count = sum(bottom > top for top, bottom in scores)
        raise InputError(
            f"{root}: {files} of which the first row may be the top or the bottom one, next to "
            f"{others} of which it is known; bottom fits the edges of {count} of {len(scores)} "
            "images and targets better; expected --mrc_rows=bottom (as IMOD, 3dmod and Fiji show "
            "them) or --mrc_rows=top (as mrcfile and napari do)"
        )
    taken = f"rows of {files}: the first at the top"
    if is_better([top - bottom for top, bottom in scores]):
        count = sum(top > bottom for top, bottom in scores)
        return [f"{taken}, which fits the edges of {count} of {len(scores)} images and targets"]
    return [
        f"{taken}, as mrcfile and napari show them, though nothing here says so; IMOD, 3dmod and "
        "Fiji show it at the bottom (--mrc_rows=bottom): look at one beside another format"
    ]


def is_better(gains: Sequence[float]) -> bool:
    """Return whether `gains` are above 0 by more than chance: two standard errors of their mean.

    A single gain has no standard error; it is if it is above 0.
    """
    if not gains:
        return False
    error = np.std(gains, ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else 0.0
    return bool(np.mean(gains) > 2 * error)


def _is_stated(path: Path) -> bool | None:
    """Return whether the top row of a file is known; None of a file that cannot be read."""
    with contextlib.suppress(InputError, OSError):
        return micrographs.top_row_is_stated(path)
    return None


def _differs(source: Source, stated: dict[Path, bool | None]) -> bool:
    return {stated[source.image], *(stated[path] for path in source.targets.values())} >= {
        True,
        False,
    }


def _scores(
    source: Source, stated: dict[Path, bool | None], options: ReadOptions
) -> Iterator[tuple[float, float]]:
    """Yield (score of top, of bottom) for each target that differs from its image."""
    for target, path in source.targets.items():
        if {stated[source.image], stated[path]} != {True, False}:
            continue
        with contextlib.suppress(InputError):
            files = ((source.image, options.index, options.channel), (path, None, None))
            image, partner = (
                next(
                    micrographs.planes(file, index, options.limit, mrc_rows="top", channel=channel)
                ).image
                for file, index, channel in files
            )
            if image.shape == partner.shape:
                pixels = partner != 0 if target == "mask" else partner
                yield agreement(image, pixels), agreement(image[::-1], pixels)


def agreement(
    image: Real[np.ndarray, "h w"], target: Real[np.ndarray, "h w"] | Bool[np.ndarray, "h w"]
) -> float:
    """Return the correlation of the edges of `image` and `target`: 1 the same, 0 none."""
    edges = [_edges(pixels) for pixels in (image, target)]
    a, b = (part - part.mean() for part in edges)
    size = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / size) if size else 0.0


def _edges(
    pixels: Real[np.ndarray, "h w"] | Bool[np.ndarray, "h w"],
) -> Float64[np.ndarray, "h2 w2"]:
    """Return the length of the gradient, over differences of two pixels to lessen noise."""
    values = pixels.astype(np.float64)
    for _ in range(2):
        values = values[1:] + values[:-1]
        values = values[:, 1:] + values[:, :-1]
    y, x = values[2:, 1:-1] - values[:-2, 1:-1], values[1:-1, 2:] - values[1:-1, :-2]
    return np.hypot(y, x)
