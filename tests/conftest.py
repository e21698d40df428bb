"""Eight virtual CPU devices, checked array shapes, and small simulated records."""

import functools
import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

# Before JAX is imported, and for the commands that tests start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(".pytest_cache/compiled").absolute()))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # the small ones too
os.environ["XDG_CACHE_HOME"] = str(Path(".pytest_cache/home").absolute())  # not that of the user
# Most programs here run once, so they are compiled fast rather than well: in a quarter of the time
# (27.8 s to 6.2 s for the gradient of an HRNet W18-small; 2-core x86 CPU, 2026-11-29). XLA ends the
# process at a flag that it does not know; these two have been tried with jaxlib 0.10 alone.
QUICK = "--xla_backend_optimization_level=0"
if version("jaxlib").startswith("0.10."):
    QUICK += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("XLA_FLAGS", QUICK)

# A suite in the background or under nohup ignores these, and so would the commands it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, lambda *_: None)

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import install_import_hook

from emjax.models import hrnet
from emjax.parallel import sharding

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
install_import_hook(
    [
        "emjax.data.augment",
        "emjax.data.corruptions",
        "emjax.data.noise",
        "emjax.metrics",
        "emjax.micrographs.intensity",
    ],
    "beartype.beartype",
)


# All that HRNets are made of, in a tenth of the time that the smallest of them takes to compile
# and, in float64, to run. Not of the package: tests that use it ask for the fixture `tiny_hrnet`.
TINY_HRNET = hrnet.Variant(width=4, stage1=1, planes=8, modules=(1, 2, 1), blocks=1)


@pytest.fixture
def tiny_hrnet(monkeypatch):
    """The variant `tiny` is there."""
    monkeypatch.setitem(hrnet.VARIANTS, "tiny", TINY_HRNET)


def pytest_addoption(parser):
    parser.addoption("--no-skips", action="store_true", help="fail if a test is skipped")


def pytest_sessionfinish(session, exitstatus):
    """Fail where a test was skipped though all that it needs should be there."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.config.getoption("--no-skips") and reporter.stats.get("skipped"):
        session.exitstatus = exitstatus or pytest.ExitCode.TESTS_FAILED


def pytest_collection_modifyitems(items):
    """Begin with the tests marked `long`, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


# Options of a pretraining with the smallest networks.
SMALL = (
    "--config.model.blocks=1",
    "--config.model.receptive_field=18",
    "--config.discriminator.depth=1",
)


def command(module, *arguments):
    """Run `python -m module arguments` as a user does; returns the finished process."""
    line = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=900)


@pytest.fixture(autouse=True, scope="module")
def forget_compiled():
    """What a file's tests compiled is dropped after them: kept, it comes to several gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def drawn_afresh(request):
    """A file's `RNG` draws the same for a test whichever tests ran before it."""
    generator = getattr(request.module, "RNG", None)
    if generator is None:
        yield
        return
    first = generator.bit_generator.state
    yield
    generator.bit_generator.state = first


@pytest.fixture
def key():
    return jax.random.key(7)


@pytest.fixture
def one_device(monkeypatch):
    """Runs of this process take one of the eight devices, which is quicker."""
    on_one = functools.partial(sharding.data_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(sharding, "data_mesh", on_one)


@pytest.fixture(scope="session")
def tiny_records(tmp_path_factory):
    """A data_dir with 64-pixel `simulated/unlabelled` and `simulated/nanoparticles`."""
    from data_builders.build import main

    folder = tmp_path_factory.mktemp("data")
    for name in ("simulated/unlabelled", "simulated/nanoparticles"):
        main([name, f"--data_dir={folder}", "--patch=64", "--records=40"])
    return folder


@pytest.fixture
def float64(monkeypatch):
    """Both sides in float64: Adam's step is the sign of a gradient, whatever its size.

    In float32 a gradient as small as its own rounding gives a step of the full learning rate in
    either direction, so parameters cannot be compared. emjax names float32 where it fixes the
    precision of statistics and images; that name means float64 here.
    """
    with jax.enable_x64(True):
        monkeypatch.setattr(jnp, "float32", jnp.float64)
        yield np.float64
