"""The report's numbers are the ones worked out by hand from the runs' journals."""

import importlib
import json
import statistics
from types import SimpleNamespace

import jax
import optax
import pytest
from ml_collections import ConfigDict

from emjax import data, gallery, main, networks, report, runs, weights
from emjax.errors import BadInput

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
    (folder / "config.json").write_text(json.dumps(main.plain(config)))
    (folder / "versions.json").write_text('{"emjax": "0.1.0", "jax": "0.10.2"}')
    lines = [{"step": 5, "train/loss": 0.1}]
    lines += [{"step": 10 * n, **row} for n, row in enumerate(rows, start=1)]
    lines = [{"total": 10 * epochs, "seconds": 1, **line} for line in lines]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def segmentation(val, test):
    return [{"val/dice": v, "test/dice": t} for v, t in zip(val, test, strict=True)]


def tables(folder):
    """{title: [{column: text}]} of a report.md."""
    found = {}
    for section in (folder / "report.md").read_text().split("\n## ")[1:]:
        title, lines = section.split("\n\n", 1)
        cut = [[cell.strip() for cell in line[2:-2].split(" | ")] for line in lines.split("\n")
               if line]  # fmt: skip
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
            rows = segmentation(VAL, [t + (seed + 1) * gain for t in TEST])
            workdir(runs / f"{name}_{seed}", "segment_au", rows, seed=seed, start=start_from)
    rows = segmentation(VAL[:4], TEST[:4])
    workdir(runs / "pretrained_2", "segment_au", rows, seed=2, start=start)
    rate = {"optimizer.lr": 1e-3}
    workdir(runs / "faster", "segment_au", segmentation(VAL, VAL), start=start, **rate)
    out = runs / "report"
    assert report.main([f"--runs={runs}", f"--out={out}"]) == 0
    return out, tables(out)


def finetuning(reported):
    (rows,) = [rows for title, rows in reported[1].items() if title.startswith("Finetuning")]
    return {row["initialisation"]: row for row in rows}


def test_the_test_score_is_that_of_the_best_val_so_far(reported):
    row = finetuning(reported)["random; optimizer.lr 0.0002"]
    assert row["best val/dice"] == "0.7100 ± 0.0000"
    assert row["test dice"] == "0.6400 ± 0.0000"  # at step 80, never 0.95
    assert row["test at 10%"] == "0.2000 ± 0.0000"
    assert row["test at 25%"] == "0.4500 ± 0.0000"
    assert row["test at 50%"] == "0.6600 ± 0.0000"  # still that of step 30
    assert row["seeds"] == "0, 1" and row["steps"] == "100" and row["pretraining"] == "-"


def test_seeds_are_averaged_and_unfinished_runs_named_and_left_out(reported):
    row = finetuning(reported)["pretrained (deep/pre); optimizer.lr 0.0002"]
    deviation = statistics.stdev([0.65, 0.66])
    assert row["test dice"] == f"0.6550 ± {deviation:.4f}" == "0.6550 ± 0.0071"
    assert row["seeds"] == "0, 1; 2 unfinished"
    assert row["pretraining"] == "pix2pix, simulated/unlabelled:train, 30 steps"
    runs = {row["run"]: row for row in reported[1]["Runs"]}
    assert runs["pretrained_2"]["status"] == "unfinished: 40 of 100 steps"
    assert runs["random_0"] == {"run": "random_0", "seed": "0", "status": "finished",
                                "step of best": "80", "best": "val/dice 0.7100",
                                "test": "0.6400"}  # fmt: skip


def test_another_learning_rate_is_another_row(reported):
    row = finetuning(reported)["pretrained (deep/pre); optimizer.lr 0.001"]
    assert row["seeds"] == "0" and row["test dice"] == "0.7100"
    assert len(finetuning(reported)) == 3


def test_differences_are_paired_by_seed(reported):
    ((row,),) = [rows for title, rows in reported[1].items() if "minus" in title]
    assert row["test dice"] == "+0.0150 ± 0.0071"
    assert row["best val/dice"] == "+0.0000 ± 0.0000"
    assert row["test, seed by seed"] == "0: +0.0100, 1: +0.0200"


def test_pretraining_and_settings(reported):
    (row,) = reported[1]["Pretraining"]
    assert row == {"run": "deep/pre", "model": "unet 2 44", "corpus": "simulated/unlabelled:train",
                   "steps": "30", "status": "finished", "best val/l1": "0.0200",
                   "val/corrupted_l1": "0.0800"}  # fmt: skip
    settings = {row["run"]: row for row in reported[1]["What was run"]}["deep/pre"]
    assert settings["discriminator"] == "patchgan, width 8, depth 3, norm batch"
    assert settings["crop, pixels"] == "32" and settings["batch"] == "8"
    assert settings["corruption"].startswith("blur [0.1, 2.0], blur_probability 0.5, noise")
    assert reported[1]["Versions"] == [{"runs": "7", "versions": "emjax 0.1.0, jax 0.10.2"}]


def test_the_page_is_self_contained_and_says_which_pictures_are_missing(reported):
    page = (reported[0] / "report.html").read_text()
    assert (
        page.count("<img") == page.count('src="data:image/png;base64,') == page.count("src=") == 1
    )
    assert "href=" not in page and "@import" not in page and "url(" not in page
    assert page.count("No pictures: ") == 2 and "/nowhere/simulated/nanoparticles" in page
    assert (reported[0] / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not list(reported[0].glob("*.partial"))


def test_pictures_show_what_the_evaluation_scored(tmp_path, tiny_records):
    for recipe in ("segment_au", "pretrain"):
        folder = workdir(tmp_path / recipe, recipe, [], **{"data.dir": str(tiny_records)})
        config = ConfigDict(json.loads((folder / "config.json").read_text()))
        network = networks.create(config.model, optax.sgd(0.1), key=jax.random.key(1))
        facts = {"model": config.model.to_dict(), "task": None, "range_rule": "percentile"}
        weights.write(folder / "model", network, facts)
    workdir(tmp_path / "no_model", "segment_au", [], seed=1, **{"data.dir": str(tiny_records)})
    found = {run.name: run for run in runs.find(tmp_path)}
    assert found["pretrain"].planned == 100

    def scores(run):
        split, where = list(run.config["data"]["evals"].items())[-1]
        records = data.open_records(tiny_records, *where)
        objective = main.assemble(ConfigDict(gallery.tuples(run.config)), [records], 4)
        state = SimpleNamespace(generator=gallery.trained(run))
        evaluate = jax.jit(lambda batch: objective.eval_step(state, batch))
        for name, batch in gallery.examples(run, split):
            yield name, {name: values[0] for name, (values, _) in evaluate(batch).items()}

    arms = [runs.Arm(name, "-", [found[name]]) for name in ("segment_au", "no_model")]
    for row, (name, score) in zip(gallery.predictions(arms), scores(arms[0].runs[0]), strict=True):
        assert len(row) == 4 and f"input: {name}" in row[0] and "no_model has no model" in row[3]
        assert f"segment_au, seed 0: dice {score['dice']:.4f}" in row[2]
    restorations = gallery.restorations(found["pretrain"])
    for row, (name, score) in zip(restorations, scores(found["pretrain"]), strict=True):
        assert f"corrupted: l1 {score['corrupted_l1']:.4f}" in row[0]
        assert f"restored: l1 {score['l1']:.4f}" in row[1] and f"original: {name}" in row[2]


def test_no_runs(tmp_path):
    with pytest.raises(BadInput, match=f"{tmp_path}: no runs"):
        report.main([f"--runs={tmp_path}", f"--out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "damage",
    [b'{"step": \n{"step": 6, "seconds": 1}\n', b"\xff\xfe\x00", b'{"seconds": 1}\n', b"[1]\n",
     b'{"step": 6, "val/dice": "high"}\n'],
)  # fmt: skip
def test_a_damaged_journal_is_named(tmp_path, damage):
    folder = workdir(tmp_path / "run", "segment_au", segmentation(VAL, TEST))
    (folder / "metrics.jsonl").write_bytes(damage)
    with pytest.raises(BadInput, match="run/metrics.jsonl"):
        report.main([f"--runs={tmp_path}", f"--out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_a_damaged_config_is_named(tmp_path):
    folder = workdir(tmp_path / "run", "segment_au", segmentation(VAL, TEST))
    (folder / "config.json").write_text('{"task": "segmentation"}')
    with pytest.raises(BadInput, match="run/config.json"):
        report.main([f"--runs={tmp_path}", f"--out={tmp_path / 'out'}"])
