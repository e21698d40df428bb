"""Images and targets are paired by the names that people and programs give them."""

import unicodedata
from pathlib import PurePath

import numpy as np
import pytest

from data_builders import common
from data_builders.micrographs import tables
from data_builders.micrographs.listing import from_folders, from_table
from emjax import micrographs
from emjax.errors import InputError
from emjax.micrographs import made_by
from emjax.micrographs.names import exported, targets_among


@pytest.fixture
def listed(tmp_path):
    """A function that returns {image: mask} of files made by name below images/ and masks/."""

    def run(images, masks, source="images", target="masks"):
        for folder, paths in (("images", images), ("masks", masks)):
            for path in paths:
                (tmp_path / folder / path).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / folder / path).write_bytes(b"x")
        listing = from_folders(tmp_path / source, {"mask": str(tmp_path / target)})
        return {
            source.image.relative_to(tmp_path).as_posix(): source.targets["mask"]
            .relative_to(tmp_path)
            .as_posix()
            for source in listing.sources
        }, listing

    return run


PAIRS = [
    ("a.tif", "a.tif"),
    ("a.tif", "a.png"),
    ("a.tif", "a_mask.tif"),
    ("a.tif", "a-labels.tif"),
    ("a.tif", "a Label.TIF"),
    ("a.tif", "a.mask.tif"),
    ("a.tif", "a.tif.png"),
    ("a.ome.tif", "a.tif"),
    ("a.mrc.gz", "a_seg.tif"),
    ("a b.tif", "A_B_gt.tif"),
    ("a.tif", "Mask of a.tif"),
    ("a.tif", "a_cp_masks.png"),
    ("a.tif", "a_Simple Segmentation.tif"),
    ("s0.ome.tif", "s0.ome_cp_masks.tif"),
    ("s0.ome.tif", "Mask of s0.ome.tif"),
    ("a.mrc.gz", "a.mrc.gz_mask.png"),
    ("a.tif", "Classified image of a.tif"),
    ("a.tif", "segmentation of a.tif"),
    ("case_7_0000.png", "case_7.png"),
    ("img01.png", "mask01.png"),
    ("image_7.tif", "label_7.tif"),
    ("7_image.tif", "7_ground_truth.tif"),
    ("s1/image.tif", "s1/mask.tif"),
    ("images/s1/7.tif", "masks/s1/7.tif"),
    ("Gr\u00f6\u00dfe.tif", unicodedata.normalize("NFD", "Gr\u00f6\u00dfe") + ".tif"),
]


@pytest.mark.parametrize("image, mask", PAIRS)
def test_names_that_belong_together(listed, image, mask):
    """Also next to others whose names differ by one sign."""
    others = {"b1.tif": "b1.tif", "b2.tif": "b2_mask.tif"}
    found, listing = listed([image, *others], [mask, *others.values()])
    expected = {image: mask} | others
    assert found == {f"images/{a}": f"masks/{b}" for a, b in expected.items()}
    assert not listing.skipped
    assert " of 3 images have a mask of another name, such as " in listing.notes[0]


def test_masks_beside_their_images(listed):
    images = ["a.tif", "a_mask.tif", "b.tif", "b_mask.tif", "target_1.tif", "target_1_mask.tif"]
    expected = {f"images/{n}.tif": f"images/{n}_mask.tif" for n in ("a", "b", "target_1")}
    found, listing = listed([*images, "c.tif", "d_mask.tif"], [], target="images")
    assert found == expected
    reasons = {path.name: reason for path, reason in listing.skipped}
    assert reasons == {
        "c.tif": "no mask of this stem",
        "d_mask.tif": "a mask without an image of this stem",
    }


@pytest.mark.parametrize("images", [["a", "a_raw"], ["img", "img2"], ["noisy", "noisy_raw", "raw"]])
@pytest.mark.parametrize("folders", [("", ""), ("x/", "x/"), ("images/", "masks/")])
def test_words_for_an_image_tell_images_apart(listed, images, folders):
    """Where the masks have them, too; folders that are called so differ nevertheless."""
    image, mask = folders
    pairs = {f"{image}{n}.tif": f"{mask}{n}_mask.tif" for n in images}
    found, listing = listed([*pairs], [*pairs.values()])
    assert found == {f"images/{a}": f"masks/{b}" for a, b in pairs.items()}
    assert not listing.skipped


def masked(*stems):
    return {f"{stem}.tif": f"{stem}_mask.tif" for stem in stems}


NEAREST = {  # (images and masks of no pair, pairs)
    "a preview beside it": ([], ["a.tif.png", "a.tif.npy"], {"a.tif": "a.tif"}),
    "an overlay of its stem": ([], ["old/a.png"], masked("a")),
    "one word of several": (["a_raw.tif"], [], masked("a")),
    "a sample called target": (["1.tif"], [], masked("target_1")),
    "words of two targets": ([], [], {"1.tif": "mask1.tif"} | masked("gt1")),
    "a sign after a word": (["1.tif"], [], {"-1.tif": "mask_-1.tif"}),
    "signs after words": ([], [], {"-1.tif": "mask_-1.tif", "1.tif": "mask_1.tif"}),
    "a frame and a mask of another": (["f_0000.tif", "f_0001.tif"], ["f.png"], masked("b")),
    "signs": (["T_-20.tif", "T_20.tif"], [], masked("T_-5", "T_5")),
    "one of two signs": (["T_-20.tif"], [], masked("T_20")),
    "points": ([], [], masked("d1.5", "d1_5")),
    "capitals": ([], [], masked("S_1", "s_1")),
    "folders of splits": ([], [], {f"images/{s}/1.tif": f"masks/{s}/1.png" for s in "ab"}),
    "splits of folders": ([], [], {f"{s}/images/1.tif": f"{s}/masks/1.png" for s in "ab"}),
}


@pytest.mark.parametrize("images, masks, pairs", NEAREST.values(), ids=NEAREST)
def test_the_nearest_of_several_names_decides(listed, images, masks, pairs):
    """And no other file is taken in its place."""
    found, listing = listed([*images, *pairs], [*masks, *pairs.values()])
    assert found == {f"images/{a}": f"masks/{b}" for a, b in pairs.items()}
    assert len(listing.skipped) == len(images) + len(masks)


def test_masks_that_are_drawn_come_before_predictions_beside_them(listed):
    found, _ = listed(["a.tif", "a_mask.tif", "masks/a.tif"], [], target="images")
    assert found == {"images/a.tif": "images/a_mask.tif"}


@pytest.mark.parametrize("names", [("1", "target 1", "target 1_mask"), ("a", "a_seg", "a_seg_gt")])
def test_a_mask_that_may_have_one_itself_is_refused(listed, names):
    """Whether the second is a sample that is called so, or a mask, nobody can tell."""
    with pytest.raises(InputError, match="are named alike, and either may belong to"):
        listed([f"{name}.tif" for name in names], [], target="images")


def test_a_mask_of_the_stem_in_another_folder_is_said(listed):
    found, listing = listed(["A/1.tif", "A/2.tif"], ["A/1.tif", "B/2.tif"])
    assert found["images/A/2.tif"] == "masks/B/2.tif"
    assert "1 of 2 images have a mask of another name, such as A/2.tif and B/2" in listing.notes[0]


def test_folders_beside_each_other(listed):
    found, _ = listed(["a.tif", "s/b.tif"], ["a.tif", "s/b.tif"], source=".", target=".")
    assert found == {f"images/{p}": f"masks/{p}" for p in ("a.tif", "s/b.tif")}


def test_equal_stems_in_folders_are_paired_by_their_folders(listed):
    found, listing = listed(["x/1.tif", "y/1.tif", "z/1.tif"], ["x/1.tif", "y/1.tif", "w/1.tif"])
    assert found == {f"images/{p}": f"masks/{p}" for p in ("x/1.tif", "y/1.tif")}
    assert [path.parent.name for path, _ in listing.skipped] == ["z", "w"]


def test_the_whole_name_of_an_image_comes_first(listed):
    """As `emjax predict` calls what it makes of x.tif and x.png in one folder."""
    found, _ = listed(["x.tif", "x.png", "y.tif"], ["x.tif.tif", "x.png.tif", "y.tif"])
    assert found == {
        "images/x.tif": "masks/x.tif.tif",
        "images/x.png": "masks/x.png.tif",
        "images/y.tif": "masks/y.tif",
    }


def test_exports_of_all_suffixes_are_of_one_source(tmp_path):
    names = ["a.tif", "a.ome.tif", "b.mrc.gz", "b.tif", "c.1.tif", "c.2.tif"]
    groups = exported(map(PurePath, names))
    assert groups == {PurePath(n): n[0] for n in names[:4]}


def test_restored_images_are_none_beside_their_own(tmp_path):
    pixels = np.full((4, 4), 255, np.uint8)
    micrographs.write(tmp_path / "a.tif", pixels)
    made = made_by.line({}, "restored", pixels)
    for name in ("a", "b"):
        micrographs.write(tmp_path / f"denoised/{name}.tif", pixels, software=made)
    found = [source.name for source in from_folders(tmp_path, {}).sources]
    assert found == ["a", "b"]  # b is there as it was restored alone


def test_contact_sheets_of_a_build_are_no_images(tmp_path):
    (tmp_path / "card.json").write_text("{}")  # the user's own
    for name in ("a.tif", "data/micrographs/x/1.0.0/kept.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "data/micrographs/x/1.0.0/card.json").write_text("{}")
    assert [s.name for s in from_folders(tmp_path, {}).sources] == ["a"]


def test_predictions_below_the_images_are_no_images(tmp_path, caplog):
    """Whatever folder they are in; corrected ones are the user's, and targets stay targets."""
    pixels = np.full((4, 4), 255, np.uint8)
    micrographs.write(tmp_path / "a.tif", pixels)
    for place, kind in (("pred/a.tif", "mask"), ("pred/a.probability_1.tif", "probability_1")):
        micrographs.write(tmp_path / place, pixels, software=made_by.line({}, kind, pixels))
    assert [source.name for source in from_folders(tmp_path, {}).sources] == ["a"]
    assert f"{tmp_path}: 2 results of emjax in it are left out" in caplog.text
    caplog.clear()
    (source,) = from_folders(tmp_path, {"mask": str(tmp_path / "pred")}).sources
    assert source.targets == {"mask": tmp_path / "pred/a.tif"}
    assert "left out" not in caplog.text
    assert (
        "1 of 1 targets are as emjax predicted them"
        in from_folders(tmp_path, {"mask": str(tmp_path / "pred")}).notes[0]
    )
    made = made_by.line({}, "mask", pixels)
    micrographs.write(tmp_path / "pred/a.tif", pixels // 2, software=made)
    assert len(from_folders(tmp_path, {}).sources) == 2
    (tmp_path / "a.tif").unlink()
    (tmp_path / "pred/a.tif").unlink()
    with pytest.raises(InputError, match="holds no image but results of emjax"):
        from_folders(tmp_path, {})


def test_an_exact_name_comes_first(listed):
    found, _ = listed(["a.tif", "b.tif"], ["a.tif", "a_label.tif", "b.tif", "b_mask.tif"])
    assert found == {"images/a.tif": "masks/a.tif", "images/b.tif": "masks/b.tif"}


@pytest.mark.parametrize(
    "images, masks, message",
    [
        (["a.tif", "a.mrc"], ["a.tif"], "a.mrc and .*a.tif have one stem, and either may belong"),
        (["a.tif"], ["a_mask.tif", "a_label.tif"], "a_label.tif and .* are named alike.*--table"),
        (["a.tif", "b.tif"], ["1.tif"], "none of its 2 images has a mask in .*a.tif.*1.tif"),
        (["a_1.tif"], ["a_2.tif"], "none of its 1 images"),
    ],
)
def test_what_may_mean_several_is_refused(listed, images, masks, message):
    with pytest.raises(InputError, match=message):
        listed(images, masks)


def test_masks_among_images_to_pretrain_on_are_noted(tmp_path):
    for name in ("a.tif", "a_mask.tif", "b_mask.tif", "label_3.tif"):
        (tmp_path / name).write_bytes(b"x")
    notes = from_folders(tmp_path, {}).notes
    assert notes[0].startswith("1 of 4 images are named as masks of others, such as a_mask.tif; to")
    with pytest.raises(InputError, match="no name of a denoised; expected names such as a_denoi"):
        from_folders(tmp_path, {"denoised": str(tmp_path)})


def test_words_of_targets_and_images():
    assert not targets_among(map(PurePath, ["mask1.tif", "maskara.tif", "a.tif"]), "denoised")
    assert targets_among(map(PurePath, ["a_noisy.tif", "a_clean.tif"]), "denoised") == {
        PurePath("a_clean.tif")
    }
    unlike = [PurePath("maskara.tif"), PurePath("glabel.tif"), PurePath("seg_.txt")]
    assert not targets_among(unlike[:2], "mask")


TABLE = [["image", "mask", "nm_per_pixel"], ["x/a.tif", "m/a.tif", "0.5"], ["b.tif", "b.tif", ""]]


def joined(rows, separator=",", end="\n"):
    return end.join(separator.join(row) for row in rows) + end


TEXTS = {
    "commas": joined(TABLE).encode(),
    "a mark of UTF-8": joined(TABLE).encode("utf-8-sig"),
    "semicolons and decimal commas": joined(TABLE, ";", "\r\n").replace("0.5", "0,5").encode(),
    "tabs in UTF-16": joined(TABLE, "\t").encode("utf-16"),
    "old ends of lines": joined(TABLE, end="\r").encode(),
    "sep=": b"sep=;\r\n" + joined(TABLE, ";").encode(),
    "capitals and blanks": joined([[" Image ", "MASK", "nm per-pixel"], *TABLE[1:]]).encode(),
    "other names": joined([["File", "Masks", "nm_per_pixel"], *TABLE[1:]]).encode(),
    "blanks around cells": joined([[f" {c} " for c in row] for row in TABLE]).encode(),
    "empty rows and columns": joined(
        [[*row, "", ""] for row in [["", "", ""], TABLE[0], ["", "", ""], *TABLE[1:], ["", "", ""]]]
    ).encode(),
    "quotes": joined([[f'"{c}"' for c in row] for row in TABLE]).encode(),
    "backslashes": joined(TABLE).replace("/", "\\").encode(),
    "other capitals": joined(TABLE).replace("a.tif", "A.TIF").encode(),
    "without suffixes": joined(TABLE).replace(".tif", "").encode(),
}


def files(folder):
    for path in ("x/a.tif", "m/a.tif", "b.tif"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"x")
    return folder


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_tables_of_spreadsheets(tmp_path, text):
    root = files(tmp_path / "in")
    (tmp_path / "t.csv").write_bytes(text)
    listing = from_table(root, tmp_path / "t.csv", {})
    assert [source.image for source in listing.sources] == [root / "x/a.tif", root / "b.tif"]
    assert [s.targets["mask"] for s in listing.sources] == [root / "m/a.tif", root / "b.tif"]
    assert [s.nm_per_pixel[1] for s in listing.sources] == [0.5, pytest.approx(np.nan, nan_ok=True)]


@pytest.mark.parametrize("source, is_said", [(("s", "s"), False), (("s", "t"), True)])
def test_a_target_of_several_sources_is_said(tmp_path, source, is_said, caplog):
    """They may be exposures of one place, or images in which there is nothing."""
    root, table = files(tmp_path / "in"), tmp_path / "t.csv"
    table.write_text("image,mask,source\nx/a.tif,m/a.tif,{}\nb.tif,m/a.tif,{}\n".format(*source))
    assert [each.group for each in from_table(root, table, {}).sources] == [*source]
    assert ("is the target of 2 sources, as are 1 of 1 targets" in caplog.text) == is_said


def test_names_with_accents_are_found_as_windows_and_macos_write_them(tmp_path, caplog):
    (tmp_path / unicodedata.normalize("NFD", "Gr\u00f6\u00dfe.tif")).write_bytes(b"x")
    table = tmp_path / "t.csv"
    for encoding in ("utf-8", "cp1252"):
        table.write_bytes("image;split\nGr\u00f6\u00dfe.tif;Train\n".encode(encoding))
        (source,) = from_table(tmp_path, table, {}).sources
        assert source.image.exists() and source.split == "train"
    assert "t.csv: not UTF-8, read as Windows-1252" in caplog.text


@pytest.mark.parametrize(
    "text, message",
    [
        (b"image,mask\nb, c.tif,m.tif\n", "line 2: 3 cells for 2 columns; put names that hold ','"),
        (b"image,mask,Mask\nb.tif,m.tif,m.tif\n", "two columns 'mask'"),
        (b"image\nin/x/a.tif\n", "there is no .*in/x/a.tif, and none of the others; expected path"),
        (b"PK\3\4....", "a spreadsheet; save the sheet as CSV"),
        (b'image,nm_per_pixel\nb.tif,"0,5"\n', "nm_per_pixel '0,5', expected a positive number"),
        (b"image\nb.tif\n\nB.tif\n", "line 4: B.tif is in line 2 already"),
        (b"image\n" + bytes(9), "t.csv.*(text|table|NUL|binary)"),
        (b"", "lists no image"),
    ],
)
def test_tables_that_do_not_say_enough_are_refused(tmp_path, text, message):
    root = files(tmp_path / "in")
    (tmp_path / "t.csv").write_bytes(text)
    with pytest.raises(InputError, match=message):
        from_table(root, tmp_path / "t.csv", {})


def test_a_cell_that_may_mean_two_files_means_none(tmp_path):
    for name in ("a.tif", "a.png"):
        (tmp_path / name).write_bytes(b"x")
    assert tables.Finder(tmp_path)("a") == tmp_path / "a"
    assert tables.Finder(tmp_path)("A.PNG") == tmp_path / "a.png"


@pytest.mark.parametrize(
    "sources, counts",
    [(1, [1, 0, 0]), (2, [1, 1, 0]), (3, [1, 1, 1]), (5, [3, 1, 1]), (9, [6, 1, 2])],
)
def test_few_sources_give_val_one_and_then_test(sources, counts):
    split_of = common.split_by_source(f"s{i}" for i in range(sources))
    assert [list(split_of.values()).count(split) for split in common.SPLITS] == counts
    (note,) = common.few_sources(split_of)
    assert f"train {counts[0]}, val {counts[1]}, test {counts[2]}" in note
    assert "cross-validation" in note
    assert not common.few_sources(common.split_by_source(f"s{i}" for i in range(10)))
