"""CEM500K from a tree of TIFF files: sources, splits, edges, and every file accounted for."""

import argparse

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tifffile
from scipy import ndimage

from data_builders import build, cem500k, common, writer
from emjax.data.records import open_records
from emjax.errors import InputError

RNG = np.random.default_rng(7)


def patch(h=224, w=224, dtype=np.uint8):
    return RNG.integers(0, 256, (h, w)).astype(dtype)


def write_tree(root, sizes, shape=(224, 224)):
    """Write `sizes` {folder: files} as in CEM500K; return {relative path: image}."""
    images = {}
    for folder, files in sizes.items():
        for i in range(files):
            images[f"{folder}/{folder}-LOC-0_{i}_0-224_0-224.tiff"] = patch(*shape)
    return write(root, images)


def write(root, images):
    for path, image in images.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(root / path, image, photometric="rgb" if image.ndim == 3 else None)
    return images


def built(tmp_path, *flags, name="cem500k"):
    """Build from tmp_path / "in"; return (card, {name: record}, {split: names})."""
    build.main([name, f"--data_dir={tmp_path / 'data'}", f"--source={tmp_path / 'in'}", *flags])
    home = tmp_path / "data" / name
    card, records, names = common.read_card(home), {}, {}
    for split in card["splits"]:
        source = tfds.builder_from_directory(home / "1.0.0").as_data_source(split)
        named = {record["name"].decode(): record for record in source}
        records, names[split] = records | named, set(named)
    return card, records, names


def refused(tmp_path, *flags):
    with pytest.raises(InputError) as error:
        built(tmp_path, *flags)
    assert not (tmp_path / "data").exists() and "\n" not in str(error.value)
    return str(error.value)


def test_a_tree_becomes_records_split_by_directory(tmp_path):
    sizes = {f"vol {i:02d} ü": 1 + i % 4 for i in range(20)}
    images = write_tree(tmp_path / "in", sizes)
    (tmp_path / "in" / "readme.txt").write_text("hello")
    write(tmp_path / "in", {".cache/a.tiff": patch(), "vol 00 ü/.hidden.tif": patch()})
    card, records, names = built(tmp_path)
    assert {f"{name}.tiff" for name in records} == set(images)
    for name, record in records.items():
        np.testing.assert_array_equal(record["image"][..., 0], images[f"{name}.tiff"])
        assert record["source"].decode() == name.split("/")[0]
        assert record["intensity_range"].tolist() == [0, 255]
        assert np.isnan(record["nm_per_pixel"]).all()
    assert sorted(record["index"] for record in records.values()) == list(range(50))
    sources = [{name.split("/")[0] for name in names[split]} for split in ("train", "val")]
    assert not sources[0] & sources[1] and card["splits"] == {"train": 45, "val": 5}
    assert card["dtype"] == "uint8" and card["shape"] == [224, 224] and card["targets"] == []
    assert card["range_rule"] == "fixed" and card["left_out"] == []
    assert "eLife 10:e65894" in card["about"]["citation"]


def test_cem1_5m_is_built_the_same_way(tmp_path):
    write_tree(tmp_path / "in", {"a": 3, "b": 20})
    card, records, _ = built(tmp_path, name="cem1_5m")
    assert card["splits"] == {"train": 20, "val": 3} and "EMPIAR-11035" in card["about"]["address"]
    assert len(records) == 23


@pytest.mark.parametrize(
    "paths, sources",
    [
        (
            ["a-LOC-0_1_0-9.tif", "a-LOC-2_1_0-9.TIFF", "b-LOC-0.tiff", "c.tif"],
            ["a", "a", "b", "c"],
        ),
        (["x/y/a-LOC-0.tif", "x/y/a-LOC-1.tif", "x/y/b-LOC-1.tif"], ["a", "a", "b"]),
        (["x/a-LOC-0.tif", "x/b-LOC-1.tif", "y/a-LOC-0.tif"], ["x", "x", "y"]),
        (["x/a.tif", "x/z/b.tif", "e-LOC-0.tif", "f-LOC-0.tif"], ["e", "f", "x", "x/z"]),
    ],
)
def test_a_source_is_a_folder_or_the_name_before_loc(tmp_path, paths, sources):
    write(tmp_path, {path: np.zeros((1, 1), np.uint8) for path in paths})
    listing = cem500k.list_tiffs(tmp_path)
    assert sorted(listing.paths) == sorted(paths)
    found = dict(zip(listing.paths, (listing.sources[i] for i in listing.source_of), strict=True))
    in_order = [path for path in sorted(paths, key=lambda p: (p.count("/"), p))]
    assert [found[path] for path in in_order] == sources


def test_a_listing_does_not_depend_on_the_order_of_writing_but_on_names_and_sizes(tmp_path):
    images = write_tree(tmp_path / "a", {"x": 3, "y": 4}, (8, 8))
    write(tmp_path / "b", dict(reversed(images.items())))
    one, other = cem500k.list_tiffs(tmp_path / "a"), cem500k.list_tiffs(tmp_path / "b")
    assert one == other
    write(tmp_path / "b", {"x/new.tif": patch(8, 8)})
    assert cem500k.list_tiffs(tmp_path / "b").sha256 != one.sha256
    (tmp_path / "b" / "x" / "new.tif").unlink()
    first = tmp_path / "b" / one.paths[0]
    first.write_bytes(first.read_bytes() + b"\0")
    assert cem500k.list_tiffs(tmp_path / "b").sha256 != one.sha256


@pytest.mark.parametrize("files", [600_000, 50_000, 3_000, 7])
def test_val_is_whole_sources_and_nearly_as_many_patches_as_allowed(files):
    shares = RNG.dirichlet(np.full(120, 0.3))
    sizes = {f"s{i}": 1 + int(files * share) for i, share in enumerate(shares)}
    chosen = cem500k.val_sources(sizes)
    assert chosen == cem500k.val_sources(dict(reversed(sizes.items())))
    total = sum(sizes[name] for name in chosen)
    limit = min(5000, sum(sizes.values()) // 10)
    smallest_left = min(n for name, n in sizes.items() if name not in chosen)
    assert limit - smallest_left < total <= limit and chosen


def test_val_of_few_sources():
    assert cem500k.val_sources({"a": 100}) == set()
    assert cem500k.val_sources({"a": 60, "b": 40}) == {"b"}
    assert len(cem500k.val_sources({f"{i}": 1 for i in range(40)})) == 4


def triangle(side):
    """Return the index in `side` pixels that each of 224 shows, the middle in the middle."""
    at = np.abs(np.arange(224) - (224 - side) // 2)
    return np.where(at < side, at, 2 * (side - 1) - at)


@pytest.mark.parametrize("h, w", [(224, 224), (112, 224), (224, 223), (113, 112), (200, 138)])
def test_edge_patches_are_mirrored_at_both_ends(h, w):
    image = patch(h, w)
    done = cem500k.mirrored(image)
    np.testing.assert_array_equal(done, image[np.ix_(triangle(h), triangle(w))])
    ys, xs = np.meshgrid(*(np.arange(224) - (224 - s) // 2 for s in (h, w)), indexing="ij")
    oracle = ndimage.map_coordinates(image, [ys, xs], order=0, mode="mirror")
    np.testing.assert_array_equal(done, oracle)


def test_small_patches_are_dropped_and_both_fractions_are_noted(tmp_path, capsys):
    write_tree(tmp_path / "in", {f"v{i}": 4 for i in range(10)})
    edges = write(
        tmp_path / "in",
        {
            "v1/e1.tif": patch(112, 224),
            "v2/e2.tif": patch(224, 138),
            "v3/e3.tif": patch(150, 160),
            "v4/s1.tif": patch(111, 224),
            "v5/s2.tif": patch(30, 30),
        },
    )
    card, records, _ = built(tmp_path)
    assert sum(card["splits"].values()) == len(records) == 43 and card["unusable"] == 0
    for path in ("v1/e1.tif", "v2/e2.tif", "v3/e3.tif"):
        image = records[path[:-4]]["image"][..., 0]
        np.testing.assert_array_equal(image, cem500k.mirrored(edges[path]))
    assert card["notes"][:2] == [
        "3 of 43 patches (6.98%) were mirrored to 224x224",
        "2 of 45 files (4.44%) were dropped, a side below 112 pixels",
    ]
    assert all(note in capsys.readouterr().out for note in card["notes"][:1])


def test_a_split_of_which_nothing_is_left_is_refused(tmp_path):
    write_tree(tmp_path / "in", {"big": 12})
    write(tmp_path / "in", {"small/a.tif": patch(90, 90)})
    assert "cem500k: nothing is left of the split val" in refused(tmp_path)


def test_files_that_cannot_be_used_are_named_and_too_many_stop_the_build(tmp_path):
    root = tmp_path / "in"
    write_tree(root, {f"v{i}": 5 for i in range(10)})
    write(
        root,
        {
            "v1/deep.tif": patch(dtype=np.uint16),
            "v2/colour.tif": RNG.integers(0, 255, (224, 224, 3), np.uint8),
            "v3/flat.tif": np.full((224, 224), 7, np.uint8),
            "v4/wide.tif": patch(224, 240),
            "v5/real.tif": patch(dtype=np.float32),
            "v6/stack.tif": RNG.integers(0, 9, (4, 9, 9, 9)),
        },
    )
    whole = (root / "v0" / "v0-LOC-0_0_0-224_0-224.tiff").read_bytes()
    (root / "v7" / "cut.tif").write_bytes(whole[: len(whole) // 2])
    (root / "v8" / "text.tiff").write_text("hello")
    (root / "v9" / "empty.tiff").write_bytes(b"")
    line = refused(tmp_path)
    assert line.startswith("cem500k: 3 of 59 images cannot be used, over the 5.0% that may be")
    card, records, _ = built(tmp_path, "--left_out=0.2")
    reasons = {path.removeprefix(f"{root}/"): reason for path, reason in card["left_out"]}
    assert reasons["v1/deep.tif"] == "uint16, expected one channel of 8 bits"
    assert reasons["v2/colour.tif"] == "in colours, expected one channel of 8 bits"
    assert reasons["v3/flat.tif"] == "all pixels are 7"
    assert reasons["v4/wide.tif"] == "224x240, expected at most 224x224"
    assert reasons["v5/real.tif"] == "float32, expected one channel of 8 bits"
    assert "v6/stack.tif" in reasons and "v7/cut.tif" in reasons
    assert "no format that emjax reads" in reasons["v8/text.tiff"]
    assert reasons["v9/empty.tiff"] == "an empty file, expected a micrograph"
    assert len(reasons) == card["unusable"] == 9 and len(records) == 50


def test_subsets_of_train_are_nested_and_mixed(tmp_path):
    write_tree(tmp_path / "in", {f"v{i}": 15 for i in range(8)}, (112, 112))
    built(tmp_path)

    def names(split):
        records = open_records(tmp_path / "data", "cem500k", split).source
        return [record["name"] for record in records]

    every, few, more = names("train"), names("train[:10]"), names("train[:40]")
    assert more[:10] == few and every[:40] == more
    assert len({name.split(b"/")[0] for name in few}) > 3  # not the first folder alone
    assert not set(names("val")) & set(every)


def test_a_build_of_other_files_is_refused(tmp_path):
    write_tree(tmp_path / "in", {"a": 2, "b": 10})
    built(tmp_path)
    built(tmp_path)
    write(tmp_path / "in", {"a/new.tif": patch()})
    with pytest.raises(InputError, match="exists, built with files=.*; this call has files="):
        built(tmp_path)


def test_without_the_files_it_says_what_to_download_and_where_to_put_it(tmp_path):
    line = refused(tmp_path)
    for part in (f"--source={tmp_path / 'in'} is not a folder", "EMPIAR-10592", "into it"):
        assert part in line
    (tmp_path / "in").mkdir()
    assert f"{tmp_path / 'in'} holds no TIFF file; it is for CEM500K: download" in refused(tmp_path)


def test_each_file_is_read_once(tmp_path, monkeypatch):
    images = write_tree(tmp_path, {"a": 2, "b": 10}, (112, 120))
    reads = []
    read = cem500k.read
    monkeypatch.setattr(cem500k, "read", lambda path: (reads.append(path), read(path))[1])
    options = argparse.Namespace(dataset="cem500k", source=tmp_path)
    dataset = cem500k.Cem500k(options)
    contents = dataset.prepare()
    assert reads == [] and contents.splits == {"train": 10, "val": 2}
    for split in contents.splits:
        records = [r for r in dataset.records(split) if not isinstance(r, writer.Count)]
        assert len(records) == contents.splits[split]
    assert sorted(reads) == sorted(tmp_path / path for path in images)
