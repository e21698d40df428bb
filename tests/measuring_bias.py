"""Print the tables of docs/reference/measuring.md: python -m tests.measuring_bias [SHAPES]."""

import math
import sys

import numpy as np
from skimage.measure import regionprops

from data_builders.simulated.scenes import radius_of_shape
from emjax.measurement import label, measure

SIZES = ("equivalent_diameter", "feret_min", "feret_max", "perimeter")
SHAPES = {
    "1 pixel": np.ones((1, 1)), "line of 5": np.ones((1, 5)), "3 on a diagonal": np.eye(3),
    "square of 2": np.ones((2, 2)), "square of 10": np.ones((10, 10)),
}  # fmt: skip


def disc(across):
    y, x = np.mgrid[:across, :across] + 0.5 - across / 2
    return np.hypot(y, x) < across / 2


def imagej_perimeter(mask):
    """Return the length of ImageJ's trace of a particle without holes.

    The trace runs along the edges of pixels; each corner takes off 2 - sqrt(2), but not two at the
    ends of one edge of length 1. It keeps to the outside where pixels touch at a corner.
    """
    inside = np.pad(mask, 1).astype(bool)
    y, x = np.argwhere(inside)[0]
    start, at, step, moves = (y, x), (y, x), (0, 1), []
    while not moves or at != start or step != (0, 1):
        moves.append(step)
        at = (at[0] + step[0], at[1] + step[1])
        dy, dx = step
        for turn in ((-dx, dy), step, (dx, -dy)):  # left first: the outside of a diagonal
            ahead_left = pixel(inside, at, turn, left=True)
            ahead_right = pixel(inside, at, turn, left=False)
            if ahead_right and not ahead_left:
                step = turn
                break
    sides, length = [], 0
    for before, here in zip(moves, [*moves[1:], moves[0]], strict=True):
        length += 1
        if here != before:
            sides.append(length)
            length = 0
    sides[0] += length
    corners, corner = 0, False
    for side in sides:
        corner = side > 1 or not corner
        corners += corner
    return len(moves) - corners * (2 - math.sqrt(2))


def pixel(inside, at, step, *, left):
    """Return whether the pixel left or right of a step along an edge is inside."""
    (y, x), (dy, dx) = at, step
    if dy == 0:
        column, row = (x if dx > 0 else x - 1), (y - 1 if (dx > 0) == left else y)
    else:
        row, column = (y if dy > 0 else y - 1), (x if (dy > 0) == left else x - 1)
    return inside[row, column]


def known_shapes():
    print(
        "shape: emjax | ImageJ | scikit-image, of perimeter, circularity, Feret max, ellipse ratio"
    )
    for name, shape in {**SHAPES, "disc of 10": disc(10), "disc of 100": disc(100)}.items():
        mask = np.pad(shape, 3) > 0
        ours = {key: column[0] for key, column in measure(mask, split=None).items()}
        (theirs,) = regionprops(mask.astype(int))
        around, edge = imagej_perimeter(mask), theirs.perimeter
        area = mask.sum()
        cells = [
            f"{ours['perimeter_px']:.4g} | {around:.4g} | {edge:.4g}",
            f"{ours['circularity']:.3f} | {min(1, 4 * math.pi * area / around**2):.3f} | "
            + (f"{4 * math.pi * area / edge**2:.3f}" if edge else "-"),
            f"{ours['feret_max_px']:.4g} | the same | {theirs.feret_diameter_max:.4g}",
            f"{ours['ellipse_aspect_ratio']:.3g} | the same | "
            + (f"{theirs.axis_major_length / theirs.axis_minor_length:.3g}"
               if theirs.axis_minor_length else "-"),
        ]  # fmt: skip
        print(f"{name}: " + "; ".join(cells))


def bias(number):
    print("across, px | median of the mask / of the shape - 1, of", ", ".join(SIZES))
    rng = np.random.default_rng(1)
    for across in (2, 3, 5, 7, 10, 15, 20, 40):
        true, found, split = [], [], 0
        for _ in range(number):
            seed, facets = int(rng.integers(1 << 30)), int(rng.integers(5, 9))
            (cy, cx), radius = rng.uniform(0, 1, 2) + across, across / 2 * rng.lognormal(0, 0.1)

            def drawn(fine, seed=seed, facets=facets, cy=cy, cx=cx, r=radius, side=2 * across):
                y, x = (np.mgrid[: side * fine, : side * fine] + 0.5) / fine
                shape = np.random.default_rng(seed)
                return radius_of_shape(shape, (y - cy) / r, (x - cx) / r, facets) < 1

            fine = max(2, 160 // across)
            for masks, scale in ((true, fine), (found, 1)):
                table = measure(drawn(scale), 1 / scale, split=None)
                masks.append([table[f"{name}_nm"][0] for name in SIZES])
            split += len(label(drawn(1)).names) != 1
        ratios = np.median(found, axis=0) / np.median(true, axis=0) - 1
        print(across, "|", " | ".join(f"{100 * r:+.1f} %" for r in ratios), "| split:", split)


def splits(number=40):
    print("overlap / diameter | share of pairs of equal discs that are split, by diameter in px")
    rng = np.random.default_rng(2)
    diameters = (6, 10, 16, 30, 60)
    print("diameter", *diameters)
    for overlap in (0.02, 0.1, 0.2, 0.3, 0.4):
        shares = []
        for across in diameters:
            y, x = np.mgrid[: 3 * across, : 3 * across] + 0.5 - 1.5 * across
            found = 0
            for _ in range(number):
                angle, (cy, cx) = rng.uniform(0, np.pi), rng.uniform(-0.5, 0.5, 2)
                dy, dx = (across * (1 - overlap) / 2 * f(angle) for f in (np.sin, np.cos))
                pair = np.hypot(y - cy - dy, x - cx - dx) < across / 2
                pair |= np.hypot(y - cy + dy, x - cx + dx) < across / 2
                found += len(label(pair).names) == 2
            shares.append(f"{found / number:.2f}")
        print(overlap, *shares)


if __name__ == "__main__":
    known_shapes()
    splits()
    bias(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
