"""Simulated lattices have the stated spacings, brightness and noise."""

import argparse

import numpy as np
import pytest
from scipy import ndimage

from data_builders.simulated import KINDS, Atoms, atoms
from emjax.data.normalise import to_network

TARGETS = ("denoised", "background_removed", "superresolved")


@pytest.fixture(scope="module")
def records():
    """48 records of 128 pixels."""
    dataset = Atoms(argparse.Namespace(patch=128, records=48, seed=0))
    return [record for split in dataset.prepare().splits for record in dataset.records(split)]


@pytest.mark.parametrize(
    "name, axis, shortest, area, repeat",
    [  # in units of the lattice constant: a column's nearest neighbour, its area, its repeat length
        ("Au", (1, 0, 0), 1 / 2, 1 / 4, 1),
        ("Au", (1, 1, 0), np.sqrt(3 / 8), np.sqrt(1 / 8), np.sqrt(1 / 2)),
        ("Au", (1, 1, 1), np.sqrt(1 / 6), np.sqrt(1 / 48), np.sqrt(3)),
        ("Fe", (1, 0, 0), np.sqrt(1 / 2), 1 / 2, 1),
        ("Fe", (1, 1, 1), np.sqrt(2 / 3), np.sqrt(1 / 3), np.sqrt(3) / 2),
        ("Si", (1, 1, 0), np.sqrt(3 / 8), np.sqrt(1 / 8), np.sqrt(1 / 2)),
        ("SrTiO3", (1, 1, 0), np.sqrt(1 / 2), np.sqrt(1 / 2), np.sqrt(2)),
        ("graphene", (0, 0, 1), 1, np.sqrt(3 / 4), 0.335 / 0.246),
    ],
)
def test_projections_are_those_of_the_textbook(name, axis, shortest, area, repeat):
    a = {"Au": 0.408, "Fe": 0.287, "Si": 0.543, "SrTiO3": 0.391, "graphene": 0.246}[name]
    projected = atoms.projection(name, axis)
    assert np.linalg.norm(projected.lattice[0]) == pytest.approx(shortest * a)
    assert abs(np.linalg.det(projected.lattice)) == pytest.approx(area * a**2)
    assert 1 / projected.per_nm == pytest.approx(repeat * a)


def test_silicon_along_110_is_dumbbells():
    projected = atoms.projection("Si", (1, 1, 0))
    apart = np.linalg.norm(projected.positions[1] - projected.positions[0])
    assert apart == pytest.approx(0.543 / 4)  # 0.136 nm


@pytest.mark.parametrize(
    "name, axis, spacing",
    [
        ("Au", (1, 0, 0), 0.408 / 2),  # {200}
        ("Au", (1, 1, 0), 0.408 / np.sqrt(3)),  # {111}
        ("Fe", (1, 0, 0), 0.287 / np.sqrt(2)),  # {110}
        ("Si", (1, 1, 0), 0.543 / np.sqrt(3)),  # {111}
        ("SrTiO3", (1, 0, 0), 0.391 / np.sqrt(2)),  # {110}: Sr and TiO columns are nearly alike
        ("graphene", (0, 0, 1), 0.246 * np.sqrt(3) / 2),  # {100}
    ],
)
def test_the_strongest_spacing_is_that_of_the_lattice_planes(name, axis, spacing):
    size, step = 384, 0.02
    window = np.hanning(size)[:, None] * np.hanning(size)
    q = np.fft.fftfreq(size, step)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        positions, numbers = atoms.grain(rng, atoms.projection(name, axis), (0, size * step))
        image = atoms.stamped(positions / step, numbers**1.65, 2.5, size)
        power = np.abs(np.fft.fft2((image - image.mean()) * window)) ** 2
        power[np.hypot(q[:, None], q) < 1] = 0
        row, column = np.unravel_index(np.argmax(power), power.shape)
        assert 1 / np.hypot(q[row], q[column]) == pytest.approx(spacing, rel=0.03)


def test_a_grain_fills_the_field_with_the_density_of_the_crystal():
    field = (-1.0, 7.0)
    for name, crystal in atoms.CRYSTALS.items():
        for axis in crystal.axes:
            projected = atoms.projection(name, axis)
            positions, numbers = atoms.grain(np.random.default_rng(3), projected, field)
            assert len(positions) == len(numbers)
            assert positions.min() > -1 and positions.max() < 7
            expected = 64 * len(projected.numbers) / abs(np.linalg.det(projected.lattice))
            assert len(positions) == pytest.approx(expected, rel=0.06)
            counts, *_ = np.histogram2d(*positions.T, bins=4, range=[field, field])
            assert counts.min() > 0.6 * counts.mean()


def test_molybdenum_outshines_sulphur_by_its_atomic_number(monkeypatch):
    monkeypatch.setattr(atoms, "CRYSTALS", {"MoS2": atoms.CRYSTALS["MoS2"]})
    for seed in range(5):
        _, intensities = atoms.specimen(np.random.default_rng(seed), (0, 5))
        values, counts = np.unique(intensities.round(3), return_counts=True)
        sulphur, molybdenum = np.sort(values[np.argsort(counts)[-2:]])  # without the defects
        assert 1.6 <= np.log(molybdenum / sulphur) / np.log(42 / 16) <= 1.7


def test_a_stamp_is_a_gaussian_and_a_blur_widens_it():
    y, x = np.mgrid[:96, :96]
    for sigma, at in ((1.0, (40.3, 50.7)), (3.0, (48.0, 47.5))):
        expected = 7 * np.exp(-((y - at[0]) ** 2 + (x - at[1]) ** 2) / (2 * sigma**2))
        narrow = atoms.stamped(np.array([at]), np.array([7.0]), sigma, 96)
        np.testing.assert_allclose(narrow, expected, atol=7 * np.exp(-8))
        wide = atoms.blurred(narrow, sigma * np.sqrt(3)) / 0.5**2  # now of width 2 sigma
        expected = 7 * np.exp(-((y - at[0]) ** 2 + (x - at[1]) ** 2) / (8 * sigma**2))
        np.testing.assert_allclose(wide, expected, atol=0.01)
    cut = atoms.stamped(np.array([[-1.0, 97.0]]), np.array([1.0]), 2.0, 96)
    assert cut[0, 95] == pytest.approx(np.exp(-(1 + 4) / 8)) and cut[20:].max() == 0


def test_noise_is_poisson_of_the_stated_dose():
    image = np.tile(np.linspace(0.2, 1, 64 + 8, dtype=np.float32), (64 + 8, 1))
    still = dict(jitter=0, flicker=0, readout=0, margin=4)
    rng = np.random.default_rng(0)
    clean = image[4:-4, 4:-4]
    np.testing.assert_allclose(atoms.recorded(rng, image, dose=1e8, **still), clean, rtol=1e-3)
    draws = np.stack([atoms.recorded(rng, image, dose=20, **still) for _ in range(200)])
    assert draws.mean() == pytest.approx(clean.mean(), rel=2e-3)
    ratio = draws.var(axis=(0, 1)) / clean[0]
    np.testing.assert_allclose(ratio, 1 / 20, rtol=0.06)


def test_scan_noise_shifts_whole_lines_by_the_stated_amount():
    size, margin = 400, 20
    ramp = np.arange(size + 2 * margin, dtype=np.float32)
    across, along = np.tile(ramp, (len(ramp), 1)), np.tile(ramp[:, None], (1, len(ramp)))
    crop = slice(margin, -margin)
    for image in (across, along):
        lines = []
        for seed in range(5):
            seen = atoms.scanned(np.random.default_rng(seed), image, jitter=1.5, margin=margin)
            shifts = seen - image[crop, crop]
            np.testing.assert_allclose(shifts, np.tile(shifts[:, :1], (1, size)), atol=1e-3)
            lines.append(shifts[:, 0])
        assert np.std(lines) == pytest.approx(1.5, rel=0.1)
    still = atoms.scanned(np.random.default_rng(1), across, jitter=0, margin=margin)
    np.testing.assert_array_equal(still, across[crop, crop])


def test_backgrounds_are_smooth_and_not_negative():
    for seed in range(20):
        image = atoms.background(np.random.default_rng(seed), 128)
        assert image.dtype == np.float32 and image.shape == (128, 128)
        assert image.min() >= 0 and image.max() < 2
        assert np.abs(np.diff(image, axis=0)).max() < 0.05 > np.abs(np.diff(image, axis=1)).max()


def test_targets_share_the_scale_of_the_image_and_nothing_is_clipped(records):
    for record in records:
        images = {name: record[name].astype(float) for name in ("image", *TARGETS)}
        assert all(record[name].dtype == np.uint8 for name in images)
        assert all(pixels.shape == (128, 128, 1) for pixels in images.values())
        np.testing.assert_array_equal(record["intensity_range"], [0, 255])
        assert 0.01 <= record["nm_per_pixel"][0] == record["nm_per_pixel"][1] <= 0.03
        assert max(images[name].max() for name in TARGETS) < 255
        assert images["superresolved"].max() > 10 and np.ptp(images["image"]) > 50
        assert np.all(images["denoised"] >= images["background_removed"])
        assert (images["image"] == 255).mean() < 0.002
        noise = images["image"].std() / 128
        assert images["image"].mean() == pytest.approx(
            images["denoised"].mean(), abs=8 * noise + 0.02 * images["denoised"].mean() + 0.5
        )


def test_records_reach_the_network_between_minus_one_and_one_unclipped(records):
    for record in records[:8]:
        batch = {k: v[None] for k, v in record.items() if isinstance(v, np.ndarray)}
        example = to_network(batch)
        for name in TARGETS:
            expected = record[name].astype(np.float32) / 255 * 2 - 1
            np.testing.assert_allclose(example[name][0], expected, atol=1e-6)


def test_background_removed_is_superresolved_seen_with_the_wider_probe(records):
    inner = (slice(24, -24),) * 2

    def apart(record, sigma):
        narrow = record["superresolved"][..., 0].astype(float)
        wide = ndimage.gaussian_filter(narrow, sigma) / atoms.NARROW**2
        return np.abs(wide - record["background_removed"][..., 0])[inner].max()

    for record in records[:12]:
        # The probe's width in pixels is not in the record: it is the one that fits.
        sigmas = np.arange(1.5, 6, 0.1)
        errors = [apart(record, sigma) for sigma in sigmas]
        assert min(errors) < 0.03 * 255  # grey values; each of the two was rounded
        width = sigmas[np.argmin(errors)] * record["nm_per_pixel"][0] / np.sqrt(1 - atoms.NARROW**2)
        assert 0.033 < width < 0.067


def test_a_background_was_there_to_remove(records):
    level = [
        float(record["denoised"].mean()) - float(record["background_removed"].mean())
        for record in records
    ]
    assert np.median(level) > 10


def test_the_first_kinds_keep_their_seeds():
    assert list(KINDS) == ["nanoparticles", "unlabelled", "atoms", "particles", "noisy"]
