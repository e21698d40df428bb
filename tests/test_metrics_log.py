"""The metrics log: rows, resuming, damage."""

import io
import json

import pytest

from emjax.errors import InputError
from emjax.runs import metrics_log
from emjax.runs.metrics_log import MetricsLog


def test_rows_and_the_printed_line(tmp_path, capsys):
    log = MetricsLog(tmp_path / "metrics.jsonl", done=0, total=20, images=8)
    log.train(10, {"loss": 0.25})
    log.write(10, {"val/dice": 0.5})
    rows = metrics_log.read(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [10, 10]
    assert rows[0]["train/loss"] == 0.25 and rows[1]["val/dice"] == 0.5
    printed = capsys.readouterr().out
    assert "step 10/20  train/loss 0.2500" in printed
    assert "images/s  ETA 0:" in printed and "val/dice 0.5000" in printed


def test_rows_after_the_resumed_step_are_removed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s, "train/loss": s}) + "\n" for s in (1, 2, 3, 4)))
    MetricsLog(path, done=2, total=9, images=1).write(3, {"train/loss": 7.0})
    assert [(r["step"], r["train/loss"]) for r in metrics_log.read(path)] == [
        (1, 1),
        (2, 2),
        (3, 7.0),
    ]


def test_scores_of_single_images_are_removed_alike(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", done=0, total=9, images=1)
    for step in (1, 2, 3):
        log.write_images(step, "test", {7: {"dice": 1 / 3}})
    MetricsLog(tmp_path / "metrics.jsonl", done=2, total=9, images=1)
    rows = metrics_log.read(tmp_path / "images.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["split"] == "test" and rows[0]["images"] == {"7": {"dice": 0.333333}}


def test_an_incomplete_last_line_is_skipped_and_another_bad_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert len(metrics_log.read(path)) == 2
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(InputError, match="metrics.jsonl, line 2: not JSON"):
        metrics_log.read(path)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_live_line_on_a_terminal_and_none_elsewhere(tmp_path, monkeypatch, capsys):
    log = MetricsLog(tmp_path / "metrics.jsonl", done=0, total=20, images=8)
    log.show_step(1)
    assert capsys.readouterr().err == ""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "70")
    log = MetricsLog(tmp_path / "metrics.jsonl", done=0, total=20, images=8)
    log.train(1, {"loss": 0.25}, {"pace/step_ms_p50": 12.5, "pace/data_wait": 0.5})
    printed = capsys.readouterr().out
    assert "train/loss 0.2500" in printed and "12.5 ms  waits for data 50%  ETA" in printed
    for step in (2, 3):  # the second comes too soon to be shown
        log.show_step(step)
    shown = terminal.getvalue()
    assert (
        "\x1b[K 10%  step 2/20  " in shown
        and "  ETA 0:00:00  loss 0.2500" in shown
        and "step 3" not in shown
    )
    assert shown.endswith("\r") and len(shown.split("\x1b[K")[-1]) <= 70
    log.write(3, {"val/dice": 0.5})
    assert terminal.getvalue().endswith("\r\x1b[K")
