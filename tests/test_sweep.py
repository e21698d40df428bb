"""Sweeps: what they refuse, in which order runs start, and what happens when one fails."""

import json
import signal
import subprocess
import sys
import time

import jax
import pytest

from emjax import sweep
from emjax.errors import EmjaxError, InputError, UsageError
from emjax.experiments import plan, runner
from emjax.runs import metrics_log
from tests.conftest import command

DEVICE = {"platform": "cpu", "count": 1}


def test_missing_datasets_are_all_listed_before_anything_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    arguments = [
        "--config=configs/paper.py",
        f"--runs={tmp_path / 'runs'}",
        "--only=au5nm/unet_2_44/*/seed_0,denoise/hrnet_w48/random/seed_0",
    ]
    with pytest.raises(InputError, match="^3 datasets or splits are missing:\n") as refused:
        sweep.main(arguments)
    for name in ("cem500k", "au_nanoparticles/au5nm", "temimagenet"):
        assert f"dataset '{name}' is not built. Build it: python -m data" in str(refused.value)
    # The plan is printed nevertheless: 147 patches eight times over, 16 at a time, 60 epochs.
    assert sweep.main([*arguments, "--dry_run"]) == 0
    printed = capsys.readouterr().out
    (line,) = (line for line in printed.splitlines() if line.startswith("au5nm/unet_2_44/random"))
    assert line.split()[1:4] == ["1", "4,380", "0"]
    assert str(refused.value) in printed and not (tmp_path / "runs").exists()


def test_a_share_of_no_run_does_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    flags = ["--only=au5nm/unet_2_44/random/*", "--seeds=2", "--share=3/4", f"--runs={tmp_path}"]
    assert sweep.main(["--config=configs/paper.py", *flags]) == 0
    assert capsys.readouterr().out.startswith("--share=3/4: no run, as there are fewer")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/nowhere.py"], "--config=configs/nowhere.py: no such file"),
        (["--config=pretrain"], "configs/pretrain.py is not a matrix"),
        (["--config=configs/pretrain.py"], "configs/pretrain.py is not a matrix"),
        (["--config=configs/paper.py", "--seeds=0"], "--seeds=0, expected at least 1"),
        (["--config=configs/paper.py", "--at_once=0"], "--at_once=0, expected at least 1"),
    ],
)
def test_bad_options(arguments, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        sweep.main([*arguments, f"--runs={tmp_path}"])


def job(name, after="", finished=False, kind=None):
    return plan.Job(name, None, after, 10, 0, finished, kind or name)


def scripted(monkeypatch, scripts):
    """Runs are the Python programs of `scripts`, by name; "pass" for the others."""

    def line(job, config, root):
        return [sys.executable, "-c", scripts.get(job.name, "pass")]

    monkeypatch.setattr(runner, "command", line)


def test_one_failed_run_stops_only_what_starts_from_it(tmp_path, monkeypatch, capsys):
    scripted(monkeypatch, {"bad": "import sys; print('boom', file=sys.stderr); sys.exit(4)"})
    jobs = [
        job("late", after="early"),
        job("child", after="bad"),
        job("bad"),
        job("early"),
        job("old", finished=True),
        job("grown", after="old"),
    ]
    with pytest.raises(EmjaxError) as failed:
        runner.run_jobs(jobs, "x.py", tmp_path, DEVICE)
    assert str(failed.value) == (
        "2 of 6 runs did not finish:\nbad: exit code 4, boom\nchild: bad did not finish"
    )
    assert failed.value.code == 1
    done = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if "done" in line]
    assert set(done) == {"late", "early", "grown"} and done.index("early") < done.index("late")


@pytest.mark.parametrize(("count", "at_once"), [(2, 1), (1, 2)])
def test_runs_are_spread_over_the_devices(count, at_once, tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "unset")
    wait = (
        "import os, time; print(os.environ['CUDA_VISIBLE_DEVICES'], "
        "os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'], time.time()); time.sleep(1)"
    )
    names = [f"run_{n}" for n in range(4)]
    scripted(monkeypatch, dict.fromkeys(names, wait))
    device = {"platform": "gpu", "count": count}
    runner.run_jobs([job(n) for n in names], "x.py", tmp_path, device, at_once)
    outputs = [(tmp_path / n / "log.txt").read_text().splitlines()[-1].split() for n in names]
    assert [device for device, *_ in outputs[:2]] == (["0", "1"] if count == 2 else ["0", "0"])
    assert {device for device, *_ in outputs[2:]} == {*map(str, range(count))}
    assert {memory for _, memory, _ in outputs} == {"false" if at_once > 1 else "unset"}
    began = [float(second) for *_, second in outputs]
    assert min(began[2:]) > max(began[:2])  # two at a time


def test_the_first_of_a_kind_compiles_for_the_others(tmp_path, monkeypatch):
    """Of four alike and another, three at once: two start, the rest once the first has reported."""
    jobs = [job(f"alike_{n}", kind="small") for n in range(4)] + [job("other")]
    report = (
        "import pathlib, time; print(time.time()); time.sleep(2); "
        "pathlib.Path({!r}).touch(); print(time.time()); time.sleep(1)"
    )
    paths = {j.name: str(tmp_path / j.name / "metrics.jsonl") for j in jobs}
    scripted(monkeypatch, {name: report.format(path) for name, path in paths.items()})
    runner.run_jobs(jobs, "x.py", tmp_path, {"platform": "gpu", "count": 1}, at_once=3)
    began, reported = (
        {j.name: float((tmp_path / j.name / "log.txt").read_text().split()[line]) for j in jobs}
        for line in (-2, -1)
    )
    assert began["other"] < reported["alike_0"] < min(began[f"alike_{n}"] for n in (1, 2, 3))


@pytest.mark.parametrize(
    ("code", "reason", "error", "printed"),
    [
        (2, "JAX_PLATFORMS=x, but JAX starts no such device", UsageError, "error: {}\nat exit"),
        (1, "MemoryError: no room", EmjaxError, "Traceback\n{}"),
        (1, "it printed nothing", EmjaxError, ""),
    ],
)
def test_a_failed_probe_of_the_devices_is_one_line(code, reason, error, printed, monkeypatch):
    script = f"import sys; print({printed.format(reason)!r}, file=sys.stderr); sys.exit({code})"
    monkeypatch.setattr(runner, "PROBE", [sys.executable, "-c", script])
    with pytest.raises(EmjaxError) as failed:
        runner.probe_device()
    assert type(failed.value) is error
    assert str(failed.value) == (
        f"the devices cannot be probed: {reason} (exit code {code}); run python -m emjax.doctor"
    )


def test_a_mask_of_gpus_is_kept_to(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    seen = runner.environment({"platform": "gpu", "count": 2}, 1)
    assert seen == {"CUDA_VISIBLE_DEVICES": "7"}


def test_a_stopped_sweep_stops_its_runs_and_says_so(tmp_path):
    program = f"""
import signal, sys
from pathlib import Path
from emjax import cli
from emjax.experiments import plan, runner
wait = ("import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); "
        "print('up', flush=True); time.sleep(60)")
runner.command = lambda job, config, root: [sys.executable, "-c", wait]
jobs = [plan.Job(name, None, "", 1, 0, False, name) for name in "ab"]
cli.run(runner.run_jobs, jobs, "x.py", Path({str(tmp_path)!r}), {DEVICE})
"""
    child = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    log = tmp_path / "a" / "log.txt"
    while not log.exists() or "up" not in log.read_text().splitlines():
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 75 and "run the same command again to continue" in errors
    assert not (tmp_path / "b").exists()


@pytest.mark.long
def test_the_smoke_matrix(tiny_records, tmp_path, monkeypatch, capsys):
    """A model with 2 initialisations and the pretraining of one of them, for real."""
    monkeypatch.setenv("SMOKE_DATA", str(tiny_records))
    sweeping = ["--config=tests/smoke_matrix.py", f"--runs={tmp_path}", "--seeds=1"]
    folder = tmp_path / "nanoparticles/unet/pix2pix/seed_0"
    done = command("emjax.sweep", *sweeping)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all 3 runs are finished" in done.stdout
    assert "42 arrays loaded" in (folder / "log.txt").read_text()
    last = metrics_log.read(folder / "metrics.jsonl")[-1]
    assert last["step"] == last["total"] and "test/dice" in last

    monkeypatch.setattr(jax.config, "update", lambda *_: None)  # a sweep leaves the GPU to its runs
    assert sweep.main([*sweeping, "--seeds=2", "--dry_run"]) == 0
    assert "6 runs, 3 finished" in capsys.readouterr().out

    # Finished runs are left alone, a cut one continues, one of another config is refused.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.jsonl")}
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:-1]))
    assert sweep.main(sweeping) == 0
    assert "[1/1] nanoparticles/unet/pix2pix/seed_0" in capsys.readouterr().out
    after = {path: path.stat().st_mtime_ns for path in before if path.parent != folder}
    assert all(before[path] == after[path] for path in after)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "precision": "bfloat16"}))
    with pytest.raises(UsageError, match="precision 'bfloat16' -> 'float32'"):
        sweep.main(sweeping)
