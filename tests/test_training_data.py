"""What a model remembers of its training images, and how it sees fields that are not like them."""

import functools
import json

import jax
import numpy as np
import optax
import pytest
import tifffile

from data_builders.build import main as build
from emjax import load_model, micrographs, predict
from emjax.data.records import Records, open_records
from emjax.errors import InputError, UsageError
from emjax.inference import training_data
from emjax.inference.predictor import resampled
from emjax.inference.training_data import Watch
from emjax.main import main as train
from emjax.models import saved
from emjax.models.build import create
from emjax.parallel import sharding
from emjax.training.initialise import note_pixel_size

DARK, BRIGHT, NOISE = 90, 170, 8
RNG = np.random.default_rng(4)


def field(shape, particles, seed=0, noise=NOISE, base=DARK, top=BRIGHT):
    """Return (image, mask) of discs (y, x, radius), bright on a grey ground."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    mask = np.zeros(shape, bool)
    for cy, cx, radius in particles:
        mask |= (y - cy) ** 2 + (x - cx) ** 2 < radius**2
    image = np.where(mask, top, base) + np.random.default_rng(seed).normal(0, noise, shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), mask.astype(np.uint8)


def scattered(count, side, seed):
    rng = np.random.default_rng(seed)
    return [(*rng.uniform(0, side, 2), rng.uniform(5, 12)) for _ in range(count)]


def levels_of(image):
    watch = Watch()
    list(watch.over([image]))
    return watch.levels()


def record(seed, shape=(96, 96), nm=0.5, **changes):
    image, mask = field(shape, scattered(6, shape[0], seed), seed, **changes)
    low, high = micrographs.intensity_range([image], "percentile")
    return {
        "image": image[..., None],
        "mask": mask[..., None],
        "intensity_range": np.array([low, high], np.float32),
        "nm_per_pixel": np.array([nm, nm], np.float32),
    }


@pytest.fixture(scope="module")
def facts():
    return training_data.describe([Records([record(seed) for seed in range(10)], {})])


def test_the_facts_are_those_of_the_records(facts):
    records = [record(seed) for seed in range(10)]
    lows, highs = np.array([one["intensity_range"] for one in records]).T
    kept = facts["intensity"]
    assert facts["nm_per_pixel"] == [0.5, 0.5] and kept["dtype"] == "uint8"
    assert kept["low"] == pytest.approx([lows.min(), np.median(lows), lows.max()])
    assert kept["high"] == pytest.approx([highs.min(), np.median(highs), highs.max()])
    for part, grey in (("background", DARK), ("foreground", BRIGHT)):
        level, spread, texture = kept[part]
        scale = 2 / np.median(highs - lows)
        assert level == pytest.approx((grey - np.median(lows)) * scale - 1, abs=0.05)
        assert spread == pytest.approx(NOISE * scale, rel=0.1)
        assert texture == pytest.approx(NOISE * scale, rel=0.1)
    assert json.loads(json.dumps(facts)) == facts
    unknown = [record(0, nm=np.nan) | {"mask": np.zeros((96, 96, 1), np.uint8)}]
    bare = training_data.describe([Records(unknown, {})])
    assert bare["nm_per_pixel"] is None and "foreground" not in bare["intensity"]


def test_a_mixture_of_large_parts_is_sampled_evenly(facts):
    class Counted(list):
        read = 0

        def __getitem__(self, index):
            self.read += 1
            return super().__getitem__(index % 10)

        def __len__(self):
            return 5000

    parts = [Counted(record(seed) for seed in range(10)) for _ in range(2)]
    found = training_data.describe([Records(part, {}) for part in parts])
    assert [part.read for part in parts] == [65, 64]  # one more for the number format
    assert found["intensity"]["low"] == facts["intensity"]["low"]


WHOLE, _ = field((512, 512), scattered(60, 512, 1), 1)


@pytest.mark.parametrize(
    ("image", "is_sparse"),
    [
        (field((512, 512), [], 2)[0], True),
        (field((512, 512), [(100, 100, 8)], 3)[0], True),
        (field((300, 200), [], 3, noise=5)[0], True),  # a lower dose: its own noise counts
        (field((300, 200), [], 3, base=40)[0], True),
        (field((128, 128), [], 4)[0].astype(np.uint16) * 20, True),  # another camera
        (field((128, 128), [], 4)[0].astype(np.float32) / 1000, True),
        (WHOLE, False),
        (WHOLE[:200, :300], False),
        (field((512, 512), scattered(300, 512, 5), 5)[0], False),  # mostly particles
        (field((512, 512), scattered(60, 512, 5), 5, noise=16)[0], False),  # noisier
        (field((64, 64), scattered(2, 64, 5), 5)[0], False),
    ],
)
def test_only_a_field_of_noise_gets_another_range(facts, image, is_sparse):
    kept = facts["intensity"]
    values = micrographs.intensity_range([image], "percentile")
    found = training_data.sparse_range(kept, values, levels_of(image))
    assert (found is not None) == is_sparse
    if found:
        seen = micrographs.from_range(image, found)
        level, spread, _ = kept["background"]
        assert np.median(seen) == pytest.approx(level, abs=0.05)
        lower, upper = np.quantile(seen, [0.16, 0.84])
        assert (upper - lower) / 2 == pytest.approx(spread, rel=0.15)


def test_the_inside_of_a_particle_is_not_taken_for_background(facts):
    inside, _ = field((64, 64), [(32, 32, 99)], 6)
    kept = facts["intensity"]
    values = micrographs.intensity_range([inside], "percentile")
    found = training_data.sparse_range(kept, values, levels_of(inside))
    assert found and np.median(micrographs.from_range(inside, found)) == pytest.approx(
        kept["foreground"][0], abs=0.1
    )
    # Where exposures vary, grey values say nothing about it.
    varied = [record(seed, base=40 + 10 * seed, top=120 + 10 * seed) for seed in range(10)]
    kept = training_data.describe([Records(varied, {})])["intensity"]
    found = training_data.sparse_range(kept, values, levels_of(inside))
    assert found and np.median(micrographs.from_range(inside, found)) < 0


def test_structure_is_not_taken_for_noise(facts):
    """Grey values that are spread like noise, but smooth: a range of their own, as in training."""
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(256, 256)), 6)
    image = np.clip(120 + 30 * smooth / smooth.std(), 0, 255).astype(np.uint8)
    levels = levels_of(image)
    values = micrographs.intensity_range([image], "percentile")
    assert levels.is_normal
    assert training_data.sparse_range(facts["intensity"], values, levels) is None


def remarks(facts, image, rule="percentile", values=None):
    values = values or micrographs.intensity_range([image], rule)
    return dict(training_data.remarks(facts["intensity"], values, levels_of(image)))


def test_grey_values_far_from_those_of_training_are_named(facts):
    assert remarks(facts, WHOLE) == {} and remarks(facts, WHOLE[:96, :96]) == {}
    hot = WHOLE.astype(np.float32)
    hot[3, 4] = 60000
    assert "the value 60000 is far outside" in remarks(facts, hot)["extreme values"]
    few = field((16, 16), [], 0)[0].astype(np.float32)
    few[3, 4:12:2] = 60000  # 4 of 256 pixels, too many to be left out: they are the range's end
    assert "look for hot pixels" in remarks(facts, few)["an intensity range that few pixels fill"]
    far = "an intensity range far from those of the training images"
    assert "if it is a cut-out" in remarks(facts, WHOLE, values=(100, 120))[far]
    assert far in remarks(facts, (WHOLE // 8).astype(np.uint8))
    assert remarks(facts, WHOLE.astype(np.uint16) * 100) == {}  # another number format


@pytest.mark.parametrize(
    ("trained", "here", "said"),
    [
        ([0.06, 0.06], (0.6, 0.6), "0.6 nm per pixel, 10 times that of the training images, 0.06"),
        ([0.4, 0.5], (0.1, 0.1), "0.1 nm per pixel, 0.25 times"),
        ([0.4, 0.5], (0.3, 0.7), ""),
        ([0.4, 0.5], (0.7, 0.7), ""),
        ([0.4, 0.5], (0.1, 2.0), "2 nm per pixel, 4 times"),
        ([0.4, 0.5], (0.45, 0.1), "0.1 nm per pixel, 0.25 times"),
        ([0.4, 0.5], (np.nan, np.nan), ""),
        (None, (0.6, 0.6), ""),
    ],
)
def test_another_pixel_size_is_named(trained, here, said):
    found = training_data.pixel_size_remark(trained, here)
    assert found.startswith(said) and bool(found) == bool(said)


@pytest.mark.parametrize(
    ("here", "seen"),
    [((0.1, 0.1), (0.4, 0.4)), ((2, 2), (0.5, 0.5)), ((0.3, 0.3), (0.3, 0.3)),
     ((0.1, 2.0), (0.4472, 0.4472)), ((0.05, 0.2), (0.4, 0.4))],
)  # fmt: skip
def test_pixels_are_brought_to_the_nearest_size_of_training(here, seen):
    scale = training_data.resampling([0.4, 0.5], here)
    assert training_data.scaled(here, scale) == pytest.approx(seen, abs=1e-4)


@pytest.mark.parametrize(
    ("values", "image", "said"),
    [
        ((0, 1), RNG.random((64, 64)), ""),
        ((0, 1), 1.5 * RNG.random((64, 64)), ""),  # some are beyond: those are cut
        ((0, 65535), RNG.integers(0, 4096, (64, 64)), "nine tenths of its pixels fill 5.7% of"),
        ((0, 1), RNG.normal(2000, 100, (64, 64)), None),
        ((0, 1), RNG.normal(0, 100, (64, 64)), None),
    ],
)
def test_values_that_a_fixed_range_does_not_show_are_named_or_refused(values, image, said):
    levels = levels_of(image.astype(np.float32))
    if said is None:
        with pytest.raises(InputError, match="this model sees 0 to 1 as they are; give the range"):
            training_data.fixed_remark(values, levels)
    else:
        found = training_data.fixed_remark(values, levels)
        assert found.startswith(said) and bool(found) == bool(said)


def test_an_image_is_not_magnified_beyond_its_memory(model):
    predictor = load_model(model, memory=1 << 28)
    assert max(predictor.scale((2.0, 2.0), (256, 256))) > 1
    assert predictor.scale((2.0, 2.0), (2048, 2048)) == (1.0, 1.0)
    assert max(predictor.scale((0.25, 0.25), (256, 256))) < 1
    assert predictor.scale((1e-300, 1e-9), (256, 256)) == (1.0, 1.0)  # nothing would be left


def built(folder, seeds):
    """Build micrographs/a of fields with particles below `folder`."""
    for seed in seeds:
        image, mask = field((64, 64), scattered(6, 64, seed), seed)
        micrographs.write(folder / f"images/{seed:02d}.tif", image, 0.5)
        micrographs.write(folder / f"masks/{seed:02d}.tif", mask * np.uint8(255))
    build(["micrographs", "--name=a", f"--data_dir={folder}", f"--source={folder}/images",
           "--target", f"mask={folder}/masks"])  # fmt: skip


def training(workdir, data_dir, epochs=35):
    data = [f"--config.data.evals.{split}=('micrographs/a','{split}')" for split in ("val", "test")]
    train(["--config=segment_au:smoke", f"--workdir={workdir}", f"--config.data.dir={data_dir}",
           "--config.data.train=('micrographs/a','train')", *data, "--config.data.batch_size=8",
           f"--config.epochs={epochs}", "--config.eval_every=70",
           "--config.optimizer.lr=1e-2"])  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small network that was trained on fields with particles, and no empty ones."""
    folder = tmp_path_factory.mktemp("trained")
    built(folder, range(24))
    on_one = functools.partial(sharding.data_mesh, devices=jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "data_mesh", on_one)
        training(folder / "run", folder)
    return folder / "run"


def test_a_model_keeps_what_it_was_trained_on(model):
    config = json.loads((model / "model/config.json").read_text())
    source = open_records(model.parent, "micrographs/a", "train").source
    lows = [source[index]["intensity_range"][0] for index in range(len(source))]
    assert config["nm_per_pixel"] == pytest.approx([0.5, 0.5])
    assert config["intensity"]["low"][0] == pytest.approx(min(lows))
    assert config["data"]["micrographs/a"]["files"]
    assert "nm per pixel: 0.5\n" in (model / "model/README.md").read_text()


def test_a_run_does_not_go_on_with_other_records(model, tmp_path):
    built(tmp_path, range(5, 29))
    digests = [
        json.loads((folder / "micrographs/a/1.0.0/card.json").read_text())["files_sha256"][:12]
        for folder in (model.parent, tmp_path)
    ]
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=f"micrographs/a files '{digests[0]}' -> '{digests[1]}'"):
        training(model, tmp_path, epochs=36)
    assert {path: path.read_bytes() for path in model.rglob("*") if path.is_file()} == before


def test_a_new_run_leaves_a_model_folder_of_others_alone(model, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "README.md").write_text("mine")
    with pytest.raises(UsageError, match="README.md would be overwritten.*another --workdir"):
        training(tmp_path, model.parent)
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "README.md"]


def test_a_field_has_the_same_answer_empty_sparse_full_and_cut_out(model, tmp_path, capsys):
    """The same noise in all fields: what differs are the particles alone."""
    shape, one = (400, 400), (200, 200, 9)
    many = [(y, x, 9) for y in range(40, 400, 40) for x in range(40, 400, 40)]
    fields = {"empty": [], "one": [one], "full": many}
    inputs = tmp_path / "in"
    truth = {}
    for name, particles in fields.items():
        image, truth[name] = field(shape, particles, 9)
        micrographs.write(inputs / f"{name}.tif", image, 0.5)
        if name == "full":
            for cut, where in CUTS.items():
                micrographs.write(inputs / f"{cut}.tif", image[where], 0.5)
                truth[cut] = truth["full"][where]
    assert predict.main([f"--model={model}", f"--out={tmp_path}/out", str(inputs)]) == 0
    masks = {name: tifffile.imread(tmp_path / f"out/{name}.tif") > 0 for name in truth}
    near = np.s_[180:220, 180:220]
    for name, mask in masks.items():
        assert (mask != truth[name]).mean() < 0.02, name
    assert masks["empty"].sum() < 20
    assert (masks["one"][near] != masks["full"][near]).mean() < 0.03
    for cut, where in CUTS.items():
        assert (masks[cut] != masks["full"][where]).mean() < 0.03, cut
    printed = capsys.readouterr().err
    for name in ("empty", "one", "between"):
        assert f"note: {inputs / name}.tif: hardly more than noise" in printed
    assert f"{inputs / 'full'}.tif" not in printed

    # By the range of the image alone, noise becomes particles: the rule is needed.
    predictor = load_model(model)
    empty = tifffile.imread(inputs / "empty.tif")
    values = micrographs.intensity_range([empty], "percentile")
    assert predictor.mask(empty, intensity_range=values).mean() / 255 > 0.1
    assert predictor.mask(empty).sum() / 255 < 20

    # One range for all inputs: what the lowest and the highest of them are.
    line = [f"--model={model}", f"--out={tmp_path}/shared", "--range=shared", str(inputs)]
    assert predict.main(line) == 0
    captured = capsys.readouterr()
    assert "intensity range of all inputs: " in captured.out
    assert "hardly more than noise" not in captured.err
    shared = {name: tifffile.imread(tmp_path / f"shared/{name}.tif") > 0 for name in truth}
    for cut, where in CUTS.items():  # but for the edges of the cut
        inner = np.s_[24:-24, 24:-24]
        np.testing.assert_array_equal(shared[cut][inner], shared["full"][where][inner])


CUTS = {"corner": np.s_[:150, :170], "between": np.s_[:28, :400], "middle": np.s_[100:300, 60:380]}


def test_a_range_can_be_given(model, tmp_path):
    image, _ = field((64, 64), [(30, 30, 9)], 1)
    micrographs.write(tmp_path / "a.tif", image)
    line = [f"--model={model}", f"--out={tmp_path}/o", str(tmp_path / "a.tif")]
    assert predict.main([*line, "--range=50,230"]) == 0
    expected = load_model(model).mask(image, intensity_range=(50, 230))
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "o/a.tif"), expected)
    micrographs.write(tmp_path / "flat.tif", np.full((64, 64), DARK, np.uint8))
    assert predict.main([*line, str(tmp_path / "flat.tif"), "--range=50,230"]) == 0
    assert not tifffile.imread(tmp_path / "o/flat.tif").any()
    for text in ("", "1", "2,1", "1,1", "a,b", "1,2,3", "nan,1", "0,inf", "own"):
        with pytest.raises(UsageError, match="--range=.*: expected LOW,HIGH, two grey values"):
            predict.main([*line, f"--range={text}"])
    micrographs.write(tmp_path / "b.tif", image.astype(np.uint16))
    with pytest.raises(UsageError, match="--range=shared: expected one number format, got uint8"):
        predict.main([*line, str(tmp_path / "b.tif"), "--range=shared"])


def test_one_field_at_several_pixel_sizes_has_the_same_particles(model, tmp_path, capsys):
    """At half, twice and four times the pixel size; the network sees the size of training."""
    particles = [(y, x, 9 + (y + x) // 50 % 4) for y in range(25, 240, 45) for x in (30, 80, 140)]
    fields = {}
    for times in (0.5, 1, 2, 4):
        shape = int(240 / times), int(175 / times) + 1
        fields[times] = field(shape, [tuple(v / times for v in one) for one in particles], 3)
        micrographs.write(tmp_path / f"in/{times}.tif", fields[times][0], 0.5 * times)
    command = [f"--model={model}", "--labels", str(tmp_path / "in")]
    assert predict.main([*command, f"--out={tmp_path}/out"]) == 0
    captured = capsys.readouterr()
    for times, (image, truth) in fields.items():
        mask = tifffile.imread(tmp_path / f"out/{times}.tif") > 0
        assert mask.shape == image.shape
        labels = tifffile.imread(tmp_path / f"out/{times}.labels.tif")
        assert np.sum(np.bincount(labels.ravel())[1:] > 30 / times**2) == len(particles)
        assert 2 * (mask & (truth > 0)).sum() / (mask.sum() + truth.sum()) > 0.93, times
        np.testing.assert_array_equal(
            load_model(model).mask(image, 0.5 * times), mask * np.uint8(255)
        )
        own = f"{0.5 * times:g} x {0.5 * times:g} nm per pixel, which the network sees resampled to"
        assert (own in captured.err) == (times != 1)
    assert captured.err.count("resampled to 0.5 x 0.5, the nearest") == 3
    assert "times that of the training images" not in captured.err

    assert predict.main([*command, f"--out={tmp_path}/as_is", "--no_resample"]) == 0
    assert "4 times that of the training images" in capsys.readouterr().err
    image, truth = fields[4]
    as_is = tifffile.imread(tmp_path / "as_is/4.tif")
    np.testing.assert_array_equal(as_is, load_model(model).mask(image))
    assert predict.main([*command, f"--out={tmp_path}/out"]) == 0
    assert capsys.readouterr().out.count("is finished") == 4
    assert predict.main([*command, f"--out={tmp_path}/out", "--no_resample"]) == 0
    assert "is finished" not in capsys.readouterr().out


@pytest.mark.parametrize("shape", [(1, 1), (3, 50), (97, 31)])
@pytest.mark.parametrize("scale", [(0.25, 0.25), (3, 3), (0.37, 1.9)])
def test_what_a_resampled_image_becomes_has_its_shape_and_place(shape, scale):
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    found = resampled(lambda image: image, y + 2 * x, scale)
    assert found.shape == shape
    inner = np.s_[4:-4, 4:-4]
    np.testing.assert_allclose(found[inner], (y + 2 * x)[inner], atol=3 / min(scale))


def test_inputs_of_another_pixel_size_are_named_a_few_of_many(model, tmp_path, capsys):
    for index in range(5):
        image, _ = field((64, 64), scattered(6, 64, index), index)
        micrographs.write(tmp_path / f"in/{index}.tif", image, 5.0)
    assert predict.main([f"--model={model}", f"--out={tmp_path}/o", str(tmp_path / "in")]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "5 nm per pixel, 10 times that of the training" in line] == (
        lines[:3]
    )
    assert lines[3:] == ["note: 5 inputs: pixels of another size than in the training images"]


def test_a_model_without_facts_predicts_as_before(tmp_path, capsys):
    fields = dict(name="unet", blocks=2, receptive_field=44)
    network = create(fields, optax.sgd(1.0), key=jax.random.key(0))
    saved.write(tmp_path / "m", network, dict(model=fields, task=None, range_rule="percentile"))
    predictor = load_model(tmp_path / "m")
    empty, _ = field((40, 40), [], 1)
    assert predictor.intensity_range([empty]) == micrographs.intensity_range([empty], "percentile")
    assert capsys.readouterr().err == ""


def test_finetuning_at_another_pixel_size_is_named(model, caplog):
    note_pixel_size(str(model), [0.06, 0.06])
    assert f"{model}: its training images had 0.5 nm per pixel, 8.33 times" in caplog.text
    caplog.clear()
    for sizes in ([0.4, 0.6], None):
        note_pixel_size(str(model), sizes)
    note_pixel_size(str(model / "nowhere"), [0.06, 0.06])
    assert caplog.text == ""
