"""Several classes: masks with their numbers, an output each, from the build to the report."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tifffile
from safetensors.numpy import load_file, save_file
from skimage import measure

import emjax
from data_builders import build, export
from data_builders.micrographs.masks import Tally, interpret
from data_builders.micrographs.resample import resample_classes
from emjax import convert, micrographs, predict, report
from emjax.data.records import open_records
from emjax.errors import InputError, UsageError
from emjax.inference.predictor import Predictor
from emjax.main import main, parse
from emjax.models import saved
from emjax.models.build import create
from emjax.runs.metrics_log import read
from emjax.tasks import TASKS, task_of
from emjax.tasks.segmentation import segmentation
from emjax.training.assemble import assemble

UNET = dict(name="unet", blocks=2, receptive_field=44)
SEGMENT = "--config=configs/segment_au.py:smoke"


def drawn(seed=0, side=64):
    """(image, mask) of a bright and a dark square on a background, classes 1 and 2."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((side, side), np.uint8)
    for number in (1, 2):
        y, x = rng.integers(0, side - 20, 2)
        mask[y : y + 20, x : x + 20] = number
    grey = np.array([100, 200, 20])[mask] + rng.normal(0, 5, mask.shape)
    return np.clip(grey, 0, 255).astype(np.uint8), mask


def write_pairs(folder, count=10, dtype=np.uint8):
    for number in range(count):
        image, mask = drawn(number)
        for what, pixels in (("images", image), ("masks", mask.astype(dtype))):
            (folder / what).mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(folder / what / f"m{number}.tif", pixels)
    return folder


def build_pairs(folder, *flags, name="three"):
    line = ["micrographs", f"--name={name}", f"--data_dir={folder / 'data'}"]
    line += [f"--source={folder / 'images'}", f"--target=mask={folder / 'masks'}", *flags]
    return build.main(line)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A folder with data/micrographs/three: ten images with masks of three classes."""
    folder = write_pairs(tmp_path_factory.mktemp("three"))
    assert build_pairs(folder, "--classes=3") == 0
    return folder


def run_of(three, workdir, *changes):
    splits = [
        f"--config.data.{field}=('micrographs/three','{split}')"
        for field, split in (("train", "train"), ("evals.val", "val"), ("evals.test", "test"))
    ]
    changes = [f"--config.{change}" for change in ("segmentation.classes=3", *changes)]
    return [SEGMENT, f"--workdir={workdir}", f"--config.data.dir={three / 'data'}", *splits,
            *changes]  # fmt: skip


@pytest.fixture(scope="module")
def trained(three):
    """The workdir of a run on them, from weights of a network with one output."""
    network = create(UNET, optax.sgd(1.0), key=jax.random.key(0))
    pretrained = three / "pretrained" / "model"
    saved.write(pretrained, network, dict(model=UNET, task=None, range_rule="percentile"))
    workdir = three / "runs" / "segment"
    line = run_of(three, workdir, "epochs=3", "passes_per_epoch=16", "optimizer.lr=0.01",
                  f"initialise.workdir={pretrained}")  # fmt: skip
    assert main(line) == 0
    return workdir


def test_records_keep_the_class_numbers(three):
    found = open_records(three / "data", "micrographs/three", "train")
    assert found.card["options"]["classes"] == 3
    for record in (found.source[index] for index in range(len(found.source))):
        _, mask = drawn(int(record["name"].decode()[1:]))
        np.testing.assert_array_equal(record["mask"][..., 0], mask)
        assert record["mask"].dtype == np.uint8
    assert any(note.startswith("the masks hold the values 0 (") for note in found.card["notes"])


def test_exported_masks_of_classes_are_built_again(three, tmp_path):
    line = ["micrographs/three", f"--data_dir={three / 'data'}", "--split=test"]
    assert export.main([*line, f"--out={tmp_path}"]) == 0
    for path in (tmp_path / "mask").iterdir():
        np.testing.assert_array_equal(tifffile.imread(path), drawn(int(path.stem[1:]))[1])


@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32"])
def test_class_numbers_of_any_format_are_read(dtype):
    _, mask = drawn()
    found, what = interpret("m.tif", mask.astype(dtype), None, 3)
    np.testing.assert_array_equal(found, mask)
    assert found.dtype == np.uint8
    total = Tally(None, 4)
    total.add("m", [what])
    total.check()
    assert "no mask has a pixel of the classes 3" in total.describe({"m": "train"})


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (drawn()[1] * 100, r"0 to 2 in the masks, by --classes=3, got 100; they hold the values 0"),
        (drawn()[1] + 1, r"got 3; they hold the values 1 \("),
        (drawn()[1] / 2, r"got 0.5; they hold the values 0 \("),
        (
            np.stack([drawn()[1]] * 2 + [drawn()[1] * 9], -1),
            r"got 0,0,0; they hold the values 0,0,0 \(",
        ),
    ],
)
def test_other_values_than_class_numbers_are_refused_and_listed(pixels, words):
    total = Tally(None, 3)
    total.add("m", [interpret("m.tif", pixels, None, 3)[1]])
    with pytest.raises(InputError, match=words) as error:
        total.check()
    assert "\n" not in str(error.value)
    assert ("These are colours" in str(error.value)) == (pixels.ndim == 3)


def test_a_build_with_other_values_writes_nothing(tmp_path):
    write_pairs(tmp_path, 3)
    with pytest.raises(InputError, match="expected class numbers from 0 to 1 in the masks, by"):
        build_pairs(tmp_path, "--classes=2")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--classes=1"], "--classes=1, expected 2 to 255"),
        (["--classes=256"], "--classes=256, expected 2 to 255"),
        (["--classes=3", "--foreground=2"], "expected one of them, either all classes or one"),
    ],
)
def test_classes_that_there_cannot_be(tmp_path, flags, words):
    write_pairs(tmp_path, 1)
    with pytest.raises(UsageError, match=words):
        build_pairs(tmp_path, *flags)
    with pytest.raises(UsageError, match="--classes=3, but there is no mask"):
        build.main(["micrographs", f"--data_dir={tmp_path / 'data'}", "--classes=3",
                    f"--source={tmp_path / 'images'}"])  # fmt: skip


def test_a_resampled_mask_has_the_class_with_most_of_each_pixel():
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 2  # the mean of 0 and 2 would be the class 1
    mask[0, 0] = 1
    np.testing.assert_array_equal(
        resample_classes(mask, (0.5, 0.5)), np.repeat([[0, 0, 2, 2]], 4, axis=0)
    )
    odd = resample_classes(mask, (1, 5 / 8))
    assert set(np.unique(odd)) <= {0, 1, 2} and odd.dtype == np.uint8 and odd.shape == (8, 5)


def scores_by_hand(predicted, target, valid):
    """{name: [value or None per image]} of class numbers, written down with sets of pixels."""
    found = {name: [] for name in ("dice_1", "dice_2", "iou_1", "iou_2", "dice", "iou")}
    for p, t, v in zip(predicted, target, valid, strict=True):
        means = {"dice": [], "iou": []}
        for k in (1, 2):
            a, b = ({*map(tuple, np.argwhere((x == k) & v))} for x in (p, t))
            values = {"dice": (2 * len(a & b) + 1) / (len(a) + len(b) + 1)}
            values["iou"] = len(a & b) / len(a | b) if a | b else 1
            for name, value in values.items():
                found[f"{name}_{k}"].append(value if a | b else None)
                means[name] += [value] if a | b else []
        for name, values in means.items():
            found[name].append(np.mean(values) if values else 1)
    return found


def test_scores_of_classes():
    rng = np.random.default_rng(0)
    output = rng.normal(size=(4, 12, 10, 3)).astype(np.float32)
    target = rng.integers(0, 3, (4, 12, 10, 1))
    valid = np.ones((4, 12, 10, 1), bool)
    valid[:, 9:] = False
    target[1][target[1] == 2] = 0
    output[1, ..., 2] = -9  # the class 2 is nowhere
    target[2], output[2, ..., 0] = 0, 9  # nothing but background
    target[3, 9:] = 1  # in the padding alone
    target[3, :9], output[3, ..., 0] = 0, 9
    found = segmentation(3).metrics(*map(jnp.array, (output, target.astype(np.float32), valid)))
    expected = scores_by_hand(output.argmax(-1), target[..., 0], valid[..., 0])
    for name, values in expected.items():
        value, counts = found[name] if isinstance(found[name], tuple) else (found[name], None)
        for image, by_hand in enumerate(values):
            assert counts is None or bool(counts[image]) == (by_hand is not None)
            if by_hand is not None:
                assert float(value[image]) == pytest.approx(by_hand, rel=1e-6), (name, image)
    shifted = output - np.log(np.exp(output).sum(-1, keepdims=True))
    entropy = -np.take_along_axis(shifted, target, -1)[:, :9].mean((1, 2, 3))
    np.testing.assert_allclose(found["ce"], entropy, rtol=1e-5, atol=1e-6)


def test_two_outputs_are_still_background_and_particle():
    assert task_of("segmentation", UNET).classes == 2
    assert task_of("segmentation", UNET | {"out_channels": 2}) is TASKS["segmentation"]
    assert task_of("segmentation", UNET | {"out_channels": 4}).classes == 4
    assert task_of("denoise", UNET | {"out_channels": 4}) is TASKS["denoise"]


@pytest.mark.long
def test_a_run_learns_three_classes(trained):
    rows = [row for row in read(trained / "metrics.jsonl") if "val/dice" in row]
    assert {f"{split}/{name}" for split in ("val", "test") for name in
            ("dice", "dice_1", "dice_2", "iou", "iou_1", "iou_2", "ce")} <= {*rows[-1]}  # fmt: skip
    assert rows[-1]["val/dice"] > 0.6
    config = json.loads((trained / "model" / "config.json").read_text())
    assert config["model"]["out_channels"] == 3 and config["task"] == "segmentation"
    arrays = load_file(trained / "model" / "model.safetensors")
    assert arrays["params/head/kernel"].shape == (1, 1, 4, 3)


@pytest.mark.long
def test_predictions_are_class_numbers(trained, tmp_path, capsys):
    image, mask = drawn(99, 96)
    micrographs.write(tmp_path / "a.tif", np.stack([image, image[::-1]]), (0.5, 0.5))
    out = tmp_path / "out"
    line = [f"--model={trained}", f"--out={out}", str(tmp_path / "a.tif")]
    assert predict.main([*line, "--labels", "--probabilities"]) == 0
    assert "classes 1: " in capsys.readouterr().out
    found = tifffile.imread(out / "a.tif")
    model = emjax.load_model(trained)
    values = model.intensity_range([image])
    probability = model.predict(image, intensity_range=values)
    assert probability.shape == (96, 96, 3) and model.classes == 3
    np.testing.assert_allclose(probability.sum(-1), 1, rtol=1e-5)
    assert (
        found.dtype == np.uint8 and found.shape == (2, 96, 96) and {*np.unique(found)} == {0, 1, 2}
    )
    np.testing.assert_array_equal(found[0], probability.argmax(-1))
    np.testing.assert_array_equal(found[0], model.mask(image, intensity_range=values))
    assert (found[0] == mask).mean() > 0.8
    for k in (1, 2):
        alone = tifffile.imread(out / f"a.probability_{k}.tif")
        np.testing.assert_array_equal(alone[0], probability[..., k])
    labels = tifffile.imread(out / "a.labels.tif")[0]
    assert labels.max() == measure.label(found[0], connectivity=2).max()
    assert {path.name for path in out.iterdir()} == {
        *("a.tif", "a.overlay.png", "a.labels.tif", "a.probability_1.tif", "a.probability_2.tif")
    }
    assert predict.main([*line, "--labels", "--probabilities"]) == 0
    assert "is finished" in capsys.readouterr().out
    with pytest.raises(UsageError, match="--threshold=0.4: the model has 3 classes, of which the"):
        predict.main([*line, "--threshold=0.4"])
    with pytest.raises(UsageError, match="threshold=0.4: the model has 3 classes, of which the"):
        model.mask(image, threshold=0.4)


@pytest.mark.long
def test_tiles_have_the_classes_of_the_whole_image(trained):
    image = np.tile(drawn(7)[0], (4, 5))
    whole = Predictor(trained)
    tiled = Predictor(trained, memory=whole.bytes_per_pixel * 160**2)
    np.testing.assert_allclose(tiled(image), whole(image), atol=1e-5)
    assert len(tiled.shapes) == 1 and max(next(iter(tiled.shapes))) < max(image.shape)


@pytest.mark.long
def test_a_report_shows_the_classes(trained, tmp_path):
    assert report.main([f"--runs={trained.parent}", f"--out={tmp_path}"]) == 0
    text = (tmp_path / "report.md").read_text()
    assert "test dice_1" in text and "test iou_2" in text
    assert (tmp_path / "report.html").read_text().count("<img") > 6


@pytest.mark.long
def test_a_model_of_classes_goes_to_pytorch_and_back(trained, tmp_path):
    exported, back = tmp_path / "a.safetensors", tmp_path / "back"
    assert convert.main([f"--from={trained}", f"--to={exported}"]) == 0
    line = [f"--from={exported}", f"--to={back}"]
    assert convert.main(line) == 0
    image, _ = drawn(5)
    values = Predictor(trained).intensity_range([image])
    ours, theirs = (Predictor(folder)(image, values) for folder in (trained, back))
    np.testing.assert_array_equal(ours, theirs)
    # A file of others says nothing about the meaning of three outputs: --task does.
    kept = {name: values for name, values in load_file(exported).items() if name != "emjax"}
    save_file(kept, exported)
    pools = ["--pools=2,2", "--input=symmetric"]
    for task, words in (([], "it distinguishes 3 classes"), (["--task=segmentation"], "")):
        shutil.rmtree(back)
        assert convert.main([*line, *pools, *task]) == 0
        config = json.loads((back / "config.json").read_text())
        assert config.get("only_to_start_from", "") == words


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["segmentation.classes=2"], "masks have 3 classes, expected segmentation.classes=2; set"),
        (["segmentation.classes=4"], "its masks have 3 classes, .* or build .* with --classes=4"),
        (["task=denoise"], "segmentation.classes=3, but the task is denoise"),
    ],
)
def test_a_run_of_other_classes_than_its_records_is_refused(three, tmp_path, changes, words):
    config, _ = parse(run_of(three, tmp_path / "run", *changes))
    with pytest.raises(UsageError, match=words):
        assemble(config)
    with pytest.raises(UsageError, match="model.out_channels=2 with segmentation.classes=3, expec"):
        config, _ = parse(run_of(three, tmp_path / "run"))
        with config.unlocked():
            config.model.out_channels = 2
        assemble(config)
