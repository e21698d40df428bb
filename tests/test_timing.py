"""Times of steps, traces, and devices that a run requires."""

import time
import types

import jax
import jax.numpy as jnp
import pytest

from emjax.errors import UsageError
from emjax.main import main
from emjax.models import cost
from emjax.parallel import devices
from emjax.training.timing import StepTimer

PRETRAIN = "--config=configs/pretrain.py:smoke"


def test_steps_are_timed_where_they_end_and_waiting_for_data_is_measured():
    def slow():
        while True:
            time.sleep(0.02)
            yield {}

    timer, reader = StepTimer(), slow()
    step = jax.jit(lambda x: x @ x)
    step(jnp.ones((300, 300))).block_until_ready()
    timer.restart()
    for number in range(1, 11):
        timer.read(reader, number)
        timer.stepped(number, {"loss": step(jnp.ones((300, 300)))})
    row = timer.row()
    assert 15 < row["pace/step_ms_p50"] <= row["pace/step_ms_p95"]
    assert 0.3 < row["pace/data_wait"] <= 1
    assert "pace/mfu" not in row and "pace/tflops" not in row and timer.ends == []


def test_operations_are_those_of_convolutions_and_products():
    """Against XLA's own count, which only the CPU has; it leaves out the padding."""

    def loss(kernels, images, matrix):
        for kernel, stride in zip(kernels, (1, 2), strict=True):
            images = jax.lax.conv_general_dilated(
                images, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        return (jax.nn.relu(images) @ matrix).sum()

    step = jax.jit(jax.grad(loss, argnums=(0, 1)))
    kernels = [jnp.ones((3, 3, 16, 16)), jnp.ones((3, 3, 16, 8))]
    arguments = kernels, jnp.ones((2, 64, 64, 16)), jnp.ones((8, 4))
    counted = cost.operations(step.trace(*arguments).jaxpr)
    forward = 2 * 2 * (64**2 * 9 * 16 * 16 + 32**2 * 9 * 16 * 8)
    product = 2 * 2 * 32**2 * 8 * 4  # its gradient; its value is not needed
    assert 3 * forward <= counted <= 3 * forward + 2 * product
    assert counted == pytest.approx(step.lower(*arguments).cost_analysis()["flops"], rel=0.05)


def test_operations_of_a_step_become_a_speed():
    timer = StepTimer(flops=8e12)
    timer.stepped(1, {})
    time.sleep(0.01)
    row = timer.row()
    assert row["pace/tflops"] == pytest.approx(1000 / row["pace/step_ms_p50"], rel=0.01)


def test_a_share_of_the_peak_where_that_is_known(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(device_kind="NVIDIA H200")])
    monkeypatch.setattr(devices, "memory", lambda: {"peak_bytes_in_use": 5 * 10**9})
    timer = StepTimer(flops=1e12)
    timer.stepped(1, {})
    row = timer.row()
    assert row["pace/mfu"] == pytest.approx(row["pace/tflops"] / 989, rel=1e-3)
    assert row["pace/peak_memory_gb"] == 5


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200 MIG 1g.18gb", None),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("cpu", None),
    ],
)
def test_peaks(kind, peak):
    assert devices.peak(kind) == peak


def test_no_falling_back_to_the_cpu():
    devices.require(None)
    with pytest.raises(
        UsageError, match=r"^--require=gpu, but JAX found 8 x cpu \(cpu\); look at "
    ):
        main([PRETRAIN, "--require=gpu"])
    with pytest.raises(UsageError, match="require=cuda"):
        main([PRETRAIN, "--require=cuda"])


@pytest.mark.parametrize("text", ["5", "0:3", "4:3", "a:b", "1:2:3"])
def test_wrong_profiles(text):
    with pytest.raises(UsageError, match=f"--profile={text}, expected FROM:TO"):
        main([PRETRAIN, f"--profile={text}"])


def test_a_profile_beyond_the_end_is_refused(tiny_records, tmp_path):
    with pytest.raises(UsageError, match="--profile=2:9, but the run has 3 steps"):
        where = [f"--config.data.dir={tiny_records}", f"--workdir={tmp_path / 'run'}"]
        main([PRETRAIN, *where, "--profile=2:9"])
    assert not (tmp_path / "run").exists()


def test_options_that_the_compiler_does_not_know_are_dropped():
    assert devices.supported_options() == devices.UPDATE["cpu"]
    assert devices.supported_options({"cpu": {"xla_cpu_gone": "1"}}) is None
    assert devices.supported_options({"gpu": {"xla_gpu_autotune_level": "4"}}) is None
