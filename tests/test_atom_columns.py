"""Atomic columns: positions and their errors, lattices, strain, and `measure --atoms`."""

import csv
import json
from collections import Counter

import jax
import numpy as np
import optax
import pytest
from scipy.optimize import curve_fit
from scipy.spatial import KDTree

from emjax import load_model, measure, micrographs
from emjax.errors import InputError, UsageError
from emjax.measurement import atoms
from emjax.models import saved
from emjax.models.build import create

RNG = np.random.default_rng(0)
SIGMA, HEIGHT, GROUND = 2.2, 60.0, 20.0


def crystal(vectors, basis=(((0, 0), 1.0),), side=160, gradient=None, seed=0, dose=1.0):
    """Return (true positions, their lattice vectors, counts) of columns (offset, brightness)."""
    deform = np.eye(2) + (0 if gradient is None else np.array(gradient))
    vectors = np.array(vectors, float) @ deform.T
    steps = np.stack(np.meshgrid(*[np.arange(-60, 61)] * 2, indexing="ij"), -1).reshape(-1, 2)
    points = np.concatenate([(steps + offset) @ vectors + (7.3, 5.1) for offset, _ in basis])
    bright = np.repeat([height for _, height in basis], len(steps))
    near = ((points > -12) & (points < side + 12)).all(1)
    y, x = np.mgrid[:side, :side]
    image = np.full((side, side), GROUND)
    for (py, px), height in zip(points[near], bright[near], strict=True):
        square = (y - py) ** 2 + (x - px) ** 2
        image += HEIGHT * height * np.exp(-square / (2 * SIGMA**2))
    counts = np.random.default_rng(seed).poisson(dose * image).astype(np.float32)
    return points[near], vectors, counts


SQUARE = [(12, 1), (-1, 12)]
CRYSTALS = {
    "square": (SQUARE, [((0, 0), 1.0)], 1),
    "hexagonal": ([(11, 0), (5.5, 9.526)], [((0, 0), 1.0)], 1),
    "graphene": ([(20, 0), (10, 17.32)], [((0, 0), 1.0), ((1 / 3, 1 / 3), 1.0)], 2),
    "two kinds": ([(16, 2), (-2, 16)], [((0, 0), 1.0), ((0.5, 0.5), 0.4)], 1),
    "oblique": ([(10, 2), (3, 15)], [((0, 0), 1.0)], 1),
}


@pytest.mark.parametrize("name", CRYSTALS)
def test_all_columns_are_found_and_their_lattice(name):
    vectors, basis, sublattices = CRYSTALS[name]
    points, vectors, counts = crystal(vectors, basis)
    found = atoms.columns(counts)
    inner = points[((points > 12) & (points < 147)).all(1)]
    assert KDTree(found.position).query(inner)[0].max() < 1
    assert KDTree(points).query(found.position)[0].max() < 1
    lattice = atoms.lattice(found.position, atoms.spacing(counts.astype(float)))
    assert lattice.sublattice.max() == sublattices and (lattice.sublattice > 0).all()
    cell = abs(np.linalg.det(lattice.vectors))
    expected = abs(np.linalg.det(vectors)) / (2 if name == "two kinds" else 1)
    assert cell == pytest.approx(expected, rel=2e-3)
    indices = np.linalg.solve(lattice.vectors.T, vectors.T).T  # whole numbers: the same lattice
    np.testing.assert_allclose(indices, np.rint(indices), atol=5e-3)
    assert np.sqrt(np.nanmean(lattice.residual**2)) < 2 * found.error.mean()


def test_a_fit_is_that_of_scipy():
    _, _, counts = crystal(SQUARE)
    found = atoms.columns(counts, 12.0)

    def gaussian(at, y, x, height, sigma, ground):
        return ground + height * np.exp(-((at[0] - y) ** 2 + (at[1] - x) ** 2) / (2 * sigma**2))

    y, x = np.mgrid[:160, :160]
    for index in range(0, len(found.position), 17):
        start = np.rint(found.position[index])
        # The pixels that the fit saw are around where it began, one of the nearest.
        fits = []
        for dy, dx in np.ndindex(3, 3):
            cy, cx = start + (dy - 1, dx - 1)
            near = np.hypot(y - cy, x - cx) <= 6.5
            if near.sum() < 133:
                continue
            guess = (*found.position[index], 60, 2, 20)
            fits.append(curve_fit(gaussian, (y[near], x[near]), counts[near], guess)[0][:2])
        assert np.abs(np.array(fits) - found.position[index]).max(1).min() < 1e-4


def bound(dose, side=13):
    """Return the Cramer-Rao bound of y of one column on its ground, five values unknown."""
    y, x = np.mgrid[:side, :side] - side // 2
    inside = np.hypot(y, x) <= 6.5
    square = y**2 + x**2
    shape = np.exp(-square / (2 * SIGMA**2))
    slopes = [HEIGHT * shape * y / SIGMA**2, HEIGHT * shape * x / SIGMA**2, shape,
              HEIGHT * shape * square / SIGMA**3, np.ones_like(shape)]  # fmt: skip
    mean = GROUND + HEIGHT * shape
    slopes = np.stack([each[inside] for each in slopes])
    information = dose * (slopes / mean[inside]) @ slopes.T
    return np.sqrt(np.linalg.inv(information)[0, 0])


@pytest.mark.parametrize("dose", [0.3, 1, 10])
def test_positions_are_nearly_as_good_as_can_be_and_errors_are_theirs(dose):
    points, _, counts = crystal([(14, 0), (0, 14)], side=400, dose=dose)
    found = atoms.columns(counts, 14.0)
    _, nearest = KDTree(points).query(found.position)
    off = found.position - points[nearest]
    rms = np.sqrt((off**2).mean())
    assert 0.95 * bound(dose) < rms < 1.15 * bound(dose)
    assert np.sqrt((found.error**2).mean()) == pytest.approx(rms, rel=0.08)
    assert (off / found.error).std() == pytest.approx(1, abs=0.08)


def test_strain_and_rotation_are_those_that_were_drawn():
    """Half of the field is strained; against the whole's lattice both halves show it."""
    gradient = np.array([[0.02, 0.01], [-0.004, -0.03]])
    y, x = np.meshgrid(np.arange(30) * 12.0, np.arange(30) * 12.0, indexing="ij")
    points = np.stack([y.ravel(), x.ravel()], -1)
    plain = atoms.lattice(points, 12.0)
    moved = points @ (np.eye(2) + gradient).T
    lattice = atoms.lattice(moved, 12.0)
    against = lattice._replace(
        vectors=np.sign(np.diag(lattice.vectors)).reshape(2, 1) * 0 + plain.vectors
    )
    order = [np.argmin(np.abs(plain.vectors @ v / 144 - 1)) for v in lattice.vectors]
    against = lattice._replace(vectors=plain.vectors[order])
    found = atoms.strain(moved, against)
    inner = np.isfinite(found[:, 0])
    assert inner.sum() == 28 * 28
    expected = [0.02, -0.03, (0.01 - 0.004) / 2, (-0.004 - 0.01) / 2]
    np.testing.assert_allclose(found[inner], np.tile(expected, (784, 1)), atol=1e-9)
    np.testing.assert_allclose(atoms.strain(moved, lattice)[inner], 0, atol=1e-9)


def test_outliers_hardly_move_a_lattice():
    y, x = np.meshgrid(np.arange(20) * 10.0, np.arange(20) * 10.0, indexing="ij")
    points = np.stack([y.ravel(), x.ravel()], -1) + RNG.normal(0, 0.05, (400, 2))
    points[RNG.choice(400, 40, replace=False)] += RNG.uniform(1, 2, (40, 2))
    found = atoms.lattice(points, 10.0)
    np.testing.assert_allclose(np.sort(np.abs(found.vectors).ravel()), [0, 0, 10, 10], atol=0.004)


def test_no_columns_no_lattice(tmp_path):
    with pytest.raises(InputError, match="expected atomic columns"):
        atoms.spacing(np.tile(np.linspace(0, 1, 64), (64, 1)))
    assert atoms.lattice(RNG.uniform(0, 200, (100, 2)), 20.0) is None
    assert atoms.lattice(RNG.uniform(0, 200, (3, 2)), 20.0) is None
    _, _, counts = crystal([(3, 0), (0, 3)], side=64)
    with pytest.raises(InputError, match="expected 4 or more"):
        atoms.columns(counts, 3.0)


def test_the_command_writes_columns_in_nm(tmp_path, capsys):
    _, _, counts = crystal(SQUARE)
    micrographs.write(tmp_path / "in/a.tif", counts, 0.02)
    micrographs.write(tmp_path / "in/b.tif", np.full((64, 64), 7, np.uint8), 0.02)
    (tmp_path / "in/c.tif").write_bytes(b"no image")
    out = tmp_path / "out"
    assert measure.main(["--atoms", f"--out={out}", str(tmp_path / "in")]) == 3
    said = capsys.readouterr()
    assert "b.tif" in said.err and "c.tif" in said.err and "a.tif" in said.out
    with (out / "atoms.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = atoms.columns(counts)
    assert [float(row["y_nm"]) for row in rows] == pytest.approx(0.02 * found.position[:, 0])
    assert [float(row["x_error_nm"]) for row in rows] == pytest.approx(0.02 * found.error[:, 1])
    summary = json.loads((out / "summary.json").read_text())
    lattice = summary["images"][0]["lattice"]
    assert lattice["a_length"] == pytest.approx(0.02 * np.hypot(12, 1), rel=1e-3)
    assert lattice["angle_deg"] == pytest.approx(90, abs=0.2)
    assert summary["median"] == pytest.approx(0.02 * np.hypot(12, 1), rel=0.02)
    assert Counter(row["sublattice"] for row in rows) == {"1": len(rows)}
    assert "Atomic columns" in (out / "report.html").read_text()
    assert measure.main(["--atoms", f"--out={out}", str(tmp_path / "in")]) == 3  # replaced
    for flags, words in (
        (["--masks"], "--masks: only for particles"),
        (["--split=0.3"], "--split: only for particles"),
        (["--range=1,2"], "--range: only for --atoms with a --model"),
    ):
        with pytest.raises(UsageError, match=words):
            measure.main(["--atoms", *flags, f"--out={out}", "a.tif"])
    micrographs.write(tmp_path / "d.tif", counts, (0.02, 0.03))
    both = [str(tmp_path / name) for name in ("in/a.tif", "d.tif")]
    assert measure.main(["--atoms", f"--out={tmp_path}/d", *both]) == 3
    assert "d.tif: pixels of 0.02 x 0.03 nm, expected square ones" in capsys.readouterr().err
    assert (tmp_path / "d/atoms.csv").exists()  # of the other


def test_a_model_that_restores_may_look_first(tmp_path):
    fields = dict(name="unet", blocks=1, receptive_field=18)
    network = create(fields, optax.sgd(1.0), key=jax.random.key(0))
    for task in ("denoise", "segmentation"):
        config = dict(model=fields, task=task, range_rule="percentile")
        saved.write(tmp_path / task, network, config)
    _, _, counts = crystal(SQUARE)
    micrographs.write(tmp_path / "a.tif", counts, 0.02)
    command = ["--atoms", f"--out={tmp_path}/o", str(tmp_path / "a.tif")]
    with pytest.raises(UsageError, match="expected a model that restores images"):
        measure.main([f"--model={tmp_path}/segmentation", *command])
    assert measure.main([f"--model={tmp_path}/denoise", *command]) == 0
    restored = load_model(tmp_path / "denoise").predict(counts)
    found = atoms.columns(restored)
    summary = json.loads((tmp_path / "o/summary.json").read_text())
    assert summary["images"][0]["columns"] == len(found.position)
