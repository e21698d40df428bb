"""Simulated electron micrographs: what the specimen is, what the microscope makes of it.

Every scene is a function of (rng, size) with `size` in pixels and returns expected detector counts,
nanoparticles also the mask. Nothing here is fitted to a data set; numbers are of the usual order
for a 300 kV transmission electron microscope.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32

WAVELENGTH = 1.97e-3  # nm, electrons of 300 kV
INTERACTION = 6.53e-3  # rad per V and nm, at 300 kV
GOLD = (28.0, 0.235, 0.204)  # mean inner potential in V, spacing of {111} and of {200} in nm


class Contrast(NamedTuple):
    """How well gold particles are seen: the ranges that each particle and micrograph draw from."""

    absorption: tuple[float, float]  # of the wave's amplitude, per nm of gold
    dose: tuple[float, float]  # electrons per pixel


CONTRASTS = {
    "faint": Contrast(absorption=(0.025, 0.13), dose=(60, 400)),
    "clear": Contrast(absorption=(0.2, 0.3), dose=(300, 1000)),
}
MARGIN = 16  # pixels cut off each side, where the Fourier transform wraps around

Square = Float32[np.ndarray, "{size} {size}"]


def frequencies(
    size: int, step: float
) -> tuple[Float32[np.ndarray, "{size} 1"], Float32[np.ndarray, "1 {size}"]]:
    """Return (qy, qx), cycles per unit of `step`, of an image of `size` pixels of that step."""
    q = np.fft.fftfreq(size, step).astype(np.float32)
    return q[:, None], q[None, :]


def smooth_noise(rng: np.random.Generator, size: int, scale: float) -> Square:
    """Return noise of mean 0 and standard deviation 1, correlated over `scale` pixels."""
    qy, qx = frequencies(size, 1.0)
    white = np.fft.rfft2(rng.standard_normal((size, size), np.float32))
    half = size // 2 + 1
    blur = np.exp(-2 * (np.pi * scale) ** 2 * (qy**2 + qx[:, :half] ** 2))
    noise = np.fft.irfft2(white * blur, s=(size, size)).astype(np.float32)
    noise -= noise.mean()
    return noise / noise.std()


def pixel_grid(
    size: int,
) -> tuple[Float32[np.ndarray, "{size} 1"], Float32[np.ndarray, "1 {size}"]]:
    """Return (y, x) of every pixel."""
    at = np.arange(size, dtype=np.float32)
    return at[:, None], at[None, :]


def radius_of_shape(
    rng: np.random.Generator,
    y: Float32[np.ndarray, "*shape"],
    x: Float32[np.ndarray, "*shape"],
    facets: int,
) -> Float32[np.ndarray, "*shape"]:
    """Return how far each (y, x) is from the middle of a particle: 1 on its outline.

    The outline is a polygon of `facets` sides at uneven distances with corners rounded by a random
    amount, down to an ellipse-like blob.

    Args:
        y, x: arrays of shapes that broadcast.
    """
    angles = 2 * np.pi * (np.arange(facets) + rng.uniform(0, 1) + rng.normal(0, 0.08, facets))
    angles = (angles / facets).astype(np.float32)
    distances = rng.uniform(0.8, 1.1, facets).astype(np.float32)
    sharpness = np.float32(rng.choice([4, 8, 24]))
    total = np.zeros(np.broadcast_shapes(y.shape, x.shape), np.float32)
    for angle, distance in zip(angles, distances, strict=True):
        along = (np.sin(angle) * y + np.cos(angle) * x) / distance
        total = total + np.maximum(along, 0) ** sharpness
    return total ** (1 / sharpness)


def window(size: int, cy: float, cx: float, reach: float) -> tuple[slice, slice]:
    """Return slices of the pixels less than `reach` from (cy, cx) that are in the image."""

    def within_reach(centre: float) -> slice:
        start, stop = centre - reach, centre + reach + 1
        return slice(int(np.clip(start, 0, size)), int(np.clip(stop, 0, size)))

    return within_reach(cy), within_reach(cx)


def illumination(rng: np.random.Generator, size: int) -> Square:
    """Return a slow change of the beam over the image, about 1."""
    y, x = (at / size - 0.5 for at in pixel_grid(size))
    slope, curve = rng.normal(0, 0.08, 2), rng.uniform(0, 0.25)
    centre = rng.uniform(-0.4, 0.4, 2)
    hill = np.exp(-curve * ((y - centre[0]) ** 2 + (x - centre[1]) ** 2) * 2)
    return (hill * (1 + slope[0] * y + slope[1] * x)).astype(np.float32)


def bright_field(
    phase: Float[np.ndarray, "s s"],
    absorption: Float[np.ndarray, "s s"],
    defocus: float,
    nm_per_pixel: float,
) -> Float32[np.ndarray, "s s"]:
    """Return the intensity behind an objective lens `defocus` nm below focus, 1 without a specimen.

    A thin specimen changes the phase of the wave and, where electrons are scattered outside of the
    aperture, weakens it; the lens turns phase into contrast, which is where the granular look of
    carbon and the fringes beyond the edge of a particle come from.
    Source: Kirkland, Advanced Computing in Electron Microscopy (2010), chapters 3 and 5.
    """
    qy, qx = frequencies(len(phase), nm_per_pixel)
    q2 = qy**2 + qx**2
    aberration = np.pi * WAVELENGTH * defocus * q2
    envelope = np.exp(-((q2 / 6.5**2) ** 2))  # of the beam's coherence; 6.5 per nm is 0.15 nm
    lens = (envelope * np.exp(1j * aberration)).astype(np.complex64)
    wave = np.exp(1j * phase - absorption).astype(np.complex64)
    return np.abs(np.fft.ifft2(np.fft.fft2(wave) * lens)) ** 2


def lattice_fringes(
    rng: np.random.Generator, y: Float32[np.ndarray, "h 1"], x: Float32[np.ndarray, "1 w"]
) -> Float32[np.ndarray, "h w"]:
    """Return the potential of a gold crystal relative to its mean, in one random orientation.

    Off any zone axis no lattice planes are parallel to the beam and nothing is seen; tilted about
    one axis there is one set of fringes, in a <110> zone axis two of {111} and one of {200}.

    Args:
        y, x: positions in nm.
    """
    _, d111, d200 = GOLD
    rotation, strain = rng.uniform(0, np.pi), rng.normal(1, 0.01)
    planes = [(0.0, d111), (np.deg2rad(70.5), d111), (np.deg2rad(125.3), d200)]
    visible = rng.choice([0, 1, 3], p=[0.35, 0.35, 0.3])
    fringes = np.zeros(np.broadcast_shapes(y.shape, x.shape), np.float32)
    for angle, spacing in planes[:visible]:
        q = np.float32(2 * np.pi / (spacing * strain))
        along = np.float32(np.sin(angle + rotation)) * y + np.float32(np.cos(angle + rotation)) * x
        fringes += np.cos(q * along + np.float32(rng.uniform(0, 2 * np.pi)))
    return fringes * np.float32(rng.uniform(0.3, 1.0))


def nanoparticles(
    rng: np.random.Generator,
    size: int,
    nm_per_pixel: float = 0.06,
    contrast: Contrast = CONTRASTS["faint"],
) -> tuple[Square, Bool[np.ndarray, "{size} {size}"]]:
    """Return (expected counts, mask) of gold on carbon in high-resolution bright field.

    Some particles are off a zone axis or thin, and the film is thick in parts, so that neither
    fringes nor darkness alone show what is a particle. With the contrast "faint" some particles of
    the mask cannot be seen at all.
    """
    side = size + 2 * MARGIN
    y, x = (at * np.float32(nm_per_pixel) for at in pixel_grid(side))
    field = side * nm_per_pixel

    film = rng.uniform(2, 5) * (1 + 0.25 * smooth_noise(rng, side, rng.uniform(6, 14)))
    film = np.maximum(film, 0.5)
    atoms = smooth_noise(rng, side, 0.8) * np.sqrt(film)
    phase = rng.uniform(0.015, 0.035) * atoms
    absorption = 0.02 * film

    mask = np.zeros((side, side), bool)
    for _ in range(rng.poisson(0.09 * field**2 * rng.uniform(0.4, 1.4)) + 1):
        radius = rng.uniform(0.45, 1.5)
        cy, cx = rng.uniform(0, field, 2)
        stretch = rng.uniform(0.8, 1.25)
        near = window(side, cy / nm_per_pixel, cx / nm_per_pixel, 2 * radius / nm_per_pixel)
        py, px = (y[near[0]] - cy).astype(np.float32), (x[:, near[1]] - cx).astype(np.float32)
        shape = radius_of_shape(
            rng,
            py / np.float32(radius * stretch),
            px * np.float32(stretch / radius),
            facets=int(rng.integers(5, 9)),
        )
        flat = rng.uniform(0.3, 1.0)  # of its height, where a platelet is cut off
        height = np.sqrt(np.maximum(1 - shape**2, 0))
        thickness = np.minimum(height, flat) * radius * rng.uniform(0.5, 1.6)
        potential = GOLD[0] * thickness * (1 + lattice_fringes(rng, py, px))
        phase[near] += INTERACTION * potential
        absorption[near] += thickness * rng.uniform(*contrast.absorption)
        mask[near] |= shape < 1
    image = bright_field(phase, absorption, rng.uniform(25, 80), nm_per_pixel)
    crop = slice(MARGIN, MARGIN + size)
    low, high = contrast.dose
    dose = np.exp(rng.uniform(np.log(low), np.log(high)))  # electrons per pixel
    return dose * image[crop, crop] * illumination(rng, size), mask[crop, crop]


def lattice(rng: np.random.Generator, size: int) -> Square:
    """Return expected counts of crystals along a zone axis, in dark field or bright field.

    One to three grains of random two-dimensional cells with up to three columns each, strained a
    little, with vacuum or an amorphous layer at the edge and lines shifted by an unsteady scan.
    """
    y, x = pixel_grid(size)
    jitter = rng.normal(0, rng.choice([0.0, 0.3, 0.6]), (size, 1)).astype(np.float32)
    y = y + rng.uniform(0, 1.5) * smooth_noise(rng, size, size / 5)
    x = x + jitter + rng.uniform(0, 1.5) * smooth_noise(rng, size, size / 5)
    grains = int(rng.integers(1, 4))
    territory = np.argmax([smooth_noise(rng, size, size / 4) for _ in range(grains)], axis=0)
    a, ratio, gamma = rng.uniform(6, 18), rng.uniform(0.7, 1.4), rng.uniform(1.2, 1.9)
    columns = int(rng.integers(1, 4))
    positions, weights = rng.uniform(0, 1, (columns, 2)), rng.uniform(0.2, 1, columns)
    sigma = rng.uniform(0.11, 0.2) * a * min(1, ratio)
    image = np.zeros((size, size), np.float32)
    for grain in range(grains):
        angle = rng.uniform(0, np.pi)
        cell = a * np.array(
            [
                [np.sin(angle), np.cos(angle)],
                [ratio * np.sin(angle + gamma), ratio * np.cos(angle + gamma)],
            ]
        )
        g = np.linalg.inv(cell).T  # rows: reciprocal vectors in (y, x)
        first = np.exp(2j * np.pi * (g[0, 0] * y + g[0, 1] * x)).astype(np.complex64)
        second = np.exp(2j * np.pi * (g[1, 0] * y + g[1, 1] * x)).astype(np.complex64)
        total = np.full((size, size), 0.5 * weights.sum(), np.complex64)
        for h in range(4):
            for k in range(-3, 4):
                if (h, k) <= (0, 0):  # the other half is the complex conjugate
                    continue
                damping = np.exp(-2 * (np.pi * sigma) ** 2 * np.sum((h * g[0] + k * g[1]) ** 2))
                if damping < 0.02:
                    continue
                structure = np.sum(weights * np.exp(-2j * np.pi * positions @ np.array([h, k])))
                wave = second**k if h == 0 else first**h if k == 0 else first**h * second**k
                total += np.complex64(damping * structure) * wave
        image = np.where(territory == grain, 2 * total.real, image)
    image = (image - image.min()) / np.ptp(image)
    thickness = 1 + 0.2 * smooth_noise(rng, size, size / 6)
    edge = smooth_noise(rng, size, size / 3) + rng.uniform(-0.5, 2.5)
    crystal = 1 / (1 + np.exp(-np.clip(8 * edge, -30, 30)))  # 0 in the vacuum
    image = image * np.maximum(thickness, 0.2) * crystal
    image = image + rng.uniform(0.02, 0.15) * smooth_noise(rng, size, 1.5)
    if rng.random() < 0.4:  # bright field
        image = 1 - rng.uniform(0.3, 0.7) * image
    dose = np.exp(rng.uniform(np.log(8), np.log(150)))
    return dose * np.maximum(image + rng.uniform(0.05, 0.4), 0.01) * illumination(rng, size)


def supported_particles(rng: np.random.Generator, size: int) -> Square:
    """Return expected counts of dark particles, partly in heaps, on a grained film.

    The magnification is low.
    """
    y, x = pixel_grid(size)
    film = 1 + 0.05 * smooth_noise(rng, size, rng.uniform(0.8, 2))
    film += 0.06 * smooth_noise(rng, size, size / 6)
    absorption = np.zeros((size, size), np.float32)
    rim = np.zeros((size, size), np.float32)
    heaps = rng.uniform(0, size, (int(rng.integers(1, 4)), 2))
    spread, typical = rng.uniform(0.05, 0.4) * size, rng.uniform(4, 14)
    for _ in range(rng.integers(3, 18)):
        cy, cx = heaps[rng.integers(len(heaps))] + rng.normal(0, spread, 2)
        radius = typical * rng.lognormal(0, 0.25)
        near = window(size, cy, cx, 3 * radius)
        py = ((y[near[0]] - cy) / radius).astype(np.float32)
        px = ((x[:, near[1]] - cx) / radius).astype(np.float32)
        shape = radius_of_shape(rng, py, px, facets=int(rng.integers(3, 8)))
        height = np.sqrt(np.maximum(1 - shape**2, 0)) ** rng.uniform(0.3, 1)
        absorption[near] += rng.uniform(0.15, 1.2) * height
        rim[near] += np.exp(-(((shape - 1.1) * radius / 1.2) ** 2))  # Fresnel fringe
    image = film * np.exp(-absorption) + rng.uniform(0, 0.12) * np.minimum(rim, 1)
    dose = np.exp(rng.uniform(np.log(20), np.log(300)))
    return dose * np.maximum(image, 0.01) * illumination(rng, size)


def cells(rng: np.random.Generator, size: int) -> Square:
    """Return expected counts of stained tissue: membranes, mitochondria, vesicles, fibres.

    Membranes are level sets of smooth noise: closed curves that never cross, of even width because
    the level's distance is divided by its slope.
    """
    y, x = pixel_grid(size)

    def membrane(noise: Square, width: float) -> Square:
        slope = np.hypot(*np.gradient(noise)) + 1e-3
        return np.exp(-((noise / slope / width) ** 2))

    width = rng.uniform(1.0, 2.2)
    bodies = smooth_noise(rng, size, rng.uniform(8, 22))
    dark = 0.9 * membrane(bodies, width)
    dark += 0.8 * membrane(smooth_noise(rng, size, rng.uniform(10, 26)) - 0.4, width)
    dark += rng.uniform(0, 0.3) * (bodies > 0.6)  # some processes are stained darker
    dark += 0.10 * smooth_noise(rng, size, 1.2) + 0.10 * smooth_noise(rng, size, 3)
    for _ in range(rng.poisson(2.5 * (size / 128) ** 2)):  # mitochondria
        cy, cx = rng.uniform(0, size, 2)
        long, short, angle = rng.uniform(9, 24), rng.uniform(6, 11), rng.uniform(0, np.pi)
        u = np.cos(angle) * (x - cx) + np.sin(angle) * (y - cy)
        v = np.cos(angle) * (y - cy) - np.sin(angle) * (x - cx)
        r = np.hypot(u / long, v / short) + 0.08 * smooth_noise(rng, size, 8)
        cristae = np.sin(2 * np.pi * u / rng.uniform(4, 6) + 1.5 * smooth_noise(rng, size, 9)) > 0.3
        inside = r < 1
        dark = np.where(inside, 0.3 + 0.45 * cristae + 0.06 * smooth_noise(rng, size, 1), dark)
        dark = np.maximum(dark, 0.95 * np.exp(-(((r - 1) * short / width) ** 2)))
    if rng.random() < 0.6:  # a cloud of vesicles
        middle = rng.uniform(0, size, 2)
        for cy, cx in middle + rng.normal(0, size / 8, (rng.integers(5, 30), 2)):
            r = np.hypot(y - cy, x - cx) - rng.uniform(2.2, 3.6)
            dark = np.where(r < 0, 0.1, dark)
            dark = np.maximum(dark, 0.75 * np.exp(-(r**2)))
    dark = np.clip(dark, -0.2, 1.3)
    image = 1 - rng.uniform(0.35, 0.75) * dark
    dose = np.exp(rng.uniform(np.log(25), np.log(400)))
    return dose * np.maximum(image, 0.02) * illumination(rng, size)
