"""Which row of an MRC file is the top one: reading, predicting, building."""

import json
import struct

import jax
import mrcfile
import numpy as np
import optax
import pytest
import tifffile

from data_builders import build, export
from data_builders.micrographs import rows
from data_builders.micrographs.rows import agreement
from emjax import micrographs, predict
from emjax.errors import InputError, UsageError
from emjax.micrographs import reading
from emjax.models import saved
from emjax.models.build import create
from tests import format_samples

RNG = np.random.default_rng(0)
STACK = RNG.integers(0, 60_000, (3, 24, 20)).astype(np.uint16)


@pytest.fixture(autouse=True)
def rows_are_noted_again():
    reading._note_rows.cache_clear()


def test_rows_keep_the_order_of_mrcfile_and_a_note_says_so_once(tmp_path, caplog):
    for name in ("a.mrc", "b.mrc"):
        mrcfile.write(tmp_path / name, STACK)
        found = micrographs.read_stack(tmp_path / name).image
        assert np.array_equal(found, mrcfile.read(tmp_path / name))
    assert caplog.text.count("MRC files: their rows keep the order") == 1
    micrographs.write(tmp_path / "c.mrc", found)
    assert np.array_equal(mrcfile.read(tmp_path / "c.mrc"), STACK)


@pytest.mark.parametrize("axis", ["z", "y", "x"])
def test_mrc_rows_turns_the_y_axis_over(tmp_path, caplog, axis):
    mrcfile.write(tmp_path / "a.mrc", STACK)
    found = micrographs.planes(tmp_path / "a.mrc", axis=axis, mrc_rows="bottom")
    turned = np.moveaxis(STACK[:, ::-1], "zyx".index(axis), 0)
    assert np.array_equal([plane.image for plane in found], turned)
    found = micrographs.read_stack(tmp_path / "a.mrc", mrc_rows="top").image
    assert np.array_equal(found, STACK) and "rows" not in caplog.text
    assert np.array_equal(
        micrographs.read_stack(tmp_path / "a.mrc", mrc_rows="bottom").image, STACK[:, ::-1]
    )
    with pytest.raises(UsageError, match="expected 'top' or 'bottom'"):
        micrographs.read_stack(tmp_path / "a.mrc", mrc_rows="left")


def with_header(path, at, form, *values):
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, at, *values)
    path.write_bytes(content)


@pytest.mark.parametrize("said_by", ["FEI1", "FEI2", "MAPR"])
def test_headers_that_say_it_themselves_decide(tmp_path, caplog, said_by):
    path = tmp_path / "a.mrc"
    mrcfile.write(path, STACK)
    assert not micrographs.top_row_is_stated(path)
    if said_by == "MAPR":
        with_header(path, 68, "<i", -2)
    else:
        with_header(path, 104, "4s", said_by.encode())
    assert micrographs.top_row_is_stated(path)
    found = micrographs.read_stack(path, mrc_rows="bottom").image
    assert np.array_equal(found, STACK)
    assert np.array_equal(micrographs.read_stack(path).image, STACK) and not caplog.text
    with_header(path, 152, "<2i", 1146047817, 0)  # IMOD writes its own files the other way
    assert not micrographs.top_row_is_stated(path)


def test_other_formats_are_not_turned(tmp_path):
    paths = format_samples.write_all(tmp_path)
    for path in paths.values():
        if "mrc" not in path.name:
            assert micrographs.top_row_is_stated(path)
            first, second = (
                next(micrographs.planes(path, mrc_rows=rows)) for rows in ("top", "bottom")
            )
            assert np.array_equal(first.image, second.image)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    fields = dict(name="unet", blocks=2, receptive_field=44)
    network = create(fields, optax.sgd(1.0), key=jax.random.key(0))
    saved.write(folder / "model", network, dict(model=fields, task=None, range_rule="percentile"))
    return folder


@pytest.mark.parametrize("size", [None, 0.5])
def test_a_result_has_the_rows_that_mrc_rows_asks_for(model, tmp_path, capsys, size):
    micrographs.write(tmp_path / "a.mrc", STACK, size)
    micrographs.write(tmp_path / "b.tif", STACK[:, ::-1], size)

    def result(name, *flags):
        out = tmp_path / "out"
        predict.main([f"--model={model}", f"--out={out}", *flags, str(tmp_path / name)])
        (written,) = out.glob("*.tif")
        with tifffile.TiffFile(written) as file:
            kept = str(file.imagej_metadata) + str(file.pages.first.description)
        image = tifffile.imread(written)
        written.unlink()
        return image, kept, capsys.readouterr()

    top, kept, said = result("a.mrc")
    assert "note: MRC files: their first row becomes the top row" in said.err
    assert "--mrc_rows=top" in kept and "first row of the MRC file at the top" in said.out
    bottom, kept, said = result("a.mrc", "--mrc_rows=bottom")
    assert "--mrc_rows=bottom" in kept and "MRC files" not in said.err
    due, kept, said = result("b.tif", "--mrc_rows=bottom")
    assert np.array_equal(bottom, due) and not np.array_equal(bottom, top)
    assert "mrc_rows" not in kept + said.out + said.err


def test_what_is_written_without_a_pixel_size_is_a_stack_again(tmp_path):
    """Also planes that are as narrow as channels would be."""
    stack = RNG.integers(0, 255, (300, 256, 64)).astype(np.uint8)
    micrographs.write(tmp_path / "a.tif", stack)
    assert micrographs.read_stack(tmp_path / "a.tif").image.shape == stack.shape


def scene(n):
    """Return (an image, the mask of the bright part of it)."""
    mask = np.zeros((64, 64), np.uint8)
    mask[4:20, 8 + n : 30 + n] = 255
    return (RNG.normal(100, 20, (64, 64)) + mask / 2).astype(np.float32), mask


def pairs(folder, of_mrc="images", first="bottom", n=10):
    """Write n pairs; MRC those of one folder, with the first row at the `first`."""
    for index in range(n):
        for kind, pixels in zip(("images", "masks"), scene(index), strict=True):
            name = folder / kind / f"m{index}.{'mrc' if kind == of_mrc else 'tif'}"
            turned = pixels[::-1] if kind == of_mrc and first == "bottom" else pixels
            micrographs.write(name, turned.astype(np.uint8) if kind == "masks" else turned)


def run_build(folder, *flags, target=True):
    argv = ["micrographs", f"--data_dir={folder / 'data'}", f"--source={folder / 'images'}", *flags]
    if target:
        argv.append(f"--target=mask={folder / 'masks'}")
    assert build.main(argv) == 0
    return json.loads((folder / "data/micrographs/1.0.0/card.json").read_text())


@pytest.mark.parametrize("of_mrc", ["images", "masks"])
@pytest.mark.parametrize("first", ["bottom", "top"])
def test_an_mrc_and_its_mask_of_another_format_lie_on_each_other(tmp_path, of_mrc, first):
    pairs(tmp_path, of_mrc, first)
    flags = []
    if first == "bottom":
        fits = "bottom fits the edges of 8 of 8 images and targets better; expected --mrc_rows="
        with pytest.raises(InputError, match=fits):
            run_build(tmp_path)
        assert not (tmp_path / "data").exists()
        flags = ["--mrc_rows=bottom"]
    card = run_build(tmp_path, *flags)
    said = f"rows of 10 MRC files: the first at the {first}"
    why = " (--mrc_rows)" if flags else ", which fits the edges of 8 of 8 images and targets"
    assert said + why in card["notes"] and card["options"].get("mrc_rows") == (
        flags and first or None
    )
    out = tmp_path / "back"
    export.main(["micrographs", f"--data_dir={tmp_path / 'data'}", "--split=train", f"--out={out}"])
    for path in (out / "mask").glob("*.tif"):
        image, mask = tifffile.imread(out / "image" / path.name), tifffile.imread(path) > 0
        assert image[mask].mean() > image[~mask].mean() + 80


DOUBT = "the first at the top, as mrcfile and napari show them, though nothing here says so"


def test_where_edges_do_not_show_it_the_card_says_so(tmp_path):
    for index in range(10):
        _, mask = scene(index)
        noise = RNG.normal(100, 20, (32, 64)).astype(np.float32)
        micrographs.write(tmp_path / f"images/m{index}.mrc", np.vstack([noise, noise[::-1]]))
        micrographs.write(tmp_path / f"masks/m{index}.tif", mask | mask[::-1])
    (note,) = (note for note in run_build(tmp_path)["notes"] if "rows" in note)
    assert DOUBT in note and "--mrc_rows=bottom" in note


def test_one_gain_counts_and_several_must_agree():
    assert rows.is_better([0.1]) and not rows.is_better([-0.1]) and not rows.is_better([])
    assert rows.is_better([0.2, 0.3, 0.25]) and not rows.is_better([0.5, -0.3, 0.1])


def test_images_of_mrc_and_other_formats_are_noted(tmp_path):
    pairs(tmp_path, n=3)
    micrographs.write(tmp_path / "images" / "other.tif", STACK[0])
    (note,) = (n for n in run_build(tmp_path, "--patch=20", target=False)["notes"] if "MRC" in n)
    assert note.startswith("rows of 3 MRC files: ") and DOUBT in note


def test_images_and_masks_that_are_all_mrc_need_no_answer(tmp_path):
    for index in range(10):
        for kind, pixels in zip(("images", "masks"), scene(index), strict=True):
            micrographs.write(tmp_path / kind / f"m{index}.mrc", pixels)
    card = run_build(tmp_path)
    assert "rows of 20 MRC files: as stored" in card["notes"] and "mrc_rows" not in card["options"]


def test_without_mrc_the_card_says_nothing_of_rows(tmp_path):
    pairs(tmp_path, of_mrc="none")
    assert not any("rows" in note for note in run_build(tmp_path)["notes"])


def test_edges_agree_with_themselves_alone():
    image, mask = scene(0)
    assert agreement(mask, mask > 0) == pytest.approx(1)
    assert agreement(image, mask) > 0.3 > 0.1 > abs(agreement(image[::-1], mask))
    assert agreement(np.zeros((9, 9)), mask[:9, :9]) == 0
