"""Particles against scipy and scikit-image, on masks of every kind, and in few rounds."""

import csv
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import skimage.measure
import skimage.metrics
from PIL import Image

from emjax import metrics
from emjax.metrics import particles
from emjax.parallel import sharding

REAL = os.environ.get("EMJAX_REAL_DATA")
SIDE = 48
CORNERS = scipy.ndimage.generate_binary_structure(2, 2)


def blobs(seed, *shape, sigma=3.0):
    noise = np.random.default_rng(seed).normal(size=shape)
    return scipy.ndimage.gaussian_filter(noise, sigma) > 0.3 / sigma**1.5


def noise(seed, share, *shape):
    return np.random.default_rng(seed).random(shape or (SIDE, SIDE)) < share


def serpentine(*shape):
    """One particle as long as can be: every other row, joined at alternating ends."""
    mask = np.zeros(shape, bool)
    mask[::2] = True
    mask[1::4, -1] = mask[3::4, 0] = True
    return mask


def spiral(side):
    """One particle that goes round and round to the middle, of pixels that touch at edges."""
    mask, (y, x), (dy, dx) = np.zeros((side, side), bool), (0, -1), (0, 1)
    lengths = [side, *(n for n in range(side - 1, 0, -2) for _ in range(2))]
    for length in lengths[:-1]:
        for _ in range(length):
            y, x = y + dy, x + dx
            mask[y, x] = True
        dy, dx = dx, -dy
    return mask


def steps():
    """A particle that goes down to the right and one that goes up, by corners alone."""
    diagonal = np.eye(SIDE, dtype=bool)
    diagonal[:, SIDE // 2] = False
    return diagonal | np.roll(np.eye(SIDE, dtype=bool)[::-1], 9, 0)


def one_pixel(y, x):
    mask = np.zeros((SIDE, SIDE), bool)
    mask[y, x] = True
    return mask


def square(start, stop):
    mask = np.zeros((SIDE, SIDE), bool)
    mask[start:stop, start:stop] = True
    return mask


EMPTY, FULL = np.zeros((SIDE, SIDE), bool), np.ones((SIDE, SIDE), bool)
CHECKERBOARD = np.indices((SIDE, SIDE)).sum(0) % 2 == 0
MASKS = {
    "empty": EMPTY,
    "full": FULL,
    "first pixel": one_pixel(0, 0),
    "last pixel": one_pixel(-1, -1),
    "end of a row and start of the next": one_pixel(4, -1) | one_pixel(5, 0) | one_pixel(7, 0),
    "two squares that touch at a corner": square(3, 9) | square(9, 14),
    "a square": square(5, 20),
    "most of it": square(5, 18),
    "half of it": square(5, 15),
    "checkerboard": CHECKERBOARD,
    "every other row": np.indices((SIDE, SIDE))[0] % 2 == 0,
    "every other column": np.indices((SIDE, SIDE))[1] % 2 == 1,
    "points": (np.indices((SIDE, SIDE)) % 2 == 0).all(0),
    "steps": steps(),
    "serpentine": serpentine(SIDE, SIDE),
    "serpentine down": serpentine(SIDE, SIDE).T,
    "spiral": spiral(SIDE),
    **{f"noise {share}": noise(1, share) for share in (0.02, 0.2, 0.4, 0.6, 0.9)},
    **{f"noise {share} again": noise(2, share) for share in (0.02, 0.2, 0.4, 0.6, 0.9)},
    **{f"blobs {sigma}": blobs(3, SIDE, SIDE, sigma=sigma) for sigma in (1.0, 2.0, 4.0)},
    **{f"blobs {sigma} again": blobs(4, SIDE, SIDE, sigma=sigma) for sigma in (1.0, 2.0, 4.0)},
    "blobs with holes": blobs(3, SIDE, SIDE, sigma=4.0) & ~noise(5, 0.1),
}


def oracle(predicted, true):
    """(predicted particles, true ones, pairs, sum of size errors), every pair of labels tried."""
    labels = [skimage.measure.label(mask) for mask in (predicted, true)]
    counts = [scipy.ndimage.label(mask, CORNERS)[1] for mask in (predicted, true)]
    assert counts == [label.max() for label in labels]
    table = skimage.metrics.contingency_table(*labels, normalize=False).toarray()
    areas, due = table.sum(1), table.sum(0)
    errors = [
        abs(2 * np.sqrt(areas[i] / np.pi) - 2 * np.sqrt(due[j] / np.pi))
        / (2 * np.sqrt(due[j] / np.pi))
        for i in range(1, len(areas))
        for j in range(1, len(due))
        if table[i, j] / (areas[i] + due[j] - table[i, j]) > 0.5
    ]
    return *counts, len(errors), sum(errors)


def check(predicted, true):
    found = jax.device_get(particles.match(predicted=jnp.array(predicted), true=jnp.array(true)))
    for image, due in enumerate(map(oracle, predicted, true)):
        *counts, error = (values[image] for values in found)
        assert counts == list(due[:3]), image
        assert error == pytest.approx(due[3], rel=1e-4, abs=1e-5), image
    return found


def test_every_mask_against_every_other():
    """In one call, whose images have few runs and many."""
    names = [(a, b) for a in MASKS for b in MASKS]
    found = check(*(np.stack([MASKS[pair[i]] for pair in names]) for i in (0, 1)))
    pairs = dict(zip(names, found.pairs.tolist(), strict=True))
    assert pairs["two squares that touch at a corner", "two squares that touch at a corner"] == 1
    assert pairs["most of it", "a square"] == 1 and pairs["half of it", "a square"] == 0
    assert pairs["end of a row and start of the next", "end of a row and start of the next"] == 3


@pytest.mark.parametrize("shape", [(1, 37), (37, 1), (1, 1), (2, 2), (61, 23)])
def test_sides_of_any_length(shape):
    one, other = noise(1, 0.6, 8, *shape), noise(2, 0.6, 8, *shape)
    check(np.stack([*one, *one]), np.stack([*one, *other]))


def test_few_runs_are_done_with_small_arrays_and_many_with_large():
    """96 x 96 pixels have up to 4608 runs, of which small arrays take 4096."""
    one, other = blobs(6, 96, 96, sigma=3.0), blobs(7, 96, 96, sigma=3.0)
    checkerboard = np.indices((96, 96)).sum(0) % 2 == 0
    check(one[None], scipy.ndimage.binary_dilation(one)[None])
    check(one[None], (one ^ (other & noise(8, 0.05, 96, 96)))[None])
    check(one[None], checkerboard[None])
    check(checkerboard[None], (checkerboard & ~one)[None])


def rounds(mask):
    """(runs, rounds that uniting them took) of one mask."""
    height, width = mask.shape
    counts = particles.count_runs(jnp.array(mask))
    start, end = particles.positions(counts, height * -(-width // 2))
    _, done = particles.unite(particles.neighbours(counts, start, end, width=width + 1))
    return counts[0][-1], done


def test_few_rounds_whatever_the_mask():
    """At most two rounds for every halving of the number of trees."""
    side = 192
    worst = {
        "serpentine": serpentine(side, side),
        "serpentine down": serpentine(side, side).T,
        "spiral": spiral(side),
        "spiral, other hand": spiral(side)[::-1],
        "checkerboard": np.indices((side, side)).sum(0) % 2 == 0,
        **{f"noise {share}": noise(9, share, side, side) for share in (0.3, 0.4, 0.5, 0.6, 0.7)},
        "serpentine with gaps": serpentine(side, side).T & noise(9, 0.995, side, side),
        "blobs": blobs(9, side, side),
    }
    counted = jax.jit(rounds)
    for name, mask in worst.items():
        runs, done = map(int, counted(mask))
        print(f"{name}: {runs} runs, {done} rounds")
        assert done <= 2 * np.ceil(np.log2(runs)) + 1, name
        assert done <= 9, name


def scores(predicted, true, valid=None):
    """The metrics of masks [b, h, w] as a row of the metrics log has them for each image."""
    arrays = dict(
        logits=jnp.where(jnp.array(predicted), 3.0, -3.0)[..., None],
        target=jnp.array(true, jnp.float32)[..., None],
        valid=jnp.array(np.ones(true.shape, bool) if valid is None else valid)[..., None],
    )
    return metrics.particle_scores(**arrays)


def test_metrics_by_hand():
    one_of_two = MASKS["most of it"] | one_pixel(40, 40)
    predicted = np.stack([one_of_two, EMPTY, EMPTY, one_of_two])
    true = np.stack([MASKS["a square"], EMPTY, FULL, EMPTY])
    found = scores(predicted, true)
    assert found["particle_f1"].tolist() == pytest.approx([2 / 3, 1, 0, 0])
    error, applies = found["particle_count_error"]  # without a square there is none
    assert applies.tolist() == [True, False, True, False]
    assert error.tolist()[0::2] == pytest.approx([1, 1])  # two for one, none for one
    error, applies = found["particle_size_error"]
    assert applies.tolist() == [True, False, False, False]
    assert error.tolist() == pytest.approx([2 / 15, 0, 0, 0])  # a square of 13 for one of 15


def test_padding_and_nan_are_nowhere_mask():
    valid = np.zeros((1, SIDE, SIDE), bool)
    valid[:, :30, :20] = True
    predicted, true = (MASKS[f"blobs 2.0{name}"][None] for name in ("", " again"))
    found = scores(predicted, true, valid)
    cut = scores(predicted[:, :30, :20], true[:, :30, :20])
    jax.tree.map(np.testing.assert_array_equal, found, cut)
    lost = metrics.particle_scores(
        logits=jnp.full((1, 4, 4, 1), jnp.nan),
        target=jnp.ones((1, 4, 4, 1)),
        valid=jnp.ones((1, 4, 4, 1), bool),
    )
    assert float(lost["particle_f1"][0]) == 0


def test_eight_devices_find_what_one_finds_and_exchange_no_images():
    names = list(MASKS)[-8:]
    masks = np.stack([MASKS[name] for name in names])
    batch = dict(predicted=masks, true=np.roll(masks, 1, 2))
    found = []
    for devices in (1, 8):
        mesh = sharding.data_mesh(devices=jax.devices()[:devices])
        placed = sharding.to_devices(batch, mesh)
        compiled = particles.match.lower(**placed).compile()
        assert "all-gather" not in compiled.as_text()
        found.append(jax.device_get(compiled(**placed)))
    jax.tree.map(np.testing.assert_array_equal, *found)


@pytest.mark.skipif(not REAL, reason="real masks: $EMJAX_REAL_DATA")
def test_real_masks():
    """Twelve masks of EMPS beside what a poor network makes of them: shifted, thinned, dusty."""
    with (Path(REAL) / "tables" / "emps.csv").open() as table:
        files = [row["mask"] for row in csv.DictReader(table)][::8][:12]
    true, predicted = np.zeros((2, 12, 640, 640), bool)
    for image, file in enumerate(files):
        mask = np.array(Image.open(Path(REAL) / file))[:640, :640] > 0
        inside = image, slice(mask.shape[0]), slice(mask.shape[1])
        true[inside] = mask
        mask = scipy.ndimage.binary_erosion(np.roll(mask, 1 + image % 3, 1), iterations=image % 4)
        predicted[inside] = mask | noise(image, 0.0005, *mask.shape)
    found = check(predicted, true)
    print(f"\ntrue {found.true.tolist()}, predicted {found.predicted.tolist()}, "
          f"pairs {found.pairs.tolist()}")  # fmt: skip
    assert found.true.sum() > 100 and 0 < found.pairs.sum() < found.true.sum()
