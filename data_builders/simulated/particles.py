"""Simulated micrographs of particles on a support, with their mask, as varied as laboratories are.

Each draws its own microscope (bright field, high resolution, dark field, secondary electrons),
specimen (size, shape, arrangement and contrast of particles; film, holes, lumps, residues) and
treatment (dose, drift, charging, scale bar, banner, JPEG). The ranges are meant to be wider than
what microscopes show, after Tobin et al., "Domain randomization" (arXiv 1703.06907). Four images of
np_sintering chose grain and shared noise; this and the smallest radius: docs/background/models.md.
"""

import io
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from data_builders.simulated.scenes import (
    frequencies,
    illumination,
    pixel_grid,
    radius_of_shape,
    smooth_noise,
    window,
)

MARGIN = 16  # pixels cut off each side, where the Fourier transform wraps around
MOST_PARTICLES = 600  # of a field
ROSE = 5.0  # standard deviations by which a particle that anybody would draw stands out
SCALES = (1.0, 2.0, 4.0)  # pixels, half the radius of a particle; larger ones are seen by edges
SPACINGS = (0.19, 0.34)  # nm, between the lattice planes that metals and oxides show

Square = Float32[np.ndarray, "{size} {size}"]
Patch = Float32[np.ndarray, "h w"]


class Specimen(NamedTuple):
    """What stands in the beam, each [size, size].

    thickness: projected height of the particles in units of their typical radius, times the
        contrast of each.
    relief: height of the uppermost surface, in pixels.
    fringes: lattice planes and twins, relative to the thickness.
    mask: what is a particle.
    support: thickness of the film, about 1, 0 in its holes.
    residue: lumps, shells and stains that are no particles, in the units of `thickness`.
    """

    thickness: Square
    relief: Square
    fringes: Square
    mask: Bool[np.ndarray, "{size} {size}"]
    support: Square
    residue: Square


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Return a number between `low` and `high`, its logarithm evenly distributed."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def chance(rng: np.random.Generator, probability: float) -> bool:
    """Return True with this probability."""
    return bool(rng.random() < probability)


# One particle


def outline(
    rng: np.random.Generator, family: str, y: Patch, x: Patch
) -> Float32[np.ndarray, "h w"]:
    """Return how far each (y, x), in radii, is from a particle's middle: 1 on its outline."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.cos(angle) * y + np.sin(angle) * x, np.cos(angle) * x - np.sin(angle) * y
    if family == "round":
        stretch = rng.uniform(0.9, 1.1)
        return np.hypot(y * stretch, x / stretch).astype(np.float32)
    if family == "rod":
        half = rng.uniform(0.3, 0.7)  # of the straight part; 1 is the largest extent
        width = 1 - half
        return np.hypot(np.maximum(np.abs(y) - half, 0), x).astype(np.float32) / np.float32(width)
    if family == "irregular":
        turn = np.arctan2(y, x)
        bumps = sum(
            rng.normal(0, 0.35 / order**1.3) * np.cos(order * turn + rng.uniform(0, 2 * np.pi))
            for order in range(2, 7)
        )
        return (np.hypot(y, x) / np.clip(1 + bumps, 0.45, 1.5)).astype(np.float32)
    facets = {"triangle": 3, "square": 4}.get(family) or int(rng.integers(5, 9))
    return radius_of_shape(rng, y.astype(np.float32), x.astype(np.float32), facets)


FAMILIES = ("round", "polygon", "irregular", "rod", "triangle", "square")


def profile(rng: np.random.Generator, shape: Patch) -> Patch:
    """Return the height of a particle over its outline's distance, 0 outside, at most 1.

    From a ball over a dome on a substrate to a plate.
    """
    flat = rng.choice([1.0, rng.uniform(0.2, 0.9)])
    power = rng.choice([0.5, rng.uniform(0.1, 0.5)])
    return np.minimum(np.maximum(1 - shape**2, 0) ** power, flat).astype(np.float32)


def crystal(rng: np.random.Generator, y: Patch, x: Patch, spacing: float) -> Patch:
    """Return what diffraction adds to a particle's contrast: lattice planes, twins, bends.

    Args:
        y, x: positions in pixels.
        spacing: of the lattice planes in pixels.
    """
    contrast = np.zeros(np.broadcast_shapes(y.shape, x.shape), np.float32)

    def along() -> Patch:
        angle = rng.uniform(0, np.pi)
        return (np.sin(angle) * y + np.cos(angle) * x).astype(np.float32)

    if spacing > 2.2:  # else the detector does not resolve it
        for _ in range(rng.choice([0, 1, 2, 3], p=[0.35, 0.35, 0.2, 0.1])):
            planes = along() * np.float32(2 * np.pi / (spacing * rng.normal(1, 0.02)))
            contrast += rng.uniform(0.1, 0.6) * np.cos(planes + rng.uniform(0, 2 * np.pi))
    if chance(rng, 0.25):  # twins and stacking faults
        bands = np.sin(
            along() * np.float32(2 * np.pi / log_uniform(rng, 6, 40)) + rng.uniform(0, 6)
        )
        contrast += rng.uniform(0.1, 0.5) * np.tanh(3 * bands)
    if chance(rng, 0.25):  # a bend contour, or fringes of a wedge
        bend = along() / np.float32(log_uniform(rng, 4, 30))
        contrast += rng.uniform(-0.6, 0.6) * np.exp(-((bend - rng.normal(0, 1)) ** 2))
    return contrast


# Many


def positions(
    rng: np.random.Generator, size: int, radius: float, coverage: float
) -> Float[np.ndarray, "n 2"]:
    """Return the middles (y, x) of particles that cover about this share of the field.

    At random, in heaps, apart from each other, or ordered as self-assembled particles are.
    """
    number = int(np.clip(rng.poisson(coverage * size**2 / (np.pi * radius**2)), 1, MOST_PARTICLES))
    order = rng.choice(["random", "heaps", "apart", "lattice"], p=[0.35, 0.2, 0.3, 0.15])
    at = rng.uniform(-radius, size + radius, (number, 2))
    if order == "heaps":
        heaps = rng.uniform(0, size, (int(rng.integers(1, 6)), 2))
        spread = max(radius * np.sqrt(number / len(heaps)) * rng.uniform(0.6, 1.5), radius)
        at = heaps[rng.integers(len(heaps), size=number)] + rng.normal(0, spread, (number, 2))
    if order == "apart":
        kept: list[np.ndarray] = []
        distance = radius * rng.uniform(1.9, 2.6)
        for one in at:
            if all(np.hypot(*(one - other)) > distance for other in kept):
                kept.append(one)
        at = np.array(kept)
    if order == "lattice":
        pitch = radius * rng.uniform(1.9, 2.8)
        steps = np.arange(-2, size / pitch + 3)
        row, column = np.meshgrid(steps, steps, indexing="ij")
        places = (
            np.stack([row * np.sqrt(0.75), column + 0.5 * (row % 2)], -1).reshape(-1, 2) * pitch
        )
        places = places + rng.normal(0, rng.uniform(0, 0.12) * pitch, places.shape)
        islands = smooth_noise(rng, size, size / 6)
        inside = np.clip(places, 0, size - 1).astype(int)
        level = rng.uniform(-1.5, 1)
        at = places[islands[inside[:, 0], inside[:, 1]] > level][:MOST_PARTICLES]
    return at


def support(rng: np.random.Generator, size: int) -> Square:
    """Return the thickness of a film, about 1: even, patchy, with holes, or none."""
    film = 1 + rng.uniform(0, 0.25) * smooth_noise(rng, size, size / rng.uniform(3, 20))
    film = np.maximum(film, 0.2)
    kind = rng.choice(["film", "holes", "edge", "none"], p=[0.65, 0.13, 0.12, 0.1])
    if kind == "none":
        return np.full((size, size), 0.1, np.float32)
    if kind == "film":
        return film
    scale = size / rng.uniform(3, 8) if kind == "holes" else size
    level = smooth_noise(rng, size, scale / 2) + rng.uniform(-0.3, 1.2)
    sharpness = rng.uniform(5, 40)
    return film / (1 + np.exp(-np.clip(sharpness * level, -30, 30))).astype(np.float32)


def residue(rng: np.random.Generator, size: int) -> Square:
    """Return lumps of a support, stains and fibres: weaker than particles, and not of the mask."""
    total = np.zeros((size, size), np.float32)
    if chance(rng, 0.3):  # lumps of an oxide or polymer
        level = smooth_noise(rng, size, size / rng.uniform(5, 16)) - rng.uniform(-0.3, 1.3)
        total += rng.uniform(0.05, 0.3) * np.maximum(level, 0) ** rng.uniform(0.3, 1)
    if chance(rng, 0.15):  # fibres
        noise = smooth_noise(rng, size, size / rng.uniform(4, 12))
        slope = np.hypot(*np.gradient(noise)) + 1e-3
        total += rng.uniform(0.05, 0.3) * np.exp(-((noise / slope / rng.uniform(1, 5)) ** 2))
    return total


def specimen(rng: np.random.Generator, size: int, resolved: bool) -> tuple[Specimen, float]:
    """Return (a specimen, nm per pixel).

    Args:
        resolved: whether pixels are small enough for lattice planes.
    """
    nm_per_pixel = log_uniform(rng, 0.02, 0.15) if resolved else log_uniform(rng, 0.1, 5)
    spacing = rng.uniform(*SPACINGS) / nm_per_pixel
    radius = log_uniform(rng, 2.5, size / 4)
    spread = rng.choice([rng.uniform(0.02, 0.12), rng.uniform(0.1, 0.5)])
    covered = [0.0, log_uniform(rng, 0.01, 0.9), rng.uniform(0.05, 1)]
    coverage = rng.choice(covered, p=[0.04, 0.48, 0.48])
    families = rng.choice(FAMILIES, p=[0.4, 0.2, 0.16, 0.08, 0.08, 0.08], size=2)
    unequal = rng.uniform(0, 0.5)  # of the particles' contrast
    y, x = pixel_grid(size)
    shape_of = [np.zeros((size, size), np.float32) for _ in range(4)]
    thickness, relief, fringes, shells = shape_of
    mask = np.zeros((size, size), bool)
    shell = rng.uniform(1.1, 1.6) if chance(rng, 0.15) else 0.0
    film = support(rng, size)
    middles = positions(rng, size, radius, coverage) if coverage else np.zeros((0, 2))
    for cy, cx in middles:
        family = families[int(chance(rng, 0.15))]
        own = float(np.clip(radius * rng.lognormal(0, spread), 2, size / 2))
        reach = own * max(1.6, shell * 1.3) + 2
        near = window(size, cy, cx, reach)
        py, px = y[near[0]] - np.float32(cy), x[:, near[1]] - np.float32(cx)
        if 0 in np.broadcast_shapes(py.shape, px.shape):
            continue
        shape = outline(rng, family, py / own, px / own)
        height = profile(rng, shape)
        weight = np.exp(rng.normal(0, unequal)) * (own / radius) ** rng.uniform(0, 1)
        thickness[near] += weight * height
        fringes[near] += weight * height * crystal(rng, py, px, spacing)
        relief[near] = np.maximum(relief[near], height * own)
        mask[near] |= shape < 1
        if shell:
            shells[near] += np.maximum(1 - (shape / shell) ** 2, 0) ** 0.5
    waste = residue(rng, size) + rng.uniform(0.03, 0.2) * np.minimum(shells, 1.5)
    return Specimen(thickness, relief, fringes, mask, film, waste), nm_per_pixel


# What the microscope makes of it: intensities, about 1 where there is nothing


def defocused(phase: Square, absorption: Square, defocus: float, cut: float) -> Square:
    """Return the intensity of a wave behind a lens out of focus.

    Args:
        defocus: wavelength times defocus, in square pixels.
        cut: frequency above which coherence damps the contrast, cycles per pixel.
    """
    qy, qx = frequencies(len(phase), 1.0)
    q2 = qy**2 + qx**2
    lens = np.exp(1j * np.pi * defocus * q2 - (q2 / cut**2) ** 2).astype(np.complex64)
    wave = np.exp(1j * phase - absorption).astype(np.complex64)
    return np.abs(np.fft.ifft2(np.fft.fft2(wave) * lens)).astype(np.float32) ** 2


def transmitted(rng: np.random.Generator, has: Specimen, resolved: bool) -> Square:
    """Return a bright field: thick and heavy is dark, edges have Fresnel fringes."""
    size = len(has.mask)
    grain = smooth_noise(rng, size, log_uniform(rng, 0.5, 3)) * np.sqrt(np.maximum(has.support, 0))
    contrast = log_uniform(rng, 0.06, 0.8)
    diffraction = rng.uniform(0.3, 1) if resolved else rng.uniform(0, 0.4)
    dark = has.thickness + diffraction * has.fringes + has.residue
    absorption = contrast * np.maximum(dark, 0) + rng.uniform(0.01, 0.1) * has.support
    strength = rng.uniform(0.2, 1.5) * contrast
    phase = strength * dark + log_uniform(rng, 0.005, 0.2) * grain
    return defocused(phase, absorption, log_uniform(rng, 0.3, 40), rng.uniform(0.15, 0.5))


def scattered(rng: np.random.Generator, has: Specimen) -> Square:
    """Return an annular dark field: thick and heavy is bright."""
    contrast = log_uniform(rng, 0.3, 12)
    body = np.maximum(has.thickness + rng.uniform(0, 0.4) * has.fringes, 0)
    body = body ** rng.uniform(0.6, 1.0)
    grain = smooth_noise(rng, len(body), log_uniform(rng, 0.7, 4))
    film = np.maximum(has.support * (1 + rng.uniform(0, 0.2) * grain), 0)
    offset = rng.uniform(0, 1)
    return (offset + film + contrast * (body + has.residue)) / (offset + 1)


def secondary(rng: np.random.Generator, has: Specimen) -> Square:
    """Return secondary electrons: steep surfaces and edges are bright, gaps are dark."""
    from scipy import ndimage  # slow to load: every build imports this module

    size = len(has.mask)
    surface = ndimage.gaussian_filter(has.relief, rng.uniform(0.5, 1.5))
    dy, dx = np.gradient(surface)
    steep = np.hypot(dy, dx)
    angle = rng.uniform(0, 2 * np.pi)
    lit = np.sin(angle) * dy + np.cos(angle) * dx  # towards the detector
    body = rng.uniform(0.2, 2.5) * (0.5 + 0.5 * np.minimum(has.thickness, 1.5)) * has.mask
    edges = rng.uniform(0, 1.5) * np.tanh(steep) + rng.uniform(0, 0.4) * np.tanh(lit)
    hollow = ndimage.gaussian_filter(surface, rng.uniform(3, 12)) - surface
    hollow = np.clip(hollow / (hollow.std() + 1e-3), 0, 3) * ~has.mask
    ground = 1 + rng.uniform(0, 0.15) * smooth_noise(rng, size, log_uniform(rng, 0.8, 12))
    ground = ground * (0.6 + 0.4 * np.minimum(has.support, 1)) + has.residue
    grain = 1 + rng.uniform(0, 0.15) * smooth_noise(rng, size, rng.uniform(0.8, 3)) * has.mask
    image = (ground + body + edges * has.mask) * grain - rng.uniform(0, 0.12) * hollow
    return np.maximum(image, 0.02).astype(np.float32)


# What is done to an image


class Drawn(NamedTuple):
    """Particles of a mask that do not touch, numbered from 1.

    labels: [h, w], 0 beside them.
    areas: [n], pixels.
    contrasts: [n], how far the mean of each is from that of its surroundings, without noise.
    """

    labels: Int[np.ndarray, "h w"]
    areas: Float[np.ndarray, " n"]
    contrasts: Float[np.ndarray, " n"]


def drawn(mask: Bool[np.ndarray, "h w"], image: Patch) -> Drawn:
    """Return the particles of a mask; `image` is without noise."""
    from scipy import ndimage  # slow to load: every build imports this module

    labelled: Any = ndimage.label(mask, np.ones((3, 3)))
    labels, number = labelled
    every = np.arange(1, number + 1)
    ring = ndimage.grey_dilation(labels, size=(5, 5)) * (labels == 0)
    with np.errstate(invalid="ignore"):  # a particle may have no pixel of its surroundings
        around = np.asarray(ndimage.mean(image, ring, every)).reshape(-1)
    inside = np.asarray(ndimage.mean(image, labels, every)).reshape(-1)
    elsewhere = image[~mask].mean() if not mask.all() else 0.0
    around = np.where(np.isnan(around), elsewhere, around)
    return Drawn(labels, np.bincount(labels.ravel())[1:].astype(float), np.abs(inside - around))


def dose(rng: np.random.Generator, image: Patch, has: Drawn, grain: float) -> float:
    """Return counts per unit of `image` that show the middle one of its particles.

    Its contrast is 0.7 to 20 standard deviations of a pixel's noise, and ROSE times 1.5 of those of
    the noise over its area at least: fields in which nothing can be seen teach nothing.

    Args:
        grain: pixels of noise that count as one.
    """
    level = float(np.mean(image))
    if not len(has.areas):
        return log_uniform(rng, 12, 3000) / max(level, 1e-3)
    area, contrast = np.median(has.areas), max(float(np.median(has.contrasts)), 0.02 * level, 1e-4)
    level = max(level + contrast / 2, 1e-3)  # half of them inside of particles
    clear = max(log_uniform(rng, 0.7, 20), 1.5 * ROSE * float(np.sqrt(grain / area)))
    return max(clear**2 * level / contrast**2, 1 / level)


def detected(
    rng: np.random.Generator, image: Square, mask: Bool[np.ndarray, "h w"], scanned: bool
) -> tuple[Square, Bool[np.ndarray, "h w"]]:
    """Return counts, and the particles that can be seen in them.

    Counts are blurred by drift and detector, noisy, with what scanning and beam add.
    """
    from scipy import ndimage  # slow to load: every build imports this module

    size, has = len(image), drawn(mask, image)
    image = ndimage.gaussian_filter(image, rng.choice([0.0, rng.uniform(0.3, 1.5)]))
    if chance(rng, 0.15):  # drift
        length, angle = rng.uniform(1, 6), rng.uniform(0, np.pi)
        shifts = np.linspace(-0.5, 0.5, 7)[:, None] * length * [np.sin(angle), np.cos(angle)]
        image = np.mean([ndimage.shift(image, s, order=1, mode="nearest") for s in shifts], axis=0)
    if scanned and chance(rng, 0.4):  # an unsteady scan
        moved = pixel_grid(size)[1] + rng.normal(0, rng.uniform(0.1, 0.8), (size, 1))
        row = np.broadcast_to(pixel_grid(size)[0], (size, size))
        image = ndimage.map_coordinates(image, [row, moved], order=1, mode="nearest")
    image = image * illumination(rng, size) ** rng.uniform(0.3, 2)
    if scanned and chance(rng, 0.3):  # charging, flicker
        lines = ndimage.gaussian_filter1d(rng.normal(0, 1, size), log_uniform(rng, 0.3, 30))
        image = image * (1 + rng.uniform(0, 0.12) * (lines / lines.std())[:, None])
    # Binning, interpolation, a filter: neighbouring pixels share noise, which is no weaker for it.
    shared = log_uniform(rng, 0.4, 2.5) if chance(rng, 0.6) else 0.0
    grain = 1 + 12 * shared**2
    counts = rng.poisson(np.maximum(image, 0) * (dose(rng, image, has, grain) / grain))
    counts = counts.astype(np.float32)
    counts += rng.normal(0, 1, counts.shape) * rng.choice([0, 0.5 * np.sqrt(counts.mean() + 1)])
    counts = ndimage.gaussian_filter(counts, shared)
    if chance(rng, 0.05):
        counts = ndimage.median_filter(counts, 3)
    return counts, visible(has, image, counts)


def unevenness(field: Patch, where: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, " scales"]:
    """Return by how much means over areas of SCALES vary: 1.48 of the median deviation, for each.

    Slow changes, over four times an area, do not count; the edge of a hole hardly does.
    """
    from scipy import ndimage  # slow to load: every build imports this module

    weights = where.astype(np.float32)
    known = field * weights

    def mean(scale: float) -> Patch:
        return ndimage.gaussian_filter(known, scale) / np.maximum(
            ndimage.gaussian_filter(weights, scale), 1e-6
        )

    if not where.any():
        return np.zeros(len(SCALES))
    return np.array(
        [1.48 * np.median(np.abs(mean(scale) - mean(4 * scale))[where]) for scale in SCALES]
    )


def visible(has: Drawn, image: Patch, counts: Patch) -> Bool[np.ndarray, "h w"]:
    """Return the mask of the particles that stand out.

    A particle does if its mean differs from that of its surroundings by more than ROSE times what
    the means of other areas of its size vary by: from noise, and from the grain of the background.
    Nobody would draw another one, and labels of what cannot be seen teach a network to find
    particles in noise. Source: Rose's criterion, 3 to 5 (J. Opt. Soc. Am. 38, 196, 1948).

    Args:
        image: intensities without noise.
        counts: the same with noise.
    """
    from scipy import ndimage  # slow to load: every build imports this module

    if not len(has.areas):
        return has.labels > 0
    slope = float(np.cov(image.ravel(), counts.ravel())[0, 1] / max(image.var(), 1e-12))
    noise = unevenness(counts - slope * image, np.ones_like(has.labels, bool))
    background = np.logical_not(ndimage.binary_dilation(has.labels > 0, iterations=3))
    spreads = np.maximum(noise, unevenness(counts, background))
    radii = np.sqrt(has.areas / np.pi)
    spread = np.interp(np.log(radii / 2), np.log(SCALES), spreads)
    seen = np.abs(slope) * has.contrasts > ROSE * spread
    return np.concatenate([[False], seen])[has.labels]


def stretched(rng: np.random.Generator, counts: Square) -> UInt8[np.ndarray, "{size} {size}"]:
    """Return grey values as programs export them: cut at some percentile, with a gamma."""
    cut = rng.choice([0.0, 0.1, 1.0])
    low, high = np.percentile(counts, [cut, 100 - cut])
    unit = np.clip((counts - low) / max(float(high - low), 1e-6), 0, 1)
    unit = unit ** log_uniform(rng, 0.6, 1.6)
    black, white = rng.uniform(0, 60), rng.uniform(160, 255)
    return np.rint(black + unit * (white - black)).astype(np.uint8)


def annotated(
    rng: np.random.Generator, image: UInt8[np.ndarray, "h w"]
) -> tuple[UInt8[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """Return (the image with a scale bar and a label drawn on it, where they cover it)."""
    size = len(image)
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    covered = Image.new("1", canvas.size)
    cover = ImageDraw.Draw(covered)
    ink = int(rng.choice([0, 255]))
    font = ImageFont.load_default(int(rng.integers(10, max(size // 12, 12))))
    text = f"{rng.choice([1, 2, 5, 10, 20, 50, 100, 200])} {rng.choice(['nm', 'um'])}"
    long, high = int(rng.uniform(0.1, 0.35) * size), int(rng.integers(2, 10))
    left = int(rng.choice([rng.integers(4, 16), size - long - rng.integers(4, 16)]))
    bar = int(rng.choice([size - high - 8, 30 + high]))
    box = draw.textbbox((left, 0), text, font=font)
    top = bar - (box[3] - box[1]) - 8
    whole = (left - 4, top - 4, max(left + long, box[2]) + 4, bar + high + 4)
    if chance(rng, 0.4):
        draw.rectangle(whole, fill=255 - ink)
        cover.rectangle(whole, fill=1)
    draw.rectangle((left, bar, left + long, bar + high), fill=ink)
    cover.rectangle((left, bar, left + long, bar + high), fill=1)
    draw.text((left, top), text, fill=ink, font=font)
    cover.text((left, top), text, fill=1, font=font)
    if chance(rng, 0.3):
        letter = (int(rng.integers(4, 12)), 4)
        draw.text(letter, str(rng.choice([*"abcdefgh"])), fill=ink, font=font)
        cover.text(letter, "a", fill=1, font=font)
    return np.asarray(canvas), np.asarray(covered)


def compressed(image: UInt8[np.ndarray, "h w"], quality: int) -> UInt8[np.ndarray, "h w"]:
    """Return the image after JPEG."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


Microscope = Callable[[np.random.Generator, Specimen], Square]
MICROSCOPES: dict[str, tuple[float, bool, bool, Microscope]] = {
    # name: (share, whether lattice planes are resolved, whether it scans, what it makes)
    "bright field": (0.4, False, False, lambda rng, has: transmitted(rng, has, False)),
    "high resolution": (0.2, True, False, lambda rng, has: transmitted(rng, has, True)),
    "dark field": (0.22, False, True, scattered),
    "secondary electrons": (0.18, False, True, secondary),
}


class View(NamedTuple):
    """What a microscope sees of particles, without noise: intensities, of the order of 1."""

    image: Square
    mask: Bool[np.ndarray, "{size} {size}"]
    nm_per_pixel: float
    scanned: bool


def view(rng: np.random.Generator, size: int) -> View:
    """Return some particles in some microscope."""
    shares = [share for share, *_ in MICROSCOPES.values()]
    _, resolved, scanned, look = [*MICROSCOPES.values()][rng.choice(len(shares), p=shares)]
    has, nm_per_pixel = specimen(rng, size + 2 * MARGIN, resolved)
    crop = slice(MARGIN, MARGIN + size)
    return View(look(rng, has)[crop, crop], has.mask[crop, crop], nm_per_pixel, scanned)


def particles(
    rng: np.random.Generator, size: int
) -> tuple[UInt8[np.ndarray, "{size} {size}"], UInt8[np.ndarray, "{size} {size}"], float]:
    """Return (grey values, mask of 0 and 1, nm per pixel) of one micrograph of particles."""
    seen = view(rng, size)
    counts, mask = detected(rng, seen.image, seen.mask, seen.scanned)
    if chance(rng, 0.05):
        counts = -counts
    image = stretched(rng, counts)
    if chance(rng, 0.2):
        image, covered = annotated(rng, image)
        mask = mask & ~covered
    if chance(rng, 0.2):
        image = compressed(image, int(rng.integers(40, 95)))
    return image, mask.astype(np.uint8), seen.nm_per_pixel
