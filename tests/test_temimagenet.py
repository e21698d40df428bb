"""TEM-ImageNet's folders become records, and every file that cannot is named."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from data_builders import build, common, temimagenet
from emjax import cli

FOLDERS = temimagenet.FOLDERS
RNG = np.random.default_rng(5)


def write(folder, name, pixels):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / name)


def noise(shape=(256, 256), dtype=np.uint8):
    return RNG.integers(0, 200, shape).astype(dtype)


@pytest.fixture
def clone(tmp_path):
    """A folder in the layout of the clone: stems 00001 to 00010, a mask folder, a README."""
    root = tmp_path / "TEM-ImageNet-v1.3-master"
    for folder in (*FOLDERS.values(), "circularMask"):
        for number in range(1, 11):
            write(root / folder, f"{number:05d}.png", noise())
    (root / "README.md").write_text("# TEM-ImageNet-v1.3\n")
    return root


@pytest.fixture
def command(tmp_path, capsys):
    """A function that builds a dataset; it returns (exit code, stdout, stderr, card or None)."""

    def run(source, name="temimagenet", *options):
        argv = [name, f"--data_dir={tmp_path / 'data'}", f"--source={source}", *options]
        with pytest.raises(SystemExit) as stopped:
            cli.run(build.main, argv)
        out, err = capsys.readouterr()
        path = tmp_path / "data" / name / "1.0.0" / "card.json"
        card = json.loads(path.read_text()) if path.exists() else None
        return stopped.value.code or 0, out, err, card

    return run


def records_of(tmp_path, card):
    builder = tfds.builder_from_directory(tmp_path / "data" / card["name"] / "1.0.0")
    found = {}
    for split in card["splits"]:
        for record in builder.as_data_source(split):
            found[record["name"].decode()] = {**record, "split": split}
    return found


def test_the_complete_set_has_the_published_digest_and_split():
    stems = [f"{number:05d}" for number in range(1, 14365)]
    assert len(stems) == temimagenet.COMPLETE
    assert hashlib.md5("|".join(stems).encode()).hexdigest() == temimagenet.COMPLETE_MD5
    assert temimagenet.stems_md5(reversed(stems)) == temimagenet.COMPLETE_MD5
    splits = list(common.split_by_source(stems).values())
    assert [splits.count(split) for split in common.SPLITS] == [10054, 1436, 2874]


@pytest.mark.parametrize("level", ["the folder itself", "one above"])
@pytest.mark.parametrize("name", ["temimagenet", "temimagenet/multislice"])
def test_a_clone_becomes_records_of_paired_images(tmp_path, clone, command, name, level):
    code, out, err, card = command(clone if level != "one above" else tmp_path, name)
    assert code == 0, err
    assert card["splits"] == {"train": 7, "val": 1, "test": 2} and card["shape"] == [256, 256]
    assert card["targets"] == ["denoised", "background_removed", "superresolved"]
    assert card["dtype"] == "uint8" and card["range_rule"] == "fixed" and card["left_out"] == []
    records = records_of(tmp_path, card)
    order = sorted(records, key=lambda stem: hashlib.sha256(stem.encode()).hexdigest())
    assert [records[stem]["split"] for stem in order] == ["train"] * 7 + ["val"] + ["test"] * 2
    for number in range(1, 11):
        stem = f"{number:05d}"
        record = records[stem]
        for feature, folder in FOLDERS.items():
            expected = np.array(Image.open(clone / folder / f"{stem}.png"))
            np.testing.assert_array_equal(record[feature][..., 0], expected)
        assert record["index"] == number - 1 and record["source"].decode() == stem
        np.testing.assert_array_equal(record["intensity_range"], [0, 255])
        assert np.isnan(record["nm_per_pixel"]).all()


def test_the_card_says_whether_the_set_is_complete(clone, command, monkeypatch):
    code, _, err, card = command(clone)
    assert card["options"]["found"] == "10 of 14364" and card["options"]["complete"] is False
    assert err == f"note: {clone / 'image'}: 10 of 14364 images; not the complete set\n"
    monkeypatch.setattr(temimagenet, "stems_md5", lambda stems: temimagenet.COMPLETE_MD5)
    shutil.rmtree(clone.parent / "data")
    code, _, err, card = command(clone)
    assert card["options"]["complete"] is True and err == ""


def test_both_datasets_can_be_built_and_are_built_once(tmp_path, clone, command):
    for name in ("temimagenet", "temimagenet/multislice"):
        assert command(clone, name)[0] == 0
    assert "already built" in command(clone)[1]
    for folder in FOLDERS.values():
        (clone / folder / "00003.png").unlink()
    code, _, err, _ = command(clone)
    assert code == 3 and "found=10 of 14364" in err and "found=9 of 14364" in err
    assert {path.name for path in (tmp_path / "data" / "temimagenet").iterdir()} == {
        "1.0.0",
        "multislice",
    }


@pytest.mark.parametrize("folder", FOLDERS.values())
def test_a_missing_folder_is_one_error_that_names_it(tmp_path, clone, command, folder):
    shutil.rmtree(clone / folder)
    code, _, err, _ = command(tmp_path)
    assert code == 3 and err.count("\n") == 1 and not (tmp_path / "data").exists()
    assert f"{clone} has no folder {folder}; it has " in err
    assert all(name in err for name in (*FOLDERS.values(), "circularMask"))
    assert "git clone https://github.com/xinhuolin/TEM-ImageNet-v1.3 " in err


def test_the_multislice_set_may_lack_superresolved(tmp_path, clone, command):
    shutil.rmtree(clone / FOLDERS["superresolved"])
    code, _, err, card = command(clone, "temimagenet/multislice")
    assert code == 0 and card["targets"] == ["denoised", "background_removed"]
    assert card["options"] == {"targets": ["denoised", "background_removed"], "found": "10"}
    shutil.rmtree(clone / FOLDERS["denoised"])
    code, _, err, _ = command(clone, "temimagenet/multislice")
    assert code == 3 and "has no folder noNoise; it has" in err and "Multislice" in err


def unreadable(path):
    path.write_text("hello")
    return "no format that emjax reads"


def truncated(path):
    path.write_bytes(path.read_bytes()[:30000])
    return "truncated"


def empty(path):
    path.write_bytes(b"")
    return "an empty file"


def mis_sized(path):
    write(path.parent, path.name, noise((256, 255)))
    return "256x255, expected 256x256"


def constant(path):
    write(path.parent, path.name, np.full((256, 256), 7, np.uint8))
    return "all pixels are 7"


def colour(path):
    write(path.parent, path.name, noise((256, 256, 3)))
    return "in colours, expected 8-bit grey"


def sixteen_bits(path):
    write(path.parent, path.name, noise(dtype=np.uint16) * 100)
    return "uint16 values, expected 8-bit grey"


FAULTS = [unreadable, truncated, empty, mis_sized, constant, colour, sixteen_bits]


@pytest.mark.parametrize("folder", [FOLDERS["image"], FOLDERS["superresolved"]])
def test_a_file_that_cannot_be_used_is_named_and_skipped(tmp_path, clone, command, folder):
    expected = {}
    for number, fault in enumerate(FAULTS, start=2):
        path = clone / folder / f"{number:05d}.png"
        expected[str(path)] = fault(path)
    code, _, err, card = command(clone)
    assert code == 3 and card is None and "7 of 10 images cannot be used" in err
    code, out, err, card = command(clone, "temimagenet", "--left_out=0.7")
    assert code == 0, err
    assert {path for path, _ in card["left_out"]} == expected.keys()
    for path, reason in card["left_out"]:
        assert expected[path] in reason and path in out and not reason.startswith(path)
    kept = records_of(tmp_path, card)
    assert sorted(kept) == ["00001", "00009", "00010"]
    whole = common.split_by_source([f"{number:05d}" for number in range(1, 11)])
    assert {stem: record["split"] for stem, record in kept.items()} == {s: whole[s] for s in kept}


def test_a_missing_stem_is_named_and_skipped(clone, command):
    (clone / "noNoise" / "00004.png").unlink()
    (clone / "noNoise" / "00005.png").unlink()
    (clone / FOLDERS["superresolved"] / "00005.png").unlink()
    (clone / "image" / "00007.png").unlink()
    (clone / "image" / "._00001.png").write_text("what another system keeps next to a file")
    code, _, err, card = command(clone, "temimagenet", "--left_out=0.7")
    assert code == 0 and sum(card["splits"].values()) == 7
    left_out = dict(card["left_out"])
    assert left_out.pop(str(clone / "image" / "00004.png")) == "no file of this stem in noNoise"
    assert left_out.pop(str(clone / "image" / "00005.png")) == (
        "no file of this stem in noNoise, noNoiseNoBackgroundSuperresolution"
    )
    assert left_out == {
        str(clone / FOLDERS[target] / "00007.png"): f"a {target} without an image of this stem"
        for target in ("denoised", "background_removed", "superresolved")
    }


def test_names_with_spaces_and_other_letters_are_read(tmp_path, clone, command):
    moved = tmp_path / "größe 数据" / clone.name
    moved.parent.mkdir()
    shutil.move(clone, moved)
    code, _, err, card = command(moved.parent)
    assert code == 0 and sum(card["splits"].values()) == 10, err


def test_sources_without_the_set_say_what_to_download(tmp_path, clone, command):
    (tmp_path / "snapshot.zip").write_bytes(b"PK")
    (tmp_path / "other" / "pictures").mkdir(parents=True)
    for source, expected in {
        "nowhere": "is not a folder. Run git clone https://github.com/xinhuolin/TEM-ImageNet-v1.3",
        "snapshot.zip": "is a file, not a folder. Run git clone",
        "other": "neither it nor a folder in it has the folder image; its folders: pictures.",
    }.items():
        code, _, err, _ = command(tmp_path / source)
        assert code == 3 and expected in err and err.count("\n") == 1
        assert "TEM-ImageNet-v1.3/archive/refs/heads/master.zip" in err and "--source" in err
    shutil.copytree(clone, tmp_path / "second")
    shutil.copytree(clone, tmp_path / "third")
    shutil.move(clone, tmp_path / "first")
    code, _, err, _ = command(tmp_path)
    assert code == 3 and "holds several: first, second, third; give the folder of one" in err
    shutil.move(tmp_path / "first", clone)
    for path in (clone / "image").iterdir():
        path.unlink()
    code, _, err, _ = command(clone)
    assert code == 3 and f"{clone / 'image'} holds no PNG file. Run git clone" in err


def test_a_set_of_which_nothing_can_be_used_is_refused(tmp_path, clone, command):
    for path in (clone / "image").iterdir():
        constant(path)
    code, _, err, _ = command(clone)
    assert code == 3 and "no image can be used; 10 left out" in err and "all pixels are 7" in err
    assert not (tmp_path / "data").exists()


def test_genuine_images_are_read(clone, tmp_path, command):
    folder = os.environ.get("EMJAX_REAL_DATA")
    if not folder:
        pytest.skip("needs real micrographs: EMJAX_REAL_DATA is not set")
    expected = {}
    for stem in ("11133", "12028"):
        path = Path(folder) / "temimagenet_like" / "atomsegnet_test_img" / f"{stem}.png"
        expected[stem] = np.array(Image.open(path))
        for feature in FOLDERS.values():  # their targets are not published with them
            shutil.copy(path, clone / feature)
    code, _, err, card = command(clone)
    assert code == 0 and card["left_out"] == [], err
    records = records_of(tmp_path, card)
    for stem, pixels in expected.items():
        assert pixels.shape == (256, 256) and 20 < pixels.mean() < 70
        np.testing.assert_array_equal(records[stem]["image"][..., 0], pixels)


def test_the_card_keeps_the_digest_of_a_fetched_snapshot(clone, command):
    (clone.parent / "TEM-ImageNet-v1.3.sha256").write_text("abc123  an address\n")
    code, out, err, card = command(clone)
    assert code == 0, err
    assert card["notes"] == ["snapshot: SHA-256 abc123  an address"] and "abc123" in out
