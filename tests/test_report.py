"""The report's numbers are the ones worked out by hand from the runs' logs."""

import importlib
import json
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from emjax import report
from emjax.config import plain
from emjax.data.records import open_records
from emjax.errors import InputError
from emjax.experiments import curves, gallery, opening, page
from emjax.experiments.arms import Arm, differences, group_arms, group_pretrainings
from emjax.experiments.tables import finetuning_tables
from emjax.models import saved
from emjax.models.build import create
from emjax.runs.run import find_runs
from emjax.training.assemble import build_objective

VAL = [0.30, 0.50, 0.70, 0.60, 0.65, 0.70, 0.69, 0.71, 0.40, 0.50]  # best of 10: 0.71 at step 80
TEST = [0.20, 0.45, 0.66, 0.90, 0.60, 0.61, 0.62, 0.64, 0.95, 0.30]  # best of 10: 0.95, not it


def workdir(folder, recipe, rows, *, seed=0, start="", epochs=10, **fields):
    """A run as `main` would leave it, evaluated every 10 steps, without model and records."""
    config = importlib.import_module(f"configs.{recipe}").get_config("smoke")
    config.update_from_flattened_dict({"data.dir": "/nowhere", "epochs": epochs, "seed": seed})
    config.update_from_flattened_dict(fields)
    if start:
        config.initialise.workdir = str(start)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(plain(config)))
    (folder / "versions.json").write_text('{"emjax": "0.1.0", "jax": "0.10.2"}')
    lines = [{"step": 5, "train/loss": 0.1}]
    lines += [{"step": 10 * n, **row} for n, row in enumerate(rows, start=1)]
    lines = [{"total": 10 * epochs, "seconds": 1, **line} for line in lines]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def segmentation(val, test):
    return [{"val/dice": v, "test/dice": t} for v, t in zip(val, test, strict=True)]


def with_images(folder, test):
    """Add the scores of two images, a tenth below and above their mean."""
    rows = [
        {
            "step": 10 * n,
            "split": "test",
            "images": {"3": {"dice": t - 0.1}, "9": {"dice": t + 0.1}},
        }
        for n, t in enumerate(test, start=1)
    ]
    (folder / "images.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def tables(folder):
    """{title: [{column: text}]} of a report.md."""
    found = {}
    for section in (folder / "report.md").read_text().split("\n## ")[1:]:
        title, lines = section.split("\n\n", 1)
        cut = [
            [cell.strip() for cell in line[2:-2].split(" | ")] for line in lines.split("\n") if line
        ]
        found[title] = [dict(zip(cut[0], line, strict=True)) for line in cut[2:]]
    return found


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """Two arms of two finished seeds, an unfinished third, and their pretraining run."""
    runs = tmp_path_factory.mktemp("runs")
    losses = [{"val/l1": l1, "val/corrupted_l1": 0.08} for l1 in (0.05, 0.02, 0.03)]
    start = workdir(runs / "deep" / "pre", "pretrain", losses, epochs=3)
    for name, start_from, gain in (("random", "", 0.0), ("pretrained", start, 0.01)):
        for seed in (0, 1):
            test = [t + (seed + 1) * gain for t in TEST]
            folder = workdir(
                runs / f"{name}_{seed}",
                "segment_au",
                segmentation(VAL, test),
                seed=seed,
                start=start_from,
            )
            with_images(folder, test)
    rows = segmentation(VAL[:4], TEST[:4])
    workdir(runs / "pretrained_2", "segment_au", rows, seed=2, start=start)
    rate = {"optimizer.lr": 1e-3}
    workdir(runs / "faster", "segment_au", segmentation(VAL, VAL), start=start, **rate)
    names = ["pretrained_0", "pretrained_2", "never_started"]
    (runs / "matrix.json").write_text(json.dumps(names))
    out = runs / "report"
    assert report.main([f"--runs={runs}", f"--out={out}"]) == 0
    return out, tables(out)


def rows_of(reported, start):
    (rows,) = [rows for title, rows in reported[1].items() if title.startswith(start)]
    return rows


def finetuning(reported):
    return {row["initialisation"]: row for row in rows_of(reported, "Finetuning")}


ORIGIN = "pix2pix, simulated/unlabelled:train"


def test_the_test_score_is_that_of_the_best_val_so_far(reported):
    row = finetuning(reported)["random"]
    assert row["best val/dice"] == "0.7100 [0.7100, 0.7100]"
    assert row["test dice"] == "0.6400 [0.5400, 0.7400]"  # at step 80, never 0.95; two images
    assert row["seeds"] == "0, 1" and row["steps"] == "100" and row["network"] == "unet 2 44"
    by_epoch = {row["epoch"]: row for row in rows_of(reported, "Test dice by epoch")}
    cells = {epoch: row["random"][:6] for epoch, row in by_epoch.items()}
    assert cells == {
        "1.66667": "0.2000",
        "2.5": "0.4500",
        "3.33333": "0.6600",
        "4.16667": "0.6600",
        "5": "0.6600",
        "5.83333": "0.6600",
        "6.66667": "0.6600",
        "7.5": "0.6600",
        "8.33333": "0.6400",
        "9.16667": "0.6400",
        "10": "0.6400",
    }
    assert by_epoch["10"][f"{ORIGIN}; optimizer.lr 0.001"] == "0.7100 *"  # the best of its row
    assert sum(text.endswith("*") for text in by_epoch["10"].values()) == 1


def test_seeds_are_averaged_and_unfinished_runs_named_and_left_out(reported):
    row = finetuning(reported)[ORIGIN]
    assert row["test dice"] == "0.6550 [0.5500, 0.7600]"
    assert row["seeds"] == "0, 1; 2 unfinished"
    runs = {row["run"]: row for row in reported[1]["Runs"]}
    assert runs["pretrained_2"]["status"] == "unfinished: 40 of 100 steps"
    assert runs["random_0"] == {
        "run": "random_0",
        "seed": "0",
        "status": "finished",
        "step of best": "80",
        "best": "val/dice 0.7100",
        "test": "0.6400",
    }
    text = (reported[0] / "report.md").read_text()
    assert "Missing, 2 runs: pretrained_2, never_started." in text


def test_another_learning_rate_or_program_is_another_row(reported):
    row = finetuning(reported)[f"{ORIGIN}; optimizer.lr 0.001"]
    assert row["seeds"] == "0" and row["test dice"] == "0.7100"
    assert len(finetuning(reported)) == 3


def test_differences_are_paired_by_seed_and_image(reported):
    (row,) = rows_of(reported, "Pretrained against random")
    assert row["better at the end"] == "+0.0150 [+0.0100, +0.0200]"
    assert row["better early"] == "-" and row["seeds"] == "0, 1"  # nothing scored by then
    assert row["base's best val, epoch"] == "8.0" and row["reached at epoch"] == "8.0"
    change = f"{np.std(np.diff(VAL)):.4f}"
    assert row["volatility of val"] == f"{change} [{change}, {change}]" == row["base's"]


def test_pretrained_is_compared_with_the_recipe_of_sytwu_too(tmp_path):
    start = workdir(tmp_path / "pre", "pretrain", [{"val/l1": 0.05}], epochs=1)
    workdir(tmp_path / "fine", "segment_au", segmentation(VAL, TEST), start=start)
    theirs = segmentation(VAL, [t - 0.02 for t in TEST])
    workdir(tmp_path / "sytwu", "segment_au", theirs, select="last", **{"optimizer.lr": 1e-4})
    found = [run for run in find_runs(tmp_path) if "task" in run.config]
    tables, _ = finetuning_tables(group_arms(found, tmp_path))
    ((row,),) = [rows for title, rows in tables.items() if title.startswith("Pretrained against")]
    assert row["against"] == "sytwu: unet 2 44"
    assert row["better at the end"] == "+0.3600"  # 0.64 at the best val against 0.28 at the last


def test_runs_of_two_programs_are_two_rows(tmp_path):
    for seed, code in enumerate(("aaa", "aaa", "bbb")):
        folder = workdir(tmp_path / f"run_{seed}", "segment_au", segmentation(VAL, TEST), seed=seed)
        (folder / "versions.json").write_text(json.dumps({"code": code}))
    (arms,) = group_arms(find_runs(tmp_path), tmp_path).values()
    assert [(arm.name, sorted(arm.seeds)) for arm in arms] == [
        ("random; code aaa", [0, 1]),
        ("random; code bbb", [2]),
    ]


def test_seeds_of_one_pretraining_recipe_are_one_arm(tmp_path):
    """Each seed has a pretraining of its own; another recipe of it is another arm."""
    losses = [{"val/l1": l1} for l1 in (0.05, 0.02, 0.03)]
    for name, seed, weight in (("a", 0, 100.0), ("b", 1, 100.0), ("c", 2, 10.0)):
        changed = {"objective.l1_weight": weight}
        start = workdir(tmp_path / name, "pretrain", losses, epochs=3, seed=seed, **changed)
        workdir(
            tmp_path / f"fine_{name}", "segment_au", segmentation(VAL, TEST), seed=seed, start=start
        )
    found = find_runs(tmp_path)
    (arms,) = group_arms([run for run in found if "task" in run.config], tmp_path).values()
    assert {arm.name: sorted(arm.seeds) for arm in arms} == {
        f"{ORIGIN}; pretrained with config.objective.l1_weight 100.0": [0, 1],
        f"{ORIGIN}; pretrained with config.objective.l1_weight 10.0": [2],
    }
    assert [sorted(arm.seeds) for arm in group_pretrainings(found[:3])] == [[0, 1], [2]]


def test_a_matrix_that_was_moved_still_knows_its_pretrainings(tmp_path):
    """Runs of a cluster, reported on a laptop: config.json has the old path of the weights."""
    root, away = tmp_path / "runs", tmp_path / "cluster" / "runs"
    workdir(root / "pretrain" / "seed_0", "pretrain", [{"val/l1": 0.05}], epochs=1)
    for name, start in (("ours", away / "pretrain" / "seed_0"), ("other", away / "seed_0")):
        workdir(root / name, "segment_au", segmentation(VAL, TEST), start=start)
    (root / "matrix.json").write_text('["pretrain/seed_0", "ours", "other"]')
    found = [run for run in find_runs(root) if "task" in run.config]
    (arms,) = group_arms(found, root).values()
    assert {arm.runs[0].name: arm.start for arm in arms} == {
        "ours": ORIGIN,
        "other": f"weights of {away / 'seed_0'}",
    }


def test_pretraining_and_settings(reported):
    (row,) = reported[1]["Pretraining"]
    change = f"{np.std(np.diff([0.05, 0.02, 0.03])):.4f}"
    assert row == {
        "network": "unet 2 44",
        "objective, data": ORIGIN,
        "seeds": "0",
        "steps": "30",
        "best val/l1": "0.0200",
        "corrupted": "0.0800",
        "volatility of val": change,
    }
    settings = {row["run"]: row for row in reported[1]["What was run"]}["deep/pre"]
    assert settings["discriminator"] == "patchgan, width 8, depth 3, norm batch"
    assert settings["crop, pixels"] == "32" and settings["batch"] == "8"
    assert settings["corruption"].startswith("blur [0.1, 2.0], blur_probability 0.5, noise")
    assert reported[1]["Versions"] == [{"runs": "7", "versions": "emjax 0.1.0, jax 0.10.2"}]
    assert {"dataset": "simulated/unlabelled", "train": "not here", "val": "not here"}.items() <= (
        reported[1]["Table 1: records"][1].items()
    )


def test_the_page_is_self_contained_and_names_the_missing_pictures(reported):
    text = (reported[0] / "report.html").read_text()
    inline = text.count('src="data:image/png;base64,')
    assert text.count("<img") == inline == text.count("src=") == 2
    assert "href=" not in text and "@import" not in text
    assert text.replace("url(#tip)", "").count("url(") == 0
    assert text.count("No pictures: ") == 5 and "/nowhere/simulated/nanoparticles" in text
    pictures = sorted((reported[0] / "curves").iterdir())
    assert [path.stem for path in pictures] == [
        "pretraining",
        "simulated_nanoparticles_train_segmentation",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    assert not list(reported[0].rglob("*.partial"))


def test_pictures_show_what_the_evaluation_scored(tmp_path, tiny_records):
    for recipe in ("segment_au", "pretrain"):
        folder = workdir(tmp_path / recipe, recipe, [], **{"data.dir": str(tiny_records)})
        config = ConfigDict(json.loads((folder / "config.json").read_text()))
        network = create(config.model, optax.sgd(0.1), key=jax.random.key(1))
        facts = {"model": config.model.to_dict(), "task": None, "range_rule": "percentile"}
        saved.write(folder / "model", network, facts)
    workdir(tmp_path / "no_model", "segment_au", [], seed=1, **{"data.dir": str(tiny_records)})
    found = {run.name: run for run in find_runs(tmp_path)}
    assert found["pretrain"].planned == 100

    def scores(run):
        split, where = list(run.config["data"]["evals"].items())[-1]
        records = open_records(tiny_records, *where)
        objective = build_objective(ConfigDict(gallery.with_tuples(run.config)), [records], 4)
        state = SimpleNamespace(generator=gallery.best_network(run))
        evaluate = jax.jit(lambda batch: objective.eval_step(state, batch))
        for name, batch in gallery.examples(run, split):
            yield name, {name: values[0] for name, (values, _) in evaluate(batch).items()}

    arms = [Arm("-", "-", name, "", {}, [found[name]]) for name in ("segment_au", "no_model")]
    for row, (name, score) in zip(gallery.predictions(arms), scores(arms[0].runs[0]), strict=True):
        assert [picture.caption for picture in row[:3]] == [
            f"input: {name}",
            "truth",
            f"segment_au, seed 0: dice {score['dice']:.4f}",
        ]
        assert row[3:] == ["no_model has no model"]
    restorations = gallery.restorations(found["pretrain"])
    for row, (name, score) in zip(restorations, scores(found["pretrain"]), strict=True):
        assert [picture.caption for picture in row] == [
            f"corrupted: l1 {score['corrupted_l1']:.4f}",
            f"restored: l1 {score['l1']:.4f}",
            f"original: {name}",
        ]


def test_the_page_opens_with_what_a_network_does(reported):
    """The pretrained arm, its score, its cost, and the score of the arm that compares."""
    text = (reported[0] / "report.html").read_text()
    headings = [part.split("</h2>")[0] for part in text.split("<h2>")[1:]]
    assert headings[:2] == [
        "Result: simulated/nanoparticles:train, segmentation, unet 2 44",
        "Figure 1: what is learned from what",
    ]
    assert (
        f"On 2 test images kept out of finetuning, unet 2 44 ({ORIGIN}) finds the particles with "
        "Dice 0.66 (mean over 2 seeds; 1 is perfect), finetuned in 1 s after pretraining in 1 s; "
        "with the same seeds and steps: from random weights Dice 0.64. No pictures: /nowhere"
    ) in text


def test_the_opening_counts_records_and_shows_the_first_ones(tmp_path, tiny_records):
    (card,) = (tiny_records / "simulated" / "nanoparticles").glob("*/card.json")
    counts = json.loads(card.read_text())["splits"]
    where = {"data.dir": str(tiny_records)}
    folder = workdir(tmp_path / "a", "segment_au", segmentation(VAL, TEST), **where)
    config = ConfigDict(json.loads((folder / "config.json").read_text()))
    network = create(config.model, optax.sgd(0.1), key=jax.random.key(1))
    facts = {"model": config.model.to_dict(), "task": None, "range_rule": "percentile"}
    saved.write(folder / "model", network, facts)
    workdir(tmp_path / "b", "segment_au", segmentation(VAL, TEST), seed=1, epochs=20, **where)
    (section,) = opening.opening(group_arms(find_runs(tmp_path), tmp_path), tmp_path)
    assert section.text == (
        "On test images kept out of training, unet 2 44 (from random weights; epochs 10) "
        "finds the particles with Dice 0.64 (mean; 1 is perfect), trained on "
        f"{counts['train']} labelled images in 1 s."
    )
    names = [record["name"].decode() for record in first_records(tiny_records, "test")]
    assert [row[0].caption for row in section.pictures] == [f"input: {name}" for name in names]
    assert all(len(row) == 3 for row in section.pictures)


def first_records(data, split):
    source = open_records(data, "simulated/nanoparticles", split).source
    return [source[index] for index in range(3)]


@pytest.mark.parametrize(
    ("changes", "compared"),
    [
        ({}, True),
        ({"seed": 1}, False),
        ({"epochs": 20}, False),
        ({"data.evals.test": ("simulated/nanoparticles", "test[:1]")}, False),
    ],
)
def test_only_arms_of_equal_seeds_steps_and_images_are_compared(tmp_path, changes, compared):
    start = workdir(tmp_path / "pre", "pretrain", [{"val/l1": 0.05}], epochs=1)
    workdir(tmp_path / "fine", "segment_au", segmentation(VAL, TEST), start=start)
    workdir(tmp_path / "random", "segment_au", segmentation(VAL, TEST), **changes)
    found = [run for run in find_runs(tmp_path) if "task" in run.config]
    (section,) = opening.opening(group_arms(found, tmp_path), tmp_path)
    assert ("with the same seeds and steps: " in section.text) is compared


def test_restoration_and_a_split_that_was_trained_on(tmp_path):
    losses = [{"val/l1": l1, "test/l1": 2 * l1} for l1 in (0.05, 0.02, 0.03)]
    evals = {"data.evals.test": ("simulated/unlabelled", "train[5:]")}
    trained_on = {"data.train": ("simulated/unlabelled", "train[:5]")}
    workdir(tmp_path / "run", "restore_temimagenet", losses, epochs=3, **evals, **trained_on)
    (section,) = opening.opening(group_arms(find_runs(tmp_path), tmp_path), tmp_path)
    assert section.text.startswith("On test images, unet")
    assert "removes the noise with L1 0.040 (mean; 0 is perfect), trained in 1 s." in section.text


def test_one_network_per_task_is_shown_whatever_the_scores(tmp_path):
    for name, field, gain in (("a", 44, 0.0), ("b", 84, 0.2)):
        scores = segmentation(VAL, [t + gain for t in TEST])
        workdir(tmp_path / name, "segment_au", scores, **{"model.receptive_field": field})
    (section,) = opening.opening(group_arms(find_runs(tmp_path), tmp_path), tmp_path)
    assert "unet 2 44 (from random weights) finds the particles with Dice 0.64" in section.text
    assert "Shown is the first by name of 2 datasets and networks." in section.text


def test_the_page_has_no_opening_without_finished_finetuning_runs(tmp_path):
    workdir(tmp_path / "pre", "pretrain", [{"val/l1": 0.05}], epochs=1)
    workdir(tmp_path / "fine", "segment_au", segmentation(VAL[:4], TEST[:4]))
    assert report.main([f"--runs={tmp_path}", f"--out={tmp_path / 'out'}"]) == 0
    assert "<h2>Result" not in (tmp_path / "out" / "report.html").read_text()


def test_training_time_is_summed_over_the_starts_of_a_run(tmp_path):
    rows = [(1, 10.0), (2, 20.5), (3, 4.0), (4, 9.0)]  # killed after step 2, and run again
    lines = [json.dumps({"step": step, "seconds": seconds}) + "\n" for step, seconds in rows]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    assert opening.training_seconds(SimpleNamespace(folder=tmp_path)) == 20.5 + 9.0


@pytest.mark.parametrize(
    ("seconds", "text"), [(61.4, "61 s"), (250, "4 min"), (5400, "90 min"), (9000, "2.5 h")]
)
def test_durations(seconds, text, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "seconds": seconds}) + "\n")
    assert opening.duration([SimpleNamespace(folder=tmp_path)]) == text


class Texts(HTMLParser):
    """Collects the texts and the attributes of a page."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_data(self, data):
        self.found.append(data.strip())

    def handle_starttag(self, tag, attributes):
        self.found += [value for _, value in attributes]


def test_whatever_runs_are_called_is_text_on_the_page():
    hostile = """<script>"a" & 'b'</script>"""
    picture = page.Picture(b"png", hostile + "3")
    html = page.render(
        hostile + "0",
        [hostile + "1"],
        [page.Section(hostile + "2", table=[{"c": hostile + "4"}], pictures=[[picture, "none"]])],
    )
    assert "<script" not in html
    assert {f"{hostile}{n}" for n in range(5)} | {"none"} <= {*Texts(html).found}


def test_a_few_huge_losses_do_not_flatten_the_curves():
    panel = Figure().subplots()

    def remark(*losses):
        run = SimpleNamespace(evaluations=[{"val/l1": loss} for loss in losses])
        return curves.cut_outliers(panel, [("arm", [run])], "val/l1")

    assert remark(9.2, *[0.1, 0.2] * 60) == ", without some losses up to 9.2"
    assert panel.get_ylim() == pytest.approx((0, 0.22))
    assert remark(0.5, 0.3, 0.2) == remark(0.5) == remark() == ""


def test_the_drawing_of_the_docs_is_the_reports(reported):
    drawing = Path("docs/overview.svg").read_text()
    assert drawing == Path("emjax/experiments/overview.svg").read_text()
    assert drawing in (reported[0] / "report.html").read_text()


def test_no_runs(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}: no runs"):
        report.main([f"--runs={tmp_path}", f"--out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "damage",
    [
        b'{"step": \n{"step": 6, "seconds": 1}\n',
        b"\xff\xfe\x00",
        b'{"seconds": 1}\n',
        b"[1]\n",
        b'{"step": 6, "val/dice": "high"}\n',
    ],
)
def test_a_damaged_log_is_named(tmp_path, damage):
    folder = workdir(tmp_path / "run", "segment_au", segmentation(VAL, TEST))
    (folder / "metrics.jsonl").write_bytes(damage)
    with pytest.raises(InputError, match="run/metrics.jsonl"):
        report.main([f"--runs={tmp_path}", f"--out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_damaged_scores_of_images_are_named(tmp_path):
    folder = workdir(tmp_path / "run", "segment_au", segmentation(VAL, TEST))
    (folder / "images.jsonl").write_text('{"step": 80}\n')
    with pytest.raises(InputError, match="run/images.jsonl"):
        report.main([f"--runs={tmp_path}", f"--out={tmp_path / 'out'}"])


def test_a_damaged_config_is_named(tmp_path):
    folder = workdir(tmp_path / "run", "segment_au", segmentation(VAL, TEST))
    (folder / "config.json").write_text('{"task": "segmentation"}')
    with pytest.raises(InputError, match="run/config.json"):
        report.main([f"--runs={tmp_path}", f"--out={tmp_path / 'out'}"])


def test_a_damaged_matrix_is_named(tmp_path):
    workdir(tmp_path / "run", "segment_au", segmentation(VAL, TEST))
    (tmp_path / "matrix.json").write_text('["run"')
    with pytest.raises(InputError, match="matrix.json: not the names of runs"):
        report.main([f"--runs={tmp_path}", f"--out={tmp_path / 'out'}"])


def test_a_field_that_an_older_config_lacks_makes_no_difference():
    old, new = {"a": 1}, {"a": 1, "segmentation": {"loss": "cross_entropy"}, "early_stopping": 0}
    assert differences([old, new]) == ["", ""]
    assert differences([{"config": old}, {"config": new}]) == ["", ""]
    other = {**new, "segmentation": {"loss": "dice"}}
    assert differences([old, new, other]) == ["", "", "segmentation.loss dice"]
