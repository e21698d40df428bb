"""What makes a run slow and can be counted: compilations, operations, bytes, transfers.

Times are measured by `benchmarks/`, not here.
"""

import logging
import platform
import re
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from emjax.data.records import Records
from emjax.main import main, parse
from emjax.models.build import build, build_abstract
from emjax.objectives.supervised import Supervised
from emjax.parallel import devices
from emjax.training.assemble import build_objective

PRETRAIN, SEGMENT = "configs/pretrain.py:unet_2_44", "configs/segment_au.py:unet_2_44"
BATCH, SIDE = 4, 64

# Million operations and megabytes of the compiled step, a tenth more than XLA counts for a CPU (JAX
# 0.10.2 and 0.11.2 alike). A change that needs more must be worth it.
MOST = {PRETRAIN: (11_300, 689), SEGMENT: (378, 83)}

# Of a prediction, per pixel: operations, bytes read and written, bytes of working memory.
PREDICTIONS = {
    "unet_2_44": (7_600, 1_025, 111),
    "unet_4_424": (11_100, 1_260, 111),
    "hrnet_w18_small_v1": (34_700, 2_560, 133),
}


@pytest.mark.long
def test_nothing_is_traced_twice_or_compiled_after_the_first_epoch(
    tiny_records, tmp_path, monkeypatch
):
    log, compiled, traced = tmp_path / "metrics.jsonl", [], []
    step = Supervised.train_step

    def train_step(objective, state, batch):
        traced.append(step)
        return step(objective, state, batch)

    monkeypatch.setattr(Supervised, "train_step", train_step)

    class Listener(logging.Handler):
        def emit(self, record):
            if found := re.match(r"Compiling jit\((\w+)\)", record.getMessage()):
                rows = log.read_text() if log.exists() else ""
                compiled.append((found[1], rows.count('"val/dice"')))

    logger, listener = logging.getLogger("jax._src.interpreters.pxla"), Listener()
    logger.addHandler(listener)
    try:
        with jax.log_compiles():
            main(
                [
                    "--config=configs/segment_au.py:smoke",
                    f"--workdir={tmp_path}",
                    f"--config.data.dir={tiny_records}",
                    "--config.epochs=4",
                ]
            )
    finally:
        logger.removeHandler(listener)
    assert len(traced) == 1
    names = [name for name, _ in compiled]  # of the programs, and after how many evaluations
    assert names.count("update") == 1
    assert names.count("scores") == 1  # the splits' last batches have as many rows
    assert [name for name, evaluations in compiled if evaluations > 1] == []


@pytest.fixture(scope="module", params=MOST)
def step(request):
    """(recipe, its compiled step on one device)."""
    config, _ = parse([f"--config={request.param}", f"--config.augment.crop={SIDE}"])
    record = {"image": np.zeros((SIDE, SIDE, 1), np.uint8)}
    record["mask"] = record["image"]
    divisor = build_abstract(config.model.to_dict()).divisor
    objective = build_objective(config, [Records([record], {"targets": ["mask"]})], divisor)
    batch = {name: np.stack([values] * BATCH) for name, values in record.items()}
    batch["intensity_range"] = np.tile(np.float32([0, 255]), (BATCH, 1))
    state = objective.init(0)
    update = jax.jit(objective.train_step, compiler_options=devices.supported_options())
    return request.param, update.lower(state, batch).compile()


def test_a_step_costs_no_more_than_it_did(step):
    recipe, compiled = step
    cost = compiled.cost_analysis()
    operations, size = cost["flops"] / 1e6, cost["bytes accessed"] / 1e6
    assert np.all((operations, size) <= np.array(MOST[recipe])), f"{operations:.1f}, {size:.1f}"


def test_images_of_kernel_gradients_are_not_computed_once_more(step):
    """XLA fuses nothing with the calls that they go through, and may inline none."""
    recipe, compiled = step
    wide = {SEGMENT: 10, PRETRAIN: 15}[recipe]  # kernels, of the U-Net and the discriminator
    assert compiled.as_text().count(" call(") >= wide


def test_a_step_does_not_leave_the_device(step):
    _, compiled = step
    assert not re.search(r"outfeed|infeed|callback|\bsend\b|\brecv\b", compiled.as_text())


@pytest.mark.parametrize("network", PREDICTIONS)
def test_a_prediction_costs_no_more_than_it_did(network):
    config, _ = parse([f"--config=configs/segment_au.py:{network}"])
    module = build(config.model.to_dict(), key=jax.random.key(0))
    side = 256
    images = jax.ShapeDtypeStruct((1, side, side, 1), np.float32)
    compiled = jax.jit(lambda images: module(images, train=False)).lower(images).compile()
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    found = cost["flops"], cost["bytes accessed"], memory.temp_size_in_bytes
    assert np.all(np.array(found) <= side**2 * np.array(PREDICTIONS[network])), found


PAGES = """
import resource
import jax, jax.numpy as jnp
from emjax.parallel import devices

assert devices.keep_memory()

@jax.jit
def update(x):  # 64 MB and more in between, which no loop keeps to itself
    return jnp.sin(jnp.flip(jnp.sort(x * 2), 0)).sum() + x.mean()

x = jnp.ones((1 << 24,))
for number in range(8):
    if number == 4:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    update(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_of_an_update_is_that_of_the_one_before():
    """New pages for less than two of its buffers; else there are six."""
    code = subprocess.run([sys.executable, "-c", PAGES], capture_output=True, text=True)
    assert code.returncode == 0, code.stderr
    assert int(code.stdout) < 4 * 2 * (1 << 26) / 4096


def test_memory_is_not_kept_where_jax_has_other_devices(monkeypatch):
    called = []
    library = types.SimpleNamespace(mallopt=lambda *option: called.append(option) or 1)
    monkeypatch.setattr("ctypes.CDLL", lambda name: library)
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "jax_plugins" or None)
    for name in ("JAX_PLATFORMS", "GLIBC_TUNABLES", "MALLOC_ARENA_MAX"):
        monkeypatch.delenv(name, raising=False)
    assert not devices.keep_memory() and not called
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert devices.keep_memory() and len(called) == 3
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    assert not devices.keep_memory() and len(called) == 3
    monkeypatch.delenv("MALLOC_ARENA_MAX")
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    assert not devices.keep_memory()
