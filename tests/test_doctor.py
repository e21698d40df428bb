"""What the doctor prints of the machine, and what is missing."""

import importlib.util
import json
import types

import pytest

from emjax import doctor
from emjax.errors import UsageError
from emjax.experiments.runner import Device
from tests.conftest import command


def test_it_prints_everything():
    done = command("emjax", "doctor")
    assert done.returncode == 0, done.stderr
    names = [line.split(":")[0] for line in done.stdout.splitlines()]
    for name in ("machine", "backend", "devices", "device 0", "matrix product", "libraries"):
        assert name in names
    assert "2048 x 2048, float32: " in done.stdout
    assert " ms, " in done.stdout and " TFLOP/s" in done.stdout and "jaxlib 0." in done.stdout
    assert "1 x cpu (cpu)" in done.stdout and "compiled programs: kept in /" in done.stdout


def test_json_is_what_a_sweep_plans_with():
    """One line of JSON with every key of Device, and the machine this is."""
    done = command("emjax", "doctor", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == Device.__annotations__.keys()
    assert (found["platform"], found["count"]) == ("cpu", 1) and found["tflops"] > 0


def test_a_required_device_that_is_missing():
    with pytest.raises(UsageError, match="--require=tpu, but JAX found 8 x cpu"):
        doctor.main(["--require=tpu"])
    with pytest.raises(UsageError, match="invalid choice"):
        doctor.main(["--require=npu"])


def test_a_platform_that_does_not_start(monkeypatch):
    def none():
        raise RuntimeError("Unable to initialize backend 'cuda'")

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr("jax.default_backend", none)
    for arguments in [], ["--require=gpu"]:
        with pytest.raises(
            UsageError, match="JAX_PLATFORMS=cuda, but JAX starts no such device Unable"
        ):
            doctor.main(arguments)


def test_missing_libraries_are_named_with_their_purpose(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    lines = list(doctor.missing())
    named = lines[-len(doctor.EXTRAS) :]
    assert [line.split(",")[0] for line in named] == list(doctor.EXTRAS)
    assert "the extra `tensorboard`" in named[0]
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: module)
    assert not any("the extra" in line for line in doctor.missing())


def test_memory_and_peak_of_a_device():
    stats = {"bytes_limit": 100 * 10**9, "bytes_in_use": 2 * 10**9}
    device = types.SimpleNamespace(device_kind="NVIDIA H200", memory_stats=lambda: stats)
    assert list(doctor.facts(device)) == ["100.0 GB for JAX, 2.0 in use", "peak 989 TFLOP/s"]
    device = types.SimpleNamespace(device_kind="cpu", memory_stats=lambda: None)
    assert list(doctor.facts(device)) == ["memory unknown", "peak unknown"]


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    assert doctor.cache_state(tmp_path / "a" / "b") == f"kept in {tmp_path / 'a' / 'b'}"
    (tmp_path / "file").touch()
    assert "is not writable" in doctor.cache_state(tmp_path / "file")
