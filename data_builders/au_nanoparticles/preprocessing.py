"""From a raw micrograph to standardised patches, as Sytwu et al. 2022 prepare theirs.

Source: ScottLabUCB/HRTEM-Receptive-Field @36e4e73, dataset_preprocessing/.
"""

import numpy as np
from jaxtyping import Bool, Float32, Integer, Real

from emjax.errors import InputError


def without_xrays(image: Real[np.ndarray, "h w"], threshold: float) -> Float32[np.ndarray, "h w"]:
    """Return `image`, in counts, without negative values and without X-ray hits.

    Negative counts become 0. A pixel more than `threshold` counts above the median of the image
    becomes the mean of its eight neighbours, or of the whole image in the outermost rows and
    columns; the brightest first, so that the neighbours of a large hit are already lower when
    they are used. What is still above is replaced once more in the same way.

    Differs: in float32 whatever the file holds; the original rounds the means down when the file
    holds whole numbers. Pixels of one value go from the last to the first, as in the original
    where its sort happens to be stable.
    """
    image = np.maximum(image, 0).astype(np.float32)
    h, w = image.shape
    for _ in range(2):
        ys, xs = np.nonzero(image > np.median(image) + threshold)
        for hit in np.argsort(image[ys, xs], kind="stable")[::-1]:
            y, x = ys[hit], xs[hit]
            if 0 < y < h - 1 and 0 < x < w - 1:
                image[y, x] = 0
                image[y, x] = image[y - 1 : y + 2, x - 1 : x + 2].sum(dtype=np.float64) / 8
            else:
                image[y, x] = image.mean(dtype=np.float64)
    return image


def standardised(image: Real[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
    """Return the standard deviations of each pixel from the mean of the whole `image`.

    Raises: InputError if all pixels are the same.
    """
    mean, sd = image.mean(dtype=np.float64), image.std(dtype=np.float64)
    if sd == 0:
        raise InputError(f"all pixels are {image.flat[0]:g}; expected an image to standardise")
    return ((image - mean) / sd).astype(np.float32)


def corners_with_particles(
    mask: Integer[np.ndarray, "h w"] | Bool[np.ndarray, "h w"], *, side: int, more_than: int
) -> list[tuple[int, int]]:
    """Return (y, x) of the squares of `side` pixels with `more_than` so many particle pixels.

    The squares of `mask`, in {0, 1}, do not overlap and come row by row; the rest at the bottom and
    right belongs to none.
    """
    h, w = mask.shape
    rows, columns = h // side, w // side
    squares = mask[: rows * side, : columns * side].reshape(rows, side, columns, side)
    kept = np.argwhere(squares.sum(axis=(1, 3), dtype=np.int64) > more_than)
    return [(int(row) * side, int(column) * side) for row, column in kept]


def sequential_split(patches: int) -> dict[str, int]:
    """Return {split: how many}: the first 70 % of `patches` patches, the next 10 %, the rest."""
    train, val = 70 * patches // 100, 10 * patches // 100
    return {"train": train, "val": val, "test": patches - train - val}
