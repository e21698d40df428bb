"""Positions of atomic columns, their lattice and its strain, from one image. No JAX.

Each column is a symmetric two-dimensional Gaussian on an even ground, fitted by least squares to
the pixels nearer to it than half the distance to the next column. Source of the fit and of its
errors: Nord et al. 2017, Atomap (doi 10.1186/s40679-017-0042-5); De Backer et al. 2016 (doi
10.1016/j.ultramic.2016.08.018). Differs: all columns are fitted at once, each by itself.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from emjax.errors import InputError

STEPS = 30  # of the fit, by Levenberg and Marquardt
BRIGHT = 6.0  # standard deviations of the smoothed noise by which a column is above its ground
NEAR = 0.25  # of the spacing: columns this near to where the lattice has one are that one
FEWEST = 8  # columns of a lattice

Points = np.ndarray  # float [n, 2]: (y, x)


class Columns(NamedTuple):
    """The columns of an image, n of them, in pixels; (y, x) with 0 in the middle of pixel 0."""

    position: Points
    error: Points  # standard errors of the position
    amplitude: np.ndarray  # float [n]
    sigma: np.ndarray  # float [n]
    background: np.ndarray  # float [n]


class Lattice(NamedTuple):
    """Two translations, and which column is where on it."""

    vectors: np.ndarray  # float [2, 2]: rows a, b, each (y, x), in pixels
    index: np.ndarray  # int [n, 2]: (h, k); 0 of columns that are on no lattice
    sublattice: np.ndarray  # int [n]: from 1 on; 0: on none
    origin: Points  # of each sublattice
    residual: Points  # of each column from its place; NaN on none


def spacing(image: np.ndarray) -> float:
    """Return the distance of neighbouring columns in pixels, by the image's autocorrelation.

    Raises: InputError for an image without a repeating structure.
    """
    h, w = image.shape
    window = np.outer(np.hanning(h + 2)[1:-1], np.hanning(w + 2)[1:-1])
    power = np.abs(np.fft.fft2((image - image.mean()) * window, (2 * h, 2 * w))) ** 2
    if not power.any():
        raise InputError("all pixels are the same, expected atomic columns")
    correlation = np.fft.ifft2(power).real
    faded = np.fft.ifft2(np.abs(np.fft.fft2(window, (2 * h, 2 * w))) ** 2).real
    correlation /= np.maximum(faded, 1e-3 * faded.max())
    y, x = (np.fft.fftfreq(2 * side, 1 / (2 * side)) for side in (h, w))
    radius = np.rint(np.hypot(y[:, None], x[None, :])).astype(int)
    inside = radius < min(h, w) // 2
    profile = np.bincount(radius[inside], correlation[inside]) / np.bincount(radius[inside])
    profile /= profile[0]
    if len(profile) < 4:
        raise InputError(f"an image of {h} x {w} pixels, expected atomic columns: too small")
    # Noise is in the first point alone. The first trough, then the first peak after it.
    trough = next((r for r in range(2, len(profile) - 1) if profile[r] < profile[r + 1]), None)
    if trough is None:
        raise InputError("no repeating structure, expected atomic columns")
    rest = profile[trough:]
    peaks = [r for r in range(1, len(rest) - 1) if rest[r - 1] < rest[r] >= rest[r + 1]]
    high = [r for r in peaks if rest[r] > 0.5 * max(rest[p] for p in peaks)] if peaks else []
    if not high:
        raise InputError("no repeating structure, expected atomic columns")
    return float(trough + high[0])


def noise_of(image: np.ndarray) -> float:
    """Return the standard deviation of white noise, by second differences (Immerkaer 1996)."""
    rest = image[1:-1, 1:-1] * 4.0
    rest -= 2 * (image[:-2, 1:-1] + image[2:, 1:-1] + image[1:-1, :-2] + image[1:-1, 2:])
    rest += image[:-2, :-2] + image[:-2, 2:] + image[2:, :-2] + image[2:, 2:]
    return float(np.median(np.abs(rest)) / 0.6745 / 6)


def find(image: np.ndarray, distance: float) -> np.ndarray:
    """Return the pixels (y, x) of bright columns that are about `distance` apart."""
    from scipy import ndimage
    from skimage.feature import peak_local_max

    sigma = max(distance / 6, 0.7)
    smooth = ndimage.gaussian_filter(image, sigma)
    lowest = ndimage.minimum_filter(smooth, max(3, round(distance)))
    height = smooth - ndimage.gaussian_filter(lowest, distance / 2)
    least = BRIGHT * noise_of(image) / (2 * np.sqrt(np.pi) * sigma)
    least = max(least, 0.15 * float(np.quantile(height, 0.99)))
    reach = max(1, round(distance / 6))  # not farther: the flank of a brighter column is higher
    return peak_local_max(height, min_distance=reach, threshold_abs=least, exclude_border=False)


def fit(image: np.ndarray, start: np.ndarray, distance: float) -> Columns:
    """Return the Gaussians fitted to columns at the pixels `start`, those that converge.

    Errors of the position are those of the fit with the residual as noise, whose strength may
    differ from pixel to pixel (White's estimator).

    Args:
        distance: of neighbouring columns in pixels.
    """
    reach = max(2, round(distance / 2))
    offsets = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1).T
    offsets = offsets[np.hypot(*offsets.T) <= reach + 0.5]
    h, w = image.shape
    inside = ((start >= reach) & (start < np.array([h, w]) - reach)).all(1)
    start = start[inside]
    if not len(start):
        return Columns(np.zeros((0, 2)), np.zeros((0, 2)), *np.zeros((3, 0)))
    at = start[:, None, :] + offsets
    values = image[at[..., 0], at[..., 1]].astype(np.float64)
    low = np.quantile(values, 0.1, axis=1)
    p = np.column_stack([np.zeros((len(start), 2)), values.max(1) - low,
                         np.full(len(start), distance / 4), low])  # fmt: skip
    damping = np.full(len(start), 1e-2)
    rest, slope = model_of(p, offsets, values)
    loss = (rest**2).sum(1)
    for _ in range(STEPS):
        normal = np.einsum("nki,nkj->nij", slope, slope)
        gradient = np.einsum("nki,nk->ni", slope, rest)
        scale = np.maximum(np.einsum("nii->ni", normal), 1e-12)
        damped = normal + damping[:, None, None] * np.eye(5) * scale[:, None, :]
        step = np.linalg.solve(damped, gradient[..., None])[..., 0]
        new = p + step
        new[:, 3] = np.clip(np.abs(new[:, 3]), 0.3, 2 * distance)
        new_rest, new_slope = model_of(new, offsets, values)
        new_loss = (new_rest**2).sum(1)
        better = new_loss < loss
        p[better], rest[better], slope[better] = new[better], new_rest[better], new_slope[better]
        loss = np.where(better, new_loss, loss)
        damping = np.clip(np.where(better, damping / 5, damping * 5), 1e-9, 1e9)
    normal = np.einsum("nki,nkj->nij", slope, slope)
    spread = np.einsum("nki,nk,nkj->nij", slope, rest**2, slope)
    inverse = np.linalg.pinv(normal)
    freedom = len(offsets) / (len(offsets) - 5)
    covariance = freedom * inverse @ spread @ inverse
    error = np.sqrt(np.maximum(np.einsum("nii->ni", covariance)[:, :2], 0))
    good = (np.hypot(p[:, 0], p[:, 1]) < 0.4 * distance) & (p[:, 2] > 0)
    good &= (p[:, 3] > 0.31) & (p[:, 3] < distance)
    return Columns(start[good] + p[good, :2], error[good], p[good, 2], p[good, 3], p[good, 4])


def model_of(
    p: np.ndarray, offsets: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (values less model, its derivatives) of Gaussians: y, x, height, sigma, ground."""
    y, x, height, sigma, ground = p.T[:, :, None]
    dy, dx = offsets[:, 0] - y, offsets[:, 1] - x
    square = dy**2 + dx**2
    shape = np.exp(-square / (2 * sigma**2))
    bright = height * shape
    slope = np.stack([bright * dy / sigma**2, bright * dx / sigma**2, shape,
                      bright * square / sigma**3, np.ones_like(shape)], axis=-1)  # fmt: skip
    return values - ground - bright, slope


def columns(image: np.ndarray, distance: float | None = None) -> Columns:
    """Return the bright atomic columns of an image.

    Args:
        distance: of neighbouring columns in pixels; by default `spacing` finds it. It becomes
            smaller where the columns are nearer to each other.

    Raises: InputError as `spacing`, and for columns that are nearer than four pixels.
    """
    values = image.astype(np.float64)
    distance = distance or spacing(values)
    starts = find(values, distance)
    while len(starts) > 1 and (nearer := float(np.median(nearest(starts)))) < 0.9 * distance:
        distance = nearer  # a cell of several columns: they are nearer to each other than cells
        starts = find(values, distance)
    if distance < 4:
        raise InputError(
            f"columns about {distance:.3g} pixels apart, expected 4 or more: record it at a higher "
            "magnification, or enlarge it first"
        )
    found = fit(values, starts, distance)
    # Two starts may have ended in one column: the one with the smaller error stays.
    order = np.argsort(found.error.sum(1))
    kept: list[int] = []
    for index, others in zip(order, near(found.position[order], 0.4 * distance), strict=True):
        if all(order[other] not in kept for other in others):
            kept.append(int(index))
    rows = sorted(kept, key=lambda index: tuple(found.position[index]))
    return Columns(*(field[rows] for field in found))


def near(points: Points, distance: float) -> list[list[int]]:
    """Return for each point the others within `distance`."""
    from scipy.spatial import KDTree

    if not len(points):
        return []
    every = enumerate(KDTree(points).query_ball_point(points, distance))
    return [[other for other in others if other != index] for index, others in every]


def nearest(points: Points) -> np.ndarray:
    """Return the distance of each point to the nearest other one; NaN for a single point."""
    from scipy.spatial import KDTree

    if len(points) < 2:
        return np.full(len(points), np.nan)
    return KDTree(points).query(points, 2)[0][:, 1]


def translations(points: Points, distance: float) -> Iterator[tuple[float, Points]]:
    """Yield (share of the columns that it maps to columns, vector) of likely translations.

    Columns at the edge, that would be moved out of the field, do not count. Shorter ones first.
    """
    from scipy.spatial import KDTree

    tree = KDTree(points)
    pairs: Any = tree.query_pairs(3.2 * distance, output_type="ndarray")
    steps = points[pairs[:, 1]] - points[pairs[:, 0]]
    steps = np.where((steps[:, :1] < 0) | ((steps[:, :1] == 0) & (steps[:, 1:] < 0)), -steps, steps)
    # The same step in opposite directions near the axis is one: both are tried.
    counts = np.array([len(o) for o in KDTree(steps).query_ball_point(steps, NEAR * distance / 2)])
    low, high = points.min(0), points.max(0)
    taken = np.zeros(len(steps), bool)
    found: list[tuple[float, np.ndarray]] = []
    while not taken.all() and len(found) < 24:
        best = int(np.argmax(np.where(taken, -1, counts)))
        close = np.hypot(*(steps - steps[best]).T) < NEAR * distance / 2
        vector = np.median(steps[close], axis=0)
        taken |= np.hypot(*(steps - vector).T) < NEAR * distance
        moved = points + vector
        stays = ((moved >= low - NEAR * distance) & (moved <= high + NEAR * distance)).all(1)
        if stays.sum() < FEWEST / 2:
            continue
        hit = tree.query(moved[stays], distance_upper_bound=NEAR * distance)[0] < np.inf
        found.append((float(hit.mean()), vector))
    yield from sorted(found, key=lambda each: float(np.hypot(*each[1])))


def lattice(points: Points, distance: float) -> Lattice | None:
    """Return the lattice of columns; None where there is none, or fewer than FEWEST columns.

    Its vectors are the two shortest translations that map most columns to columns. Columns that
    they connect are a sublattice: a crystal with a basis has several. All are fitted together, and
    columns that are far from their places weigh less (Huber's weights).
    """
    from scipy.spatial import KDTree

    if len(points) < FEWEST:
        return None
    scored = list(translations(points, distance))
    most = max((share for share, _ in scored), default=0.0)
    likely = [vector for share, vector in scored if share > max(0.85 * most, 0.5)]
    first = likely[0] if likely else np.zeros(2)
    second = next((v for v in likely[1:] if abs(sine(first, v)) > 0.3), None)
    if second is None:
        return None
    vectors = np.stack([v * np.sign(v[np.argmax(np.abs(v))]) for v in (first, second)])
    tree, number = KDTree(points), 0
    index, sublattice = np.zeros((len(points), 2), int), np.zeros(len(points), int)
    moves = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])
    for start in np.argsort(np.hypot(*(points - points.mean(0)).T)):
        if sublattice[start]:
            continue
        number += 1
        sublattice[start], ahead = number, [int(start)]
        while ahead:
            here = ahead.pop(0)
            off, there = map(np.atleast_1d, tree.query(points[here] + moves @ vectors))
            for move, gap, other in zip(moves, off, there, strict=True):
                if gap < NEAR * distance and not sublattice[other]:
                    sublattice[other], index[other] = number, index[here] + move
                    ahead.append(int(other))
    sizes = np.bincount(sublattice)
    small = sizes < max(FEWEST / 2, 0.05 * len(points))
    names = np.cumsum(~small[1:])
    names = np.concatenate([[0], np.where(small[1:], 0, names)])
    sublattice = names[sublattice]
    index[sublattice == 0] = 0
    return refined(points, vectors, index, sublattice) if sublattice.any() else None


def sine(a: np.ndarray, b: np.ndarray) -> float:
    """Return the sine of the angle between two vectors."""
    return float((a[0] * b[1] - a[1] * b[0]) / (np.hypot(*a) * np.hypot(*b)))


def refined(
    points: Points,
    vectors: np.ndarray,
    index: np.ndarray,
    sublattice: np.ndarray,
) -> Lattice:
    """Return the Lattice fitted to columns whose places on it are known."""
    number = int(sublattice.max())
    on = sublattice > 0
    design = np.column_stack([index[on], np.eye(number)[sublattice[on] - 1]]).astype(float)
    weights = np.ones(len(design))
    solution = np.zeros((2 + number, 2))
    for _ in range(5):
        root = np.sqrt(weights)[:, None]
        solution = np.linalg.lstsq(design * root, points[on] * root, rcond=None)[0]
        off = np.hypot(*(points[on] - design @ solution).T)
        scale = 1.345 * float(np.median(off)) / 1.177 + 1e-12  # of a Rayleigh distribution
        weights = np.minimum(1, scale / np.maximum(off, 1e-12))
    residual = np.full(points.shape, np.nan)
    residual[on] = points[on] - design @ solution
    return Lattice(solution[:2], index, sublattice, solution[2:], residual)


def strain(points: Points, found: Lattice) -> np.ndarray:
    """Return (yy, xx, yx, rotation in radians) of each column against the lattice's vectors.

    By central differences, so NaN for columns that lack one of their four neighbours. Strain is
    the symmetric part of the gradient of the displacement, rotation counts from y to x.
    """
    places = zip(found.sublattice.tolist(), *found.index.T.tolist(), strict=True)
    key = {place: i for i, place in enumerate(places) if place[0]}
    result = np.full((len(points), 4), np.nan)
    inverse = np.linalg.inv(found.vectors)
    for (s, h, k), i in key.items():
        around = [key.get((s, h + dh, k + dk)) for dh, dk in ((1, 0), (-1, 0), (0, 1), (0, -1))]
        if None in around:
            continue
        up, down, right, left = (points[j] for j in around if j is not None)
        local = np.stack([(up - down) / 2, (right - left) / 2])
        gradient = (inverse @ local).T - np.eye(2)  # of the displacement: [component, direction]
        yy, yx, xy, xx = gradient.ravel()
        result[i] = yy, xx, (yx + xy) / 2, (xy - yx) / 2
    return result
