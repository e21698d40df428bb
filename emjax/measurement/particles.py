"""From a mask or a label image to one row per particle.

Pixels are squares (or rectangles) of the specimen, not points: Feret diameters and the convex hull
are those of the outline along pixel edges, as in ImageJ, and the fitted ellipse has the moments of
the squares. So a single pixel has a size. docs/reference/measuring.md has every formula.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from emjax.errors import InputError
from emjax.micrographs.units import AnyPixelSize, PixelSize, is_known, pixel_size

SPLIT = 0.2  # relative depth of a neck at which touching particles are split
SURE = 0.7  # probability: what a model finds and holds nowhere for more likely counts as noise
LEAST_DEPTH = 1.0  # pixels: what the pixel grid alone makes of a straight edge is less deep

Table: TypeAlias = dict[str, np.ndarray]  # columns of one length


class Labels(NamedTuple):
    """A label image: 0 is background, k the k-th particle, which is called `names[k - 1]`."""

    image: np.ndarray  # int32 [h, w]
    names: np.ndarray  # int64 [n]: the values of the file's label image; 1 to n of a mask

    def without_small(self, min_size: int) -> "Labels":
        """Return those of at least `min_size` pixels."""
        return self._only(
            np.bincount(self.image.ravel(), minlength=len(self.names) + 1) >= min_size
        )

    def without_unsure(self, probability: np.ndarray) -> "Labels":
        """Return those in which a pixel at least has a `probability` [h, w] of SURE."""
        highest = np.zeros(len(self.names) + 1, probability.dtype)  # of another it takes longer
        np.maximum.at(highest, self.image.ravel(), probability.ravel())
        return self._only(highest >= SURE)

    def _only(self, kept: np.ndarray) -> "Labels":
        """Return those whose number is True in `kept`, bool [n + 1]."""
        kept = kept[1:]
        renumbered = np.concatenate([[0], np.where(kept, np.cumsum(kept), 0)]).astype(np.int32)
        return Labels(renumbered[self.image], self.names[kept])


def label(mask: np.ndarray, split: float | None = SPLIT, *, as_labels: bool = False) -> Labels:
    """Return the Labels of a mask or a label image.

    A mask holds 0 and one other value: what touches at edges or corners is one particle, unless it
    is split. In a label image, which holds more values, each value is one particle.

    Args:
        mask: bool or whole numbers from 0 on, [h, w].
        split: the relative depth of a neck from which touching particles are split, as
            `split_touching` takes it; None splits nothing.
        as_labels: one value is a label, too.

    Raises: InputError for another shape, fractions or negative numbers.
    """
    from skimage import measure

    check(mask)
    names = np.unique(mask)
    names = names[names != 0]
    if len(names) > 1 or (as_labels and len(names)):
        dense = np.searchsorted(names, mask) + 1
        return Labels(np.where(mask != 0, dense, 0).astype(np.int32), names.astype(np.int64))
    touching: Any = measure.label(mask != 0, connectivity=2)
    touching = touching.astype(np.int32)
    image: np.ndarray = touching if split is None else split_touching(touching, split)
    return Labels(image, np.arange(1, int(image.max(initial=0)) + 1))


def check(mask: np.ndarray) -> None:
    """Raise InputError unless `mask` is [h, w] of whole numbers from 0 on."""
    if mask.ndim != 2 or not mask.size:
        raise InputError(f"expected a mask [h, w], got the shape {mask.shape}; pass one plane")
    if mask.dtype.kind not in "bui" and (mask.dtype.kind != "f" or (mask != np.rint(mask)).any()):
        raise InputError(f"expected a mask of whole numbers, got {mask.dtype}; pass mask > 0.5")
    if mask.min() < 0:
        raise InputError(f"expected labels from 0 on, got {mask.min()}; set the background to 0")


def split_touching(labels: np.ndarray, depth: float) -> np.ndarray:
    """Return labels in which each particle with a neck is several, by a watershed.

    The watershed runs on the distance of each pixel from the outside. Its markers are the maxima
    that are higher than the neck between them by `depth` times their own height, and by one pixel
    at least. So it does not depend on the magnification, except for particles of few pixels.
    Source: Soille, Morphological Image Analysis (2003), chapters 6.3 and 9.2: h-maxima, here of
    a function of the distance on which that depth is 1 everywhere.

    Args:
        labels: int32 [h, w], 0 outside, 1 to n.
        depth: above 0 and below 1. Two equal discs are split where their neck is narrower than
            1 - depth times their diameter.
    """
    from scipy import ndimage
    from skimage import measure, morphology, segmentation

    result, number = labels.copy(), 0
    low = LEAST_DEPTH / depth  # the distance from which the relative depth is the larger one
    for index, place in enumerate(ndimage.find_objects(labels), start=1):
        inside = np.pad(labels[place] == index, 1)
        distance: Any = ndimage.distance_transform_edt(inside)
        height = np.where(
            distance < low,
            distance / LEAST_DEPTH,
            1 / depth + np.log(np.maximum(distance, low) / low) / -np.log1p(-depth),
        )
        parts, count = inside.astype(np.int32), 1
        if height.max() > height[inside].min() + 1:
            flooded = morphology.reconstruction(height - 1, height)
            tops = morphology.local_maxima(flooded) & inside
            markers: Any = measure.label(tops, connectivity=2)
            count = int(markers.max())
            if count > 1:
                # By corners, too: a piece that hangs on by one would belong to none.
                parts = segmentation.watershed(-distance, markers, connectivity=2, mask=inside)
        own = inside[1:-1, 1:-1]
        result[place][own] = number + (parts[1:-1, 1:-1][own] if count > 1 else 1)
        number += max(count, 1)
    return result


def measure(
    mask: np.ndarray | Labels,
    nm_per_pixel: AnyPixelSize = None,
    *,
    image: np.ndarray | None = None,
    probability: np.ndarray | None = None,
    split: float | None = SPLIT,
) -> Table:
    """Return one row per particle of a mask or a label image, as {column: float64 or int64 [n]}.

    Lengths are columns that end in `_nm`, the area in `_nm2`; without a pixel size all of these
    end in `_px`. docs/reference/measuring.md defines each column.

    Args:
        mask: as `label` takes it, or what it returned.
        nm_per_pixel: one number or (y, x); None if unknown.
        image: the micrograph, [h, w]; adds the column `mean_grey`.
        probability: of being particle, [h, w]; adds the column `mean_probability`.
        split: as `label` takes it.

    Raises: InputError as `label` does, and for an image of another size; UsageError for a pixel
        size that is not positive.
    """
    from scipy.ndimage import find_objects

    labels = mask if isinstance(mask, Labels) else label(mask, split)
    size = pixel_size(nm_per_pixel)
    unit = "nm" if is_known(size) else "px"
    planes = {"mean_grey": image, "mean_probability": probability}
    planes = {name: plane for name, plane in planes.items() if plane is not None}
    for plane in planes.values():
        if plane.shape != labels.image.shape:
            got, expected = (" x ".join(map(str, s)) for s in (plane.shape, labels.image.shape))
            raise InputError(f"its image has {got} pixels, the mask {expected}; give its own image")
    rows: list[tuple[float, ...]] = []
    for number, place in enumerate(find_objects(labels.image), start=1):
        inside = labels.image[place] == number
        top, left = (part.start for part in place)
        shape = describe(
            inside, (top, left), labels.image.shape, size if unit == "nm" else (1.0, 1.0)
        )
        greys = (float(plane[place][inside].mean(dtype=np.float64)) for plane in planes.values())
        rows.append((*shape, *greys))
    names = column_names(unit, *planes)
    columns = np.array(rows, np.float64).reshape(-1, len(names)).T
    table = dict(zip(names, columns, strict=True))
    return {"label": labels.names, "border": table.pop("border").astype(np.int64), **table}


def column_names(unit: str, *others: str) -> tuple[str, ...]:
    """Return the names of what `describe` returns, in order, and `others`."""
    area = "area_nm2" if unit == "nm" else "area_px"
    lengths = ("equivalent_diameter", "feret_min", "feret_max", "perimeter")
    return (
        *("border", f"centroid_y_{unit}", f"centroid_x_{unit}", area),
        *(f"{name}_{unit}" for name in lengths),
        *("aspect_ratio", "ellipse_aspect_ratio", "circularity", "solidity"),
        *("orientation_deg", "border_weight", *others),
    )


def describe(
    inside: np.ndarray, corner: tuple[int, int], image: tuple[int, ...], size: PixelSize
) -> Iterator[float]:
    """Yield the values of `column_names` of one particle.

    Args:
        inside: bool, the box around the particle.
        corner: y, x of the box in the image.
        image: h, w of the image.
        size: (y, x) of a pixel, in the unit of the lengths.
    """
    from scipy.spatial import ConvexHull
    from scipy.spatial.distance import pdist

    (h, w), (top, left), (high, wide) = image, corner, inside.shape
    touches = top == 0 or left == 0 or top + high == h or left + wide == w
    yield float(touches)
    at = (np.argwhere(inside) + corner + 0.5) * size
    yield from at.mean(axis=0)
    area = len(at) * size[0] * size[1]
    yield area
    yield 2 * (area / np.pi) ** 0.5
    hull = ConvexHull(corners(inside) * size)
    points = hull.points[hull.vertices]
    edges = np.roll(points, -1, axis=0) - points
    across = np.stack([edges[:, 1], -edges[:, 0]]) / np.hypot(*edges.T)
    feret_min = float(np.ptp(points @ across, axis=0).min())
    feret_max = float(pdist(points).max())
    yield from (feret_min, feret_max)
    around = perimeter(inside, size)
    yield around
    yield feret_max / feret_min
    covariance = np.cov(at.T, bias=True) if len(at) > 1 else np.zeros((2, 2))
    (minor, major), axes = np.linalg.eigh(covariance + np.diag(np.square(size)) / 12)
    yield (major / minor) ** 0.5
    yield min(1.0, 4 * np.pi * area / around**2)
    yield area / hull.volume  # that of two dimensions is the area
    yield float(np.rad2deg(np.arctan2(-axes[0, 1], axes[1, 1]))) % 180
    yield 0.0 if touches else h * w / ((h - high - 1) * (w - wide - 1))


def corners(inside: np.ndarray) -> np.ndarray:
    """Return [n, 2] (y, x), in pixels, of corners of pixels that include those of the hull."""
    rows = np.flatnonzero(inside.any(axis=1))
    first = inside[rows].argmax(axis=1)
    last = inside.shape[1] - inside[rows, ::-1].argmax(axis=1)
    return np.concatenate(
        [np.stack([rows + below, at], axis=1) for below, at in product((0, 1), (first, last))]
    ).astype(np.float64)


def perimeter(inside: np.ndarray, size: PixelSize) -> float:
    """Return the length of the outline by Cauchy and Crofton's formula in four directions.

    The number of times that parallel lines leave the particle, times their distance, is a width;
    the perimeter is pi times its mean over all directions, each of the four standing for those
    next to it. With square pixels that is `skimage.measure.perimeter_crofton`.
    Source: Ohser and Muecklich, Statistical Analysis of Microstructures (2000), chapter 4.
    """
    y, x = size
    padded = np.pad(inside, 1)
    diagonal = np.arctan2(y, x)
    shares = {  # half the angles to the directions before and after
        (0, 1): diagonal,
        (1, 0): np.pi / 2 - diagonal,
        (1, 1): np.pi / 4,
        (1, -1): np.pi / 4,
    }
    total = 0.0
    h, w = padded.shape
    for (down, right), share in shares.items():
        here = padded[: h - down, max(0, -right) : w - max(0, right)]
        there = padded[down:, max(0, right) : w - max(0, -right)]
        crossings = np.count_nonzero(here & ~there)
        distance = y * x / np.hypot(down * y, right * x)
        total += share * distance * crossings
    return total
