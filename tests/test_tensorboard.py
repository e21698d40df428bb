"""Pictures of what a network does, and event files for TensorBoard."""

import collections
import io
import resource
import struct
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from PIL import Image

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


def test_without_tensorboardx_or_on_another_process_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setitem(sys.modules, "tensorboardX.event_file_writer", None)
    with tensorboard.open_writer(tmp_path / "events", 0) as events:
        assert events is None
    monkeypatch.undo()
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with tensorboard.open_writer(tmp_path / "events", 0) as events:
        assert events is None
    assert not (tmp_path / "events").exists()


def read_events(file):
    """Yield the events of a file: records of length, checksum, content, checksum.

    Source: the TFRecord format, https://www.tensorflow.org/tutorials/load_data/tfrecord.
    """
    from tensorboardX.proto.event_pb2 import Event

    content = file.read_bytes()
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        end = 12 + length
        yield Event.FromString(content[12:end])
        content = content[end + 4 :]


def shown(folder):
    """Return [(step, value)] by tag as TensorBoard shows them.

    It reads the files in the order of their names. The start of a session hides what was read
    before and has its step or a later one.
    """
    values = collections.defaultdict(list)
    for file in sorted(folder.iterdir()):
        assert "tfevents" in file.name
        first, *events = read_events(file)
        assert first.file_version == "brain.Event:2"
        for event in events:
            if event.session_log.status == event.session_log.START:
                for tag, found in values.items():
                    values[tag] = [each for each in found if each[0] < event.step]
            for value in event.summary.value:
                values[value.tag].append((event.step, value))
    return values


def test_what_tensorboard_reads_back(tmp_path):
    """After a restart, without the rows that were lost; every event at once, before the end."""
    pytest.importorskip("tensorboardX")
    folder = tmp_path / "events"

    def write(done, steps, factor):
        with tensorboard.open_writer(folder, done) as events:
            log = MetricsLog(
                tmp_path / "metrics.jsonl", done=done, total=9, images=1, events=events
            )
            for step in steps:
                log.write(step, {"train/loss": factor * step}, unprinted={"pace/mfu": 0.5})
                scalars = [(at, value.simple_value) for at, value in shown(folder)["train/loss"]]
                assert scalars[-1] == (step, factor * step)
                if step == 2:
                    events.picture(step, "val/a | b", np.arange(35, dtype=np.uint8).reshape(5, 7))

    write(0, (1, 2, 3, 4), factor=1)
    write(2, (3,), factor=7)
    assert len(list(folder.iterdir())) == 2
    found = shown(folder)
    scalars = [(step, value.simple_value) for step, value in found["train/loss"]]
    assert scalars == [(1, 1), (2, 2), (3, 21)]
    assert [(step, value.simple_value) for step, value in found["pace/mfu"]] == [
        (1, 0.5),
        (2, 0.5),
        (3, 0.5),
    ]
    ((step, value),) = found["val/a | b"]
    assert (step, value.image.width, value.image.height) == (2, 7, 5)
    picture = np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string)))
    assert np.array_equal(picture, np.arange(35).reshape(5, 7))


def test_pytorch_is_not_imported(tmp_path):
    """The writer works beside the package as others import it, before and after."""
    pytest.importorskip("tensorboardX")
    (tmp_path / "torch.py").write_text("import sys\nsys.imported = True\nclass Tensor: pass\n")
    code = f"""if True:
        import sys
        from pathlib import Path
        sys.path.insert(0, {str(tmp_path)!r})
        from emjax.runs.tensorboard import TensorBoardWriter

        def write(step):
            writer = TensorBoardWriter(Path({str(tmp_path / "events")!r}), step)
            writer.scalars(step, dict(loss=step))
            writer.close()

        write(1)
        print(hasattr(sys, "imported"))
        import tensorboardX
        print(hasattr(sys, "imported"), tensorboardX.proto.event_pb2.Event(step=7).step)
        write(2)
        print(sys.modules["tensorboardX"] is tensorboardX)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stderr, done.stdout.split()) == ("", ["False", "True", "7", "True"])
    scalars = [(step, value.simple_value) for step, value in shown(tmp_path / "events")["loss"]]
    assert scalars == [(1, 1), (2, 2)]


def test_what_cannot_be_written_is_an_error(tmp_path):
    """Not a wait: the run must not hang when the disk is full."""
    pytest.importorskip("tensorboardX")
    with pytest.raises(OSError), tensorboard.open_writer(tmp_path / "events", 0) as events:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            for step in range(100):
                events.scalars(step, {"train/loss": 1.0})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
