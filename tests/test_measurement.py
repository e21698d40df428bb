"""Particles by known shapes, brute force, scikit-image and ImageJ's formulas; statistics."""

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats
from skimage import measure as skimage_measure

from data_builders.simulated.scenes import radius_of_shape
from emjax.errors import InputError, UsageError
from emjax.measurement import label, masks, measure, statistics
from emjax.measurement.statistics import Sample

RNG = np.random.default_rng(0)


def grid(size):
    return np.mgrid[:size, :size] + 0.5


def disc(size, y, x, radius):
    at_y, at_x = grid(size)
    return (at_y - y) ** 2 + (at_x - x) ** 2 < radius**2


def polyomino(pixels):
    """Return a mask of one particle of `pixels`, grown at random over edges and corners."""
    mask = np.zeros((44, 44), bool)
    mask[22, 22] = True
    for _ in range(pixels - 1):
        y, x = np.argwhere(mask).T
        steps = np.array([s for s in product((-1, 0, 1), repeat=2) if any(s)])
        around = np.concatenate([np.stack([y, x], 1) + step for step in steps])
        free = around[~mask[tuple(around.T)]]
        mask[tuple(free[RNG.integers(len(free))])] = True
    return mask


def corner_points(mask, size):
    points = {(y + dy, x + dx) for y, x in np.argwhere(mask) for dy in (0, 1) for dx in (0, 1)}
    return np.array(sorted(points)) * size


@pytest.mark.parametrize("size", [(1.0, 1.0), (0.5, 2.0)])
@pytest.mark.parametrize("pixels", range(1, 21))
def test_one_to_twenty_pixels_by_brute_force(pixels, size):
    """ImageJ: area of pixels, Feret over corners of pixels, circularity cut to 1."""
    mask = polyomino(pixels)
    row = {name: column[0] for name, column in measure(mask, size).items()}
    corners = corner_points(mask, size)
    area = pixels * math.prod(size)
    assert row["area_nm2"] == pytest.approx(area)
    assert row["equivalent_diameter_nm"] == pytest.approx(math.sqrt(4 * area / math.pi))
    distances = np.hypot(*(corners[:, None] - corners).T)
    assert row["feret_max_nm"] == pytest.approx(distances.max())
    angles = np.linspace(0, np.pi, 7201)
    widths = np.ptp(corners @ np.stack([np.sin(angles), np.cos(angles)]), axis=0)
    assert widths.min() - 2e-3 * distances.max() < row["feret_min_nm"] <= widths.min() + 1e-9
    assert row["aspect_ratio"] == pytest.approx(row["feret_max_nm"] / row["feret_min_nm"])
    circularity = 4 * math.pi * area / row["perimeter_nm"] ** 2
    assert row["circularity"] == pytest.approx(min(1, circularity)) and row["perimeter_nm"] > 0
    assert 0 < row["solidity"] <= 1 + 1e-9
    if size == (1.0, 1.0):
        crofton = skimage_measure.perimeter_crofton(np.pad(mask, 2), directions=4)
        assert row["perimeter_nm"] == pytest.approx(crofton)


def test_shapes_whose_values_are_known():
    size = 0.25
    y, x = grid(400)
    u, v = (
        (x - 200) * math.cos(0.5) - (y - 200) * math.sin(0.5),
        (x - 200) * math.sin(0.5) + (y - 200) * math.cos(0.5),
    )
    ellipse = measure((u / 120) ** 2 + (v / 40) ** 2 < 1, size)
    h = ((120 - 40) / (120 + 40)) ** 2
    around = math.pi * 160 * (1 + 3 * h / (10 + math.sqrt(4 - 3 * h)))  # Ramanujan 1914
    expected = {
        "area_nm2": math.pi * 120 * 40 / 16, "equivalent_diameter_nm": math.sqrt(4800) / 2,
        "feret_min_nm": 20, "feret_max_nm": 60, "perimeter_nm": around / 4, "aspect_ratio": 3,
        "ellipse_aspect_ratio": 3, "solidity": 1, "centroid_y_nm": 50, "centroid_x_nm": 50,
        "circularity": 4 * math.pi * math.pi * 4800 / around**2,
        "orientation_deg": math.degrees(0.5),  # counter-clockwise from the x axis, y down
    }  # fmt: skip
    for name, value in expected.items():
        assert ellipse[name][0] == pytest.approx(value, rel=0.03), name
    square = np.zeros((30, 30), bool)
    square[4:14, 6:16] = True
    row = {name: column[0] for name, column in measure(square).items()}
    assert (row["feret_min_px"], row["solidity"], row["area_px"]) == pytest.approx((10, 1, 100))
    assert row["feret_max_px"] == pytest.approx(10 * math.sqrt(2))
    assert (row["centroid_y_px"], row["centroid_x_px"]) == (9, 11)
    for n in (1, 2, 5, 20):  # ImageJ's fitted ellipse; scikit-image has a minor axis of 0
        line = np.zeros((9, 30), bool)
        line[4, 3 : 3 + n] = True
        assert measure(line)["ellipse_aspect_ratio"][0] == pytest.approx(n)


def test_many_particles_as_scikit_image_has_them():
    mask = RNG.random((90, 120)) > 0.6
    image = RNG.random(mask.shape)
    labels = label(mask, None)
    ours = measure(labels, (0.5, 2.0), image=image, probability=image / 2)
    theirs = skimage_measure.regionprops(labels.image, image, spacing=(0.5, 2.0))
    assert len(theirs) == len(ours["label"]) > 20
    for i, region in enumerate(theirs):
        centroid = np.array(region.centroid) + (0.25, 1.0)
        assert (ours["centroid_y_nm"][i], ours["centroid_x_nm"][i]) == pytest.approx(centroid)
        assert ours["area_nm2"][i] == pytest.approx(region.area)
        assert ours["mean_grey"][i] == pytest.approx(region.intensity_mean)
        assert ours["mean_probability"][i] == pytest.approx(region.intensity_mean / 2)
        y0, x0, y1, x1 = region.bbox
        assert ours["border"][i] == (y0 == 0 or x0 == 0 or y1 == 90 or x1 == 120)


def test_labels_stay_and_masks_are_split_at_any_magnification():
    for scale in (1, 2, 4):
        size = 60 * scale
        touching = disc(size, 20 * scale, 20 * scale, 9 * scale)
        touching |= disc(size, 33 * scale, 30 * scale, 9 * scale)
        assert len(label(touching).names) == 2 and len(label(touching, None).names) == 1
        split = measure(touching)
        assert split["area_px"].sum() == touching.sum()
        np.testing.assert_allclose(split["equivalent_diameter_px"], 18 * scale, rtol=0.03)
        overlapping = disc(size, 20 * scale, 20 * scale, 9 * scale)
        overlapping |= disc(size, 24 * scale, 24 * scale, 9 * scale)
        assert len(label(overlapping).names) == 1
    named = np.zeros((60, 60), np.int64)
    named[disc(60, 20, 20, 9)] = 7
    named[disc(60, 33, 30, 9)] = 2**31 + 5
    assert measure(named)["label"].tolist() == [7, 2**31 + 5]
    assert measure(label(named).without_small(named.size))["label"].tolist() == []
    y, x = grid(80)
    for shape in (
        ((y - 40) / 12) ** 2 + ((x - 40) / 34) ** 2 < 1,
        (abs(y - x) < 8) & (abs(y + x - 80) < 50),
        radius_of_shape(RNG, (y - 40) / 25, (x - 40) / 25, 3) < 1,
    ):
        assert len(label(shape).names) == 1


def test_particles_that_are_split_stay_in_one_piece_and_in_their_place():
    """Ragged masks: pieces hang on by corners, and some of them have no maximum of their own."""
    rng = np.random.default_rng(3)
    split = 0
    for _ in range(6):
        mask = np.zeros((160, 160), bool)
        for y, x, radius in rng.uniform((8, 8, 5), (152, 152, 10), (25, 3)):
            mask |= disc(160, y, x, radius)
        mask ^= (rng.random(mask.shape) < 0.15) & ~disc(160, 80, 80, 20)
        found, whole = label(mask).image, label(mask, None).image
        np.testing.assert_array_equal(found > 0, mask)
        split += found.max() > whole.max()
        for number in range(1, found.max() + 1):
            own = found == number
            assert skimage_measure.label(own, connectivity=2).max() == 1
            assert len(np.unique(whole[own])) == 1
    assert split


def test_what_is_nowhere_likely_is_noise():
    probability = np.zeros((60, 60), np.float32)
    probability[disc(60, 15, 15, 9)], probability[disc(60, 40, 40, 9)] = 0.69, 0.55
    probability[40, 40] = 0.71
    found = label(probability > 0.5).without_unsure(probability)
    np.testing.assert_array_equal(found.image > 0, disc(60, 40, 40, 9))
    assert found.names.tolist() == [2] and found.image.max() == 1


def test_what_is_no_mask_is_refused():
    with pytest.raises(InputError, match=r"expected a mask \[h, w\], got the shape \(2, 3, 3\)"):
        measure(np.zeros((2, 3, 3)))
    with pytest.raises(InputError, match="of whole numbers, got float64; pass mask > 0.5"):
        measure(np.full((3, 3), 0.5))
    with pytest.raises(InputError, match="labels from 0 on, got -1"):
        measure(np.array([[-1, 0], [0, 1]]))
    with pytest.raises(InputError, match="image has 3 x 4 pixels, the mask 4 x 4"):
        measure(np.eye(4, dtype=bool), image=np.zeros((3, 4)))
    with pytest.raises(UsageError, match="positive"):
        measure(np.eye(4, dtype=bool), -1)
    assert all(len(column) == 0 for column in measure(np.zeros((5, 5), bool)).values())


def test_the_median_of_true_masks_is_within_two_per_cent_down_to_ten_pixels():
    for across in (10, 20):
        true, found = [], []
        for _ in range(100):
            seed, (cy, cx) = RNG.integers(1 << 30), RNG.uniform(0, 1, 2) + across
            radius = across / 2 * RNG.lognormal(0, 0.1)

            def drawn(fine, seed=seed, cy=cy, cx=cx, radius=radius, side=2 * across):
                y, x = (np.mgrid[: side * fine, : side * fine] + 0.5) / fine
                rng = np.random.default_rng(seed)
                return radius_of_shape(rng, (y - cy) / radius, (x - cx) / radius, 6) < 1

            true.append(math.sqrt(4 / math.pi * drawn(8).sum()) / 8)
            found.append(measure(drawn(1))["equivalent_diameter_px"][0])
        assert np.median(found) == pytest.approx(np.median(true), rel=0.02)


def test_border_weights_undo_that_large_particles_touch_the_border():
    """Discs of two sizes, as many of each anywhere; those wholly inside are counted."""
    sums, counts = np.zeros(2), np.zeros(2)
    for radius, kind in ((2, 0), (12, 1)):
        for y, x in product(range(40), repeat=2):
            table = measure(disc(40, y, x, radius), split=None)
            counts[kind] += (table["border"] == 0).sum()
            sums[kind] += table["border_weight"].sum()
    assert counts[1] / counts[0] < 0.2
    assert sums == pytest.approx([1600, 1600])  # each stands for as many as there are


@pytest.mark.parametrize(
    "kind, pixels",
    [
        ("mask", disc(40, 20, 20, 9).astype(np.uint8)),
        ("mask", 255 * disc(40, 20, 20, 9).astype(np.float32)),
        ("mask", np.zeros((40, 40), np.uint8)),
        ("labels", 3 * disc(40, 9, 9, 5).astype(np.uint16) + 9 * disc(40, 30, 30, 7)),
        ("labels", np.arange(1600).reshape(40, 40) // 160),
        ("labels", np.where(np.arange(1600).reshape(40, 40) == 1599, 3,  # a stray pixel
                            disc(40, 9, 9, 5) + 2 * disc(40, 30, 30, 7) + 3 * disc(40, 9, 30, 5))),
        ("classes", (np.indices((40, 40)) // 5).sum(0) % 3),
        ("micrograph", RNG.normal(100, 9, (40, 40)).astype(np.uint8)),
        ("micrograph", RNG.random((40, 40)).astype(np.float32)),
        ("micrograph", (np.add.outer(np.sin(np.arange(40) / 3), np.arange(40) / 20) * 20 + 90)
         .astype(np.uint8)),
        ("mask", np.repeat((9 * disc(40, 20, 20, 9))[..., None], 3, -1).astype(np.uint8)),
        ("labels", np.stack([disc(40, 9, 9, 5), disc(40, 30, 30, 7), disc(40, 9, 30, 5)], -1)
         .astype(np.uint8)),
        ("edges", np.clip(140 * (9 - np.hypot(*(grid(40) - 20))) + 127, 0, 255).astype(np.uint8)),
    ],
)  # fmt: skip
def test_masks_labels_and_micrographs_are_told_apart(kind, pixels):
    assert masks.find(pixels).kind == kind


def test_statistics_of_equal_weights_are_numpys_and_weights_count_as_repeats():
    values = np.sort(RNG.lognormal(3, 0.4, 501))
    found = statistics.by_number(values, np.ones(501))
    expected = np.quantile(values, [0.1, 0.5, 0.9])
    assert [found[name] for name in ("d10", "median", "d90")] == pytest.approx(expected)
    assert found["mean"] == pytest.approx(values.mean())
    assert found["sd"] == pytest.approx(values.std(ddof=1))
    assert found["gsd"] == pytest.approx(math.exp(np.log(values).std(ddof=1)))
    weights = RNG.integers(1, 9, 501).astype(float)
    weighted = statistics.by_number(values, weights)
    repeated = statistics.by_number(
        np.repeat(values, weights.astype(int)), np.ones(int(weights.sum()))
    )
    for name, value in repeated.items():
        assert weighted[name] == pytest.approx(value, rel=0.01), name
    volume = statistics.by_volume(values, np.ones(501))
    assert volume["mean"] == pytest.approx((values**4).sum() / (values**3).sum())
    below = values[values <= volume["d50"]]
    assert (below**3).sum() >= (values**3).sum() / 2 > (below[:-1] ** 3).sum()


def test_intervals_are_those_of_theory_and_widen_where_images_differ():
    values = RNG.normal(50, 10, 400)
    groups = np.arange(400) % 20
    alike = Sample(values, np.ones(400), np.zeros(400, int))
    low, high = statistics.describe(alike)["intervals"]["mean"]
    assert (high - low) / 2 == pytest.approx(1.96 * 10 / 20, rel=0.15)
    differing = Sample(values + 10 * RNG.normal(size=20)[groups], np.ones(400), groups)
    described = statistics.describe(differing)
    low, high = described["intervals"]["mean"]
    assert (high - low) / 2 == pytest.approx(1.96 * 10 / math.sqrt(20), rel=0.4)
    precision = statistics.precision(alike, statistics.describe(alike))
    widths = {row["number"]: row["half_width"] for row in precision["by_number"]}
    assert widths[100] == pytest.approx(1.96 * 1.2533 * 0.2 / 10, rel=0.25)  # of the median
    assert widths[10] > widths[50] > widths[200] and precision["more"] == 0
    few = Sample(values[:20], np.ones(20), np.zeros(20, int))
    missing = statistics.precision(few, statistics.describe(few))
    assert missing["more"] == missing["needed"] - 20 > 20
    share = statistics.share_up_to(alike, 1000)
    wilson = stats.binomtest(400, 400).proportion_ci(method="wilson")
    assert share["interval"] == pytest.approx([wilson.low, wilson.high])


def test_intervals_of_few_particles_are_those_of_repeated_values():
    values = np.sort(RNG.lognormal(3, 0.5, 7))
    sample = Sample(values, np.ones(7), np.zeros(7, int))
    drawn = [np.quantile(values[at], [0.1, 0.5, 0.9]) for at in statistics.draws(sample.groups)]
    expected = np.quantile(drawn, statistics.LEVELS, axis=0).T
    found = statistics.describe(sample)["intervals"]
    for name, bounds in zip(("d10", "median", "d90"), expected, strict=True):
        assert found[name] == pytest.approx(bounds)


def test_no_particle_and_one():
    none = Sample(*np.ones((3, 0)))
    assert set(statistics.describe(none)["intervals"].values()) == {None}
    assert statistics.describe(none)["median"] is None and statistics.fits(none) == {}
    one = statistics.describe(Sample(np.array([7.0]), np.ones(1), np.zeros(1, int)))
    assert (one["median"], one["sd"], one["intervals"]["median"]) == (7, None, None)


def test_fits_by_scipy():
    values = RNG.lognormal(2, 0.5, 300)
    fits = statistics.fits(Sample(values, np.ones(300), np.zeros(300, int)))
    assert fits["lognormal"]["anderson_darling_p"] > 0.01 > fits["normal"]["anderson_darling_p"]
    logs = np.log(values)
    expected = stats.kstest(logs, "norm", (logs.mean(), logs.std(ddof=1))).statistic
    assert fits["lognormal"]["ks_distance"] == pytest.approx(expected)
    standard = np.sort((logs - logs.mean()) / logs.std(ddof=1))
    z = stats.norm.cdf(standard)
    i = np.arange(1, 301)
    squared = -300 - np.mean((2 * i - 1) * (np.log(z) + np.log(1 - z[::-1])))
    assert statistics.anderson_darling(standard) == pytest.approx(squared)
    for critical, p in ((0.631, 0.1), (0.752, 0.05), (0.873, 0.025), (1.035, 0.01)):
        found = statistics.p_value(critical / (1 + 0.75 / 1e9), 10**9)
        assert found == pytest.approx(p, rel=0.03)  # D'Agostino and Stephens 1986, table 4.7
