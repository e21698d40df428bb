"""Files of any origin become records with the common features, or one line says why not."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorflow_datasets as tfds
import tifffile
from scipy import ndimage
from tensorflow_datasets.core import shuffle

from data_builders import build, common, export, writer
from emjax import cli, errors, micrographs
from emjax.files import lock_folder
from tests import format_samples

RNG = np.random.default_rng(1)


def grey(h=40, w=48, dtype=np.uint8):
    return RNG.integers(0, 200, (h, w)).astype(dtype)


def drawn(h=40, w=48):
    """Return a mask [h, w] of 0 and 1: one particle."""
    mask = np.zeros((h, w), np.uint8)
    mask[5:20, 5:20] = 1
    return mask


def write_all(folder, images):
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        tifffile.imwrite(folder / name, image, photometric="rgb" if image.ndim == 3 else None)
    return folder


def records_of(home, split):
    """Return {name: record} of a finished dataset, read by TFDS."""
    source = tfds.builder_from_directory(home / "1.0.0").as_data_source(split)
    return {record["name"].decode(): record for record in source}


def all_records(home):
    splits = json.loads((home / "1.0.0" / "card.json").read_text())["splits"]
    return {name: r for split in splits for name, r in records_of(home, split).items()}


def call(capsys, *argv):
    """Return (exit code, stdout, stderr) of `python -m data_builders.build *argv`."""
    with pytest.raises(SystemExit) as stopped:
        cli.run(build.main, [str(part) for part in argv])
    out, err = capsys.readouterr()
    return stopped.value.code or 0, out, err


@pytest.fixture
def built(tmp_path, capsys):
    """A function that builds `micrographs` with flags; it returns (card, records, stdout)."""

    def run(*argv, name="x"):
        argv = ("micrographs", f"--data_dir={tmp_path / 'data'}", f"--name={name}", *argv)
        code, out, err = call(capsys, *argv)
        assert code == 0, err
        home = tmp_path / "data" / "micrographs" / name
        card = json.loads((home / "1.0.0" / "card.json").read_text())
        return card, all_records(home), out

    return run


@pytest.fixture
def refused(tmp_path, capsys):
    """A function that calls the builder, expecting an exit code, one line and nothing left over."""

    def run(code, *argv, name="x"):
        argv = ("micrographs", f"--data_dir={tmp_path / 'data'}", f"--name={name}", *argv)
        got, out, err = call(capsys, *argv)
        last = err.splitlines()[-1]
        assert got == code and last.startswith("error: ") and "Traceback" not in err
        assert not (tmp_path / "data").exists()
        return last

    return run


def test_a_folder_becomes_whole_records(tmp_path, built):
    images = {f"{i}.tif": grey() for i in range(10)}
    source = write_all(tmp_path / "in", images)
    card, records, _ = built(f"--source={source}")
    assert card["splits"] == {"train": 7, "val": 1, "test": 2}
    assert card["shape"] == [40, 48] and card["dtype"] == "uint8" and card["targets"] == []
    assert sorted(record["index"] for record in records.values()) == list(range(10))
    for name, record in records.items():
        image = images[f"{name}.tif"]
        np.testing.assert_array_equal(record["image"][..., 0], image)
        expected = micrographs.intensity_range([image], "percentile")
        np.testing.assert_array_equal(record["intensity_range"], np.float32(expected))
        assert record["source"].decode() == f"{name}.tif" and np.isnan(record["nm_per_pixel"]).all()


def test_equal_stems_in_two_folders_keep_the_names_of_their_folders(tmp_path, built):
    write_all(tmp_path / "in" / "one", {"001.tif": grey()})
    write_all(tmp_path / "in" / "two", {"001.tif": grey()})
    _, records, _ = built(f"--source={tmp_path / 'in'}")
    assert sorted(records) == ["one/001", "two/001"]


def test_patches_cover_the_image_the_last_moved_inwards(tmp_path, built):
    image = grey(50, 70)
    source = write_all(tmp_path / "in", {"a.tif": image, "small.tif": grey(31, 90)})
    card, records, out = built(f"--source={source}", "--patch=32", "--left_out=0.5")
    assert card["shape"] == [32, 32] and card["splits"] == {"train": 6}
    assert sorted(records) == [f"a_y{y:04d}x{x:04d}" for y in (0, 18) for x in (0, 32, 38)]
    for name, record in records.items():
        y, x = int(name[3:7]), int(name[8:])
        np.testing.assert_array_equal(record["image"][..., 0], image[y : y + 32, x : x + 32])
    assert card["left_out"] == [[str(source / "small.tif"), "31x90, smaller than a patch"]]
    assert "small.tif: 31x90" in out and "empty     val" in out and "empty     test" in out


def test_targets_are_paired_by_stem_and_the_rest_is_named(tmp_path, built):
    masks = {f"{n}.tif": (grey() > 100) * np.uint8(255) for n in "abcdz"}
    images = {f"{n}.tif": grey() for n in "abcde"} | {"k.tif": np.full((40, 48), 9, np.uint8)}
    source = write_all(tmp_path / "in", images)
    (source / "text.tif").write_text("hello")
    write_all(source / "masks", {**masks, "k.tif": masks["a.tif"], "text.tif": masks["a.tif"]})
    clean = write_all(tmp_path / "clean", {n: i // 2 for n, i in images.items() if n != "d.tif"})
    card, records, out = built(
        f"--source={source}",
        f"--target=denoised={clean}",
        f"--target=mask={source / 'masks'}",
        "--left_out=0.4",
    )
    assert card["targets"] == ["mask", "denoised"] and sorted(records) == ["a", "b", "c"]
    for name, record in records.items():
        np.testing.assert_array_equal(record["image"][..., 0], images[f"{name}.tif"])
        np.testing.assert_array_equal(record["mask"][..., 0], masks[f"{name}.tif"] // 255)
        np.testing.assert_array_equal(record["denoised"][..., 0], images[f"{name}.tif"] // 2)
    reasons = {Path(path).name: reason for path, reason in card["left_out"]}
    assert reasons["d.tif"] == "no denoised of this stem"
    assert reasons["e.tif"] == "no mask of this stem"
    assert reasons["k.tif"] == "all pixels are 9"
    assert reasons["z.tif"] == "a mask without an image of this stem"
    assert reasons["text.tif"] == "no denoised of this stem"
    assert all(name in out for name in reasons)


def test_a_mixed_folder_of_formats_keeps_planes_and_pixel_sizes(tmp_path, built, capsys):
    source, masks = tmp_path / "in", tmp_path / "masks"
    stack = np.stack([grey(), grey(), grey()]).astype(np.uint16)
    source.mkdir()
    micrographs.write(source / "mrc.mrc", stack, (0.25, 0.5))
    micrographs.write(source / "zarr.zarr", stack[0], (2.0, 2.0))
    format_samples.dm(source / "dm.dm4", stack[1], version=4, scales=(0.1, 0.1), unit="µm")
    write_all(source, {"plain.tif": stack[2]})
    for path in source.iterdir():
        image = stack if path.stem == "mrc" else stack[0]
        micrographs.write(masks / f"{path.stem}.tif", (image > 100).astype(np.uint8))
    flags = f"--source={source}", "--mrc_rows=top"
    card, records, _ = built(*flags, f"--target=mask={masks}", "--patch=20")
    counts = {
        name: len([key for key in records if key.startswith(name)])
        for name in ("mrc_z0000", "mrc_z0002", "zarr", "dm", "plain")
    }
    assert set(counts.values()) == {6} and len(records) == 36 == sum(card["splits"].values())
    assert sorted(record["index"] for record in records.values()) == list(range(36))
    of_mrc = {record["source"] for name, record in records.items() if name.startswith("mrc")}
    assert of_mrc == {b"mrc.mrc"}
    one = records["mrc_z0001_y0020x0020"]
    np.testing.assert_array_equal(one["image"][..., 0], stack[1, 20:40, 20:40])
    np.testing.assert_array_equal(one["mask"][..., 0], stack[1, 20:40, 20:40] > 100)
    for name, expected in (("mrc_z0000", (0.25, 0.5)), ("zarr", (2, 2)), ("dm", (100, 100))):
        np.testing.assert_allclose(
            records[f"{name}_y0000x0000"]["nm_per_pixel"], expected, rtol=1e-6
        )
    assert np.isnan(records["plain_y0000x0000"]["nm_per_pixel"]).all()
    about_rows = "rows of 1 MRC file: the first at the top (--mrc_rows)"
    assert card["notes"][:2] == [
        "pixel sizes of 4 images: 1 from DM, 1 from MRC header, 1 unknown, 1 from OME-Zarr",
        about_rows,
    ]

    table = tmp_path / "table.csv"
    table.write_text("image,nm_per_pixel\nmrc.mrc,7\nzarr.zarr,\n")
    card, records, _ = built(*flags, f"--table={table}", name="y")
    sizes = {name: record["nm_per_pixel"][0] for name, record in records.items()}
    assert sizes == {"mrc_z0000": 7, "mrc_z0001": 7, "mrc_z0002": 7, "zarr": 2}
    assert card["notes"][:2] == [
        "pixel sizes of 2 images: 1 from the table, 1 from OME-Zarr",
        about_rows,
    ]


def test_a_micrograph_and_its_export_are_one_source(tmp_path, built):
    source, image = tmp_path / "in", grey()
    for name in ("a.mrc", "a.tif", "b.tif"):
        micrographs.write(source / name, image)
    _, records, _ = built(f"--source={source}", "--mrc_rows=top")
    found = {name: record["source"] for name, record in records.items()}
    assert found == {"a.mrc": b"a", "a.tif": b"a", "b.tif": b"b.tif"}


def test_a_micrograph_and_its_export_are_one_source_in_a_table_too(tmp_path, built):
    for name in ("a.mrc", "a.tif", "b.tif"):
        micrographs.write(tmp_path / "in" / name, grey())
    table = tmp_path / "t.csv"
    table.write_text("image\na.mrc\na.tif\nb.tif\n")
    _, records, _ = built(f"--source={tmp_path / 'in'}", f"--table={table}", "--mrc_rows=top")
    found = {name: record["source"] for name, record in records.items()}
    assert found == {"a.mrc": b"a", "a.tif": b"a", "b.tif": b"b.tif"}


def test_what_is_next_to_an_image_is_a_part_of_it(tmp_path, built, capsys):
    source = write_all(tmp_path / "in", {"a.tif": grey()})
    first = built(f"--source={source}")[0]["files_sha256"]
    (source / "a.mdoc").write_text("PixelSpacing = 15\nImageSize = 48 40\n")
    card, records, _ = built(f"--source={source}", name="y")
    assert card["files_sha256"] != first and records["a"]["nm_per_pixel"][0] == 1.5


@pytest.mark.parametrize(
    "cells", [("{at}/s1/i.tif", "{at}/s2/i.tif"), ("../in/s1/i.tif", "s2/i.tif")]
)
def test_records_are_named_by_paths_below_a_folder(tmp_path, built, cells):
    """Else an export would write beside the images, or over them."""
    source, images = tmp_path / "in", {}
    for name in ("s1", "s2"):
        write_all(source / name, {"i.tif": grey()})
        images[name] = (source / name / "i.tif").read_bytes()
    table = tmp_path / "t.csv"
    table.write_text("image\n" + "".join(cell.format(at=source) + "\n" for cell in cells))
    _, records, _ = built(f"--source={source}", f"--table={table}")
    assert all(not Path(name).is_absolute() and ".." not in name for name in records)
    assert all(name.endswith(("s1/i", "s2/i")) for name in records) and len(records) == 2
    out = tmp_path / "out"
    export.main(
        ["micrographs/x", f"--data_dir={tmp_path / 'data'}", "--split=train", f"--out={out}"]
    )
    assert {name: (source / name / "i.tif").read_bytes() for name in images} == images


def test_an_export_writes_nothing_outside_of_its_folder(tmp_path, monkeypatch):
    record = {"name": str(tmp_path / "a").encode(), "image": grey()[..., None], "index": 0}
    opened = [record], {"targets": [], "options": {}}, 1.0
    monkeypatch.setattr(export, "open_records", lambda *args: opened)
    with pytest.raises(errors.InputError, match="a path outside of --out"):
        export.main(["x", "--data_dir=d", "--split=train", f"--out={tmp_path / 'out'}"])
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("image", [grey(dtype=np.float32) + 500, grey(dtype=np.int16) + 500])
def test_a_fixed_range_that_nothing_is_in_is_refused(tmp_path, refused, image):
    source = write_all(tmp_path / "in", {"a.tif": image})
    said = refused(3, f"--source={source}", "--range=fixed")
    assert "expected about 0 to 1 for the fixed range" in said and "--range=percentile" in said


def test_another_memory_limit_is_another_build(tmp_path, built, capsys):
    source = write_all(tmp_path / "in", {"a.tif": grey(), "b.tif": grey()})
    card, _, _ = built(f"--source={source}")
    assert "memory_limit" not in card["options"]
    again = (f"--data_dir={tmp_path / 'data'}", "--name=x", f"--source={source}")
    code, _, err = call(capsys, "micrographs", *again, "--memory_limit=8")
    assert code and "memory_limit" in err


def test_targets_of_several_images_or_other_grey_values_are_named(tmp_path, refused):
    source = write_all(tmp_path / "in", {"a.tif": 10 * grey().astype(np.uint16) + 20000})
    target = write_all(tmp_path / "t", {"a.tif": grey()})
    said = refused(3, f"--source={source}", f"--target=denoised={target}")
    assert "expected both in one scale" in said
    (target / "a.tif").unlink()
    with h5py.File(target / "a.h5", "w") as file:
        file["one"], file["two"] = drawn(), drawn()
    said = refused(3, f"--source={source}", f"--target=mask={target}", "--index=0")
    assert "holds 2 images, expected one in a target" in said


def test_a_zarr_that_changed_is_another_source(tmp_path, built, capsys):
    source = tmp_path / "in"
    micrographs.write(source / "a.zarr", grey())
    first = built(f"--source={source}")[0]["files_sha256"]
    micrographs.write(source / "a.zarr", grey())
    assert built(f"--source={source}", name="y")[0]["files_sha256"] != first


def test_stacks_and_files_of_several_images_are_refused_where_one_is_expected(
    tmp_path, built, refused
):
    source = tmp_path / "in"
    micrographs.write(source / "a.mrc", np.stack([grey(), grey()]))
    micrographs.write(tmp_path / "masks" / "a.tif", np.stack([drawn()] * 3))
    flags = f"--source={source}", "--mrc_rows=top"
    line = refused(3, *flags, f"--target=mask={tmp_path / 'masks'}")
    assert "differ in their numbers of planes" in line
    with h5py.File(source / "b.h5", "w") as file:
        file["one"], file["two"] = grey(), grey()
    line = refused(3, *flags, "--left_out=0")
    assert "over the 0.0% that may be left out" in line and "choose one by --index" in line
    line = refused(3, *flags, "--memory_limit=0.000001", "--left_out=1")
    assert "raise --memory_limit" in line
    assert "expected GiB, more than 0" in refused(2, f"--source={source}", "--memory_limit=0")
    (source / "a.mrc").unlink()
    assert sorted(built(f"--source={source}", "--index=1")[1]) == ["b"]


def test_known_pixel_sizes_become_one(tmp_path, built):
    source = tmp_path / "in"
    fine, coarse = grey(80, 96), grey(40, 48, np.uint16)
    micrographs.write(source / "fine.tif", fine, (0.1, 0.2))
    micrographs.write(source / "coarse.mrc", coarse, (0.5, 0.5))
    micrographs.write(source / "far.tif", grey(), (0.9, 0.9))
    micrographs.write(source / "tiny.tif", grey(60, 60), (0.02, 0.02))
    write_all(source, {"unknown.tif": grey()})
    mask = np.zeros((80, 96), np.uint8)
    mask[:, 48:] = 1
    (tmp_path / "masks").mkdir()
    for name, shape in (("coarse", (40, 48)), ("far", (40, 48)), ("tiny", (60, 60))):
        tifffile.imwrite(tmp_path / "masks" / f"{name}.tif", drawn(*shape))
    tifffile.imwrite(tmp_path / "masks" / "unknown.tif", drawn())
    tifffile.imwrite(tmp_path / "masks" / "fine.tif", mask)
    flags = (f"--source={source}", f"--target=mask={tmp_path / 'masks'}", "--nm_per_pixel=0.2")
    flags += ("--mrc_rows=top",)
    card, records, _ = built(*flags, "--patch=40")
    assert card["options"]["nm_per_pixel"] == 0.2 and card["unusable"] == 0
    assert card["nm_per_pixel"]["unknown"] == 0
    np.testing.assert_allclose(card["nm_per_pixel"]["range"], [0.2, 0.2], rtol=1e-6)
    left = {Path(path).stem: reason for path, reason in card["left_out"]}
    assert left == {
        "far": "0.9 nm per pixel, to be magnified 4.5 times, expected at most 4",
        "tiny": "resampled to 6x6, smaller than a patch",
        "unknown": "its nm per pixel are not known; the table can state them",
    }
    assert len(records) == 3 + 3 * 3  # 40 x 96 and 100 x 120
    first = records["fine_y0000x0000"]
    expected = fine.reshape(40, 2, 96).mean(1)[:, :40]
    assert np.abs(first["image"][..., 0] - expected).max() <= 0.5
    assert records["fine_y0000x0040"]["mask"][..., 0].tolist() == [[0] * 8 + [1] * 32] * 40


def test_a_pixel_size_of_the_table_is_resampled_from(tmp_path, built, refused):
    source = write_all(tmp_path / "in", {"a.tif": grey(80, 96), "b.tif": grey()})
    (tmp_path / "t.csv").write_text("image,nm_per_pixel\na.tif,0.5 1\nb.tif,\n")
    flags = (f"--source={source}", f"--table={tmp_path / 't.csv'}")
    card, records, _ = built(*flags, "--nm_per_pixel=1")
    assert records["a"]["image"].shape == (40, 96, 1) and sorted(records) == ["a"]
    assert records["a"]["nm_per_pixel"].tolist() == [1, 1]
    assert "1 from the table" in card["notes"][0]
    shutil.rmtree(tmp_path / "data")
    line = refused(3, *flags, "--nm_per_pixel=1", "--memory_limit=0.00005")  # 53.7 kB
    assert "a.tif: resampled from 80x96 to 40x96, too large; raise --memory_limit" in line


def test_a_pretraining_set_is_curated(tmp_path, built, refused):
    flat = RNG.integers(99, 103, (64, 64)).astype(np.uint8)
    images = {f"{i}.tif": grey(64, 96) for i in range(10)}
    images["3.tif"][:, :64] = images["0.tif"][:, :64]
    images["4.tif"][:, 32:] = flat
    source = write_all(tmp_path / "in", images)
    card, records, out = built(f"--source={source}", "--patch=32", "--curate")
    whole, everything, _ = built(f"--source={source}", "--patch=32", name="whole")
    assert card["dropped"] == {"flat": 4, "saturated": 0, "strip": 0, "alike": 4}
    assert "dropped   flat 4, saturated 0, strip 0, alike 4" in out and whole["dropped"] == {}
    assert card["options"]["curate"]["flat"] == 0.02 and "curate" not in whole["options"]
    assert sum(card["splits"].values()) == sum(whole["splits"].values()) - 8 == 52
    assert card["unusable"] == 0 and card["left_out"] == []
    gone = {f"3_y{y:04d}x{x:04d}" for y in (0, 32) for x in (0, 32)}
    gone |= {f"4_y{y:04d}x{x:04d}" for y in (0, 32) for x in (32, 64)}
    assert everything.keys() - records.keys() == gone
    for name, record in records.items():
        assert record["index"] == everything[name]["index"]
        np.testing.assert_array_equal(record["image"], everything[name]["image"])
    home = tmp_path / "data" / "micrographs"
    assert sorted(p.name for p in home.rglob("*.png")) == ["dropped.png", "kept.png"]
    assert not any(found["records"] for found in card["near_duplicates"])
    shutil.rmtree(tmp_path / "data")
    for name in images:
        (source / name).unlink()
    write_all(source, {"a.tif": np.where(grey() > 99, 200, 0).astype(np.uint8)})
    line = refused(3, f"--source={source}", "--curate")
    assert "--curate drops all patches, 1 of them flat" in line


def write_volume(path, volume, nm):
    """Write an HDF5 volume [z, y, x] with its nm (z, y, x) as ImageJ states them; return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["volume"] = volume
        file["volume"].attrs["element_size_um"] = np.array(nm) / 1000
    return volume


def test_volumes_are_sliced_along_any_axis(tmp_path, built, refused, capsys):
    source = tmp_path / "in"
    volume = write_volume(source / "a.h5", grey(6 * 40, 48).reshape(6, 40, 48), (4, 2, 1))
    micrographs.write(source / "b.tif", volume, (2, 1))  # does not state the distance of planes
    flat = write_all(source, {"c.tif": grey()})
    masks = tmp_path / "masks"
    for name in "ab":
        micrographs.write(masks / f"{name}.tif", (volume > 100).astype(np.uint8))
    write_all(masks, {"c.tif": drawn()})
    (tmp_path / "t.csv").write_text(
        "image,mask,split\n"
        + "".join(f"{n},../masks/{n[0]}.tif,test\n" for n in ("a.h5", "b.tif", "c.tif"))
    )
    flags = (f"--source={flat}", f"--table={tmp_path / 't.csv'}")
    card, records, _ = built(*flags, "--axes=z,y,x")
    assert card["options"]["axes"] == "z,y,x"
    assert len(records) == 2 * (6 + 40 + 48) + 1 and card["unusable"] == 0
    expected = {
        "z": (volume, (2, 1)),
        "y": (volume.swapaxes(0, 1), (4, 1)),
        "x": (np.moveaxis(volume, 2, 0), (4, 2)),
    }
    for name in "ab":
        for axis, (planes, nm) in expected.items():
            for index in (0, len(planes) - 1):
                record = records[f"{name}_{axis}{index:04d}"]
                np.testing.assert_array_equal(record["image"][..., 0], planes[index])
                np.testing.assert_array_equal(record["mask"][..., 0], planes[index] > 100)
                nm = nm if name == "a" or axis == "z" else (np.nan, nm[1])
                np.testing.assert_allclose(record["nm_per_pixel"], nm, rtol=1e-5)
    assert card["notes"][1:3] == [
        f"slices along {axis} of 1 stacks: the distance of their planes is not known"
        for axis in "yx"
    ]
    assert sorted(r["index"] for r in records.values()) == list(range(len(records)))
    _, alone, _ = built(*flags, "--axes=x", name="alone")
    assert len(alone) == 2 * 48 + 1 and "c" in alone

    left, records, _ = built(*flags, "--axes=y,x", "--nm_per_pixel=1", name="one")
    why = "its nm per pixel are not known; the table can state them"
    assert [[path[-5:], why] for path, why in left["left_out"]] == [
        ["b.tif", f"slices along x: {why}"],
        ["b.tif", f"slices along y: {why}"],
        ["c.tif", why],
    ]
    assert {record["image"].shape for record in records.values()} == {(24, 48, 1), (24, 80, 1)}
    assert left["unusable"] == 0
    thin, records, _ = built(*flags, "--axes=z,y", "--patch=32", name="thin")
    assert [[Path(path).name, why] for path, why in thin["left_out"]] == [
        [name, "slices along y: 6x48, smaller than a patch"] for name in ("a.h5", "b.tif")
    ]
    assert thin["unusable"] == 0 and len(records) == (6 + 6 + 1) * 4
    shutil.rmtree(tmp_path / "data")
    line = refused(3, *flags, "--axes=y", "--memory_limit=0.00001")
    assert "11.5 kB, to be sliced along y or x, expected at most 10.7 kB; raise --mem" in line
    for bad in ("z,z", "w", ","):
        assert "expected some of z, y, x" in refused(2, *flags, f"--axes={bad}")


def test_a_table_states_the_distance_of_planes(tmp_path, built):
    source = tmp_path / "in"
    micrographs.write(source / "b.tif", grey(6 * 40, 48).reshape(6, 40, 48), (2, 1))
    (tmp_path / "t.csv").write_text("image,nm_per_pixel\nb.tif,3 5 7\n")
    _, records, _ = built(
        f"--source={source}", f"--table={tmp_path / 't.csv'}", "--axes=y,x,z", "--patch=6"
    )
    sizes = {name[:3]: tuple(record["nm_per_pixel"].tolist()) for name, record in records.items()}
    assert sizes == {"b_z": (5, 7), "b_y": (3, 7), "b_x": (3, 5)}


def test_an_unreadable_file_is_named_and_skipped(tmp_path, built):
    source = write_all(tmp_path / "in", {"a.tif": grey(), "b.tif": grey()})
    (source / "text.tif").write_text("hello")
    card, records, _ = built(f"--source={source}", "--left_out=0.4")
    assert sorted(records) == ["a", "b"] and card["unusable"] == 1
    [[path, reason]] = card["left_out"]
    assert path == str(source / "text.tif") and "no format that emjax reads" in reason


def test_foreground_says_what_a_mask_means(tmp_path, built, refused):
    source = write_all(tmp_path / "in", {"a.tif": grey()})
    values = RNG.integers(0, 3, (40, 48)).astype(np.uint8)
    write_all(tmp_path / "grey", {"a.tif": values})
    palette = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 1]], np.uint8)
    write_all(tmp_path / "colour", {"a.tif": palette[values]})

    def mask(folder, foreground, name):
        flags = (f"--source={source}", f"--target=mask={tmp_path / folder}")
        _, records, _ = built(*flags, f"--foreground={foreground}", name=name)
        return records["a"]["mask"][..., 0]

    for i, folder in enumerate(("grey", "colour")):
        np.testing.assert_array_equal(mask(folder, "nonzero", f"n{i}"), values > 0)
    np.testing.assert_array_equal(mask("grey", "2", "v"), values == 2)
    np.testing.assert_array_equal(mask("colour", "255,0,0", "c"), values == 1)


@pytest.mark.parametrize("rule", ["percentile", "sigma", "fixed"])
def test_ranges_are_taken_before_cutting(tmp_path, built, rule):
    images = {"a": grey(64, 64), "b": grey(64, 64) // 2, "c": grey(64, 64) // 3}
    source = write_all(tmp_path / "in", {f"{n}.tif": image for n, image in images.items()})
    table = tmp_path / "t.csv"
    table.write_text("image,source\na.tif,one\nb.tif,one\nc.tif,two\n")
    _, records, _ = built(f"--source={source}", f"--table={table}", f"--range={rule}", "--patch=32")
    for name, record in records.items():
        together = {"a": "ab", "b": "ab", "c": "c"}[name[0]] if rule == "percentile" else name[0]
        expected = micrographs.intensity_range([images[n] for n in together], rule)
        np.testing.assert_array_equal(record["intensity_range"], np.float32(expected))


def test_mixed_dtypes_become_float32(tmp_path, built):
    images = {
        "a.tif": grey(),
        "b.tif": grey(dtype=np.uint16) * 100,
        "c.tif": grey() / np.float32(3),
    }
    source = write_all(tmp_path / "in", images)
    card, records, _ = built(f"--source={source}")
    assert card["dtype"] == "float32"
    for name, record in records.items():
        assert record["image"].dtype == np.float32
        np.testing.assert_array_equal(record["image"][..., 0], images[f"{name}.tif"])


def test_a_table_gives_source_split_and_pixel_size(tmp_path, built):
    source = write_all(tmp_path / "in", {f"{n}.tif": grey() for n in "abcd"})
    write_all(source / "m", {f"m{n}.tif": drawn() for n in "abcd"})
    table = tmp_path / "t.csv"
    table.write_text(
        "image,mask,denoised,source,split,nm_per_pixel\n"
        "a.tif,m/ma.tif,,s1,train,0.5\n"
        "b.tif,m/mb.tif,b.tif,s1,train,0.2 0.4\n"
        "c.tif,m/mc.tif,c.tif,,val,\n"
        "d.tif,,d.tif,,test,1\n"
        "gone.tif,m/ma.tif,,s9,test,1\n"
    )
    flags = (f"--source={source}", f"--table={table}", "--left_out=0.3")
    card, records, _ = built(*flags, "--target=mask", name="masks")
    assert card["targets"] == ["mask"] and card["splits"] == {"train": 2, "val": 1}
    assert records["a"]["source"] == b"s1" and records["c"]["source"] == b"c.tif"
    np.testing.assert_allclose(records["a"]["nm_per_pixel"], [0.5, 0.5])
    np.testing.assert_allclose(records["b"]["nm_per_pixel"], [0.2, 0.4])
    np.testing.assert_allclose(card["nm_per_pixel"]["range"], [0.2, 0.5])
    assert card["nm_per_pixel"]["unknown"] == 1
    reasons = {Path(path).name: reason for path, reason in card["left_out"]}
    assert reasons["d.tif"] == "no mask in the table" and "No such file" in reasons["gone.tif"]

    card, records, _ = built(*flags, name="both")
    assert card["targets"] == ["mask", "denoised"] and sorted(records) == ["b", "c"]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("picture\na.tif\n", "no column 'image'"),
        ("image\n", "lists no image"),
        ("image,mask\na.tif,x\n,x\n,y\n", "line 3: the cell image is empty"),
        ("image,split\na.tif,training\n", "split 'training', expected one of train, val, test"),
        ("image,source,split\na.tif,s,train\nb.tif,s,val\n", "source s is in train and in val"),
        ("image\na.tif\na.tif\n", "a.tif is in line 2 already"),
        ("image,nm_per_pixel\na.tif,-1\n", "nm_per_pixel '-1'"),
        ("image,mask\na.tif,\n", "no image can be used; 1 left out"),
        (None, "No such file"),
    ],
)
def test_bad_tables_are_refused(tmp_path, refused, text, expected):
    source = write_all(tmp_path / "in", {"a.tif": grey(), "b.tif": grey()})
    table = tmp_path / "t.csv"
    if text is not None:
        table.write_text(text)
    assert expected in refused(3, f"--source={source}", f"--table={table}")


def test_a_table_without_a_picked_column_is_refused(tmp_path, refused):
    source = write_all(tmp_path / "in", {"a.tif": grey()})
    (tmp_path / "t.csv").write_text("image\na.tif\n")
    line = refused(3, f"--source={source}", f"--table={tmp_path / 't.csv'}", "--target=mask")
    assert "no column 'mask'; it has image" in line


def test_a_mask_of_another_size_is_refused(tmp_path, refused):
    source = write_all(tmp_path / "in", {"a.tif": grey(40, 48), "b.tif": grey(40, 48)})
    masks = write_all(tmp_path / "m", {"a.tif": drawn(40, 48), "b.tif": drawn(41, 48)})
    line = refused(3, f"--source={source}", f"--target=mask={masks}")
    for part in (masks / "b.tif", source / "b.tif", "41x48", "40x48"):
        assert str(part) in line


def test_sizes_may_differ_in_test_but_not_in_train(tmp_path, built, refused):
    source = write_all(tmp_path / "in", {"a.tif": grey(40, 48), "b.tif": grey(32, 56)})
    table = tmp_path / "t.csv"
    table.write_text("image,split\na.tif,train\nb.tif,train\n")
    line = refused(3, f"--source={source}", f"--table={table}")
    assert "40x48 (1)" in line and "32x56 (1)" in line and "--patch=SIZE" in line
    table.write_text("image,split\na.tif,train\nb.tif,test\n")
    card, records, _ = built(f"--source={source}", f"--table={table}")
    assert card["shape"] is None
    assert records["a"]["image"].shape == (40, 48, 1) and records["b"]["image"].shape == (32, 56, 1)


def make_empty(folder):
    return "holds no micrograph"


def make_constant(folder):
    write_all(folder, {"k.tif": np.full((9, 9), 3, np.uint8)})
    return "no image can be used; 1 left out, "


def make_text(folder):
    (folder / "t.tif").write_text("hello")
    return "no format that emjax reads"


def make_nowhere(folder):
    folder.rmdir()
    return "is not a folder"


@pytest.mark.parametrize("make", [make_empty, make_constant, make_text, make_nowhere])
def test_folders_without_anything_to_use_are_refused(tmp_path, refused, make):
    folder = tmp_path / "in"
    folder.mkdir()
    expected = make(folder)
    line = refused(3, f"--source={folder}")
    assert expected in line and str(folder) in line


def test_two_files_of_one_stem_are_refused_where_masks_are_paired_by_it(tmp_path, refused):
    source = write_all(tmp_path / "in", {"a.tif": grey(), "a.tiff": grey()})
    masks = write_all(tmp_path / "m", {"a.tif": grey()})
    line = refused(3, f"--source={source}", f"--target=mask={masks}")
    assert "a.tif and" in line and "a.tiff" in line


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--patch=0"], "--patch=0"),
        (["--patch=big"], "invalid int value: 'big'"),
        (["--nm_per_pixel=-1"], "--nm_per_pixel=-1.0, expected more than 0 nm"),
        (["--range=minmax"], "invalid choice: 'minmax'"),
        (["--target=masks=."], "no target 'masks'; there are: background_removed"),
        (["--target=mask"], "--target=mask picks a column"),
        (["--target=mask=.", "--table=t.csv"], "its column names the files"),
        (["--target=mask=.", "--target=mask=m"], "expected each at most once"),
        (["--foreground=3"], "there is no mask"),
        (["--foreground=red"], "--foreground=red, expected nonzero, a value, or a colour"),
        (["--pach=3"], "unrecognized arguments: --pach=3"),
    ],
)
def test_usage_errors_are_one_line(tmp_path, refused, flags, expected):
    source = write_all(tmp_path / "in", {"a.tif": grey()})
    assert expected in refused(2, f"--source={source}", *flags)
    if flags == ["--patch=0"]:
        assert "--name='1.0.0'" in refused(2, f"--source={source}", name="1.0.0")


def test_a_foreground_that_no_mask_has_is_refused(tmp_path, refused):
    source = write_all(tmp_path / "in", {"a.tif": grey()})
    masks = write_all(tmp_path / "m", {"a.tif": grey() // 2})
    flags = (f"--source={source}", f"--target=mask={masks}")
    assert "no mask has a pixel of foreground=255" in refused(3, *flags, "--foreground=255")
    write_all(masks, {"a.tif": np.stack([grey()] * 2 + [grey()], -1)})
    assert "a mask in colours, expected --foreground=R,G,B" in refused(3, *flags, "--foreground=7")


def test_a_name_is_built_once_and_never_from_something_else(tmp_path, capsys):
    source = write_all(tmp_path / "in", {"a.tif": grey(), "b.tif": grey()})
    flags = ("micrographs", f"--data_dir={tmp_path}", f"--source={source}", "--name=x")
    assert call(capsys, *flags)[0] == 0
    home = tmp_path / "micrographs" / "x"
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    code, out, _ = call(capsys, *flags)
    assert code == 0 and "already built" in out
    code, _, err = call(capsys, *flags, "--patch=16")
    assert code == 3 and err == (
        f"error: {home} exists, built with patch=None; this call has patch=16. "
        "Choose another --name or delete it.\n"
    )
    write_all(source, {"c.tif": grey()})
    code, _, err = call(capsys, *flags)
    assert code == 3 and "files=" in err.split(";")[0] and "files=" in err.split(";")[1]
    assert before == {path: path.stat().st_mtime_ns for path in home.rglob("*")}


def test_building_and_reading_leave_no_temporary_files(tmp_path, capsys, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    source = write_all(tmp_path / "in", {"a.tif": grey(), "b.tif": grey()})
    assert call(capsys, "micrographs", f"--data_dir={tmp_path}", f"--source={source}")[0] == 0
    assert sorted(all_records(tmp_path / "micrographs")) == ["a", "b"]
    assert list(temporary.iterdir()) == []


def test_named_and_plain_collections_can_both_be_built(tmp_path, capsys):
    source = write_all(tmp_path / "in", {"a.tif": grey(), "b.tif": grey()})
    flags = ("micrographs", f"--data_dir={tmp_path}", f"--source={source}")
    assert call(capsys, *flags, "--name=x")[0] == 0
    assert call(capsys, *flags)[0] == 0
    assert sorted(all_records(tmp_path / "micrographs")) == ["a", "b"]
    assert sorted(all_records(tmp_path / "micrographs" / "x")) == ["a", "b"]


def test_a_build_that_fails_or_is_killed_leaves_nothing_that_blocks(tmp_path, capsys, monkeypatch):
    source = write_all(tmp_path / "in", {"a.tif": grey(), "b.tif": grey()})
    data = tmp_path / "data"
    flags = ("micrographs", f"--data_dir={data}", f"--source={source}", "--name=x")

    def fails(self, split):
        raise RuntimeError("the power went")

    with monkeypatch.context() as patched:
        patched.setattr(build.Micrographs, "records", fails)
        with pytest.raises(RuntimeError, match="the power went"):
            build.main(list(flags))
    assert not data.exists()

    leftover = data / "micrographs" / "x" / ".building-1" / "records"
    leftover.mkdir(parents=True)
    assert call(capsys, *flags)[0] == 0
    assert [path.name for path in (data / "micrographs" / "x").iterdir()] == ["1.0.0"]


def test_two_builds_of_one_name_at_once(tmp_path, capsys):
    source = write_all(tmp_path / "in", {"a.tif": grey(), "b.tif": grey()})
    home = tmp_path / "micrographs"
    home.mkdir()
    with lock_folder(home, ""):
        code, _, err = call(capsys, "micrographs", f"--data_dir={tmp_path}", f"--source={source}")
    assert code == 3 and "is in use by another process; it is being built; wait" in err


def test_splits_go_by_the_hash_of_the_source():
    names = [f"s{i}" for i in range(100)]
    split_of = common.split_by_source(names)
    assert [list(split_of.values()).count(split) for split in common.SPLITS] == [70, 10, 20]
    assert split_of == common.split_by_source(reversed(names))
    assert set(common.split_by_source(["one"]).values()) == {"train"}


def test_exported_records_build_the_same_records(tmp_path, built, capsys):
    images = {f"{i}.tif": grey(dtype=np.uint16) for i in range(10)}
    source = write_all(tmp_path / "in", images)
    masks = write_all(tmp_path / "m", {name: image > 90 for name, image in images.items()})
    _, first, _ = built(f"--source={source}", f"--target=mask={masks}", "--patch=24", name="one")
    out = tmp_path / "out"
    for split in common.SPLITS:
        export.main(
            [
                "micrographs/one",
                f"--data_dir={tmp_path / 'data'}",
                f"--split={split}",
                f"--out={out}",
            ]
        )
    _, again, _ = built(f"--source={out / 'image'}", f"--target=mask={out / 'mask'}", name="two")
    assert first.keys() == again.keys() and len(first) == 40
    for name, record in first.items():
        np.testing.assert_array_equal(again[name]["image"], record["image"])
        np.testing.assert_array_equal(again[name]["mask"], record["mask"])
    assert set(np.unique(micrographs.read(out / "mask" / "0_y0000x0000.tif").image)) == {0, 255}

    few = ["micrographs/one", f"--data_dir={tmp_path / 'data'}", "--split=train"]
    export.main([*few, f"--out={tmp_path / 'few'}", "--first=3"])
    assert len(list((tmp_path / "few" / "image").iterdir())) == 3
    with pytest.raises(errors.InputError, match="no split 'tset' of it.*It has: train"):
        export.main([*few[:2], "--split=tset", f"--out={out}"])
    with pytest.raises(errors.InputError, match="three' is not built. Build it: python -m"):
        export.main(["micrographs/three", *few[1:], f"--out={out}"])


@pytest.mark.parametrize("module", ["build", "export"])
def test_the_command_lines_run(module, tmp_path):
    command = [sys.executable, "-m", f"data_builders.{module}"]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and module in done.stdout
    done = subprocess.run([*command, "nope", "--data_dir=x"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1


@pytest.fixture
def real():
    folder = os.environ.get("EMJAX_REAL_DATA")
    if not folder:
        pytest.skip("needs real micrographs: EMJAX_REAL_DATA is not set")
    return Path(folder)


@pytest.mark.parametrize(
    "table, foreground, splits, fraction",
    [
        ("np_sintering", "nonzero", {"train": 12, "val": 4, "test": 4}, (0.13, 0.23)),
        ("au_patchy_nanoprism", "255,0,0", {"train": 4, "val": 2, "test": 2}, (0.05, 0.35)),
        ("pt_alumina", "2", {"train": 31, "val": 4, "test": 10}, (0, 0.02)),
    ],
)
def test_real_tables(real, built, table, foreground, splits, fraction):
    card, records, _ = built(
        f"--source={real}",
        f"--table={real / 'tables' / f'{table}.csv'}",
        f"--foreground={foreground}",
    )
    assert card["splits"] == splits and card["left_out"] == []
    covered = [record["mask"].mean() for record in records.values()]
    assert fraction[0] <= min(covered) and max(covered) <= fraction[1]


def test_real_patches_are_curated(real, built):
    """The counts of docs/reference/micrographs.md; decoders may change them a little."""
    for table, expected in (
        ("emps", {"flat": 196, "saturated": 17, "strip": 14, "alike": 12}),
        ("pt_alumina", {"flat": 201, "saturated": 9, "strip": 9, "alike": 108}),
        ("np_sintering", {"flat": 0, "saturated": 0, "strip": 0, "alike": 0}),
    ):
        flags = (f"--source={real}", f"--table={real / 'tables' / f'{table}.csv'}", "--patch=128")
        card, records, _ = built(*flags, "--curate", name=table)
        assert all(abs(card["dropped"][reason] - n) <= 0.1 * n for reason, n in expected.items())
        assert len(records) == sum(card["splits"].values())
        # Curation compares views as they are; a few flipped or turned ones look alike.
        assert all(found["records"] <= 0.02 * found["of"] for found in card["near_duplicates"])


def test_a_real_table_of_many_sizes_needs_a_patch(real, refused):
    line = refused(3, f"--source={real}", f"--table={real / 'tables' / 'emps.csv'}")
    assert "train has images of 56 sizes" in line and "the shortest side is 512" in line


def files_of(folder):
    """Return {path below `folder`: content} of all files."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def limited_build(limit, *argv):
    """Return the finished process of a build that may write no file above `limit` bytes."""
    code = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "from data_builders import build; from emjax import cli\n"
        "cli.run(build.main, sys.argv[1:])"
    )
    line = [sys.executable, "-c", code, *argv]
    return subprocess.run(line, capture_output=True, text=True, timeout=120)


SIMULATED = ("simulated/nanoparticles", "--patch=32", "--records=40")


def test_rebuilding_gives_the_same_bytes_in_memory_or_not(tmp_path, monkeypatch):
    build.main([*SIMULATED, f"--data_dir={tmp_path / 'one'}"])
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 1 << 13)  # a fraction of a split
    build.main([*SIMULATED, f"--data_dir={tmp_path / 'two'}"])
    done = limited_build(1 << 30, *SIMULATED, f"--data_dir={tmp_path / 'three'}")  # other process
    assert done.returncode == 0, done.stderr
    first = files_of(tmp_path / "one")
    assert sum("array_record" in name for name in first) == 3
    assert first == files_of(tmp_path / "two") == files_of(tmp_path / "three")


def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path):
    data = tmp_path / "data"
    done = limited_build(20_000, *SIMULATED, f"--data_dir={data}")
    assert done.returncode == 3 and done.stderr == (
        f"error: {data / 'simulated' / 'nanoparticles'}: File too large; expected a folder "
        "to write to, with room for the records\n"
    )
    assert not data.exists()


def test_a_killed_build_leaves_nothing_that_looks_finished(tmp_path):
    home = tmp_path / "simulated" / "nanoparticles"
    line = [sys.executable, "-m", "data_builders.build", *SIMULATED[:2], f"--data_dir={tmp_path}"]
    running = subprocess.Popen([*line, "--records=100000"], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(home.glob(".building-*/*.names")) and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert list(home.glob(".building-*")) and not (home / "1.0.0").exists()
    build.main([*SIMULATED, f"--data_dir={tmp_path}"])
    assert [path.name for path in home.iterdir()] == ["1.0.0"]


@pytest.mark.parametrize("there", [".", "simulated/nanoparticles"])
def test_a_read_only_target_is_one_error(capsys, there):
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        (data / there).mkdir(parents=True, exist_ok=True)
        data.chmod(0o555)
        (data / there).chmod(0o555)
        with as_nobody():
            code, _, err = call(capsys, *SIMULATED, f"--data_dir={data}")
        assert code == 3 and err == (
            f"error: {data / 'simulated' / 'nanoparticles'}: Permission denied; "
            "expected a folder to write to, with room for the records\n"
        )
        assert not files_of(data)
        data.chmod(0o755)


@contextlib.contextmanager
def as_nobody():
    """Root may write to read-only folders too, so become another user."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_names_may_have_spaces_and_letters_of_any_language(tmp_path, built):
    names = ["Größe 5 nm", "試料 7", "a\tb"]
    source = write_all(tmp_path / "été 2026", {f"{name}.tif": grey() for name in names})
    card, records, out = built(f"--source={source}")
    assert sorted(records) == sorted(names)
    assert {r["source"].decode() for r in records.values()} == {f"{name}.tif" for name in names}
    assert card["left_out"] == []


def test_a_build_stops_when_too_many_files_cannot_be_used(tmp_path, built, refused):
    source = write_all(tmp_path / "in", {f"{i:02d}.tif": grey() for i in range(19)})
    (source / "bad.tif").write_bytes((source / "00.tif").read_bytes()[:100])  # truncated
    card, *_ = built(f"--source={source}")  # 1 of 20
    assert card["unusable"] == 1 and card["left_out"][0][0] == str(source / "bad.tif")
    write_all(source, {"19.tif": np.full((40, 48), 9, np.uint8)})
    shutil.rmtree(tmp_path / "data")
    line = refused(3, f"--source={source}")
    assert line.startswith(
        "error: micrographs/x: 2 of 21 images cannot be used, over the 5.0% that"
    )
    assert "19.tif: all pixels are 9; " in line and line.endswith("or raise --left_out")
    assert "--left_out=2.0, expected a share from 0 to 1" in refused(
        2, f"--source={source}", "--left_out=2"
    )


def test_a_file_that_breaks_while_it_is_written_counts_too(tmp_path, monkeypatch, capsys):
    records = build.Nanoparticles.records

    def some(self, split):
        for record in records(self, split):
            yield writer.Skipped(record["name"], "gone") if record["index"] % 8 == 3 else record

    prepare = build.Nanoparticles.prepare
    monkeypatch.setattr(build.Nanoparticles, "records", some)
    monkeypatch.setattr(
        build.Nanoparticles, "prepare", lambda self: prepare(self)._replace(images=40)
    )
    flags = (*SIMULATED, f"--data_dir={tmp_path}")
    code, _, err = call(capsys, *flags)
    assert code == 3 and "3 of 40 images cannot be used, over the 5.0%" in err
    assert not list(tmp_path.iterdir())
    code, out, _ = call(capsys, *flags, "--left_out=0.2")
    card = common.read_card(tmp_path / "simulated" / "nanoparticles")
    assert code == 0 and sum(card["splits"].values()) == 35 and card["unusable"] == 5
    assert "nanoparticles_00003: gone" in out
    monkeypatch.setattr(
        build.Nanoparticles,
        "records",
        lambda self, split: (writer.Skipped(r["name"], "gone") for r in records(self, split)),
    )
    code, _, err = call(capsys, *SIMULATED, f"--data_dir={tmp_path / 'b'}", "--left_out=1")
    assert code == 3 and "nothing is left of the split train; nanoparticles_" in err


def test_what_a_build_says_of_few_odd_and_oddly_named_images(tmp_path, built):
    """Two pairs beside each other: one with hot pixels, one with a banner; each a note."""
    hot = np.full((64, 80), 100, np.uint16) + RNG.integers(0, 50, (64, 80), np.uint16)
    bannered = hot.copy()
    hot.ravel()[RNG.permutation(hot.size)[:15]] = 65535
    bannered[52:] = 0
    mask = drawn(64, 80)
    images = {"a.tif": hot, "b.tif": bannered, "a_mask.tif": mask, "b_mask.tif": mask}
    source = write_all(tmp_path / "in", images)
    flags = f"--source={source}", f"--target=mask={source}"
    card, records, out = built(*flags)
    assert card["splits"] == {"train": 1, "val": 1} and sorted(records) == ["a", "b"]
    assert records["a"]["intensity_range"][1] < 160
    notes = "\n".join(card["notes"])
    for part in (
        "2 of 2 images have a mask of another name, such as a.tif and a_mask.tif",
        "2 sources to split: train 1, val 1, test 0; scores of so few depend",
        "hot or dead pixels, up to 0.29 %, do not count in 1 of 2 intensity ranges: a.tif",
        "is in 1 of 2 images; --cut_banner leaves it out: b (rows 52 to 63)",
    ):
        assert part in notes and part in out
    card, records, _ = built(*flags, "--cut_banner", name="cut")
    assert records["b"]["image"].shape == records["b"]["mask"].shape == (52, 80, 1)
    assert records["a"]["image"].shape == (64, 80, 1) and card["options"]["cut_banner"]
    assert "banner" not in "\n".join(card["notes"])


def test_a_mask_drawn_without_the_banner_fits_the_image_without_it(tmp_path, built, refused):
    image = grey(64, 80)
    image[52:] = 255
    source = write_all(tmp_path / "in", {"a.tif": image})
    flags = (
        f"--source={source}",
        f"--target=mask={write_all(tmp_path / 'm', {'a.tif': drawn(52, 80)})}",
    )
    assert "is 52x80, expected the size of its image" in refused(3, *flags)
    _, records, _ = built(*flags, "--cut_banner")
    np.testing.assert_array_equal(records["a"]["image"][..., 0], image[:52])


def test_one_of_several_channels_is_built(tmp_path, built, refused):
    (tmp_path / "in").mkdir()
    both = np.stack([grey(), grey()])
    names = {"axes": "CYX", "Channel": {"Name": ["SE", "BSE"]}}
    tifffile.imwrite(tmp_path / "in" / "a.ome.tif", both, metadata=names)
    flags = [f"--source={tmp_path / 'in'}"]
    line = refused(3, *flags)
    assert "channel SE 40x48 uint8" in line and "by --index or --channel" in line
    card, records, _ = built(*flags, "--channel=BSE")
    np.testing.assert_array_equal(records["a.ome"]["image"][..., 0], both[1])
    assert card["options"]["channel"] == "BSE"


def test_views_that_come_in_two_splits_are_reported(tmp_path, built):
    images = {f"{i:02d}": ndimage.gaussian_filter(RNG.normal(size=(80, 90)), 5) for i in range(30)}
    split_of = common.split_by_source(f"{name}.tif" for name in images)
    train, val, test = ([n for n in images if split_of[f"{n}.tif"] == s] for s in common.SPLITS)
    images[val[1]] = 2 * images[train[3]] + 1
    images[test[2]] = images[train[4]] + RNG.normal(0, 1e-4, (80, 90))
    images[test[4]] = images[val[0]].T[:, ::-1]
    files = {f"{name}.tif": image.astype(np.float32) for name, image in images.items()}
    card, _, out = built(f"--source={write_all(tmp_path / 'in', files)}")
    found = {tuple(entry.pop("splits")): entry for entry in card["near_duplicates"]}
    assert found == {
        ("train", "val"): {"records": 1, "of": 3, "first": [[train[3], val[1]]]},
        ("train", "test"): {"records": 1, "of": 6, "first": [[train[4], test[2]]]},
        ("val", "test"): {"records": 1, "of": 6, "first": [[val[0], test[4]]]},
    }
    assert f"1 of 3 in val look like one in train: {val[1]} ~ {train[3]}" in out


def test_a_card_says_where_the_records_come_from_and_what_made_them(tmp_path, capsys):
    for name, builder in build.BUILDERS.items():
        assert all(builder.about), name
    code, out, _ = call(capsys, *SIMULATED, f"--data_dir={tmp_path}")
    card = common.read_card(tmp_path / "simulated" / "nanoparticles")
    assert code == 0 and card["about"] == build.Nanoparticles.about._asdict()
    assert card["nm_per_pixel"] == {"range": [float(np.float32(0.06))] * 2, "unknown": 0}
    assert card["versions"]["numpy"] == np.__version__ and card["unusable"] == 0
    for part in ("simulated by emjax", "Apache-2.0", "0.06 nm", "records=40", "no records of diff"):
        assert part in out
