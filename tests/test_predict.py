"""Prediction: any size, names, ranges, formats, refusals."""

import json
import shutil
import subprocess
import sys
import tracemalloc

import h5py
import jax
import mrcfile
import numpy as np
import optax
import pytest
import tifffile
from PIL import Image
from skimage import measure

from emjax import cli, micrographs, predict
from emjax.errors import InputError, UsageError
from emjax.inference.labels import label_particles
from emjax.inference.predictor import Predictor, predict_planes, survey, to_dtype_of
from emjax.models import saved
from emjax.models.build import create
from emjax.pictures import overlay
from tests import format_samples as samples

UNET = dict(name="unet", blocks=2, receptive_field=44)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return a function that makes a model folder of a task, with random weights."""

    def make(task, rule="percentile", **changes):
        folder, fields = tmp_path_factory.mktemp("run"), UNET | changes
        network = create(fields, optax.sgd(1.0), key=jax.random.key(0))
        saved.write(folder / "model", network, dict(model=fields, task=task, range_rule=rule))
        return folder

    return make


def picture(h, w, dtype=np.uint8):
    y, x = np.mgrid[:h, :w]
    return (100 + 60 * np.sin(x / 5) * np.cos(y / 7)).astype(dtype)


@pytest.mark.parametrize("size", [(64, 64), (1, 37), (33, 2), (101, 53)])
def test_any_size_gives_a_mask_of_that_size(model, tmp_path, size):
    rng = np.random.default_rng(0)
    tifffile.imwrite(tmp_path / "a.tif", rng.integers(0, 255, size).astype(np.uint8))
    out = tmp_path / "out"
    assert predict.main([f"--model={model('segmentation')}", f"--out={out}",
                         str(tmp_path / "a.tif")]) == 0  # fmt: skip
    mask = tifffile.imread(out / "a.tif")
    assert mask.shape == size and mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 255}
    assert np.array(Image.open(out / "a.overlay.png")).shape == (*size, 3)


def test_mask_is_the_networks_output_inside_the_padding(model):
    folder = model("segmentation")
    image = picture(64, 64, np.uint16)
    probability = Predictor(folder)(image)
    module, _ = saved.load(folder / "model")
    low, high = np.quantile(image, [0.001, 0.999], method="inverted_cdf")
    unit = np.clip((image.astype(np.float32) - low) / (high - low) * 2 - 1, -1, 1)
    logits = module(unit[None, :, :, None], train=False)[0, ..., 0]
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(-logits)), atol=1e-5)


@pytest.mark.parametrize("task", [None, "denoise"])
def test_restored_image_keeps_values_and_format(model, tmp_path, task):
    folder = model(task)
    for name, dtype in (("a", np.uint8), ("b", np.uint16), ("c", np.float32)):
        tifffile.imwrite(tmp_path / f"{name}.tif", picture(40, 41, dtype))
    out = tmp_path / "out"
    assert predict.main([f"--model={folder}", f"--out={out}", str(tmp_path)]) == 0
    for name, dtype in (("a", np.uint8), ("b", np.uint16), ("c", np.float32)):
        assert tifffile.imread(out / f"{name}.tif").dtype == dtype
    # The same picture, 8 or 16 bits: the same result in grey values.
    a, b = (tifffile.imread(out / f"{name}.tif").astype(float) for name in "ab")
    inside = (b >= 0) & (b <= 255)
    np.testing.assert_allclose(a[inside], b[inside], atol=1)


def test_one_field_in_every_format_gives_one_mask(model, tmp_path):
    """Rows, number format and values arrive alike, whatever the file; the field has no symmetry."""
    field = picture(40, 56, np.uint16) + 3 * np.arange(40, dtype=np.uint16)[:, None]
    samples.write_all_of(tmp_path / "in", field)
    out = tmp_path / "out"
    line = [f"--model={model('segmentation')}", f"--out={out}", "--mrc_rows=top"]
    assert predict.main([*line, str(tmp_path / "in")]) == 0
    masks = {path.name: tifffile.imread(path) for path in out.glob("*.tif")}
    assert len(masks) == 14
    expected = masks["imagej.tif"]
    assert 0 < (expected > 0).mean() < 1 and (expected != expected[::-1]).any()
    assert [name for name, mask in masks.items() if (mask != expected).any()] == []


def test_stacks_stay_stacks_and_pixel_sizes_are_kept(model, tmp_path, capsys):
    stack = np.stack([picture(20, 21, np.uint16), 3 * picture(20, 21, np.uint16)])
    micrographs.write(tmp_path / "a.mrc", stack, (0.25, 0.5))
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["one"], file["two"] = stack[0], stack[1]
    folder, out = model(None), tmp_path / "out"
    assert predict.main([f"--model={folder}", f"--out={out}", str(tmp_path / "a.mrc")]) == 0
    assert "2 x 20 x 21, uint16, 0.25 x 0.5 nm per pixel (MRC header)" in capsys.readouterr().out
    planes = list(micrographs.planes(out / "a.tif"))
    assert planes[0].nm_per_pixel == pytest.approx((0.25, 0.5)) and len(planes) == 2
    # One intensity range for both planes.
    predictor = Predictor(folder)
    values = micrographs.intensity_range(stack, "percentile")
    for plane, image in zip(planes, stack, strict=True):
        expected = to_dtype_of(image, predictor(image, values))
        np.testing.assert_array_equal(plane.image, expected)

    def said():
        return capsys.readouterr().err

    line = [f"--model={folder}", f"--out={out}", str(tmp_path / "b.h5")]
    assert predict.main(line) == 3
    assert "2 different images" in said()
    assert predict.main([*line, "--index=1", "--pixel_size=3,4"]) == 0
    assert micrographs.read(out / "b.tif").nm_per_pixel == pytest.approx((3, 4))
    assert "3 nm along y and 4 nm along x; if that is one number, write 3.4" in said()
    for text in ("0", "a", "1,2,3", "inf", "nan", "1,-1", "1e-300", "1,1e300"):
        with pytest.raises(UsageError, match="--pixel_size=.*expected nm per pixel, one number wi"):
            predict.main([*line, f"--pixel_size={text}"])
    for text in ("0", "-1", "nan", "inf"):
        with pytest.raises(UsageError, match="--memory_limit=.*: expected GiB, more than 0"):
            predict.main([*line, f"--memory_limit={text}"])
    assert predict.main([*line, "--index=1", "--memory_limit=0.0000001"]) == 3
    assert "raise --memory_limit" in said()
    assert predict.main([*line, "--index=1", "--memory_limit=1e300"]) == 0


def test_a_bad_file_is_named_and_the_others_are_done(model, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in" / "good.tif", picture(16, 16))
    (tmp_path / "in" / "text.tif").write_text("hello")
    tifffile.imwrite(tmp_path / "in" / "flat.tif", np.full((16, 16), 3, np.uint8))
    out = tmp_path / "out"
    code = predict.main([f"--model={model('segmentation')}", f"--out={out}", str(tmp_path / "in")])
    errors = capsys.readouterr().err.splitlines()
    assert code == 3 and sorted(p.name for p in out.iterdir()) == ["good.overlay.png", "good.tif"]
    assert len(errors) == 3 and "flat.tif" in errors[0] and "text.tif" in errors[1]
    assert "2 of 3 inputs" in errors[2]


def test_approximate_predictions_name_the_flag_that_avoids_them(model, tmp_path, capsys):
    files = [tmp_path / name for name in ("a.tif", "b.tif", "c.tif")]
    for file, size in zip(files, (60, 61, 12), strict=True):
        tifffile.imwrite(file, picture(size, size))
    line = [f"--model={model(None, norm='instance')}", f"--out={tmp_path / 'o'}", *map(str, files)]
    assert predict.main([*line, "--memory_limit=0.0003"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all("which is approximate" in line for line in lines[:2])
    assert lines[2] == "note: approximate predictions: --memory_limit=1 avoids them"
    assert predict.main([*line, "--memory_limit=1"]) == 0
    assert capsys.readouterr().err == ""


def test_refusals(model, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", picture(16, 16))
    folder = f"--model={model('segmentation')}"
    with pytest.raises(UsageError, match="would be overwritten by a result"):
        predict.main([folder, f"--out={tmp_path}", str(tmp_path / "a.tif")])
    with pytest.raises(InputError, match="no such file.*workdir"):
        predict.main([f"--model={tmp_path}", f"--out={tmp_path}/o", str(tmp_path / "a.tif")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no micrograph"):
        predict.main([folder, f"--out={tmp_path}/o", str(tmp_path / "empty")])
    config = tmp_path / "start" / "config.json"
    shutil.copytree(model(None) / "model", config.parent)
    fields = json.loads(config.read_text()) | {"only_to_start_from": "its head is random"}
    config.write_text(json.dumps(fields))
    with pytest.raises(UsageError, match="cannot predict, its head is random; finetune it first"):
        predict.main([f"--model={config.parent}", f"--out={tmp_path}/o", str(tmp_path / "a.tif")])


def test_a_missing_option_is_one_line(capsys):
    with pytest.raises(UsageError, match="required: FILE_OR_FOLDER"):
        predict.main(["--model=x"])
    assert capsys.readouterr().err == ""


def test_predicting_needs_no_training_library():
    heavy = ("grain", "tensorflow_datasets", "array_record", "orbax")
    code = f"import sys, emjax.predict; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_banner_is_named_or_left_out_of_range_and_mask(model, tmp_path, capsys):
    folder = model("segmentation")
    image = picture(96, 80)
    with_banner = np.vstack([image, np.zeros((12, 80), np.uint8)])
    tifffile.imwrite(tmp_path / "a.tif", with_banner)
    flags = [f"--model={folder}", f"--out={tmp_path / 'out'}", str(tmp_path / "a.tif")]
    assert predict.main(flags) == 0
    assert "scale bar is in rows 96 to 107; --cut_banner leaves" in capsys.readouterr().err
    flags[1] = f"--out={tmp_path / 'cut'}"
    assert predict.main([*flags, "--cut_banner"]) == 0
    assert capsys.readouterr().err == ""
    mask = tifffile.imread(tmp_path / "cut" / "a.tif")
    np.testing.assert_array_equal(mask[:96], Predictor(folder).mask(image))
    assert mask.shape == (108, 80) and not mask[96:].any()


def test_one_of_several_channels_is_predicted(model, tmp_path, capsys):
    both = np.stack([picture(40, 41), 200 - picture(40, 41)])
    tifffile.imwrite(tmp_path / "a.tif", both, imagej=True, metadata={"axes": "CYX"})
    flags = [f"--model={model('denoise')}", f"--out={tmp_path / 'out'}", str(tmp_path / "a.tif")]
    assert predict.main(flags) == 3
    assert "choose one by --index or --channel" in capsys.readouterr().err
    results = []
    for choice in ("--channel=1", "--index=1"):
        assert predict.main([*flags, choice]) == 0
        results.append(tifffile.imread(tmp_path / "out" / "a.tif"))
    assert results[0].shape == (40, 41)
    np.testing.assert_array_equal(*results)


@pytest.fixture(scope="module")
def segments(model):
    return model("segmentation")


def test_threshold_probability_and_labels_are_those_of_one_prediction(segments, tmp_path, capsys):
    stack = np.stack([picture(40, 44), picture(40, 44)[::-1]])
    micrographs.write(tmp_path / "a.tif", stack, (0.5, 0.25))
    out = tmp_path / "out"
    flags = [f"--model={segments}", f"--out={out}", str(tmp_path / "a.tif"), "--probabilities"]
    predictor = Predictor(segments)
    values = micrographs.intensity_range(stack, "percentile")
    expected = np.stack([predictor(image, values) for image in stack])
    middle = round(float(np.median(expected)), 4)
    for threshold, more in ((0.5, []), (middle, [f"--threshold={middle}", "--labels"])):
        assert predict.main([*flags, *more]) == 0
        assert "is finished" not in capsys.readouterr().out
        probability = micrographs.read_stack(out / "a.probability.tif")
        mask = micrographs.read_stack(out / "a.tif")
        np.testing.assert_array_equal(probability.image, expected)
        np.testing.assert_array_equal(mask.image, 255 * (expected > threshold))
        assert probability.nm_per_pixel == mask.nm_per_pixel == pytest.approx((0.5, 0.25))
    assert 0 < (mask.image > 0).mean() < 1
    labels = tifffile.imread(out / "a.labels.tif")
    alone = [measure.label(plane, connectivity=2) for plane in mask.image > 0]
    assert labels.dtype == np.uint16 and np.array_equal(labels[0], alone[0])
    assert np.array_equal(labels[1], np.where(alone[1], alone[1] + alone[0].max(), 0))
    # All files are finished; without a flag, its file is not asked for.
    for options in ([], ["--labels"]):
        assert predict.main([*flags, f"--threshold={middle}", *options]) == 0
        assert "is finished" in capsys.readouterr().out
    capsys.readouterr()
    assert predict.main([*flags, "--threshold=0.3"]) == 0
    said = f"note: {out / 'a.labels.tif'}: it is of an earlier prediction, and stays as it is"
    assert said in capsys.readouterr().err
    (out / "a.labels.tif").write_bytes(b"mine")
    with pytest.raises(UsageError, match="a.labels.tif would be overwritten"):
        predict.main([*flags, f"--threshold={middle}", "--labels"])


def test_the_mask_of_the_api_takes_a_threshold(segments):
    image, predictor = picture(32, 32), Predictor(segments)
    probability = predictor.predict(image)
    for threshold in (0.5, float(np.median(probability))):
        mask = predictor.mask(image, threshold=threshold)
        np.testing.assert_array_equal(mask, np.where(probability > threshold, 255, 0))
    np.testing.assert_array_equal(predictor.mask(image), predictor.mask(image, threshold=0.5))
    for threshold in (0, 1, 128, np.nan):
        with pytest.raises(UsageError, match="expected a probability between 0 and 1"):
            predictor.mask(image, threshold=threshold)


@pytest.mark.parametrize(
    "values", [(5, 5), (220, 60), (np.nan, 200), (50, np.inf), (2**24, 2**24 + 1)]
)
def test_a_range_that_is_none_is_refused(segments, tmp_path, values):
    with pytest.raises(UsageError, match="two grey values that differ in 32 bits"):
        Predictor(segments).predict(picture(32, 32), intensity_range=values)
    low, high = values
    with pytest.raises(UsageError, match="--range=.*two grey values such as 90,410"):
        predict.main([f"--model={segments}", f"--range={low},{high}", str(tmp_path)])


def test_particles_are_numbered_as_skimage_does():
    rng = np.random.default_rng(0)
    mask = (255 * (rng.random((70, 61)) > 0.6)).astype(np.uint8)
    labels = label_particles(mask)
    np.testing.assert_array_equal(labels, measure.label(mask > 0, connectivity=2))
    assert labels.dtype == np.uint16
    classes = rng.integers(0, 3, (70, 61)).astype(np.uint8)  # particles of two classes may touch
    ours, theirs = label_particles(classes), measure.label(classes, connectivity=2)
    pairs = np.unique(np.stack([ours.ravel(), theirs.ravel()]), axis=1)
    assert len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]


def test_more_particles_than_16_bits_count_are_written_in_32(tmp_path):
    mask = np.zeros((520, 520), np.uint8)
    mask[::2, ::2] = 255
    labels = label_particles(mask)
    assert labels.dtype == np.uint32 and labels.max() == 260**2 > 65535
    micrographs.write(tmp_path / "a.tif", labels, (0.5, 0.25), info="a note")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), labels)
    assert micrographs.read(tmp_path / "a.tif").nm_per_pixel == pytest.approx((0.5, 0.25))


@pytest.mark.parametrize("text", ["0", "1", "-0.1", "1.5", "nan", "half"])
def test_a_threshold_that_makes_no_sense(segments, tmp_path, text):
    with pytest.raises(UsageError, match="--threshold=.*expected a probability above 0 and below"):
        predict.main([f"--model={segments}", f"--out={tmp_path}", f"--threshold={text}", "a.tif"])


@pytest.mark.parametrize("option", ["--threshold=0.4", "--labels", "--probabilities"])
def test_a_model_that_restores_has_no_mask(model, tmp_path, option):
    tifffile.imwrite(tmp_path / "a.tif", picture(16, 16))
    with pytest.raises(UsageError, match="are of masks: expected a model of the task segmentation"):
        predict.main([f"--model={model('denoise')}", f"--out={tmp_path / 'o'}", option,
                      str(tmp_path / "a.tif")])  # fmt: skip
    assert not (tmp_path / "o").exists()


LOWEST = {"int8": -100, "int16": -3000, "int32": -(10**6), "uint32": 3 * 10**9}


@pytest.mark.parametrize("suffix", [".tif", ".mrc"])
@pytest.mark.parametrize("dtype", LOWEST)
def test_whole_numbers_of_all_formats_stay_what_they_are(model, tmp_path, dtype, suffix):
    """The prediction of the same values as float32, rounded and clipped to the format."""
    if suffix == ".mrc" and dtype not in ("int8", "int16"):
        pytest.skip("MRC does not have it")
    folder, steps = model("denoise"), 1 if dtype == "int8" else 7
    image = (picture(40, 41).astype(np.int64) * steps + LOWEST[dtype]).astype(dtype)
    if suffix == ".tif":
        tifffile.imwrite(tmp_path / "a.tif", image)
    else:
        with mrcfile.new(tmp_path / "a.mrc") as file:
            file.set_data(image)
    out = tmp_path / "out"
    line = [f"--model={folder}", f"--out={out}", "--mrc_rows=top", str(tmp_path / f"a{suffix}")]
    assert predict.main(line) == 0
    result = tifffile.imread(out / "a.tif")
    predictor, floats = Predictor(folder), image.astype(np.float32)
    expected = predictor(floats, micrographs.intensity_range([floats], "percentile"))
    limits = np.iinfo(dtype)
    exact = [min(max(round(value), limits.min), limits.max) for value in expected.ravel().tolist()]
    assert result.dtype == dtype and result.ravel().tolist() == exact


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint32"])
def test_values_beyond_a_format_are_clipped_to_it(dtype):
    limits = np.iinfo(dtype)
    values = np.float32([[-1e20, 1e20, 0.5, 1.5, float(limits.max)]])
    found = to_dtype_of(np.zeros((1, 5), dtype), values)
    assert found.tolist() == [[limits.min, limits.max, 0, 2, limits.max]]


def test_whole_numbers_are_written_as_other_programs_read_them(tmp_path):
    stack = np.array([[[-3, 7, 100, 4], [5, -128, 1, 9], [0, 2, -1, 127]]] * 2) * 255
    for dtype in ("int8", "int16", "int32", "uint32"):
        pixels = stack.astype(dtype)
        for name in ("a.tif", "b.ome.tif"):
            micrographs.write(tmp_path / name, pixels, (0.5, 0.25))
            np.testing.assert_array_equal(tifffile.imread(tmp_path / name), pixels)
            planes = list(micrographs.planes(tmp_path / name, whole_numbers=True))
            np.testing.assert_array_equal([plane.image for plane in planes], pixels)
            assert planes[0].image.dtype == dtype
            assert planes[0].nm_per_pixel == pytest.approx((0.5, 0.25))
        if pixels.dtype.itemsize == 4:
            with pytest.raises(UsageError, match=rf"a.mrc: this format has no {dtype}; expected"):
                micrographs.write(tmp_path / "a.mrc", pixels)
        else:
            micrographs.write(tmp_path / "a.mrc", pixels)
            with mrcfile.open(tmp_path / "a.mrc") as file:
                np.testing.assert_array_equal(file.data, pixels)


def test_shares_of_an_archive_are_the_archive(model, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for index in range(5):
        tifffile.imwrite(tmp_path / f"in/{index}.tif", picture(20 + index, 30))
    folder = model("segmentation")
    command = [f"--model={folder}", str(tmp_path / "in")]
    assert predict.main([*command, f"--out={tmp_path}/whole"]) == 0
    for share in ("1/2", "2/2"):
        assert predict.main([*command, f"--out={tmp_path}/parts", f"--share={share}"]) == 0
    whole, parts = ({p.name: p.read_bytes() for p in (tmp_path / out).iterdir()}
                    for out in ("whole", "parts"))  # fmt: skip
    assert whole == parts
    capsys.readouterr()
    assert predict.main([*command, f"--out={tmp_path}/parts"]) == 0
    assert capsys.readouterr().out.count("is finished") == 5
    assert predict.main([*command, f"--out={tmp_path}/none", "--share=7/9"]) == 0
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "1/0", "a/b", "-1/2", "1/2/3", "1.0/2"])
def test_a_share_that_is_none(text):
    with pytest.raises(UsageError, match="--share=.*: expected I/N"):
        predict.main([f"--share={text}", "a.tif"])


def test_progress_is_told_now_and_then(monkeypatch, capsys):
    monkeypatch.setattr("emjax.cli.EVERY", 25)
    clock = iter([0, 0, 10, 20, 30, 40, 50])
    monkeypatch.setattr("emjax.cli.time.monotonic", lambda: next(clock))
    assert list(cli.progress("abcdef", 6)) == list("abcdef")
    assert capsys.readouterr().out.splitlines() == ["3 of 6 inputs  ETA 0:00:30"]


def test_a_large_micrograph_takes_few_bytes_a_pixel(segments):
    """A camera's 16 384 x 16 384 has room in 4 GiB: beside the network, and what Pillow takes."""
    predictor = Predictor(segments)
    predictor.apply = lambda tile: np.abs(tile)
    plane = micrographs.Micrograph(np.tile(picture(1024, 1024), (4, 4)), (0.5, 0.5), "test")
    tracemalloc.start()
    try:
        found = survey(predictor, [plane])
        outputs = predict_planes(predictor, [plane], intensity_range=found.intensity_range)
        shown = overlay(plane.image, outputs["mask"])
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert shown.shape == (4096, 4096, 3) and outputs["mask"].any()
    assert most < 9.5 * plane.image.size
