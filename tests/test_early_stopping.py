"""A run ends after so many evaluations without a better score, also if it is killed before."""

import json
import math
import shutil

import pytest

from emjax.errors import UsageError
from emjax.experiments.plan import plan_jobs
from emjax.main import main, parse
from emjax.runs.metrics_log import read, since_best
from emjax.runs.run import find_runs, missing_runs, read_run
from emjax.training.assemble import assemble

SEGMENT = "--config=configs/segment_au.py:smoke"


@pytest.mark.parametrize(
    ("scores", "higher", "lower"),
    [
        ([], 0, 0),
        ([0.5], 0, 0),
        ([0.5, 0.6, 0.7], 0, 2),
        ([0.5, 0.7, 0.7, 0.6], 2, 3),
        ([0.5, 0.4, 0.3, 0.6], 0, 1),
        ([math.nan, math.nan], 2, 2),
        ([0.5, math.nan, 0.6, math.nan], 1, 3),
    ],
)
def test_evaluations_since_the_best_are_counted(scores, higher, lower):
    rows = [row for score in scores for row in ({"train/loss": 1.0}, {"val/x": score})]
    assert since_best(rows, "val/x", higher_is_better=True) == higher
    assert since_best(rows, "val/x", higher_is_better=False) == lower


def lines(data_dir, workdir, *changes):
    """A run of 3 steps per epoch with the same score at each evaluation: nothing is learned."""
    quick = ("augment.turns=False", "augment.noise_probability=0.0", "augment.resize=0.0")
    still = ("optimizer.lr=0.0", "model.norm=none", f"data.dir={data_dir}")
    changes = [f"--config.{change}" for change in (*quick, *still, *changes)]
    return [SEGMENT, f"--workdir={workdir}", *changes]


def scored(workdir):
    """{step: (val Dice, whether test was scored, what is said of the stop)} of a log."""
    rows = read(workdir / "metrics.jsonl")
    return {
        row["step"]: (row["val/dice"], "test/dice" in row, row.get("train/stopped_early"))
        for row in rows
        if "val/dice" in row
    }


@pytest.mark.long
def test_a_run_stops_early_and_stays_stopped(tiny_records, tmp_path, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    patience = "early_stopping=2"
    assert main(lines(tiny_records, whole, "epochs=8", patience)) == 0
    said = f"{whole}: done, 9 steps of 24: 2 evaluations without a better val/dice\n"
    assert capsys.readouterr().out.endswith(said)
    found = scored(whole)
    assert [(test, stop) for _, test, stop in found.values()] == [
        (True, None),
        (False, None),
        (True, 2),
    ]
    before = (whole / "metrics.jsonl").read_bytes()
    assert main(lines(tiny_records, whole, "epochs=8", patience)) == 0
    assert capsys.readouterr().out.endswith(said)
    assert (whole / "metrics.jsonl").read_bytes() == before

    # One that was killed after an evaluation without a better score ends at the same step.
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "9")
    assert main(lines(tiny_records, parts, "epochs=8", patience)) == 0
    assert "continues from step 6" in capsys.readouterr().out
    assert scored(parts) == found

    runs = find_runs(tmp_path)
    assert missing_runs(tmp_path, runs) == []
    assert {run.status for run in runs} == {"finished, stopped early at step 9 of 24"}
    config, _ = parse(lines(tiny_records, whole, "epochs=8", patience))
    counts = {
        (str(tiny_records), "simulated/nanoparticles", split): 28 if split == "train" else 0
        for split in ("train", "val", "test")
    }
    (job,) = plan_jobs({"whole": config}, counts, tmp_path)
    assert job.finished and (job.done, job.steps) == (9, 24)


def test_a_run_of_before_has_no_patience(tmp_path):
    rows = [{"step": n, "total": 9, "val/dice": 0.5} for n in range(1, 5)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = parse([SEGMENT])[0].to_dict()
    del config["early_stopping"]
    for patience, finished in ((None, False), (0, False), (4, False), (3, True)):
        known = config if patience is None else {**config, "early_stopping": patience}
        (tmp_path / "config.json").write_text(json.dumps(known))
        assert read_run(tmp_path, tmp_path).finished == finished


def test_a_score_that_does_not_choose_stops_no_run(tiny_records):
    flags = [f"--config.data.dir={tiny_records}", "--config.early_stopping=3"]
    assemble(parse([SEGMENT, *flags])[0])
    with pytest.raises(UsageError, match="early_stopping=3 with a val score that does not choose"):
        assemble(parse([SEGMENT, *flags, "--config.select=last"])[0])


def test_no_validation_split_is_refused_before_anything_is_written(tiny_records, tmp_path):
    flags = [f"--config.data.dir={tiny_records}", "--config.early_stopping=3"]
    with pytest.raises(UsageError, match="data.evals has test, but no val to choose by"):
        main([SEGMENT, f"--workdir={tmp_path / 'run'}", *flags, "--config.data.evals.val=None"])
    assert not (tmp_path / "run").exists()
