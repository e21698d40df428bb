"""Simulated micrographs repeat exactly, obey their physics, and are built by one command."""

import argparse
import json
from collections import Counter

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_builders import build, simulated
from data_builders.simulated import KINDS, NM_PER_PIXEL, SCENES, particles, scenes
from emjax.errors import InputError, UsageError


def draw(kind, records, patch=64, seed=0, contrast="faint"):
    """Return all records of a simulated dataset, by index."""
    options = argparse.Namespace(patch=patch, records=records, seed=seed, contrast=contrast)
    dataset = KINDS[kind](options)
    splits = dataset.prepare().splits
    every = [record for split in splits for record in dataset.records(split)]
    return sorted(every, key=lambda record: record["index"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_depends_on_seed_kind_and_index_alone(kind):
    few, many = draw(kind, 4), draw(kind, 9)
    assert len(many) == 9
    for a, b in zip(few, many, strict=False):
        np.testing.assert_array_equal(a["image"], b["image"])
        assert a["name"] == b["name"] == a["source"] == f"{kind}_{a['index']:05d}"
    others = [*many[1:], draw(kind, 1, seed=1)[0]]
    assert not any(np.array_equal(few[0]["image"], other["image"]) for other in others)


def test_nanoparticles_are_counts_with_a_mask_that_is_not_trivial():
    records = draw("nanoparticles", 24)
    covered = np.array([record["mask"].mean() for record in records])
    assert 0.1 < covered.mean() < 0.4 and covered.max() < 0.9
    darker = 0
    for record in records:
        image, mask = record["image"], record["mask"]
        assert image.dtype == np.uint16 and mask.dtype == np.uint8
        assert image.shape == mask.shape == (64, 64, 1) and set(np.unique(mask)) <= {0, 1}
        np.testing.assert_allclose(record["nm_per_pixel"], NM_PER_PIXEL)
        low, high = record["intensity_range"]
        assert 0 <= low < high
        if 0 < mask.mean() < 1:
            darker += image[mask == 1].mean() < image[mask == 0].mean()
    assert darker > 16  # gold scatters more than carbon; a few are on thick film


def test_clear_particles_are_the_same_ones_better_seen():
    """By the difference of grey values in and out of the mask, over the Poisson noise."""

    def seen(records):
        for record in records:
            image, inside = record["image"].astype(float), record["mask"] == 1
            if 0.05 < inside.mean() < 0.95:
                outside = image[~inside].mean()
                yield (outside - image[inside].mean()) / np.sqrt(outside)

    faint, clear = draw("nanoparticles", 24), draw("nanoparticles", 24, contrast="clear")
    for a, b in zip(faint, clear, strict=True):
        np.testing.assert_array_equal(a["mask"], b["mask"])
    faint, clear = [*seen(faint)], [*seen(clear)]
    assert len(clear) > 12 and min(clear) > 1
    assert np.median(clear) > 3 * np.median(faint)


def test_unlabelled_is_a_mixture_in_8_bits(monkeypatch):
    drawn = Counter()

    def counted(scene):
        return lambda *arguments: drawn.update([scene]) or scene(*arguments)

    monkeypatch.setattr(simulated, "SCENES", tuple(map(counted, SCENES)))
    records = draw("unlabelled", 2 * len(SCENES))
    for record in records:
        assert record["image"].dtype == np.uint8 and np.isnan(record["nm_per_pixel"]).all()
        assert np.ptp(record["image"]) > 80
    assert drawn == dict.fromkeys(SCENES, 2)


@pytest.mark.parametrize("scene", [scenes.cells, scenes.lattice, scenes.supported_particles])
@pytest.mark.parametrize("size", [32, 97])
def test_every_scene_gives_finite_positive_counts_of_any_size(scene, size):
    for seed in range(5):
        counts = scene(np.random.default_rng(seed), size)
        assert counts.shape == (size, size) and np.isfinite(counts).all() and counts.min() >= 0


def test_gold_fringes_have_the_spacing_of_its_lattice_planes():
    size, step = 256, 0.05
    y, x = (at * np.float32(step) for at in scenes.pixel_grid(size))
    qy, qx = scenes.frequencies(size, step)
    drawn = [scenes.lattice_fringes(np.random.default_rng(seed), y, x) for seed in range(8)]
    seen = [fringes for fringes in drawn if fringes.any()]
    assert len(seen) > 2
    for fringes in seen:
        power = np.abs(np.fft.fft2(fringes * np.hanning(size)[:, None] * np.hanning(size))) ** 2
        strongest = np.unravel_index(np.argmax(power), power.shape)
        spacing = 1 / np.hypot(qy[strongest[0], 0], qx[0, strongest[1]])
        assert min(abs(spacing - d) for d in scenes.GOLD[1:]) < 0.03 * spacing


def test_a_phase_object_shows_nothing_in_focus_and_the_lens_s_rings_out_of_focus():
    size, step, defocus = 256, 0.05, 60.0
    phase = np.float32(0.02) * scenes.smooth_noise(np.random.default_rng(0), size, 0.5)
    sharp, blurred = (
        scenes.bright_field(phase, np.zeros_like(phase), d, step) for d in (0.0, defocus)
    )
    assert blurred.std() > 5 * sharp.std() and blurred.mean() == pytest.approx(1, abs=0.01)
    qy, qx = scenes.frequencies(size, step)
    q2 = qy**2 + qx**2
    power = np.abs(np.fft.fft2(blurred - blurred.mean())) ** 2
    # sin(pi wavelength defocus q^2) is 0 at its first zero and 1 at its first maximum.
    zero, top = 1 / (scenes.WAVELENGTH * defocus), 0.5 / (scenes.WAVELENGTH * defocus)
    near = [power[np.abs(q2 - at) < 0.04 * at].mean() for at in (zero, top)]
    assert near[0] < 0.05 * near[1]


def test_particles_are_bright_or_dark_many_or_none():
    records = draw("particles", 80, patch=128)
    darker = brighter = 0
    for record in records:
        image, mask = record["image"].astype(float), record["mask"] == 1
        assert record["image"].dtype == np.uint8 and set(np.unique(record["mask"])) <= {0, 1}
        assert 0.02 <= record["nm_per_pixel"][0] == record["nm_per_pixel"][1] <= 5
        if 0.02 < mask.mean() < 0.98:
            contrast = (image[mask].mean() - image[~mask].mean()) / image[~mask].std()
            darker, brighter = darker + (contrast < -0.5), brighter + (contrast > 0.5)
    shares = np.array([record["mask"].mean() for record in records])
    assert min(darker, brighter) > 10 and darker + brighter > 40
    assert (shares == 0).any() and (shares > 0.5).sum() > 3 and 0.05 < np.median(shares) < 0.4


def disc(radius, size=96):
    y, x = scenes.pixel_grid(size)
    return np.hypot(y - 48, x - 48) < radius


@pytest.mark.parametrize(
    ("radius", "noise", "grain", "seen"),
    [
        (3, 0.5, 0, True),
        (3, 2.0, 0, False),
        (12, 2.0, 0, True),  # in the noise in which the small one is not
        (3, 0.1, 0.5, False),  # of the film: it hides a particle as noise does
        (12, 0.1, 0.1, True),
    ],
)
def test_a_particle_is_labelled_if_it_stands_out_from_noise_and_film(radius, noise, grain, seen):
    rng = np.random.default_rng(0)
    mask = disc(radius)
    image = mask + grain * scenes.smooth_noise(rng, 96, 1.5)
    counts = image + noise * rng.standard_normal(mask.shape)
    found = particles.visible(particles.drawn(mask, image), image, counts)
    assert (found == mask).all() if seen else not found.any()


@pytest.mark.parametrize("grain", [1, 12])
def test_the_dose_shows_the_middle_particle(grain):
    """Its contrast is 7.5 standard deviations at least of the noise over its area."""
    mask = disc(4)
    image = (2 - 0.3 * mask).astype(np.float32)
    has = particles.drawn(mask, image)
    assert has.areas.tolist() == [mask.sum()] and has.contrasts == pytest.approx([0.3])
    for seed in range(50):
        counts = particles.dose(np.random.default_rng(seed), image, has, grain)
        noise = np.sqrt(2 * counts * grain / mask.sum())
        assert 0.3 * counts / noise > 7.4
    assert (
        particles.dose(np.random.default_rng(0), image, particles.drawn(disc(0), image), grain) > 0
    )


def test_what_noisy_micrographs_have_beyond_their_targets_is_noise():
    """Of mean 0 and white; where neither end of the range cuts it."""
    means, alike = [], []
    for record in draw("noisy", 28, patch=128):
        image, target = (record[name][..., 0].astype(float) for name in ("image", "denoised"))
        assert record["image"].dtype == record["denoised"].dtype == np.uint16
        residual = image - target
        whole = (image > 0) & (image < 65535)
        pairs = whole[:, 1:] & whole[:, :-1]
        means.append(residual[whole].mean() / residual[whole].std())
        alike.append(np.corrcoef(residual[:, 1:][pairs], residual[:, :-1][pairs])[0, 1])
    assert np.abs(means).max() < 0.1 and np.abs(alike).max() < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_builds_them_once(kind, tmp_path, capsys):
    argv = [f"simulated/{kind}", f"--data_dir={tmp_path}", "--patch=48", "--records=20"]
    build.main(argv)
    home = tmp_path / "simulated" / kind
    card = json.loads((home / "1.0.0" / "card.json").read_text())
    assert card["splits"] == {"train": 14, "val": 2, "test": 4} and card["shape"] == [48, 48]
    source = tfds.builder_from_directory(home / "1.0.0").as_data_source("train")
    expected = {record["index"]: record for record in draw(kind, 20, patch=48)}
    for record in source:
        np.testing.assert_array_equal(record["image"], expected[int(record["index"])]["image"])
    assert "train 14, val 2, test 4" in capsys.readouterr().out
    build.main(argv)
    assert "already built" in capsys.readouterr().out
    with pytest.raises(InputError, match="built with records=20; this call has records=21"):
        build.main([*argv, "--records=21"])


def test_the_card_names_the_contrast_only_where_it_was_chosen(tmp_path):
    """Records built before there was a choice are still taken as what they are."""
    faint = [
        "simulated/nanoparticles",
        f"--data_dir={tmp_path / 'a'}",
        "--patch=32",
        "--records=10",
    ]
    clear = [*faint[:1], f"--data_dir={tmp_path / 'b'}", *faint[2:], "--contrast=clear"]
    for argv in (faint, clear):
        build.main(argv)
    cards = [json.loads((tmp_path / name / "simulated/nanoparticles/1.0.0/card.json").read_text())
             for name in "ab"]  # fmt: skip
    assert cards[0]["options"] == {"patch": 32, "records": 10, "seed": 0}
    assert cards[1]["options"] == cards[0]["options"] | {"contrast": "clear"}
    build.main([*faint, "--contrast=faint"])
    with pytest.raises(InputError, match="built with contrast=none; this call has contrast=clear"):
        build.main([*faint, "--contrast=clear"])
    with pytest.raises(UsageError, match="--contrast: invalid choice: 'dark'"):
        build.main([*faint, "--contrast=dark"])


def test_impossible_sizes_are_usage_errors(tmp_path):
    for flag in ("--patch=8", "--records=0", "--seed=-1", "--source=x"):
        with pytest.raises(UsageError, match=flag.split("=")[0]):
            build.main(["simulated/unlabelled", f"--data_dir={tmp_path}", flag])
    assert not any(tmp_path.iterdir())
