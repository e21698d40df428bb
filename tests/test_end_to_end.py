"""The commands of the README, as a user runs them; and a run that is killed."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tifffile

from emjax import predict, report
from emjax.data.records import open_mixture
from emjax.errors import UsageError
from emjax.main import main, parse
from emjax.parallel import sharding
from emjax.runs import metrics_log
from emjax.runs.checkpoints import Checkpoints, saved_steps
from emjax.training.assemble import build_objective
from tests.conftest import SMALL, command


def train(config, workdir, data_dir, *changes):
    return command("emjax.main", f"--config=configs/{config}", f"--workdir={workdir}",
                   f"--config.data.dir={data_dir}", *changes)  # fmt: skip


@pytest.mark.long
def test_pretrain_finetune_predict(tiny_records, tmp_path, capsys):
    """Every config's smoke variant, the transfer between them, and the result on a file.

    In folders with names that a library could take for a pattern.
    """
    (tmp_path / "data[1]").symlink_to(tiny_records)
    tiny_records, tmp_path = tmp_path / "data[1]", tmp_path / "run [1] {x} a*q? #5%,a:b äö"
    tmp_path.mkdir()
    pretrained, finetuned = tmp_path / "pre[1]", tmp_path / "fine?"
    done = train("pretrain.py:smoke", pretrained, tiny_records, "--profile=2:3")
    assert done.returncode == 0, done.stderr
    assert "1 x cpu (cpu), 28 records, 3 steps per epoch, 3 in all" in done.stdout
    assert "step 3/3  val/corrupted_l1" in done.stdout
    left = {p.name for p in pretrained.iterdir()}
    assert left - {"tensorboard"} == {
        "config.json",
        "versions.json",
        "data.json",
        "metrics.jsonl",
        "checkpoints",
        "model",
        "profile",
    }
    assert list((pretrained / "profile").rglob("*.xplane.pb"))
    row = next(row for row in metrics_log.read(pretrained / "metrics.jsonl") if "train/g_l1" in row)
    assert row["pace/images_per_s"] > 0 and row["pace/tflops"] > 0 and "pace/mfu" not in row
    assert 0 < row["pace/step_ms_p50"] <= row["pace/step_ms_p95"]
    assert 0 <= row["pace/data_wait"] <= 1
    assert " ms  waits for data " in done.stdout and "pace/" not in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert {p.name for p in (pretrained / "model").iterdir()} == {
        "model.safetensors",
        "config.json",
        "README.md",
    }

    done = train("segment_au.py:smoke", finetuned, tiny_records,
                 f"--config.initialise.workdir={pretrained}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "70 arrays loaded, 2 fresh: head/bias, head/kernel" in done.stdout
    row = metrics_log.read(finetuned / "metrics.jsonl")[-1]
    assert {"val/dice", "val/soft_dice", "val/bce", "test/dice"} <= set(row)

    model = json.loads((finetuned / "model" / "config.json").read_text())
    kept = Checkpoints(finetuned / "checkpoints", score="val/dice", higher_is_better=True)
    assert model["scores"]["val/dice"] == row["val/dice"] == kept.best

    again = train("segment_au.py:smoke", finetuned, tiny_records,
                  f"--config.initialise.workdir={pretrained}", "--profile=1:3")  # fmt: skip
    assert "step 1 is done already: nothing is traced" in again.stdout
    assert again.returncode == 0 and "continues from step 3" in again.stdout
    another = f"{finetuned} holds a run of another config: initialise"
    with pytest.raises(UsageError, match=f"^{re.escape(another)}"):
        main(["--config=configs/segment_au.py:smoke", f"--workdir={finetuned}",
              f"--config.data.dir={tiny_records}"])  # fmt: skip

    # The model/ folder of a run initialises another as its checkpoints do, also where the other was
    # killed before it saved anything.
    (tmp_path / "from_model").mkdir()
    (tmp_path / "from_model" / "config.json").write_text((finetuned / "config.json").read_text())
    done = train("segment_au.py:smoke", tmp_path / "from_model", tiny_records,
                 f"--config.initialise.workdir={pretrained}/model")  # fmt: skip
    assert done.returncode == 0, done.stderr
    same = [
        metrics_log.read(run / "metrics.jsonl")[-1] for run in (finetuned, tmp_path / "from_model")
    ]
    assert untimed(same[:1]) == untimed(same[1:])

    image = np.random.default_rng(0).integers(0, 4000, (50, 61)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "mine.tif", image)
    line = [f"--model={finetuned}", f"--out={tmp_path / 'out'}", str(tmp_path / "mine.tif")]
    assert predict.main(line) == 0
    assert tifffile.imread(tmp_path / "out" / "mine.tif").shape == (50, 61)

    assert report.main([f"--runs={tmp_path}", f"--out={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert "pix2pix, simulated/unlabelled:train" in printed and "report.html" in printed
    pictures = (tmp_path / "report.html").read_text().count("<img")
    assert pictures == 3 * 3 + 2 + 3 + 3 * 2 + 3 * 4 + 3 * 3


def test_exit_codes_and_single_lines(tmp_path):
    done = train("pretrain.py:smoke", tmp_path / "run", tmp_path)
    assert done.returncode == 3 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ") and "not built" in done.stderr
    done = train("pretrain.py:nothing", tmp_path / "run", tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    done = command("emjax", "nonsense")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "expected a verb, one of build, train, finetune, predict, " in done.stderr
    done = command("emjax.main", "--help")
    assert done.returncode == 0 and "\n  pretrain  " in done.stdout


# 3 steps per epoch, of networks that start quickly.
LONG = ("--config.epochs=8", "--config.save_every=2", "--config.log_every=1", *SMALL)


def untimed(rows):
    """The rows without what clocks and the device's memory counters said."""
    return [
        {k: v for k, v in row.items() if k != "seconds" and not k.startswith("pace/")}
        for row in rows
    ]


def final_arrays(workdir, data_dir, steps=24):
    """The bytes of every array of the last checkpoint, at `steps`, and the best score."""
    data = f"--config.data.dir={data_dir}"
    config, _ = parse(["--config=configs/pretrain.py:smoke", data, *SMALL])
    objective = build_objective(config, open_mixture(data_dir, config.data.train), divisor=2)
    state = jax.device_put(objective.init(0), sharding.replicated(sharding.data_mesh()))
    checkpoints = Checkpoints(workdir / "checkpoints", score="val/l1", higher_is_better=False)
    state = checkpoints.restore(state)
    checkpoints.close()
    assert int(state.step) == steps
    state = state.replace(key=jax.random.key_data(state.key))
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)], checkpoints.best


def committed(workdir):
    return max(saved_steps(workdir / "checkpoints"), default=0)


@pytest.mark.long
def test_a_killed_run_ends_as_if_it_had_not_been(tiny_records, tmp_path):
    """SIGKILL in the middle of a save, SIGINT later; then to the byte-identical end.

    While the run is there, a second one in its workdir is refused.
    """
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = train("pretrain.py:smoke", whole, tiny_records, *LONG)
    assert done.returncode == 0, done.stderr
    line = [sys.executable, "-m", "emjax.main", "--config=configs/pretrain.py:smoke",
            f"--workdir={killed}", f"--config.data.dir={tiny_records}", *LONG]  # fmt: skip
    interruptions = [
        (signal.SIGKILL, lambda step: step >= 2 and any((killed / "checkpoints").glob("*tmp*"))),
        (signal.SIGINT, lambda step: step >= 9),
    ]
    for how, condition in interruptions:
        process = subprocess.Popen(
            line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 240
        while True:
            assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
            time.sleep(0.01)
            if condition(committed(killed)):
                process.send_signal(signal.SIGSTOP)  # so that it saves nothing more meanwhile
                os.waitid(os.P_PID, process.pid, os.WSTOPPED)
                if condition(committed(killed)):
                    break
                process.send_signal(signal.SIGCONT)
        if how == signal.SIGKILL:
            second = train("pretrain.py:smoke", killed, tiny_records, *LONG)
            assert second.returncode == 3 and "is in use by another process" in second.stderr
        process.send_signal(how)
        process.send_signal(signal.SIGCONT)
        _, said = process.communicate(timeout=120)
        assert process.returncode == (75 if how == signal.SIGINT else -how), said
    told = re.search(r"^error: stopped at step (\d+) of 24, all saved; run it again\n$", said)
    last = committed(killed)
    assert last == int(told[1]) < 24
    done = train("pretrain.py:smoke", killed, tiny_records, *LONG)
    assert done.returncode == 0, done.stderr
    assert f"continues from step {last}" in done.stdout

    assert final_arrays(whole, tiny_records) == final_arrays(killed, tiny_records)
    rows = [untimed(metrics_log.read(run / "metrics.jsonl")) for run in (whole, killed)]
    assert rows[0] == rows[1] and rows[0][-1]["step"] == 24
    models = [(run / "model" / "model.safetensors").read_bytes() for run in (whole, killed)]
    assert models[0] == models[1]
