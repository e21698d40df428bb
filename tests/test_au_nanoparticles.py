"""The Au sets from their published files: the steps, the counts of the paper, and bad files."""

import statistics
import tracemalloc

import h5py
import numpy as np
import pytest
import tensorflow_datasets as tfds
from scipy import ndimage, stats
from skimage.util import view_as_blocks

from data_builders import au_nanoparticles, build, common
from data_builders.au_nanoparticles import DATASETS, AuNanoparticles, preprocessing
from emjax.errors import InputError

RNG = np.random.default_rng(5)
SIDE, FEWEST = 16, 8  # of the fixtures' patches
# Patches kept, and their split. Source: the printed output of Preprocessing_dataset.ipynb in
# ScottLabUCB/HRTEM-Receptive-Field @36e4e73.
PAPER = {
    "au2_2nm": (14, 355, (248, 35, 72)),
    "au5nm": (8, 211, (147, 21, 43)),
    "au10nm": (15, 128, (89, 12, 27)),
    "au20nm": (25, 132, (92, 13, 27)),
    "au5nm_v1": (None, 216, (151, 21, 44)),
}


@pytest.fixture
def tiny(monkeypatch):
    """Patches of SIDE pixels, so that the fixtures' files are small."""
    monkeypatch.setattr(AuNanoparticles, "side", SIDE)
    monkeypatch.setattr(AuNanoparticles, "more_than", FEWEST)


def counts(h=80, w=128):
    """Return int16 [h, w] detector counts, a few negative, with X-ray hits."""
    image = RNG.poisson(300, (h, w)).astype(np.int16) - 250
    for y, x in RNG.integers(0, (h, w), (12, 2)):
        image[y, x : x + 2] = RNG.integers(3000, 9000)
    return image


def masks_with(patches, images, rows=5, columns=8):
    """Return uint8 [images, h, w] with more than FEWEST ones in `patches` squares of SIDE."""
    filled = np.zeros(images * rows * columns, bool)
    filled[RNG.permutation(filled.size)[:patches]] = True
    ones = np.where(filled, FEWEST + 1 + RNG.integers(0, 5, filled.size), FEWEST)
    squares = np.arange(SIDE * SIDE) < ones[:, None]
    squares = squares.reshape(images, rows, columns, SIDE, SIDE).transpose(0, 1, 3, 2, 4)
    return squares.reshape(images, rows * SIDE, columns * SIDE).astype(np.uint8)


def write(folder, name, key, values):
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / name, "w") as file:
        file[key] = values
    return folder / name


def write_raw(folder, name, images=None, masks=None):
    n, patches, _ = PAPER[name]
    facts = DATASETS[name]
    masks = masks_with(patches, n) if masks is None else masks
    images = np.stack([counts() for _ in masks]) if images is None else images
    write(folder, facts.images, "images", images)
    write(folder, facts.labels, "labels", masks)
    return images, masks


def built(tmp_path, name, *flags):
    """Build `name` from tmp_path / "h5"; return (card, {name: record}, {split: names by index})."""
    data = tmp_path / "data"
    build.main(
        [f"au_nanoparticles/{name}", f"--data_dir={data}", f"--source={tmp_path / 'h5'}", *flags]
    )
    home = data / "au_nanoparticles" / name
    card = common.read_card(home)
    records, names = {}, {}
    for split in card["splits"]:
        source = sorted(
            tfds.builder_from_directory(home / "1.0.0").as_data_source(split),
            key=lambda record: record["index"],
        )
        names[split] = [record["name"].decode() for record in source]
        records |= dict(zip(names[split], source, strict=True))
    return card, records, names


def refused(tmp_path, name, *flags):
    with pytest.raises(InputError) as error:
        built(tmp_path, name, *flags)
    assert not (tmp_path / "data").exists()
    return str(error.value)


# The steps


def slow_without_xrays(image, threshold):
    """Return the same as without_xrays, in plain Python, pixel by pixel."""
    rows = [[max(float(value), 0.0) for value in row] for row in image]
    h, w = len(rows), len(rows[0])
    for _ in range(2):
        limit = statistics.median(value for row in rows for value in row) + threshold
        hits = [(-rows[y][x], -y, -x) for y in range(h) for x in range(w) if rows[y][x] > limit]
        for _, y, x in sorted(hits):
            y, x = -y, -x
            around = [
                rows[b][a]
                for b in (y - 1, y, y + 1)
                for a in (x - 1, x, x + 1)
                if 0 <= b < h and 0 <= a < w and (b, a) != (y, x)
            ]
            if len(around) == 8:
                rows[y][x] = statistics.fmean(around)
            else:
                rows[y][x] = statistics.fmean(value for row in rows for value in row)
    return np.array(rows)


@pytest.mark.parametrize("threshold", [400, 1500])
def test_xray_hits_alone_become_the_mean_of_their_neighbours(threshold):
    image = RNG.poisson(100, (64, 48)).astype(np.float32)
    image[5, 7], image[40, 20] = 101 + threshold + 50, 101 + threshold + 5000
    image[20, 20] = 99 + threshold - 50  # not above
    ring = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]])
    expected = np.where(
        image > np.median(image) + threshold, ndimage.convolve(image, ring / 8), image
    )
    np.testing.assert_allclose(preprocessing.without_xrays(image, threshold), expected, rtol=1e-6)
    assert (expected != image).sum() == 2


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.float32, np.float64])
def test_neighbouring_xray_hits_and_those_at_the_border_go_brightest_first(dtype):
    image = np.maximum(counts(24, 20), 0).astype(dtype)
    image[0, 3], image[23, 19], image[5:7, 5:9] = 5000, 6000, 7000
    image[10, 10:13] = (9000, 8000, 7500)
    if np.dtype(dtype).kind != "u":
        image[15, 4] = -20
    before = image.copy()
    done = preprocessing.without_xrays(image, 400)
    np.testing.assert_allclose(done, slow_without_xrays(image, 400), rtol=1e-5)
    np.testing.assert_array_equal(image, before)  # the argument is left alone
    assert done.dtype == np.float32 and done.min() >= 0 and done.max() < 5000


def test_standardising_is_over_the_whole_image():
    image = counts()
    done = preprocessing.standardised(image)
    assert done.dtype == np.float32
    np.testing.assert_allclose(done, stats.zscore(image.astype(float), axis=None), atol=1e-5)
    with pytest.raises(InputError, match="all pixels are 7"):
        preprocessing.standardised(np.full((4, 4), 7.0))


def test_patches_are_kept_row_by_row_by_their_particle_pixels():
    mask = (RNG.random((85, 130)) < 0.04).astype(np.uint8)
    blocks = view_as_blocks(np.ascontiguousarray(mask[:80, :128]), (SIDE, SIDE))
    expected = [
        (SIDE * i, SIDE * j)
        for i, row in enumerate(blocks)
        for j, block in enumerate(row)
        if np.count_nonzero(block) > FEWEST
    ]
    found = preprocessing.corners_with_particles(mask, side=SIDE, more_than=FEWEST)
    assert found == expected and 0 < len(expected) < 40
    full = np.ones((1024, 1100), bool)  # more ones than a byte can count
    assert preprocessing.corners_with_particles(full, side=512, more_than=400) == [
        (0, 0),
        (0, 512),
        (512, 0),
        (512, 512),
    ]


@pytest.mark.parametrize("name", PAPER)
def test_splits_are_those_of_the_paper(name):
    _, patches, expected = PAPER[name]
    assert tuple(preprocessing.sequential_split(patches).values()) == expected
    assert DATASETS[name].patches == patches == sum(expected)
    assert (AuNanoparticles.side, AuNanoparticles.more_than) == (512, 400)


# The datasets


@pytest.mark.parametrize("name", ["au2_2nm", "au5nm", "au10nm", "au20nm"])
def test_raw_files_give_the_patches_and_splits_of_the_paper(tmp_path, tiny, name, capsys):
    images, masks = write_raw(tmp_path / "h5", name)
    card, records, names = built(tmp_path, name)
    assert tuple(card["splits"].values()) == PAPER[name][2]
    assert card["shape"] == [SIDE, SIDE] and card["dtype"] == "float32"
    assert card["range_rule"] == "sigma" and card["targets"] == ["mask"]

    expected = []  # (name, patch, mask) in the order of the paper
    threshold = DATASETS[name].xray_threshold
    for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
        done = stats.zscore(slow_without_xrays(image, threshold), axis=None)
        patches, labels = (view_as_blocks(a, (SIDE, SIDE)) for a in (done, mask))
        for i, j in np.ndindex(labels.shape[:2]):
            if labels[i, j].sum() > FEWEST:
                at = f"{name}_{number:02d}_y{SIDE * i:04d}x{SIDE * j:04d}"
                expected.append((at, patches[i, j], labels[i, j]))
    assert sum((names[split] for split in common.SPLITS), []) == [at for at, *_ in expected]
    for at, patch, label in expected:
        record = records[at]
        np.testing.assert_allclose(record["image"][..., 0], patch, atol=2e-4)
        np.testing.assert_array_equal(record["mask"][..., 0], label)
        assert record["intensity_range"].tolist() == [-4, 4]
        assert record["source"].decode() == at.replace(f"{name}_", f"{name}/")[: len(name) + 3]
    sizes = {float(record["nm_per_pixel"][0]) for record in records.values()}
    if name == "au20nm":
        assert np.isnan(list(sizes)).all() and card["nm_per_pixel"]["unknown"] == len(expected)
    else:
        assert sizes == {float(np.float32(0.02))}
    out = capsys.readouterr().out
    assert "in two splits, as in the paper: patches of " in out and "SHA-256" in out
    assert "2204.04250" in out and "zenodo.6419024" in out


def test_by_source_no_micrograph_is_in_two_splits(tmp_path, tiny):
    write_raw(tmp_path / "h5", "au5nm")
    card, records, names = built(tmp_path, "au5nm_by_source")
    sources = {split: {records[n]["source"] for n in names[split]} for split in names}
    assert {split: len(found) for split, found in sources.items()} == {
        "train": 6,
        "val": 1,
        "test": 1,
    }
    assert len(set.union(*sources.values())) == 8 and sum(card["splits"].values()) == 211
    assert card["options"]["by_source"] and not any("two splits" in n for n in card["notes"])


def test_both_kinds_of_split_hold_the_same_patches(tmp_path, tiny):
    write_raw(tmp_path / "h5", "au10nm")
    _, one, _ = built(tmp_path, "au10nm")
    _, other, _ = built(tmp_path, "au10nm_by_source")
    assert one.keys() == other.keys()
    for name, record in one.items():
        assert record["index"] == other[name]["index"]
        np.testing.assert_array_equal(record["image"], other[name]["image"])


@pytest.mark.parametrize("key", ["labels", "images"])  # the authors wrote both
def test_prepared_files_keep_their_splits(tmp_path, tiny, key):
    sizes = {"Training": 8 * 89, "Validation": 8 * 12, "Test": 8 * 27}
    images, masks = {}, {}
    for split, n in sizes.items():
        images[split] = RNG.normal(size=(n, 1, SIDE, SIDE)).astype(np.float32)
        masks[split] = (images[split] > 1).astype(np.float32)
        stem = f"Au10_330kx_{split}_DiAugment_Std_PyTorch"
        write(tmp_path / "h5", f"{stem}_Images.h5", "images", images[split])
        write(tmp_path / "h5", f"{stem}_Labels.h5", key, masks[split])
    card, records, names = built(tmp_path, "au10nm")
    assert card["splits"] == {"train": 712, "val": 96, "test": 216}
    for split, short in (("Training", "train"), ("Validation", "val"), ("Test", "test")):
        for index, name in enumerate(names[short]):
            assert name == f"au10nm_{short}_{index:04d}"
            np.testing.assert_array_equal(records[name]["image"][..., 0], images[split][index, 0])
            np.testing.assert_array_equal(records[name]["mask"][..., 0], masks[split][index, 0])
    assert any("passes_per_epoch=1" in note for note in card["notes"])
    (tmp_path / "h5" / "Au10_330kx_Test_DiAugment_Std_PyTorch_Images.h5").unlink()
    (tmp_path / "data").rename(tmp_path / "old")
    assert "expected all of Training, Validation, Test" in refused(tmp_path, "au10nm")


def test_patches_standardised_by_their_authors_are_split_and_left_as_they_are(tmp_path, tiny):
    images = RNG.normal(size=(40, SIDE, SIDE))
    stem = "Au_2p2nm_330kx_423e_Std_UTC_FFCorr_Team05"
    write(tmp_path / "h5", f"{stem}_Images.h5", "images", images)
    write(tmp_path / "h5", f"{stem}_Labels.h5", "labels", images > 1)
    card, records, names = built(tmp_path, "au2_2nm")
    assert card["splits"] == {"train": 28, "val": 4, "test": 8}
    for index, name in enumerate(names["train"] + names["val"] + names["test"]):
        np.testing.assert_array_equal(records[name]["image"][..., 0], np.float32(images[index]))
    assert "40 patches; the authors have 355" in card["notes"]
    assert "does not say which micrograph" in refused_by_source(tmp_path, "au2_2nm")


def refused_by_source(tmp_path, name):
    with pytest.raises(InputError) as error:
        built(tmp_path, f"{name}_by_source")
    return str(error.value)


def test_the_first_au_set_is_patches_between_0_and_1(tmp_path, tiny):
    images = RNG.random((216, SIDE, SIDE, 1))
    particle = RNG.integers(0, 2, (216, SIDE, SIDE))
    facts = DATASETS["au5nm_v1"]
    write(tmp_path / "h5", facts.images, "images", images)
    write(tmp_path / "h5", facts.labels, "maps", np.stack([1 - particle, particle], -1))
    card, records, names = built(tmp_path, "au5nm_v1")
    assert card["splits"] == {"train": 151, "val": 21, "test": 44}
    assert card["range_rule"] == "fixed" and card["options"] == {
        "layout": "cut",
        "by_source": False,
    }
    for index, name in enumerate(names["train"] + names["val"] + names["test"]):
        np.testing.assert_array_equal(records[name]["image"], np.float32(images[index]))
        np.testing.assert_array_equal(records[name]["mask"][..., 0], particle[index])
        assert records[name]["intensity_range"].tolist() == [0, 1]
        assert records[name]["source"] == b"au5nm_v1"
    assert "2001.05022" in card["about"]["citation"]
    line = refused_by_source(tmp_path, "au5nm_v1")
    assert facts.images in line and "build au_nanoparticles/au5nm_v1, or give" in line


def test_one_image_is_in_memory_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(AuNanoparticles, "side", 128)
    images = RNG.integers(0, 500, (24, 512, 512), dtype=np.uint16)
    masks = (images > 400).astype(np.uint8)
    write_raw(tmp_path / "h5", "au5nm", images, masks)
    options = build.argparse.Namespace(
        dataset="au_nanoparticles/au5nm", source=tmp_path / "h5", fetch=False
    )
    whole = images.size * 4
    tracemalloc.start()
    dataset = AuNanoparticles(options)
    dataset.prepare()
    assert sum(1 for _ in dataset.records("train")) == 268
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < whole / 2


# Bad input


def test_damaged_images_are_named_and_skipped(tmp_path, tiny):
    images, masks = write_raw(tmp_path / "h5", "au20nm")
    images = images.astype(np.float32)
    images[3, 5, 5] = np.nan
    images[4, :2, 7] = np.inf
    images[5] = 12
    images[6] = -np.abs(images[6])
    write_raw(tmp_path / "h5", "au20nm", images, masks)
    line = refused(tmp_path, "au20nm")
    path = tmp_path / "h5" / "Au_20nm_87kx_16e_Images.h5"
    assert "4 of 25 images cannot be used, over the 5.0%" in line
    assert f"{path}[3]: 1 of 10240 values are NaN or infinite; {path}[4]: 2 of 10240" in line
    card, records, _ = built(tmp_path, "au20nm", "--left_out=0.2")
    assert card["unusable"] == 4 and [f"{path}[5]", "all pixels are 12"] in card["left_out"]
    assert any(reason.startswith("no pixel is above 0") for _, reason in card["left_out"])
    left = {record["source"].decode()[-2:] for record in records.values()}
    assert left.isdisjoint({"03", "04", "05", "06"})
    assert any(note.endswith("the authors have 132") for note in card["notes"])


def bad_key(folder, images, masks):
    write(folder, "Au_5nm_330kx_423e_Images.h5", "data", images)
    return "Images.h5: no key 'images'; its keys: 'data'"


def bad_label_key(folder, images, masks):
    with h5py.File(folder / "Au_5nm_330kx_423e_Labels.h5", "w") as file:
        file["mask"], file["b"] = masks, masks
    return "Labels.h5: no key 'labels' or 'maps' or 'images'; its keys: 'b', 'mask'"


def bad_label_shape(folder, images, masks):
    write(folder, "Au_5nm_330kx_423e_Labels.h5", "labels", masks[:, :-1])
    return (
        "Labels.h5: 8x79x128 labels (number, height, width), expected the shape of the images in "
        "Au_5nm_330kx_423e_Images.h5, 8x80x128"
    )


def bad_label_count(folder, images, masks):
    write(folder, "Au_5nm_330kx_423e_Labels.h5", "labels", masks[:-1])
    return "Labels.h5: 7x80x128 labels"


def bad_label_values(folder, images, masks):
    write(folder, "Au_5nm_330kx_423e_Labels.h5", "labels", masks * 255)
    return "Labels.h5[0]: labels hold 255, expected 0 and 1 alone"


def bad_label_nan(folder, images, masks):
    write(folder, "Au_5nm_330kx_423e_Labels.h5", "labels", np.where(masks, 1, np.nan))
    return "Labels.h5[0]: labels hold nan"


def bad_channels(folder, images, masks):
    write(folder, "Au_5nm_330kx_423e_Images.h5", "images", np.stack([images] * 3, -1))
    return "'images' has the shape 8x80x128x3, expected number x height x width, with at most 1"


def bad_rank(folder, images, masks):
    write(folder, "Au_5nm_330kx_423e_Images.h5", "images", images[0])
    return "'images' has the shape 80x128, expected number x height x width"


def bad_numbers(folder, images, masks):
    write(folder, "Au_5nm_330kx_423e_Images.h5", "images", images.astype(complex))
    return "'images' is complex128, expected real numbers"


def bad_size(folder, images, masks):
    write(folder, "Au_5nm_330kx_423e_Images.h5", "images", images[:, :12])
    write(folder, "Au_5nm_330kx_423e_Labels.h5", "labels", masks[:, :12])
    return "8 images of 12x128, expected micrographs of at least 16x16"


def bad_file(folder, images, masks):
    (folder / "Au_5nm_330kx_423e_Images.h5").write_text("hello")
    return "Images.h5: Unable to"


def cut_off(folder, images, masks):
    path = folder / "Au_5nm_330kx_423e_Images.h5"
    path.write_bytes(path.read_bytes()[:-5000])
    return "truncated file"


def no_labels(folder, images, masks):
    (folder / "Au_5nm_330kx_423e_Labels.h5").unlink()
    return "Labels.h5 is missing; it belongs to Au_5nm_330kx_423e_Images.h5"


def no_particles(folder, images, masks):
    write(folder, "Au_5nm_330kx_423e_Labels.h5", "labels", 0 * masks)
    return "none of 8 images has a patch with more than 8 particle pixels"


def other_files(folder, images, masks):
    for path in folder.iterdir():
        path.rename(path.with_name("old " + path.name))
    return "holds old Au_5nm_330kx_423e_Images.h5, old Au"


@pytest.mark.parametrize(
    "spoil",
    [
        bad_key,
        bad_label_key,
        bad_label_shape,
        bad_label_count,
        bad_label_values,
        bad_label_nan,
        bad_channels,
        bad_rank,
        bad_numbers,
        bad_size,
        bad_file,
        cut_off,
        no_labels,
        no_particles,
        other_files,
    ],
)
def test_wrong_files_are_refused_in_one_line(tmp_path, tiny, spoil):
    images, masks = write_raw(tmp_path / "h5", "au5nm")
    expected = spoil(tmp_path / "h5", images, masks)
    line = refused(tmp_path, "au5nm")
    assert expected in line and str(tmp_path / "h5") in line and "\n" not in line


def test_patches_of_another_size_or_range_are_refused(tmp_path, tiny):
    facts = DATASETS["au5nm_v1"]
    images, maps = RNG.random((20, 24, 24, 1)), RNG.integers(0, 2, (20, 24, 24, 2))
    write(tmp_path / "h5", facts.images, "images", images)
    write(tmp_path / "h5", facts.labels, "maps", maps)
    assert "20 images of 24x24, expected patches of 16x16" in refused(tmp_path, "au5nm_v1")
    write(tmp_path / "h5", facts.images, "images", 255 * images[:, :16, :16])
    write(tmp_path / "h5", facts.labels, "maps", maps[:, :16, :16])
    assert "expected 0 to 1" in refused(tmp_path, "au5nm_v1")


def test_two_preparations_and_too_few_micrographs_are_refused(tmp_path, tiny):
    for kind in ("UTC", "SiN"):
        stem = f"Au_5nm_330kx_423e_Std_{kind}"
        write(tmp_path / "h5", f"{stem}_Images.h5", "images", RNG.normal(size=(4, SIDE, SIDE)))
    assert "expected one of them" in refused(tmp_path, "au5nm")
    masks = masks_with(30, 2)
    write_raw(tmp_path / "h5", "au5nm", np.stack([counts(), counts()]), masks)
    assert "has 2 micrographs with particles, expected at least 3" in refused(
        tmp_path, "au5nm_by_source"
    )


def test_fetch_brings_what_is_missing_and_nothing_else(tmp_path, tiny, monkeypatch):
    asked = []

    def from_zenodo(record, names, folder):
        asked.append((record, names, folder))
        write_raw(tmp_path / "h5", "au5nm")

    monkeypatch.setattr(au_nanoparticles.fetch, "from_zenodo", from_zenodo)
    line = refused(tmp_path, "au5nm")
    facts = DATASETS["au5nm"]
    for part in (
        facts.images,
        facts.labels,
        "zenodo.6419024",
        f"into {tmp_path / 'h5'}",
        "--fetch",
    ):
        assert part in line
    card, *_ = built(tmp_path, "au5nm", "--fetch")
    assert asked == [("6419024", (facts.images, facts.labels), str(tmp_path / "h5"))]
    digest = common.file_sha256(tmp_path / "h5" / facts.images)
    assert f"{facts.images}: SHA-256 {digest}" in card["notes"]
