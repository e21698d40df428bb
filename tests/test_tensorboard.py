"""Pictures for TensorBoard, and its event files where it is installed."""

import types

import jax
import numpy as np
import pytest

from emjax.data.records import open_mixture, open_records
from emjax.main import parse
from emjax.models.network import Network
from emjax.runs import tensorboard
from emjax.runs.metrics_log import MetricsLog
from emjax.training import preview
from emjax.training.assemble import build_objective


@pytest.mark.parametrize(
    ("recipe", "columns"),
    [
        ("pretrain", ["corrupted", "restored", "truth"]),
        ("segment_au", ["input", "prediction", "truth"]),
    ],
)
def test_the_grid_of_a_network(tiny_records, recipe, columns):
    config, _ = parse([f"--config=configs/{recipe}.py:smoke", f"--config.data.dir={tiny_records}"])
    objective = build_objective(config, open_mixture(tiny_records, config.data.train), divisor=4)
    records = open_records(tiny_records, *config.data.evals.val)
    names, picture = preview.PreviewGrid(objective, records, divisor=4)(objective.init(0).generator)
    assert names == columns and picture.dtype == np.uint8
    rows = min(preview.SHOWN, len(records.source))
    side = 64 + preview.GAP
    assert picture.shape == (rows * side - preview.GAP, 3 * side - preview.GAP)
    stored = records.source[0]
    last = picture[:64, 2 * side :]
    if recipe == "segment_au":
        assert np.array_equal(last, 255 * (stored["mask"][..., 0] > 0))
    else:
        assert np.corrcoef(last.ravel(), stored["image"].ravel())[0, 1] > 0.99


def test_records_of_several_sizes_share_a_grid():
    images = [np.full((h, w, 1), 7, np.float32) for h, w in ((6, 10), (8, 4))]
    source = [dict(image=image, index=i, name=b"a", source=b"b") for i, image in enumerate(images)]
    copy = types.SimpleNamespace(
        views=lambda generator, batch: {"a": batch["image"] * 0 - 1, "b": batch["image"] * 0}
    )
    generator = Network(params={}, stats={})
    names, picture = preview.PreviewGrid(copy, types.SimpleNamespace(source=source), divisor=4)(
        generator
    )
    assert names == ["a", "b"] and picture.shape == (6 + 4 + 8, 10 + 4 + 10)
    assert (picture[:6, :10] == 0).all() and (picture[:6, 14:] == 128).all()
    assert (picture[10:, :4] == 0).all() and (picture[10:, 12:] == 255).all()


def test_without_tensorboard_or_on_another_process_there_is_no_board(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboard", None)
    assert tensorboard.open_writer(tmp_path / "events", 0) is None
    monkeypatch.undo()
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert tensorboard.open_writer(tmp_path / "events", 0) is None
    assert not (tmp_path / "events").exists()


def test_what_tensorboard_reads_back(tmp_path):
    """After a restart, without the rows that were lost."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def log(done):
        events = tensorboard.open_writer(tmp_path / "events", done)
        return events, MetricsLog(
            tmp_path / "metrics.jsonl", done=done, total=9, images=1, board=events
        )

    events, journal = log(0)
    for step in (1, 2, 3):
        journal.write(step, {"train/loss": step})
    events.picture(2, "val/a | b", np.zeros((5, 7), np.uint8))
    events, journal = log(2)
    journal.write(3, {"train/loss": 7.0})
    read = EventAccumulator(str(tmp_path / "events"))
    read.Reload()
    assert [(e.step, e.value) for e in read.Scalars("train/loss")] == [(1, 1), (2, 2), (3, 7)]
    (image,) = read.Images("val/a | b")
    assert (image.step, image.width, image.height) == (2, 7, 5)
    assert image.encoded_image_string.startswith(b"\x89PNG")
