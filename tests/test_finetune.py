"""Finetuning in one command: pairs, rules, splits, resumption, scores, the page, refusals."""

import csv
import json
from collections import Counter

import jax
import numpy as np
import optax
import pytest
import tifffile
from ml_collections import ConfigDict

import emjax
from data_builders.micrographs import checking, pairs
from data_builders.micrographs.listing import Source
from data_builders.micrographs.masks import Found
from data_builders.micrographs.reading import ReadOptions
from data_builders.micrographs.summary import Finding
from emjax import finetune, main
from emjax.data.records import Records, open_records
from emjax.errors import EmjaxError, InputError, UsageError
from emjax.files import lock_folder
from emjax.finetuning import bases, page, records, rounds, scores, trainings
from emjax.finetuning.examination import examine
from emjax.finetuning.scores import dice
from emjax.models import pretrained, saved
from emjax.models.build import create
from emjax.tasks import TASKS
from emjax.training import choices
from emjax.training.assemble import with_settings

UNET = dict(name="unet", blocks=2, receptive_field=44)
SIDE = 64


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Return a function that makes a small model of a task, to start from."""

    def make(task="segmentation"):
        folder = tmp_path_factory.mktemp("base")
        network = create(UNET, optax.sgd(1.0), key=jax.random.key(0))
        saved.write(folder, network, dict(model=UNET, task=task, range_rule="percentile"))
        return folder

    return make


def drawn(seed, side=SIDE):
    """(image, mask) of bright discs in noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    mask = np.zeros((side, side), bool)
    for cy, cx in rng.uniform(8, side - 8, (4, 2)):
        mask |= (y - cy) ** 2 + (x - cx) ** 2 < 36
    image = 60 + 120 * mask + rng.normal(0, 8, mask.shape)
    return image.astype(np.uint8), mask.astype(np.uint8)


def write_pairs(folder, count, suffix="_mask", **options):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image, mask = drawn(number, **options)
        tifffile.imwrite(folder / f"m{number:02}.tif", image)
        tifffile.imwrite(folder / f"m{number:02}{suffix}.tif", 255 * mask)
    return folder


def run(folder, out, *flags):
    line = [f"--images={folder}", f"--out={out}", "--steps=4", *map(str, flags)]
    return finetune.main(line)


def splits_of(out):
    lines = (out / "data" / "pairs.csv").read_text().splitlines()
    return sorted(row["split"] for row in csv.DictReader(lines))


def record(out):
    return json.loads((out / rounds.RECORD).read_text())


@pytest.mark.parametrize(
    ("is_mask", "trained", "untrained", "better"),
    [
        (True, 0.4, 0.6, True),
        (True, 0.6, 0.4, False),
        (False, 0.1, 0.2, False),
        (False, 0.2, 0.1, True),
        (True, 0.5001, 0.5003, False),
    ],
)
def test_a_training_that_made_it_worse_is_called_so(is_mask, trained, untrained, better):
    ours, theirs = ([scores.Scored("a.tif", score, 1, 1, [])] for score in (trained, untrained))
    said = page.in_words(ours, is_mask=is_mask, folds=0, before={"particles": theirs})
    assert f"Without this training, particles has {untrained:.3f}." in said
    assert ("That is better: predict with particles" in said) is better


def test_one_line_gives_a_model_a_score_and_a_page(base, tmp_path, capsys):
    folder, out, start = write_pairs(tmp_path / "pairs", 10), tmp_path / "out", base()
    assert run(folder, out, f"--base={start}") == 0
    said = capsys.readouterr().out
    assert "10 pairs of an image and a mask" in said
    assert "7 to train on, 1 to choose by, 2 held out" in said
    assert "augment.crop = 64: " in said and "steps = 4: asked for" in said
    assert f"Without this training, {start} has" in said

    found = record(out)
    assert len(found["images"]) == 2 and found["findings"] == []
    assert found["score"]["low"] <= found["score"]["mean"] <= found["score"]["high"]
    model = emjax.load_model(out)
    for name, each in found["images"].items():  # the oracle: scores by hand
        image, mask = (tifffile.imread(folder / f"{name[:3]}{end}.tif") for end in ("", "_mask"))
        ours = model.mask(image) > 0
        both = (ours & (mask > 0)).sum()
        assert each["score"] == pytest.approx(2 * both / (ours.sum() + (mask > 0).sum()))
    page = (out / "report.html").read_text()
    assert "Nothing was found that looks wrong" in page and page.count("<img") == 7
    assert "held-out images: Dice" in (out / "model/README.md").read_text()
    assert splits_of(out) == ["test"] * 2 + ["train"] * 7 + ["val"]

    steps = (out / "metrics.jsonl").read_text()
    assert run(folder, out, f"--base={start}") == 0  # finished: nothing is trained again
    assert (out / "metrics.jsonl").read_text() == steps and record(out) == found

    with pytest.raises(UsageError, match=r"begun with --steps=4, this call has --steps=5; choose"):
        finetune.main([f"--images={folder}", f"--out={out}", f"--base={start}", "--steps=5"])
    again = tmp_path / "again"  # the recipe that it wrote gives the same weights
    assert main.main([f"--config={out / 'config.json'}", f"--workdir={again}"]) == 0
    assert saved.digest(again) == saved.digest(out)

    mask = tifffile.imread(folder / "m02_mask.tif")  # a person corrects one and adds another
    tifffile.imwrite(folder / "m02_mask.tif", np.where(np.indices(mask.shape)[0] < 32, mask, 0))
    image, mask = drawn(77)
    tifffile.imwrite(folder / "m77.tif", image)
    tifffile.imwrite(folder / "m77_mask.tif", mask)
    assert run(folder, out, f"--base={start}") == 0
    before = tmp_path / "out.before-1"
    assert f"{out} is {before} now" in capsys.readouterr().out
    assert record(before) == found and record(out)["earlier"] == str(before)
    assert record(out)["splits"] == {**found["splits"], "m77.tif": "train"}
    moved = json.loads((before / "config.json").read_text())
    assert moved["data"]["dir"] == str(before / "data")
    config = json.loads((out / "config.json").read_text())
    assert config["initialise"]["workdir"] == str(before / "model")
    (_, split, whole), *parts = config["data"]["train"]
    assert split == "train" and whole == sum(part[2] for part in parts) == 1
    drawn_from = open_records(out / "data", "micrographs", parts[0][1]).source
    assert drawn_from[0]["name"].decode() in ("m02", "m77")
    page = (out / "report.html").read_text()
    assert "Corrected since" in page and "% of its pixels" in page and ">new<" in page
    finished = (out / "metrics.jsonl").read_text()
    assert run(folder, out, f"--base={start}") == 0
    assert (out / "metrics.jsonl").read_text() == finished


def test_few_pairs_are_each_held_out_once(base, tmp_path, capsys):
    folder, out = write_pairs(tmp_path / "pairs", 2, suffix="-labels"), tmp_path / "out"
    assert run(folder, out, f"--base={base()}") == 0
    said = capsys.readouterr().out
    assert "2 pairs are of few sources: each is held out once, by 2 trainings" in said
    assert "of 2 images, each predicted by one of 2 networks that did not see it" in said
    assert sorted(record(out)["images"]) == ["m00.tif", "m01.tif"]
    for fold in "12":
        assert splits_of(out / "folds" / fold) == ["train", "val"]
    assert splits_of(out) == ["train"] * 2
    assert json.loads((out / "config.json").read_text())["select"] == "last"


def test_a_single_pair_has_no_score_and_says_so():
    (split_of,) = pairs.divide([source("a")], {"a": "x"})
    assert split_of == {"a": "train"}
    assert "so there will be no score" in page.divided_in_words([split_of])
    said = page.in_words([], is_mask=True, folds=0, before={})
    assert said == "There is no score: no image was held out."


def test_wrong_masks_are_left_out_and_a_wrong_set_trains_nothing(base, tmp_path, capsys):
    folder, out = write_pairs(tmp_path / "pairs", 9), tmp_path / "out"
    path = folder / "m03_mask.tif"
    tifffile.imwrite(path, 255 - tifffile.imread(path))
    assert run(folder, out, f"--base={base()}") == 0
    assert "m03.tif: left out: mask labels what is darker, unlike most" in capsys.readouterr().out
    table = (out / "data" / "pairs.csv").read_text()
    assert "m03" not in table and "m02" in table
    page = (out / "report.html").read_text()
    assert "left out" in page and "the background seems to be labelled" in page

    for path in folder.glob("*_mask.tif"):
        tifffile.imwrite(path, np.roll(tifffile.imread(path), 12, axis=0))
    with pytest.raises(InputError, match="nothing is trained: .*shifted.*--keep_all takes"):
        run(folder, tmp_path / "none", f"--base={base()}")
    assert not (tmp_path / "none").exists()


def test_a_trained_model_tells_inverted_masks():
    agreement = {"a": 0.8, "b": 0.7, "c": -0.9, "d": 0.6}
    assert [one.name for one in checking.opposed(agreement, set())] == ["c"]
    assert checking.opposed(agreement, {"c"}) == []
    assert checking.opposed({"a": -0.9, "b": -0.8}, set()) == []
    assert checking.all_opposed(agreement) is None and checking.all_opposed({}) is None
    assert "2 of 3 masks label" in checking.all_opposed({"a": -0.9, "b": -0.8, "c": 0.1})


def test_a_stack_is_left_out_for_most_of_its_planes_and_scored_as_one(tmp_path):
    found = [
        Finding("s.tif, plane 1", "constant", "all pixels are 0", True),
        Finding("s.tif, plane 2", "repeated", "is plane 0 again", True, "s.tif, plane 0"),
        Finding("a.tif", "shifted", "mask is shifted", True),
    ]
    of = {f"s.tif, plane {k}": "s.tif" for k in range(4)} | {"a.tif": "a.tif"}
    kept = [(one.name, one.kind, one.certain) for one in checking._of_sources(found, of)]
    assert kept == [("s.tif", "constant", False), ("a.tif", "shifted", True)]
    # Repeated planes do not add up with a wrong one.
    found[:2] = [Finding("s.tif, plane 3", "shifted", "mask is shifted", True)]
    found += [
        Finding(f"s.tif, plane {k}", "repeated", "is plane 0", True, "s.tif, plane 0")
        for k in (1, 2)
    ]
    of["s.tif, plane 4"] = "s.tif"
    assert [(one.kind, one.certain) for one in checking._of_sources(found, of)] == [
        ("shifted", False),
        ("shifted", True),
    ]


def test_loose_files_of_the_same_name_leave_no_pair_out(tmp_path, capsys):
    folder = write_pairs(tmp_path / "pairs", 3)
    (folder / "emjax-results").mkdir()
    tifffile.imwrite(folder / "emjax-results" / "m00.tif", drawn(0)[1])
    (folder / "old").mkdir()
    tifffile.imwrite(folder / "old" / "x00_mask.tif", drawn(0)[1])
    listing = pairs.find(folder, folder, None, "mask")
    assert [each.name for each in listing.sources] == ["m00.tif", "m01.tif", "m02.tif"]
    options = ReadOptions(None, 1 << 30, None, None)
    how = dict(is_mask=True, smallest=8, asks=True, keep_all=False, watch=lambda *_: None)
    checked = checking.check(listing, options, folder, **how)
    assert len(checked.kept) == 3
    assert "old/x00_mask.tif: left out: a mask without an image" in capsys.readouterr().out


def test_a_run_stopped_between_its_renames_goes_on(tmp_path):
    out = tmp_path / "out"
    asked = finetune.parse([f"--images={tmp_path}", f"--out={out}"]).told()
    first = rounds.begin(out, asked, {"a": "1"})
    assert rounds.begin(out, asked, {"a": "1"}) == first
    rounds.write_record(out, {**first, "finished": True})
    with pytest.raises(UsageError, match="begun with --seed=0, no --steps, this call has --seed=1"):
        rounds.check_out(out, {**asked, "seed": 1, "steps": 9})
    second = rounds.begin(out, asked, {"a": "2"})
    assert second["earlier"] == str(tmp_path / "out.before-1")
    out.rename(rounds.begun(out))  # as a kill leaves it
    rounds.check_out(out, asked)
    assert rounds.read_record(out) == second
    third = rounds.begin(out, asked, {"a": "3"})  # unfinished: set aside, its start gone on from
    assert third["earlier"] == second["earlier"] and (tmp_path / "out.before-2").is_dir()
    (tmp_path / "out.before-1").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="out.before-1: no such folder"):
        rounds.earlier_of(second)


def test_an_earlier_model_that_saw_what_is_held_out_is_not_gone_on_from(tmp_path, base, capsys):
    asked = finetune.parse([f"--images={tmp_path}", "--out=o", f"--base={base()}"])
    start = bases.base_of(asked.base, asked)
    folder = tmp_path / "before"
    folder.mkdir()
    record = dict(options={}, pairs={"a": "1", "b": "1"}, earlier=None, splits=None, finished=True)
    rounds.write_record(folder, record)
    earlier = rounds.Earlier(folder, {"a": "train", "b": "test"}, [], [], {"a"})
    now = [{"a": "test", "b": "test"}]
    assert bases.start_of(start, earlier, now, asked) == start
    assert "was trained on what is held out now" in capsys.readouterr().out


def test_pairs_are_known_under_other_names_and_over_rounds(tmp_path):
    digests = {name: name[0] * rounds.DIGEST for name in ("a.tif", "b.tif", "c.tif", "d.tif")}

    def finished(number, pairs, earlier, **splits):
        folder = tmp_path / f"out.before-{number}"
        folder.mkdir()
        record = dict(options={}, pairs=pairs, earlier=earlier, splits=splits, finished=True)
        rounds.write_record(folder, record)
        return str(folder)

    splits = {"a.tif": "train", "b.tif": "val", "c.tif": "test", "d.tif": "train"}
    first = finished(1, digests, None, **splits)
    fewer = {name: digest for name, digest in digests.items() if name != "d.tif"}
    second = finished(2, fewer, first, **{name: splits[name] for name in fewer})
    now = {
        "new.tif": "n" * rounds.DIGEST,
        "00b.tif": digests["b.tif"],  # they have other names now
        "00c.tif": digests["c.tif"],
        "a.tif": "x" * rounds.DIGEST,  # corrected
        "again.tif": digests["d.tif"],  # gone in the second round
    }
    earlier = rounds.earlier_of({"earlier": second, "pairs": now, "finished": False})
    assert earlier.splits == {"00b.tif": "val", "00c.tif": "test", "a.tif": "train"}
    assert sorted(earlier.changed) == ["a.tif", "again.tif", "new.tif"] and earlier.gone == []
    assert earlier.seen == {"a.tif", "again.tif"}
    record = rounds.read_record(tmp_path / "out.before-2")
    rounds.write_record(tmp_path / "out.before-2", {**record, "continued": False})
    earlier = rounds.earlier_of({"earlier": second, "pairs": now, "finished": False})
    assert earlier.seen == {"a.tif"}  # what the first round had seen is forgotten
    swapped = {"a.tif": digests["b.tif"], "b.tif": digests["a.tif"]}
    assert rounds.names_then(digests, swapped) == {"a.tif": "b.tif", "b.tif": "a.tif"}


def test_what_was_set_aside_may_be_deleted_once_all_is_done():
    record = dict(earlier="nowhere", pairs={}, finished=True)
    assert rounds.earlier_of(record) is None
    with pytest.raises(InputError, match="nowhere: no such folder"):
        rounds.earlier_of({**record, "finished": False})


def test_records_set_aside_from_a_folder_of_any_name(tmp_path):
    out = tmp_path / "model"
    first = rounds.begin(out, {}, {"a": "1"})
    rounds.write_record(out, {**first, "finished": True})
    (out / "model").mkdir()
    for folder in (out, out / "model"):
        (folder / "config.json").write_text(json.dumps({"data": {"dir": "as it was"}}))
    rounds.begin(out, {}, {"a": "2"})
    aside = tmp_path / "model.before-1"
    config = json.loads((aside / "config.json").read_text())
    assert config["data"]["dir"] == str(aside / "data")
    assert "as it was" in (aside / "model" / "config.json").read_text()


@pytest.mark.parametrize(
    "name", ["a", "a_z012", "a_x5", "a_z0012", "a_y0001x0002", "a_z0003_y0000x0064"]
)
def test_records_are_found_by_the_names_of_their_pairs(tmp_path, monkeypatch, name):
    ends = ["", "_y0000x0064", "_z0007", "_z0007_y0000x0064"]
    stored = [{"name": f"{name}{end}".encode()} for end in ends]
    monkeypatch.setattr(pairs, "record_names", lambda table, root: {name: "the pair"})
    monkeypatch.setattr(records, "open_records", lambda *args: Records(stored, {}))
    found = records.records_of(tmp_path, "train", tmp_path)
    assert [of for of, _ in found] == ["the pair"] * 4


def test_changed_records_are_drawn_alike_wherever_they_are(tmp_path, monkeypatch):
    """And planes of a pair are compared in their order, whatever that of the records is."""
    names = ["old", "new", "old", "new", "new", "new"]
    stored = [{"name": f"{name}_z{k:04d}".encode(), "index": 9 - k, "mask": k}
              for k, name in enumerate(names)]  # fmt: skip
    monkeypatch.setattr(pairs, "record_names", lambda table, root: {"old": "old", "new": "new"})
    monkeypatch.setattr(records, "open_records", lambda *args: Records(stored, {}))
    slices, count = records.changed_slices(tmp_path, tmp_path, ["new"])
    assert slices == [("train[1:2]", 0.25), ("train[3:6]", 0.75)] and count == 4
    assert records.changed_slices(tmp_path, tmp_path, ["held out"]) == ([], 0)
    card = {"targets": ["mask"], "splits": {"train": 6}}
    monkeypatch.setattr(records.common, "read_card", lambda folder: card)
    assert records.targets_of(tmp_path, tmp_path) == {"old": [2, 0], "new": [5, 4, 3, 1]}


def test_a_network_of_two_outputs_restores_with_one(tmp_path):
    config = {"model": {"name": "unet", "blocks": 2, "receptive_field": 44, "out_channels": 2},
              "task": "segmentation"}  # fmt: skip
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    line = [f"--images={tmp_path}", f"--out={tmp_path / 'o'}", f"--base={tmp_path}"]
    start = bases.base_of(str(tmp_path), finetune.parse([*line, "--task=denoise"]))
    assert "out_channels" not in start.model and "head/.*" in start.fresh
    start = bases.base_of(str(tmp_path), finetune.parse(line))
    assert start.model["out_channels"] == 2 and not start.fresh
    with pytest.raises(UsageError, match="model.out_channels=2, but the task is denoise"):
        with_settings(ConfigDict({**config, "task": "denoise"}), TASKS["denoise"])


def test_full_masks_and_sets_that_cannot_be_divided():
    splits = [{"a": "train", "b": "val"}, {"a": "val", "b": "train"}, {"a": "train", "b": "train"}]
    assert trainings.trainable(splits, {"a": 1.0, "b": 0.4}) == splits[1:]
    words = page.divided_in_words(splits[1:])
    assert "without a score, as no training is left without them: b" in words
    alone = checking.Checked([source("a")], [], {"a": "a"}, [(64, 64)], {"a": 0.5})
    asked = finetune.parse(["--images=x", "--out=o", "--base=auto"])
    with pytest.raises(UsageError, match="no image is left to choose by"):
        trainings.check_divisible(alone, asked)


@pytest.mark.parametrize("trained", [".", "folds/1", "data"])
def test_a_folder_in_which_another_process_trains_is_not_set_aside(tmp_path, trained):
    out = tmp_path / "out"
    asked = finetune.parse([f"--images={tmp_path}", f"--out={out}"]).told()
    rounds.begin(out, asked, {"a": "1"})
    (out / trained).mkdir(parents=True, exist_ok=True)
    with lock_folder(out / trained, ""), pytest.raises(InputError, match="in use by another"):
        rounds.begin(out, asked, {"a": "2"})
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert rounds.read_record(out)["pairs"] == {"a": "1"}
    assert rounds.begin(out, asked, {"a": "2"})["pairs"] == {"a": "2"}
    assert (tmp_path / "out.before-1").is_dir()


def test_a_finetuning_is_not_set_aside_while_it_builds_or_scores(base, tmp_path, monkeypatch):
    """Nor does another one with the same pairs go on in its folder."""
    folder, out, start = write_pairs(tmp_path / "pairs", 10), tmp_path / "out", base()
    scored, refused = scores.scored, []

    def meanwhile(*args):
        if not refused:
            for number in (0, 10):  # the same pairs; one more
                write_pairs(folder, number + 1)
                with pytest.raises(InputError, match="out/data is in use by another process; wait"):
                    run(folder, out, f"--base={start}")
                refused.append(number)
        return scored(*args)

    monkeypatch.setattr(scores, "scored", meanwhile)
    assert run(folder, out, f"--base={start}") == 0
    assert refused == [0, 10] and record(out)["finished"] and len(record(out)["pairs"]) == 10
    assert not list(tmp_path.glob("*.before-*"))


def test_a_score_by_images_that_chose_the_base_says_so():
    scored = [scores.Scored(name, 0.9, [], 1, 1) for name in "ab"]
    said = page.in_words(scored, is_mask=True, folds=2, before={}, chose_the_base={"a"})
    assert "1 of them also chose the base" in said
    assert "chose" not in page.in_words(scored, is_mask=True, folds=2, before={})


def test_restorations_in_other_grey_values_are_left_out(base, tmp_path):
    for number in range(9):
        image = drawn(number)[0].astype(np.uint16)
        noisy = 20000 + 10 * image
        target = image.astype(np.uint8) if number == 4 else noisy
        tifffile.imwrite(tmp_path / f"{number}.tif", noisy)
        tifffile.imwrite(tmp_path / f"{number}_denoised.tif", target)
    line = [f"--images={tmp_path}", "--out=o", "--task=denoise", f"--base={base('denoise')}"]
    asked = finetune.parse(line)
    listing = pairs.find(asked.images, asked.images, None, "denoised")
    checked = examine(listing, bases.base_of(asked.base, asked), asked).checked
    (wrong,) = [one for one in checked.findings if one.kind == "unusable"]
    assert wrong.name == "4.tif" and wrong.certain and "expected both in one scale" in wrong.text
    assert len(checked.kept) == 8


def test_restorations_are_finetuned_too(base, tmp_path, capsys):
    folder = tmp_path / "pairs"
    for number in range(8):
        image, _ = drawn(number)
        for name, pixels in (("noisy", image), ("clean", np.sort(image, axis=1))):
            (folder / name).mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(folder / name / f"{number}.tif", pixels)
    line = [f"--images={folder / 'noisy'}", f"--targets={folder / 'clean'}", "--task=denoise"]
    line += [f"--out={tmp_path / 'out'}", "--steps=2", f"--base={base('denoise')}"]
    assert finetune.main(line) == 0
    assert "L1 (fraction of the input's range; less is better) 0." in capsys.readouterr().out
    assert emjax.load_model(tmp_path / "out").predict(image).shape == image.shape


def test_images_of_several_sizes_become_patches(base, tmp_path, capsys):
    folder = write_pairs(tmp_path / "pairs", 6)
    for number, side in ((6, 80), (7, 200)):
        image, mask = drawn(number, side)
        tifffile.imwrite(folder / f"m0{number}.tif", image)
        tifffile.imwrite(folder / f"m0{number}_mask.tif", mask)
    tifffile.imwrite(folder / "small.tif", image[:20, :20])
    tifffile.imwrite(folder / "small_mask.tif", mask[:20, :20])
    tifffile.imwrite(folder / "other.tif", image)
    tifffile.imwrite(folder / "other_mask.tif", mask[:-1])
    tifffile.imwrite(folder / "alone.tif", image)
    assert run(folder, tmp_path / "out", f"--base={base()}") == 0
    said = capsys.readouterr().out
    assert "alone.tif: left out: no mask of this stem" in said
    assert "small.tif: left out: 20 x 20 pixels, expected 64 at least per side" in said
    assert "other.tif: left out: " in said and "is 199x200, expected the size of its image" in said
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["augment"]["crop"] == 64


def test_auto_takes_what_was_better(tmp_path, capsys, monkeypatch):
    """The trainings are replaced: only the choice is tested here."""
    config = {
        "task": "segmentation",
        "seed": 0,
        "epochs": 1,
        "data": {"evals": {"val": ["a", "b"]}},
    }

    def trained(part, checked, options, steps):
        part.folder.mkdir(parents=True)
        (part.folder / "config.json").write_text(json.dumps(config))
        score = {"particles": 0.7, "none": 0.8, "pretrained": 0.6}[part.start.name]
        row = {"step": steps, "total": steps, "val/dice": score}
        (part.folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")

    monkeypatch.setattr(trainings, "train_part", trained)
    asked = finetune.parse([f"--images={tmp_path}", "--out=o", "--steps=50"])
    assert trainings.better_base(None, {"a": "val"}, asked, tmp_path / "trials").name == "none"
    said = capsys.readouterr().out
    assert "--base=auto takes none: after 5 updates each, val/dice: particles 0.7000, " in said
    assert "pretrained 0.6000" in said
    with pytest.raises(UsageError, match="--base=auto: no image is left to choose by"):
        trainings.better_base(None, {"a": "train"}, asked, tmp_path / "trials")


@pytest.mark.parametrize(
    "values, expected",
    [
        ([{0, 1, 2}, {0, 1, 2}, {0, 1}], "1 and 2 besides 0, .*: --classes=3 keeps all, "),
        ([{0, 128, 255}], "the values 128 and 255 besides 0, .*: --foreground=255 takes one"),
        ([{(0, 0, 0), (255, 0, 0), (0, 0, 255)}], "0,0,255 and 255,0,0 besides 0"),
        ([{0, 1, 2, 3}, {0, 1, 2}, {0, 1, 2, 3, 4, 5}], None),  # numbers of particles
        ([{0, 255}, {0}], None),
        ([{1, 2}], None),  # without a background: refused elsewhere
    ],
)
def test_several_values_are_asked_about(values, expected):
    held = [
        [Found(Counter({v if isinstance(v, tuple) else (v,): 1 for v in each}), 0.5, 0.5, "")]
        for each in values
    ]
    if expected is None:
        checking.ask_about_classes(held)
    else:
        with pytest.raises(UsageError, match=expected):
            checking.ask_about_classes(held)


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--task=counting"], "no task 'counting'; there are: background, denoise, "),
        (["--steps=0"], "--steps=0, expected at least 1"),
        (["--foreground=foo"], "foreground=foo"),
        (["--seed=-1"], "--seed=-1, expected a whole number, from 0 to 4294967295"),
        (["--task=denoise", "--classes=3"], "--foreground and --classes are of masks"),
        (["--classes=1"], "--classes=1, expected 2 to 255"),
        (["--classes=3", "--foreground=1"], "expected one of them"),
        (["--base=nowhere"], "--base=nowhere: expected a model, the workdir of a run"),
    ],
)
def test_what_is_refused_before_anything_is_read(tmp_path, flags, expected):
    with pytest.raises(EmjaxError, match=expected):
        finetune.main([f"--images={tmp_path}", f"--out={tmp_path / 'out'}", *flags])
    assert not (tmp_path / "out").exists()


def test_other_files_and_no_pairs_are_refused(base, tmp_path):
    folder = write_pairs(tmp_path / "pairs", 1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="expected a new folder or one of emjax finetune"):
        run(folder, tmp_path / "full")
    with pytest.raises(InputError, match="--base=.*expected a model, the workdir of a run"):
        run(folder, tmp_path / "out", f"--base={tmp_path / 'full'}")
    (folder / "m00_mask.tif").unlink()
    with pytest.raises(InputError, match="images and targets, but no name of a mask"):
        run(folder, tmp_path / "new")


def source(name, group=None, split=None):
    return Source(name, name, {}, group or name, split, (np.nan,) * 3)


def test_parts_hold_every_cluster_out_once():
    sources = [*map(source, "abcdef"), source("g", group="b")]
    of = pairs.clusters(sources, [("a", "c"), ("c", "f"), ("x", "b")])
    assert of["a"] == of["c"] == of["f"] and of["b"] == of["g"] and len({*of.values()}) == 4
    *folds, everything = pairs.divide(sources, of)
    assert len(folds) == pairs.FOLDS and {*everything.values()} == {"train"}
    held = [name for split_of in folds for name, split in split_of.items() if split == "val"]
    assert sorted(held) == [*"abcdefg"]
    for split_of in folds:
        assert len({split_of[name] for name in "acf"}) == 1


def test_what_was_held_out_stays_so_with_what_looks_like_it():
    sources = [*map(source, "abcdefgh")]
    (split_of,) = pairs.divide(sources, pairs.clusters(sources, []))
    assert {*split_of.values()} == {"train", "val", "test"}
    nine = [*sources, source("i")]
    assert pairs.divide(nine, pairs.clusters(nine, []), split_of) == [{**split_of, "i": "train"}]
    of = pairs.clusters(nine, [("i", held_out(split_of))])
    assert pairs.divide(nine, of, split_of) == [{**split_of, "i": "test"}]
    tabled = [source("a", split="train"), source("b", split="test")]
    assert pairs.divide(tabled, {}) == [{"a": "train", "b": "test"}]


def test_what_a_table_says_begins_a_new_round_and_is_no_changed_mask(tmp_path):
    for name in ("a.tif", "a_mask.tif"):
        tifffile.imwrite(tmp_path / name, drawn(0)[0])
    known = dict(name="a.tif", image=tmp_path / "a.tif", group="a.tif", split=None)
    plain = Source(**known, targets={"mask": tmp_path / "a_mask.tif"}, nm_per_pixel=(np.nan,) * 3)
    (before,) = pairs.digests([plain]).values()
    assert len(before) == rounds.DIGEST  # as those that a record of an earlier emjax holds
    for changes in (dict(split="test"), dict(group="s"), dict(nm_per_pixel=(np.nan, 0.5, 0.5))):
        now = pairs.digests([plain._replace(**changes)])
        assert now["a.tif"] != before
        folder = tmp_path / "before"
        folder.mkdir(exist_ok=True)
        old = dict(options={}, pairs={"a.tif": before}, earlier=None, splits=None, finished=True)
        rounds.write_record(folder, old)
        earlier = rounds.earlier_of({"earlier": str(folder), "pairs": now})
        assert earlier.changed == earlier.gone == []


def test_look_alikes_that_a_table_puts_in_two_splits_are_named():
    tabled = [source("a", split="train"), source("b", split="test"), source("c", split="test")]
    of = pairs.clusters(tabled, [("a", "b")])
    (line,) = pairs.across(tabled, of)
    assert line.startswith("b looks like a, but the table has them in the splits test and train")
    assert not pairs.across([source("a"), source("b")], {"a": "x", "b": "x"})


def test_each_image_has_a_range_of_its_own_whatever_its_source(tmp_path):
    """As a prediction gives it one; images of one `source` share theirs in a build."""
    known = dict(targets={"mask": tmp_path / "m"}, group="one", split=None)
    sources = [
        Source(f"{n}.tif", tmp_path / f"{n}.tif", **known, nm_per_pixel=(np.nan,) * 3) for n in "ab"
    ]
    pairs.write_table(tmp_path / "pairs.csv", sources, {"a.tif": "train", "b.tif": "train"})
    rows = csv.DictReader((tmp_path / "pairs.csv").read_text().splitlines())
    assert [row["source"] for row in rows] == ["a.tif", "b.tif"]


def held_out(split_of):
    return next(name for name, split in split_of.items() if split == "test")


def test_rules_follow_the_data_and_the_device():
    def chosen(shapes=((256, 256),), foreground=0.3, platform="cpu", steps=None, selects=True):
        data = choices.Data(shapes, foreground)
        found = choices.choose(data, platform=platform, has_base=True, steps=steps, divisor=16,
                               selects=selects)  # fmt: skip
        return {choice.field: choice.value for choice in found}

    deep = choices.choose(choices.Data(((512, 512),), 0.3), platform="cpu", has_base=True,
                          steps=None, divisor=128, selects=True)  # fmt: skip
    assert {choice.field: choice.value for choice in deep}["augment.crop"] == 128
    assert chosen()["augment.crop"] == 192 and chosen(((100, 300),))["augment.crop"] == 96
    assert chosen(platform="gpu", shapes=((1024, 1024),))["augment.crop"] == 448
    assert chosen(foreground=0.01)["augment.foreground_crops"] == 0.5
    assert "segmentation.loss" not in chosen(foreground=None)
    assert chosen(selects=False)["select"] == "last" and "early_stopping" not in chosen(
        selects=False
    )
    assert chosen(steps=7)["steps"] == 7
    assert choices.patch_side([(256, 256)] * 3) is None
    assert choices.patch_side([(2048, 2048)]) == 512
    assert choices.patch_side([(90, 300), (256, 256)]) == 80


def test_dice_of_classes_is_the_mean_of_those_there():
    truth, predicted = np.array([[1, 1, 2, 0]]), np.array([[1, 0, 2, 2]])
    assert dice(predicted, truth) == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert dice(np.zeros((1, 2)), np.zeros((1, 2))) == 1


@pytest.mark.parametrize(
    ("flags", "base", "width", "without"),
    [
        ([], "particles", 8, "particles"),
        (["--base=pretrained"], "pretrained", None, "particles"),
        (["--base=none"], "none", 8, "particles"),
        (["--classes=3"], "particles", 8, None),
        (["--task=denoise"], "pretrained", None, None),
        (["--task=denoise", "--base=none"], "none", None, None),
    ],
)
def test_what_a_training_starts_from_and_is_compared_with(
    tmp_path, monkeypatch, flags, base, width, without
):
    monkeypatch.chdir(tmp_path)
    asked = finetune.parse([f"--images={tmp_path}", f"--out={tmp_path / 'new'}", *flags])
    (tmp_path / "particles").mkdir()  # a folder of the user's
    start = bases.base_of(asked.base, asked)
    assert start.name == base
    assert (start.model.get("filters") or [None])[0] == width
    part = trainings.Part(tmp_path / "new", {}, start)
    workdir = trainings.config_of(part, {"splits": {"train": 1}}, asked, []).initialise.workdir
    ours = base == "particles"  # not the user's folder of that name
    assert workdir == (str(pretrained.BOX / base) if ours else "" if base == "none" else base)
    found = bases.model_without_training(start, asked)
    assert found is None if without is None else getattr(found, "name", found) == without


def test_a_run_begun_with_another_default_continues_with_it(tmp_path):
    out = tmp_path / "out"
    line = [f"--images={tmp_path}", f"--out={out}"]
    rounds.begin(out, finetune.parse([*line, "--base=pretrained"]).told(), {"a": "1"})
    asked = finetune.parse(line)
    assert asked.base == "pretrained"
    rounds.check_out(out, asked.told())
    out.rename(rounds.begun(out))  # as a kill between two renames leaves it
    assert finetune.parse(line).base == "pretrained"
    for other in (tmp_path, tmp_path / "file"):
        (tmp_path / "file").touch()
        assert finetune.parse([f"--images={tmp_path}", f"--out={other}"]).base == "particles"


def test_particles_is_compared_with_itself(tmp_path):
    asked = finetune.parse(
        [f"--images={tmp_path}", f"--out={tmp_path / 'new'}", "--base=particles"]
    )
    start = bases.base_of("particles", asked)
    assert start.does and bases.model_without_training(start, asked).name == "particles"
