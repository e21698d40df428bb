"""Print the table of atomic columns in docs/reference/measuring.md: python -m tests.measuring_atoms

Crystals of `simulated/atoms`, strained and bent as there, with Poisson noise; without the
distortions of the scan, which no fit can tell from the specimen. The Cramer-Rao bound of each
column is that of a Gaussian whose position, height, width and ground are unknown, at the true
expected counts.
"""

import numpy as np
from scipy.spatial import KDTree

from data_builders.simulated.atoms import grain, projection, stamped
from emjax.measurement import atoms

STEP, SIGMA, SIDE, GROUND = 0.02, 2.5, 256, 0.2  # nm per pixel, pixels, pixels, of the highest
DOSES = (10, 30, 100, 300, 1000)  # electrons in the brightest pixel


def bounds(expected, points, heights):
    """Return the bound of the position, root mean square of y and x, of each column."""
    y, x = np.mgrid[:SIDE, :SIDE]
    found = []
    for (py, px), height in zip(points, heights, strict=True):
        inside = np.hypot(y - py, x - px) <= 3 * SIGMA
        dy, dx = (y - py)[inside], (x - px)[inside]
        shape = np.exp(-(dy**2 + dx**2) / (2 * SIGMA**2))
        bright, square = height * shape, dy**2 + dx**2
        slopes = np.stack([bright * dy / SIGMA**2, bright * dx / SIGMA**2, shape,
                           bright * square / SIGMA**3, np.ones_like(shape)])  # fmt: skip
        inverse = np.linalg.inv((slopes / expected[inside]) @ slopes.T)
        found.append((inverse[0, 0] + inverse[1, 1]) / 2)
    return np.sqrt(found)


def main():
    print(
        "| crystal | dose | columns | rms error, pm | as stated, pm | bound, pm | error / bound |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, axis in (("Au", (1, 0, 0)), ("SrTiO3", (1, 0, 0)), ("Si", (1, 1, 1))):
        for dose in DOSES:
            rng = np.random.default_rng([dose, sum(map(ord, name))])
            field = (-20 * STEP, (SIDE + 20) * STEP)
            positions, numbers = grain(rng, projection(name, axis), field)
            weights = numbers**1.65
            columns, height = merged(positions / STEP, weights)
            clean = stamped(columns, height / height.max(), SIGMA, SIDE) + GROUND
            counts = rng.poisson(dose * clean).astype(np.float32)
            found = atoms.columns(counts)
            apart, nearest = KDTree(columns).query(found.position)
            kept = apart < 2
            off = (found.position - columns[nearest])[kept]
            least = bounds(dose * clean, columns[nearest][kept],
                           dose * (height / height.max())[nearest][kept])  # fmt: skip
            rms, stated, bound = (1000 * STEP * np.sqrt(np.mean(v**2))
                                  for v in (off, found.error[kept], least))  # fmt: skip
            print(f"| {name} {list(axis)} | {dose} | {kept.sum()} | {rms:.2f} | {stated:.2f} | "
                  f"{bound:.2f} | {rms / bound:.2f} |", flush=True)  # fmt: skip


def merged(points, weights):
    """Return columns of which those at one place are one: (positions, weights)."""
    groups = KDTree(points).query_ball_point(points, 0.6 * SIGMA)
    first = np.array([min(group) for group in groups])
    kept = np.unique(first)
    total = np.array([weights[first == k].sum() for k in kept])
    middle = [np.average(points[first == k], axis=0, weights=weights[first == k]) for k in kept]
    inside = ((np.array(middle) > -12) & (np.array(middle) < SIDE + 12)).all(1)
    return np.array(middle)[inside], total[inside]


if __name__ == "__main__":
    main()
