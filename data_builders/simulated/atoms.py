"""Simulated atomic-resolution ADF-STEM images, with what they are without noise and background.

Imaging is incoherent and linear: every column of atoms is a Gaussian as wide as the probe, as
bright as its atoms scatter, which for an annular dark-field detector is about Z**1.65 per atom.
Source: Pennycook and Nellist, Scanning Transmission Electron Microscopy (2011), chapters 1 and 6.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Float64, UInt8

from data_builders.simulated.scenes import frequencies, pixel_grid, radius_of_shape

MARGIN = 32  # pixels drawn beyond each side: the widest probe reaches five sigma, 32 pixels
NARROW = 0.5  # width of the superresolved probe as a part of the image's

Triple = tuple[float, float, float]


class Crystal(NamedTuple):
    """A crystal and the directions of view."""

    vectors: Float64[np.ndarray, "3 3"]  # nm; rows are the primitive translations
    atoms: tuple[tuple[int, Triple], ...]  # atomic number, position in nm
    axes: tuple[tuple[int, int, int], ...]  # Cartesian, which for cubic crystals are [uvw]
    layers: bool = False  # one layer thick


def _cubic(
    a: float,
    translations: Sequence[Triple],
    atoms: Sequence[tuple[int, Triple]],
    axes: tuple[tuple[int, int, int], ...],
) -> Crystal:
    """Return a Crystal of the lattice constant `a` in nm; the rest in units of it."""
    positions = tuple((number, (a * x, a * y, a * z)) for number, (x, y, z) in atoms)
    return Crystal(a * np.array(translations, float), positions, axes)


_FCC = ((0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0))
_BCC = ((-0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.5, 0.5, -0.5))
_SIMPLE = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
_ORIGIN, _QUARTER, _MIDDLE = (0, 0, 0), (0.25, 0.25, 0.25), (0.5, 0.5, 0.5)
_FACES = ((0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5))


def _sheet(a: float, height: float, atoms: Sequence[tuple[int, Triple]]) -> Crystal:
    """Return one hexagonal layer of lattice constant `a` and `height`, both in nm.

    Args:
        atoms: (atomic number, position in units of the cell's vectors).
    """
    vectors = np.array([[a, 0, 0], [-a / 2, a * np.sqrt(3) / 2, 0], [0, 0, height]])
    positions = []
    for number, position in atoms:
        x, y, z = np.array(position) @ vectors
        positions.append((number, (x, y, z)))
    return Crystal(vectors, tuple(positions), ((0, 0, 1),), layers=True)


# Lattice constants in nm. Source: Wyckoff, Crystal Structures, volume 1 (1963), to three digits.
CRYSTALS = {
    "Al": _cubic(0.405, _FCC, [(13, _ORIGIN)], ((1, 0, 0), (1, 1, 0))),
    "Cu": _cubic(0.361, _FCC, [(29, _ORIGIN)], ((1, 0, 0), (1, 1, 0))),
    "Pt": _cubic(0.392, _FCC, [(78, _ORIGIN)], ((1, 0, 0), (1, 1, 0), (1, 1, 1))),
    "Au": _cubic(0.408, _FCC, [(79, _ORIGIN)], ((1, 0, 0), (1, 1, 0), (1, 1, 1))),
    "Fe": _cubic(0.287, _BCC, [(26, _ORIGIN)], ((1, 0, 0), (1, 1, 0), (1, 1, 1))),
    "W": _cubic(0.316, _BCC, [(74, _ORIGIN)], ((1, 0, 0), (1, 1, 0), (1, 1, 1))),
    "Si": _cubic(0.543, _FCC, [(14, _ORIGIN), (14, _QUARTER)], ((1, 0, 0), (1, 1, 0), (1, 1, 1))),
    "GaAs": _cubic(0.565, _FCC, [(31, _ORIGIN), (33, _QUARTER)], ((1, 0, 0), (1, 1, 0))),
    "CdTe": _cubic(0.648, _FCC, [(48, _ORIGIN), (52, _QUARTER)], ((1, 0, 0), (1, 1, 0))),
    "SrTiO3": _cubic(
        0.391,
        _SIMPLE,
        [(38, _ORIGIN), (22, _MIDDLE), *((8, face) for face in _FACES)],
        ((1, 0, 0), (1, 1, 0)),
    ),
    "graphene": _sheet(0.246, 0.335, [(6, (1 / 3, 2 / 3, 0)), (6, (2 / 3, 1 / 3, 0))]),
    "MoS2": _sheet(
        0.316,
        0.615,
        [(42, (1 / 3, 2 / 3, 0)), (16, (2 / 3, 1 / 3, 0.13)), (16, (2 / 3, 1 / 3, -0.13))],
    ),
}


class Projection(NamedTuple):
    """A crystal seen along an axis: columns of atoms on a two-dimensional lattice."""

    lattice: Float64[np.ndarray, "2 2"]  # nm; rows are the two shortest translations (y, x)
    positions: Float64[np.ndarray, "n 2"]  # nm; one column per atom of the primitive cell
    numbers: Float64[np.ndarray, " n"]  # atomic numbers
    per_nm: float  # atoms in each column per nm of thickness


@functools.cache
def projection(name: str, axis: tuple[int, int, int]) -> Projection:
    """Return the Projection of CRYSTALS[`name`] along the Cartesian `axis`.

    Columns of two elements at one position stay two; drawn on top of each other they add up.
    """
    crystal = CRYSTALS[name]
    along = np.array(axis) / np.linalg.norm(axis)
    across = np.linalg.svd(along[None])[2][1:]  # two unit vectors at right angles to it
    steps = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3), -1).reshape(-1, 3)
    translations = steps @ crystal.vectors @ across.T
    lengths = np.linalg.norm(translations, axis=1)
    translations = translations[np.argsort(np.where(lengths < 1e-6, np.inf, lengths))]
    first = translations[0]
    areas = np.abs(first[0] * translations[:, 1] - first[1] * translations[:, 0])
    second = translations[np.argmax(areas > 1e-6)]  # the shortest that is not parallel
    area = areas[np.argmax(areas > 1e-6)]
    numbers, positions = zip(*crystal.atoms, strict=True)
    return Projection(
        lattice=np.stack([first, second]),
        positions=np.array(positions) @ across.T,
        numbers=np.array(numbers, float),
        per_nm=area / abs(np.linalg.det(crystal.vectors)),
    )


def grain(
    rng: np.random.Generator, projected: Projection, field: tuple[float, float]
) -> tuple[Float64[np.ndarray, "n 2"], Float64[np.ndarray, " n"]]:
    """Return (positions in nm, atomic numbers) of a crystal, rotated and shifted at random.

    The lattice is strained a little, bent a little, and the columns are off their positions by a
    few picometres.

    Args:
        field: (lowest, highest) nm in both directions, to fill.
    """
    angle = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    deform = rotation @ (np.eye(2) + rng.normal(0, 0.004, (2, 2)))
    lattice = projected.lattice @ deform
    middle, half = (field[0] + field[1]) / 2, (field[1] - field[0]) / np.sqrt(2)
    # A lattice point within `half` of the middle has indices up to `half` over the plane spacing;
    # one more for the origin's shift, one for a column's position in its cell.
    reach = np.ceil(half * np.linalg.norm(np.linalg.inv(lattice), axis=0)).astype(int) + 2
    h, k = (np.arange(-r, r + 1) for r in reach)
    points = (h[:, None, None] * lattice[0] + k[:, None] * lattice[1]).reshape(-1, 1, 2)
    origin = middle + rng.uniform(0, 1, 2) @ lattice
    positions = (points + projected.positions @ deform + origin).reshape(-1, 2)
    numbers = np.tile(projected.numbers, len(points))
    wave, phase = rng.normal(0, 0.15, (2, 2)), rng.uniform(0, 2 * np.pi, 2)
    positions = positions + rng.uniform(0, 0.012) * np.sin(positions @ wave * 2 * np.pi + phase)
    positions = positions + rng.normal(0, 0.004, positions.shape)
    inside = np.all((positions > field[0]) & (positions < field[1]), axis=1)
    return positions[inside], numbers[inside]


def thickness(
    rng: np.random.Generator, positions: Float64[np.ndarray, "n 2"], field: tuple[float, float]
) -> Float64[np.ndarray, " n"]:
    """Return the thickness in nm at `positions` of a wedge, the edge of one, or a particle."""
    lowest, highest = field
    middle = rng.uniform(0.75 * lowest + 0.25 * highest, 0.25 * lowest + 0.75 * highest, 2)
    angle = rng.uniform(0, 2 * np.pi)
    direction = np.array([np.sin(angle), np.cos(angle)])
    depth = rng.uniform(2, 12)
    along = (positions - middle) @ direction / (highest - lowest)
    form = rng.choice(["wedge", "edge", "particle"], p=[0.5, 0.25, 0.25])
    if form == "wedge":
        return depth * np.maximum(1 + rng.uniform(0, 0.6) * along, 0.2)
    if form == "edge":
        return depth * np.clip(along / rng.uniform(0.1, 0.6), 0, 1)
    radius = rng.uniform(0.25, 0.55) * (highest - lowest)
    y, x = ((positions - middle) / radius).astype(np.float32).T
    shape = radius_of_shape(rng, y, x, facets=int(rng.integers(5, 9)))
    return depth * np.sqrt(np.maximum(1 - shape**2, 0))


def specimen(
    rng: np.random.Generator, field: tuple[float, float]
) -> tuple[Float64[np.ndarray, "n 2"], Float64[np.ndarray, " n"]]:
    """Return (positions in nm, intensities) of the columns of one or two grains with defects."""
    name = rng.choice(list(CRYSTALS))
    crystal = CRYSTALS[name]
    exponent = rng.uniform(1.6, 1.7)  # of the atomic number; falls with the detector's inner angle
    axes = rng.permutation(len(crystal.axes))
    parts = []
    border, angle = rng.uniform(field[0], field[1], 2), rng.uniform(0, 2 * np.pi)
    grains = 2 if rng.random() < 0.25 else 1
    for side in range(grains):
        projected = projection(name, crystal.axes[axes[side % len(axes)]])
        positions, numbers = grain(rng, projected, field)
        if grains == 2:
            beyond = (positions - border) @ np.array([np.sin(angle), np.cos(angle)]) > 0
            positions, numbers = positions[beyond == side], numbers[beyond == side]
        parts.append((positions, numbers, np.full(len(positions), projected.per_nm)))
    positions, numbers, per_nm = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    if crystal.layers:
        atoms = np.ones(len(positions))
    else:
        atoms = np.rint(per_nm * thickness(rng, positions, field))
    missing = rng.random(len(positions)) < rng.choice([0, 0.01, 0.04])
    atoms = np.where(missing, np.floor(atoms * rng.uniform(0.3, 0.9, len(positions))), atoms)
    foreign = (rng.random(len(positions)) < rng.choice([0, 0, 0.02])) & (atoms > 0)
    swapped = np.where(foreign, np.ceil(atoms * 0.2), 0)
    other = numbers * rng.uniform(0.5, 2)
    return positions, (atoms - swapped) * numbers**exponent + swapped * other**exponent


def stamped(
    positions: Float64[np.ndarray, "n 2"],
    heights: Float64[np.ndarray, " n"],
    sigma: float,
    size: int,
) -> Float32[np.ndarray, "{size} {size}"]:
    """Return the sum of Gaussians at `positions`, all in pixels."""
    reach = int(np.ceil(4 * sigma))
    window = np.arange(-reach, reach + 1)
    nearest = np.rint(positions).astype(np.int64)
    at = nearest[:, :, None] + window  # [n, 2, w]
    profile = np.exp(-(((at - positions[:, :, None]) / sigma) ** 2) / 2)
    profile = np.where((at >= 0) & (at < size), profile, 0)  # what falls outside weighs nothing
    at = np.clip(at, 0, size - 1)
    values = (heights[:, None] * profile[:, 0])[:, :, None] * profile[:, 1][:, None, :]
    flat = at[:, 0, :, None] * size + at[:, 1, None, :]
    image = np.bincount(flat.ravel(), values.ravel(), size * size)
    return image.astype(np.float32).reshape(size, size)


def blurred(image: Float32[np.ndarray, "h h"], sigma: float) -> Float[np.ndarray, "h h"]:
    """Return `image` convolved with a Gaussian of `sigma` pixels; it wraps around."""
    qy, qx = frequencies(len(image), 1.0)
    half = len(image) // 2 + 1
    lens = np.exp(-2 * (np.pi * sigma) ** 2 * (qy**2 + qx[:, :half] ** 2))
    return np.fft.irfft2(np.fft.rfft2(image) * lens, s=image.shape)


def background(rng: np.random.Generator, size: int) -> Float32[np.ndarray, "{size} {size}"]:
    """Return values >= 0: an even part, a slope, and broad hills of contamination."""
    y, x = (at / size for at in pixel_grid(size))
    slope = rng.normal(0, 0.15, 2).astype(np.float32)
    level = np.float32(rng.uniform(0, 0.35))
    total = (level + slope[0] * (y - 0.5)) + slope[1] * (x - 0.5)
    for _ in range(rng.integers(0, 4)):
        centre = rng.uniform(-0.2, 1.2, 2).astype(np.float32)
        width = np.float32(rng.uniform(0.2, 0.6))
        high, wide = (
            np.exp(-(((at - c) / width) ** 2)) for at, c in zip((y, x), centre, strict=True)
        )
        total += (np.float32(rng.uniform(0, 0.35)) * high) * wide
    return np.maximum(total, 0)


def scanned(
    rng: np.random.Generator, image: Float[np.ndarray, "h h"], *, jitter: float, margin: int
) -> Float[np.ndarray, "s s"]:
    """Return `image` as a beam sees it that is `jitter` pixels (rms) off its line.

    Each line is read a little off its position, along and across; the error of a line is partly
    that of the line before. Linear interpolation.

    Args:
        margin: pixels to cut off each side.
    """
    size = len(image) - 2 * margin
    errors = rng.normal(0, jitter, (2, size + 1))
    errors = 0.8 * errors[:, 1:] + 0.6 * errors[:, :-1]  # 0.8**2 + 0.6**2 is 1
    errors = np.clip(errors, 1 - margin, margin - 2)
    whole = np.floor(errors).astype(int)
    down, right = (errors - whole).astype(image.dtype)[:, :, None]
    at = np.arange(size) + margin
    above = at + whole[0]
    lines = (1 - down) * image[above] + down * image[above + 1]
    before = at + whole[1][:, None]
    values = (1 - right) * np.take_along_axis(lines, before, 1)
    return values + right * np.take_along_axis(lines, before + 1, 1)


def recorded(
    rng: np.random.Generator,
    image: Float[np.ndarray, "h h"],
    *,
    dose: float,
    jitter: float,
    flicker: float,
    readout: float,
    margin: int,
) -> Float[np.ndarray, "s s"]:
    """Return `image` as recorded: with scan noise, Poisson noise and readout noise.

    Args:
        dose: electrons per unit of `image`.
        jitter, margin: as `scanned`.
        flicker: relative rms change of the beam from line to line.
        readout: rms noise of the detector in units of `image`.
    """
    seen = scanned(rng, image, jitter=jitter, margin=margin)
    beam = np.maximum(1 + rng.normal(0, flicker, (len(seen), 1)), 0)
    counts = rng.poisson(dose * beam * seen).astype(np.float32)
    return counts / np.float32(dose) + np.float32(readout) * rng.standard_normal(
        seen.shape, np.float32
    )


def atoms(
    rng: np.random.Generator, size: int
) -> tuple[dict[str, UInt8[np.ndarray, "{size} {size}"]], float]:
    """Return ({"image" and the three targets}, nm per pixel).

    The probe is 0.035 to 0.065 nm (sigma) wide and at least 1.8 pixels. All four share one scale:
    grey value 0 is no electrons, and no target reaches 255, so only the noise is clipped. Targets
    are not distorted by the scan. A superresolved column is as high as it is in the image, not as
    high as the narrower probe would make it: its integral is NARROW**2 of the image's.
    """
    step = rng.uniform(0.01, 0.03)
    sigma = max(rng.uniform(0.035, 0.065) / step, 1.8)
    side = size + 2 * MARGIN
    positions, intensities = specimen(rng, (-0.5 * step, (side - 0.5) * step))
    superresolved = stamped(positions / step, intensities, NARROW * sigma, side)
    wide = blurred(superresolved, sigma * np.sqrt(1 - NARROW**2)) / NARROW**2
    wide = np.maximum(wide, 0)  # the transform leaves -1e-7 of the highest where there is nothing
    crop = (slice(MARGIN, MARGIN + size),) * 2
    unit = max(wide[crop].max(), superresolved[crop].max(), 1e-9)
    removed = wide / unit
    denoised = removed + background(rng, side)
    noisy = recorded(
        rng,
        denoised,
        dose=np.exp(rng.uniform(np.log(3), np.log(400))),
        jitter=rng.choice([0.3, 0.8, 2.0]) * rng.random(),
        flicker=rng.uniform(0, 0.04),
        readout=rng.uniform(0, 0.03),
        margin=MARGIN,
    )
    targets = {
        "denoised": denoised[crop],
        "background_removed": removed[crop],
        "superresolved": superresolved[crop] / unit,
    }
    top = max(np.percentile(noisy, 99.9), *(target.max() for target in targets.values()))
    scale = rng.uniform(160, 250) / top
    return {
        name: np.clip(np.rint(scale * pixels), 0, 255).astype(np.uint8)
        for name, pixels in {"image": noisy, **targets}.items()
    }, step
