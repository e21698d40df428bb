"""The command measure: masks of any program, what it writes, refusals; a stub for the network."""

import csv
import json
import re
import subprocess
import sys

import h5py
import numpy as np
import pyarrow.parquet
import pytest
import tifffile
from PIL import Image

from emjax import measure, micrographs, pictures
from emjax.errors import InputError, UsageError
from emjax.files import write_atomically
from emjax.inference.predictor import Predictor
from emjax.measurement import results
from emjax.micrographs import made_by

RNG = np.random.default_rng(0)


def field(*discs, size=64):
    """Return labels, one for each (y, x, radius)."""
    y, x = np.mgrid[:size, :size] + 0.5
    labels = np.zeros((size, size), np.int32)
    for value, (cy, cx, radius) in enumerate(discs, start=1):
        labels[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = value
    return labels


DISCS = field((12, 14, 6), (40, 40, 9), (24, 33, 9), (63, 10, 5))


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr("emjax.measurement.statistics.DRAWS", 40)


def run(out, *arguments, code=0, masks=True):
    flags = [*(["--masks"] if masks else []), f"--out={out}", *map(str, arguments)]
    assert measure.main(flags) == code
    return json.loads((out / "summary.json").read_text()) if out.exists() else None


def rows(out):
    with (out / "particles.csv").open() as file:
        return list(csv.DictReader(file))


def picture(labels):
    return np.clip(120 - 40 * (labels > 0) + RNG.normal(0, 6, labels.shape), 0, 255).astype(
        np.uint8
    )


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int32", "float32", "bool"])
def test_masks_and_label_images_of_all_number_formats(tmp_path, dtype):
    mask, labels = (DISCS > 0).astype(dtype), DISCS.astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", mask)
    expected = run(tmp_path / "ref", tmp_path / "a.tif")
    assert (expected["number"], expected["at_border"], expected["unit"]) == (3, 1, "px")
    assert expected["median"] == pytest.approx(18, rel=0.05)
    if dtype != "bool":
        tifffile.imwrite(tmp_path / "b.tif", mask * mask.dtype.type(255))
        tifffile.imwrite(tmp_path / "c.tif", labels)
        for name in "bc":
            found = run(tmp_path / name, tmp_path / f"{name}.tif", "--no_split")
            assert found["number"] == (2 if name == "b" else 3)  # two touch


def test_labels_beyond_float32_and_masks_in_colour_and_formats(tmp_path):
    labels = np.where(DISCS > 0, DISCS.astype(np.uint32) + 2**31, 0).astype(np.uint32)
    np.save(tmp_path / "a.npy", labels)
    run(tmp_path / "a", tmp_path / "a.npy")
    assert [int(row["label"]) for row in rows(tmp_path / "a")] == [2**31 + k for k in (1, 2, 3, 4)]
    mask = np.where(DISCS > 0, 255, 0).astype(np.uint8)
    Image.fromarray(np.repeat(mask[..., None], 3, 2)).save(tmp_path / "b.png")
    micrographs.write(tmp_path / "c.mrc", mask)
    micrographs.write(tmp_path / "d.zarr", mask)
    for name in ("b.png", "c.mrc", "d.zarr"):
        assert run(tmp_path / name[0], tmp_path / name)["number"] == 3


def test_what_is_written(tmp_path, capsys):
    folder, out = tmp_path / "masks", tmp_path / "out"
    folder.mkdir()
    for name in "ab":
        mask = (DISCS > 0).astype(np.uint8)
        micrographs.write(folder / f"{name}_mask.tif", mask, 0.5)
        (tmp_path / "images").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / "images" / f"{name}.tif", picture(DISCS))
    summary = run(out, folder, f"--images={tmp_path / 'images'}", "--border_weights")
    assert "6 particles, median diameter" in capsys.readouterr().out
    assert summary["unit"] == "nm" and summary["number"] == 6 and summary["split"] == 0.2
    assert summary["intervals"]["median"][0] <= summary["median"] <= summary["d90"]
    assert summary["share_below_100_nm"]["value"] == 1 and "Counting" in summary["counting_rule"]
    table = pyarrow.parquet.read_table(out / "particles.parquet").to_pydict()
    written = rows(out)
    assert list(written[0]) == list(table) and len(written) == 8
    assert [row["image"] for row in written] == table["image"]
    for name in ("area_nm2", "feret_min_nm", "border", "mean_grey"):
        assert [float(row[name]) for row in written] == table[name]
    inside = [d for d, b in zip(table["equivalent_diameter_nm"], table["border"], strict=True)
              if not b]  # fmt: skip
    weights = [w for w, b in zip(table["border_weight"], table["border"], strict=True) if not b]
    assert summary["mean"] == pytest.approx(np.average(inside, weights=weights))
    assert all(70 < grey < 90 for grey in table["mean_grey"])
    page = (out / "report.html").read_text()
    assert len(re.findall(r"data:image/png;base64,", page)) == 3 and "2022/C 229/01" in page
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert str(tmp_path) not in page + before["summary.json"].decode()
    run(out, folder, f"--images={tmp_path / 'images'}", "--border_weights")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize("own", [True, False])
def test_a_class_of_a_stack_is_split_in_every_plane(own, tmp_path):
    """The first plane has a piece of each class, as label images have; the second has many."""
    planes = np.zeros((2, 64, 64), np.uint8)
    planes[0, 4:14, 4:14], planes[0, 40:50, 40:50] = 1, 2
    for corner in (4, 18, 32, 46):
        planes[1, corner : corner + 8, 6:14] = 1
    planes[1, 40:50, 40:50] = 2
    line = made_by.line({}, "mask", planes) if own else "another"
    micrographs.write(tmp_path / "a.tif", planes, software=line)
    flags = [] if own else ["--foreground=1"]
    run(tmp_path / "o", tmp_path / "a.tif", *flags)
    found = [row["image"] for row in rows(tmp_path / "o")]
    assert len(found) == (7 if own else 5)


def test_an_image_of_a_file_that_holds_several_has_one_mask(tmp_path):
    (tmp_path / "i").mkdir()
    (tmp_path / "m").mkdir()
    with h5py.File(tmp_path / "i" / "a.h5", "w") as file:
        for name, value in (("bf", 50), ("haadf", 150)):
            file[name] = np.full(DISCS.shape, value, np.uint8)
    tifffile.imwrite(tmp_path / "m" / "a.tif", (DISCS > 0).astype(np.uint8))
    run(tmp_path / "o", tmp_path / "m", f"--images={tmp_path / 'i'}", "--index=1")
    assert {float(row["mean_grey"]) for row in rows(tmp_path / "o")} == {150}


def test_the_spread_that_predict_writes_is_no_mask(tmp_path):
    mask = np.where(DISCS > 0, 255, 0).astype(np.uint8)
    micrographs.write(tmp_path / "m" / "a.tif", mask, software=made_by.line({}, "mask", mask))
    spread = DISCS.astype(np.float32) / 3
    line = made_by.line({}, "spread", spread)
    micrographs.write(tmp_path / "m" / "a.spread.tif", spread, software=line)
    assert run(tmp_path / "o", tmp_path / "m")["number"] == 3


def test_tables_of_atoms_and_of_particles_in_one_folder(tmp_path):
    out = tmp_path / "o"
    tifffile.imwrite(tmp_path / "a.tif", (DISCS > 0).astype(np.uint8))
    run(out, tmp_path / "a.tif")
    kept = (out / "particles.csv").read_bytes()
    others = Atoms()
    results.check_replaceable(out, others.name)
    results.write(out, others, {"model": None})
    assert (out / "particles.csv").read_bytes() == kept
    results.check_replaceable(out, "particles")
    assert run(out, tmp_path / "a.tif")["number"] == 3
    (out / "atoms.csv").write_text("changed by a person")
    run(out, tmp_path / "a.tif")  # does not touch it
    with pytest.raises(UsageError, match=r"atoms.csv would be overwritten"):
        results.check_replaceable(out, "atoms")


class Atoms:
    name = "atoms"

    def table(self):
        return {"y": np.arange(3.0)}

    def report(self, table):
        return {"number": 3}, "<html>"


def test_folders_without_overlays_and_files_of_one_name(tmp_path, capsys):
    mask = np.where(DISCS > 0, 255, 0).astype(np.uint8)
    for folder in "ab":
        (tmp_path / folder).mkdir()
        line = made_by.line({}, "mask", mask)
        micrographs.write(tmp_path / folder / "x.tif", mask, software=line)
        drawn = pictures.overlay(picture(DISCS), mask)
        line = made_by.line({}, "overlay", drawn)
        (tmp_path / folder / "x.overlay.png").write_bytes(pictures.png(drawn, line))
    summary = run(tmp_path / "o", tmp_path / "a", tmp_path / "b" / "x.tif", tmp_path / "a/x.tif")
    assert [image["image"] for image in summary["images"]] == ["a/x.tif", "b/x.tif"]
    assert "1 results of emjax in it are left out" in capsys.readouterr().err
    with pytest.raises(InputError, match="holds only results of emjax"):
        run(tmp_path / "p", "--model=m", tmp_path / "a", masks=False)


@pytest.mark.parametrize("name", ["particles.csv", "summary.json", "report.html"])
def test_only_its_own_unchanged_results_are_replaced(tmp_path, name):
    tifffile.imwrite(tmp_path / "a.tif", (DISCS > 0).astype(np.uint8))
    out = tmp_path / "out"
    run(out, tmp_path / "a.tif")
    (out / name).write_bytes((out / name).read_bytes().replace(b"1", b"7", 1))
    with pytest.raises(UsageError, match=f"{name} would be overwritten.*or --overwrite"):
        run(out, tmp_path / "a.tif")
    run(out, tmp_path / "a.tif", "--overwrite")
    (out / "summary.json").unlink()
    with pytest.raises(UsageError, match="particles.csv would be overwritten"):
        run(out, tmp_path / "a.tif")


def test_no_particle_one_particle_and_stacks(tmp_path, capsys):
    tifffile.imwrite(tmp_path / "none.tif", np.zeros((20, 20), np.uint8))
    none = run(tmp_path / "0", tmp_path / "none.tif")
    assert (none["number"], none["median"], none["intervals"]["median"]) == (0, None, None)
    assert "0 particles" in capsys.readouterr().out and rows(tmp_path / "0") == []
    tifffile.imwrite(tmp_path / "one.tif", field((30, 30, 8)).astype(np.uint8), resolution=(1, 1))
    one = run(tmp_path / "1", tmp_path / "one.tif", "--pixel_size=2")
    assert (one["number"], one["unit"], one["intervals"]["median"]) == (1, "nm", None)
    assert one["median"] == pytest.approx(32, rel=0.02)
    assert "One particle: no interval can be stated" in capsys.readouterr().err
    stack = np.stack([DISCS > 0, field((30, 30, 8)) > 0]).astype(np.uint8)
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack")
    assert run(tmp_path / "2", tmp_path / "stack.tif")["images"][0]["planes"] == 2
    assert [row["plane"] for row in rows(tmp_path / "2")] == ["0", "0", "0", "0", "1"]
    assert run(tmp_path / "3", tmp_path / "stack.tif", "--min_size=200")["number"] == 3


def test_a_plane_with_one_label_or_nothing_else_belongs_to_its_stack(tmp_path, capsys):
    """It has the values of a mask, but its neighbours are label images."""
    dumbbell = (field((30, 20, 12), (30, 42, 12)) > 0).astype(np.uint16)
    stack = np.stack([DISCS.astype(np.uint16), 7 * dumbbell, 0 * dumbbell, 0 * dumbbell + 3])
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack")
    run(tmp_path / "o", tmp_path / "stack.tif")
    found = [(row["plane"], row["label"]) for row in rows(tmp_path / "o")]
    assert found == [*(("0", str(k)) for k in range(1, 5)), ("1", "7"), ("3", "3")]
    assert "no pixel is 0, the background" in capsys.readouterr().err
    tifffile.imwrite(tmp_path / "alone.tif", stack[1])
    run(tmp_path / "alone", tmp_path / "alone.tif")
    assert len(rows(tmp_path / "alone")) == 2  # a mask, whose particles are split


def test_labels_in_several_pieces_are_labels(tmp_path, capsys):
    labels = np.zeros((120, 120), np.uint8)
    for index, (y, x) in enumerate(np.ndindex(6, 6)):
        labels[20 * y + 4 : 20 * y + 12, 20 * x + 4 : 20 * x + 12] = index % 12 + 1
    tifffile.imwrite(tmp_path / "a.tif", labels)
    run(tmp_path / "o", tmp_path / "a.tif")
    assert len(rows(tmp_path / "o")) == 12
    assert "labels in several pieces, 24 more than labels" in capsys.readouterr().err


@pytest.mark.parametrize("written", range(5))
def test_a_measurement_stopped_while_it_replaces_another_is_done_again(
    tmp_path, monkeypatch, written
):
    out = tmp_path / "o"
    tifffile.imwrite(tmp_path / "a.tif", (DISCS > 0).astype(np.uint8))
    run(out, tmp_path / "a.tif")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    left = [written + 1]  # the journal comes first

    def stopped(path, content):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        write_atomically(path, content)

    command = ["--masks", f"--out={out}", "--no_split", str(tmp_path / "a.tif")]
    monkeypatch.setattr("emjax.measurement.results.write_atomically", stopped)
    if written < 4:
        with pytest.raises(KeyboardInterrupt):
            measure.main(command)
    monkeypatch.undo()
    assert measure.main(command) == 0
    after = {path.name: path.read_bytes() for path in out.iterdir()}
    assert after.keys() == before.keys() and after["summary.json"] != before["summary.json"]
    (out / "particles.csv").write_bytes(before["particles.csv"] + b"mine")
    with pytest.raises(UsageError, match="particles.csv would be overwritten"):
        measure.main(command)


def test_bad_files_are_named_and_the_others_measured(tmp_path, capsys):
    folder, images = tmp_path / "in", tmp_path / "images"
    folder.mkdir(), images.mkdir()
    tifffile.imwrite(folder / "full.tif", np.full((20, 20), 255, np.uint8))
    tifffile.imwrite(folder / "good.tif", (DISCS > 0).astype(np.uint8))
    tifffile.imwrite(folder / "grey.tif", picture(DISCS))
    tifffile.imwrite(folder / "other.tif", (DISCS > 0).astype(np.uint8))
    tifffile.imwrite(images / "good.tif", picture(DISCS))
    tifffile.imwrite(images / "other.tif", picture(DISCS)[:50])
    tifffile.imwrite(folder / "stack.tif", (DISCS > 0).astype(np.uint8))
    stack = np.stack([picture(DISCS)] * 3)
    tifffile.imwrite(images / "stack.tif", stack, photometric="minisblack")
    summary = run(tmp_path / "out", folder, f"--images={images}", code=3)
    assert [image["image"] for image in summary["images"]] == ["good.tif"]
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 5 and "4 of 5 inputs were not measured" in errors[4]
    assert "full.tif: expected the background as 0, got values from 255 to 255" in errors[0]
    assert "grey.tif: looks like a micrograph, expected a mask: leave out --masks" in errors[1]
    assert "other.tif: its image has 50 x 64 pixels, the mask 64 x 64" in errors[2]
    assert run(tmp_path / "no", folder / "grey.tif", code=3) is None


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_outlines_on_a_micrograph_are_refused_with_the_reason(tmp_path, capsys, mode):
    overlay = pictures.overlay(picture(DISCS), (DISCS > 0).astype(np.uint8))
    Image.fromarray(overlay).convert(mode).save(tmp_path / "drawn.png")
    assert run(tmp_path / "out", tmp_path / "drawn.png", code=3) is None
    assert "drawn.png: expected a mask, got a micrograph with outlines" in capsys.readouterr().err


def test_sizes_known_and_unknown_are_not_mixed(tmp_path, capsys):
    mask = (DISCS > 0).astype(np.uint8)
    micrographs.write(tmp_path / "a.tif", mask, 0.5)
    micrographs.write(tmp_path / "b.tif", mask, 1.0)
    micrographs.write(tmp_path / "c.tif", mask)
    files = [tmp_path / f"{name}.tif" for name in "abc"]
    summary = run(tmp_path / "o", *files[:2])
    assert any("Pixel sizes differ, 0.5 to 1 nm" in remark for remark in summary["remarks"])
    assert run(tmp_path / "p", *files, code=3)["number"] == 6
    assert f"c.tif: does not state its pixel size, but {files[0]} does:" in capsys.readouterr().err
    assert run(tmp_path / "q", *reversed(files), code=3)["unit"] == "px"
    assert f"a.tif: states its pixel size, but {files[2]} does not" in capsys.readouterr().err
    assert run(tmp_path / "p", *files, "--pixel_size=0.5")["number"] == 9


class Network:
    """Stands for a trained model: what is dark is particle."""

    memory_for_whole, config, digest, engine = 0, {"task": "denoise"}, "0", "jax"
    check_finds_particles = Predictor.check_finds_particles

    def __init__(self, folder, limit, engine=None):
        self.is_mask, self.classes = "restores" not in folder, 3 if "classes" in folder else 2

    def range_and_levels(self, images, given=None):
        assert list(images)
        return (0.0, 255.0), None, ""

    def remarks(self, *arguments):
        return iter(())

    def scale(self, nm_per_pixel, shape):
        return 1.0, 1.0

    def __call__(self, image, intensity_range, scale):
        return np.select([image == 95, image < 100], [0.6, 0.9], 0.2).astype(np.float32)


def test_micrographs_are_segmented_and_masks_are_not(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("emjax.inference.predictor.Predictor", Network)
    image = np.where(DISCS > 0, 60, 140).astype(np.uint8) + RNG.integers(
        0, 30, DISCS.shape, np.uint8
    )
    micrographs.write(tmp_path / "a.tif", image, 0.25)
    tifffile.imwrite(tmp_path / "b.tif", (DISCS > 0).astype(np.uint8))
    out = tmp_path / "out"
    summary = run(out, "--model=m", tmp_path / "a.tif", tmp_path / "b.tif", masks=False, code=3)
    assert "b.tif: looks like a mask, expected a micrograph: add --masks" in capsys.readouterr().err
    assert (summary["number"], summary["unit"]) == (3, "nm")
    assert {round(float(row["mean_probability"]), 6) for row in rows(out)} == {0.9}
    assert not any("left out as noise" in remark for remark in summary["remarks"])
    faint = image.copy()
    faint[:30][DISCS[:30] > 0] = 95  # in the network's eyes hardly more likely than not
    micrographs.write(tmp_path / "c.tif", faint, 0.25)
    unsure = run(tmp_path / "unsure", "--model=m", tmp_path / "c.tif", masks=False)
    assert unsure["number"] < 3
    assert any("left out as noise: " in remark for remark in unsure["remarks"])
    run(tmp_path / "true", "--pixel_size=0.25", tmp_path / "b.tif")
    for name in ("area_nm2", "centroid_y_nm"):
        assert [row[name] for row in rows(out)] == [row[name] for row in rows(tmp_path / "true")]
    with pytest.raises(UsageError, match="expected a model that segments, got one that restores"):
        run(out, "--model=restores", tmp_path / "a.tif", masks=False)
    with pytest.raises(UsageError, match="expected a model of particles .*got one of 3 classes"):
        run(out, "--model=classes", tmp_path / "a.tif", masks=False)


@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (1, 5)])
def test_a_mask_of_a_pixel_or_a_line(tmp_path, shape):
    """No warning of NumPy, which pytest would raise."""
    micrographs.write(tmp_path / "a.tif", np.zeros(shape, np.uint8))
    assert run(tmp_path / "o", tmp_path / "a.tif")["number"] == 0


def test_a_stack_may_begin_with_an_empty_plane(tmp_path, monkeypatch):
    monkeypatch.setattr("emjax.inference.predictor.Predictor", Network)
    image = np.where(DISCS > 0, 60, 140).astype(np.uint8)
    image += RNG.integers(0, 30, DISCS.shape, np.uint8)
    micrographs.write(tmp_path / "a.tif", np.stack([np.full_like(image, 200), image]), 0.25)
    summary = run(tmp_path / "out", "--model=m", tmp_path / "a.tif", masks=False)
    assert summary["number"] == 3
    assert summary["options"]["model"] == "0" and summary["options"]["engine"] == "jax"
    assert summary["options"].keys() >= {"range", "mrc_rows", "pixel_size", "no_resample"}


def test_grey_values_are_those_of_the_rows_that_predict_took(tmp_path):
    """A prediction with --mrc_rows=bottom is turned over, and so is its image."""
    image = np.where(DISCS > 0, 100 + 50 * (DISCS == 1), 10).astype(np.uint8)
    micrographs.write(tmp_path / "images/a.mrc", image[::-1])
    mask = np.uint8(255) * (DISCS > 0)
    made = made_by.line({"options": {"mrc_rows": "bottom"}}, "mask", mask)
    micrographs.write(tmp_path / "a.tif", mask, software=made)
    run(tmp_path / "o", tmp_path / "a.tif", f"--images={tmp_path / 'images'}")
    assert sorted(float(row["mean_grey"]) for row in rows(tmp_path / "o"))[0] == 100


def test_what_is_there_twice_is_said(tmp_path, capsys):
    """Exports in another format by their names, copies by their particles; links are no copies."""
    mask = np.uint8(255) * (DISCS > 0)
    for name in ("in/a.tif", "in/a.png", "in/b.tif", "in/copy.tif"):
        (tmp_path / "in").mkdir(exist_ok=True)
        content = mask if name[3] == "a" else mask[::-1]
        if name.endswith("png"):
            Image.fromarray(content).save(tmp_path / name)
        else:
            micrographs.write(tmp_path / name, content)
    (tmp_path / "in/link.tif").symlink_to("b.tif")
    summary = run(tmp_path / "o", tmp_path / "in", tmp_path / "in/../in/b.tif")
    assert [row["image"] for row in summary["images"]] == ["a.png", "a.tif", "b.tif", "copy.tif"]
    said = capsys.readouterr().err
    assert "a.png: has the name of a.tif, as 2 of 4 files have that of another" in said
    copies = "The particles of a.tif are those of a.png, and so for 1 more: if these are copies"
    assert any(remark.startswith(copies) for remark in summary["remarks"])
    assert f"note: {tmp_path / 'o'}: {copies}" in said
    alone = run(tmp_path / "o", tmp_path / "in/a.tif", tmp_path / "in/b.tif")
    assert "those of" not in " ".join(alone["remarks"])


@pytest.fixture
def labelled(tmp_path):
    """A mask and its label image, as emjax predict writes them, and the mask's pixels."""
    mask = np.uint8(255) * (DISCS > 0)
    micrographs.write(tmp_path / "m/a.tif", mask, software=made_by.line({}, "mask", mask))
    labels = DISCS.astype(np.uint16)
    made = made_by.line({}, "labels", labels)
    micrographs.write(tmp_path / "m/a.labels.tif", labels, software=made)
    return tmp_path / "m", mask


@pytest.mark.parametrize("changed, measured", [((), "a.tif"), (("a.tif",), "a.tif"),
                                               (("a.labels.tif",), "a.labels.tif")])  # fmt: skip
def test_of_a_mask_and_its_label_image_one_is_measured(labelled, changed, measured, caplog):
    """The one that somebody has corrected; whether the folder is named or its files."""
    folder, mask = labelled
    for name in changed:
        micrographs.write(folder / name, mask // 255)
    for inputs in ([folder], sorted(folder.iterdir())):
        found = measure.find_inputs([*map(str, inputs)], are_masks=True)
        assert [*found.values()] == [measured]
    assert "left out, as 1 of 2 files are" in caplog.text


def test_a_mask_and_its_label_image_that_were_both_changed_are_said(labelled, caplog):
    folder, mask = labelled
    for name in ("a.tif", "a.labels.tif"):
        micrographs.write(folder / name, mask // 255)
    assert len(measure.find_inputs([str(folder)], are_masks=True)) == 2
    assert "a.labels.tif: is beside a.tif: their particles count twice" in caplog.text


@pytest.mark.parametrize("kind", ["mask", "restored"])
def test_corrected_results_beside_micrographs_are_none(tmp_path, kind):
    """Also those that are no more as emjax wrote them."""
    image = picture(DISCS)
    micrographs.write(tmp_path / "a.tif", image)
    made = made_by.line({}, kind, image)
    micrographs.write(tmp_path / made_by.RESULTS / "a.tif", image // 2, software=made)
    assert [*measure.find_inputs([str(tmp_path)]).values()] == ["a.tif"]
    named = measure.find_inputs([str(tmp_path / made_by.RESULTS)], are_masks=True)
    assert [*named.values()] == ["a.tif"]


def test_a_label_image_beside_its_micrograph_is_measured(tmp_path, caplog):
    labels = DISCS.astype(np.uint16)
    made = made_by.line({}, "labels", labels)
    micrographs.write(tmp_path / "x.tif", picture(DISCS))
    micrographs.write(tmp_path / "x.labels.tif", labels, software=made)
    summary = run(tmp_path / "o", f"--images={tmp_path}", tmp_path, "--no_split")
    assert [row["image"] for row in summary["images"]] == ["x.labels.tif"]


def test_results_are_the_images_of_no_corrected_labels(labelled):
    """A name with a word for a mask makes nothing else an image."""
    folder, mask = labelled
    micrographs.write(folder / "a.labels.tif", DISCS.astype(np.uint8))
    micrographs.write(folder / "b.tif", mask, software=made_by.line({}, "mask", mask))
    for name in ("1", "2", "label_3"):
        micrographs.write(folder / f"pred/{name}.tif", mask)
    found = measure.find_inputs([str(folder)], are_masks=True)
    kept = measure.without_images(found, folder)
    names = ["a.labels.tif", "b.tif", "pred/1.tif", "pred/2.tif", "pred/label_3.tif"]
    assert [*kept.values()] == names


def test_odd_names_of_inputs(tmp_path, monkeypatch):
    """The store one is in, and a link to itself, which is named where it is read."""
    micrographs.write(tmp_path / "a.zarr", np.uint8(255) * (DISCS > 0))
    monkeypatch.chdir(tmp_path / "a.zarr")
    assert run(tmp_path / "o", ".")["number"] == 3
    (tmp_path / "l.tif").symlink_to("l.tif")
    run(tmp_path / "p", tmp_path / "l.tif", code=3)


def test_masks_may_lie_beside_their_images(tmp_path, capsys):
    for name in ("a_raw", "b"):
        micrographs.write(tmp_path / f"{name}.tif", picture(DISCS))
        micrographs.write(tmp_path / f"{name[0]}_mask.tif", np.uint8(255) * (DISCS > 0))
    summary = run(tmp_path / "o", f"--images={tmp_path}", tmp_path)
    assert [row["image"] for row in summary["images"]] == ["a_mask.tif", "b_mask.tif"]
    said = capsys.readouterr().err
    assert "2 of 2 images have a mask of another name, such as b.tif and b_mask.tif" in said


def test_images_that_were_restored_beside_their_micrographs_count_once(tmp_path):
    mask = np.uint8(255) * (DISCS > 0)
    micrographs.write(tmp_path / "images/a.tif", mask)
    made = made_by.line({}, "restored", mask)
    micrographs.write(tmp_path / "images/denoised/a.tif", mask, software=made)
    inputs = measure.find_inputs([str(tmp_path / "images")], are_masks=True)
    assert [*inputs.values()] == ["a.tif"]
    micrographs.write(tmp_path / "images/denoised/other.tif", mask)  # one of which it is not
    alone = measure.find_inputs([str(tmp_path / "images/denoised")], are_masks=True)
    assert [*alone.values()] == ["a.tif", "other.tif"]
    (tmp_path / "images/denoised/other.tif").unlink()
    alone = measure.find_inputs([str(tmp_path / "images/denoised")], are_masks=True)
    assert [*alone.values()] == ["a.tif"]


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--masks", "--model=m"], "--model: only for micrographs"),
        (["--masks", "--range=1,2"], "--range: only for micrographs"),
        (["--masks", "--no_resample"], "--no_resample: only for micrographs"),
        (["--images=i"], "--images: only for masks"),
        (["--foreground=0"], "--foreground: only for masks"),
        (["--masks", "--split=0.3", "--no_split"], "--split and --no_split: expected one of them"),
        (["--masks", "--split=1"], "--split=1: expected the relative depth"),
        (["--masks", "--min_size=0"], "--min_size=0: expected a number of pixels"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, flags, words):
    with pytest.raises(UsageError, match=words):
        measure.main([*flags, f"--out={tmp_path}/o", "a.tif"])


def test_what_predict_wrote_next_to_masks_is_not_measured_too(tmp_path, capsys):
    folder = tmp_path / "predicted"
    for kind, pixels in {
        "mask": np.where(DISCS > 0, 255, 0).astype(np.uint8),
        "labels": DISCS.astype(np.uint16),
        "probability": np.where(DISCS > 0, 0.9, RNG.random(DISCS.shape)).astype(np.float32),
    }.items():
        name = "a.tif" if kind == "mask" else f"a.{kind}.tif"
        line = made_by.line({"model": "m"}, kind, pixels)
        micrographs.write(folder / name, pixels, 0.25, software=line)
    once = run(tmp_path / "out", folder)
    said = capsys.readouterr().err
    assert (
        "1 results of emjax in it are left out" in said and "left out, as 1 of 2 files are" in said
    )
    assert once["number"] == run(tmp_path / "one", folder / "a.tif")["number"]
    (folder / "a.tif").unlink()
    assert run(tmp_path / "labels", folder)["number"] == once["number"]


def test_classes_of_a_prediction_are_no_labels_and_are_measured_one_by_one(tmp_path, capsys):
    """Three particles of class 1, one of 2: labels of any other program would be two."""
    classes = np.zeros((64, 64), np.uint8)
    classes[DISCS > 0], classes[DISCS == 2] = 1, 2
    classes[63] = 0
    line = made_by.line({"options": {"cut_banner": True}}, "mask", classes)
    micrographs.write(tmp_path / "a.tif", classes, 0.25, software=line)
    assert run(tmp_path / "all", tmp_path / "a.tif", "--no_split")["number"] == 3  # two touch
    err = capsys.readouterr().err
    assert "all but 0 are particle; --foreground=VALUE measures one" in err
    assert "without what --cut_banner cut: particles that end there count as whole" in err
    for value, number in ((1, 3), (2, 1)):
        flags = (tmp_path / "a.tif", f"--foreground={value}", "--overwrite", "--no_split")
        assert run(tmp_path / str(value), *flags)["number"] == number
    assert run(tmp_path / "none", tmp_path / "a.tif", "--foreground=7")["number"] == 0
    assert "a.tif: no pixel is 7, the --foreground" in capsys.readouterr().err
    Image.fromarray(np.stack([classes, 0 * classes, classes], -1)).save(tmp_path / "c.png")
    run(tmp_path / "colours", tmp_path / "c.png", "--foreground=1", code=3)
    assert "c.png: has colours, but --foreground=1 is a grey value" in capsys.readouterr().err


def test_a_mask_of_fractions_is_one(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.float32(0.4) * (DISCS > 0))
    assert run(tmp_path / "out", tmp_path / "a.tif")["number"] == 3


def test_a_channel_is_that_of_the_images(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    channels = np.stack([np.full_like(DISCS, 7), 10 * DISCS + 40]).astype(np.uint8)
    tifffile.imwrite(images / "a.ome.tif", channels, metadata={"axes": "CYX"})
    tifffile.imwrite(tmp_path / "a_mask.tif", DISCS.astype(np.uint8))
    flags = (tmp_path / "a_mask.tif", f"--images={images}", "--channel=1")
    run(tmp_path / "out", *flags)
    assert [float(row["mean_grey"]) for row in rows(tmp_path / "out")] == [50, 60, 70, 80]


def test_a_mask_that_may_be_inverted_is_named(tmp_path, capsys):
    tifffile.imwrite(tmp_path / "a.tif", np.where(DISCS > 0, 0, 255).astype(np.uint8))
    run(tmp_path / "out", tmp_path / "a.tif")
    assert "a.tif: most of its pixels are particle" in capsys.readouterr().err


def test_images_that_belong_to_no_mask(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", (DISCS > 0).astype(np.uint8))
    (tmp_path / "images").mkdir()
    tifffile.imwrite(tmp_path / "images" / "x.tif", picture(DISCS))
    with pytest.raises(InputError, match="holds no image that is named like one of the masks"):
        run(tmp_path / "o", tmp_path / "a.tif", f"--images={tmp_path / 'images'}")


def test_measuring_masks_loads_no_jax(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", (DISCS > 0).astype(np.uint8))
    code = (
        "import sys; from emjax import measure; "
        f"measure.main(['--masks', '--out={tmp_path}/o', '{tmp_path}/a.tif']); "
        "print([name for name in ('jax', 'flax', 'jaxtyping') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
