"""The machine: its devices, their peaks and memory, and where compiled programs are kept."""

import ctypes
import importlib.util
import os
import platform
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from emjax.errors import UsageError
from emjax.files import cache
from emjax.parallel import sharding

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")

# Dense bfloat16 (V100: float16) operations per second of one device, by its kind. Source: the data
# sheets of NVIDIA and the pages of Google Cloud. A kind with more in its name, "MIG 1g.18gb" or
# "PCIe", has another peak and is not listed.
PEAKS = {
    r"NVIDIA H100 80GB HBM3": 989e12,
    r"NVIDIA H200": 989e12,
    r"NVIDIA A100-[^ ]+": 312e12,
    r"Tesla V100-SXM[^ ]+": 125e12,
    r"TPU v4": 275e12,
    r"TPU v5( lite|e)": 197e12,
    r"TPU v5p?": 459e12,
    r"TPU v6( lite|e)": 918e12,
}

# Compiler options of the program of an update, by backend. On CPUs without YNNPACK: its wide
# convolutions and their gradients are slow, and a program with it takes long to read back from the
# cache (JAX 0.10.2 and 0.11.2, docs/background/performance.md).
UPDATE: dict[str, dict[str, Any]] = {"cpu": {"xla_cpu_experimental_ynn_fusion_type": ""}}

# Options of glibc's mallopt, by their number in malloc.h: one arena, from which all is taken, also
# what is large, and which is never trimmed.
KEEPING = {"M_ARENA_MAX": (-8, 1), "M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, 2**31 - 1)}


def peak(kind: str) -> float | None:
    """Return the operations per second of a device of this kind; None if it is not in PEAKS."""
    return next((peak for name, peak in PEAKS.items() if re.fullmatch(name, kind)), None)


def matrix_product(dtype: str) -> tuple[int, float]:
    """Time one large product of two square matrices on one device, the best of five.

    Returns: (side of the matrices, seconds per product).
    """
    side = 4096 if jax.default_backend() != "cpu" else 2048
    product = jax.jit(lambda a: a @ a)
    array = jnp.ones((side, side), dtype)
    product(array).block_until_ready()
    times = []
    for _ in range(5):
        start = time.monotonic()
        product(array).block_until_ready()
        times.append(time.monotonic() - start)
    return side, min(times)


def probe() -> dict[str, Any]:
    """Return what runs will find here: platform, local devices, their kind, TFLOP/s in float32."""
    side, seconds = matrix_product("float32")
    return {
        "platform": jax.default_backend(),
        "count": jax.local_device_count(),
        "kind": jax.devices()[0].device_kind,
        "tflops": 2 * side**3 / seconds / 1e12,
    }


def memory() -> dict[str, int]:
    """Return {"peak_bytes_in_use", "bytes_limit", ...} of this process's fullest device.

    Empty on a CPU.
    """
    found = [device.memory_stats() or {} for device in jax.local_devices()]
    return max(found, key=lambda stats: stats.get("peak_bytes_in_use", 0))


def in_flight() -> int:
    """Return how many tiles of an image are computed at once: a CPU takes all cores for one."""
    return 1 if jax.default_backend() == "cpu" else 2


def backend() -> str:
    """Return the platform that JAX runs on: cpu, gpu or tpu.

    Raises: UsageError if the platform that JAX_PLATFORMS names does not start.
    """
    try:
        return jax.default_backend()
    except (RuntimeError, AssertionError) as error:  # JAX 0.10 asserts that there is one
        names = os.environ.get("JAX_PLATFORMS", "")
        raise UsageError(f"JAX_PLATFORMS={names}, but JAX starts no such device {error}") from error


def require(platform: str | None) -> None:
    """Raise UsageError unless JAX runs on `platform`, "gpu" or "tpu"; None accepts any."""
    if platform and backend() != platform:
        extra = "cuda13" if platform == "gpu" else platform
        raise UsageError(
            f"--require={platform}, but JAX found {sharding.devices_in_use()}; look at "
            f"JAX_PLATFORMS, or pip install 'jax[{extra}]'; python -m emjax.doctor shows more"
        )


def supported_options(options: Mapping[str, Mapping[str, Any]] = UPDATE) -> dict[str, Any] | None:
    """Return this backend's compiler options {name: value} of `options` {backend: options}.

    None if there are none, or if the installed XLA does not know them: experimental options may be
    removed.
    """
    chosen = options.get(jax.default_backend())
    if chosen is None:
        return None
    chosen = dict(chosen)
    try:
        jax.jit(lambda: 0, compiler_options=chosen).lower().compile()
    except jax.errors.JaxRuntimeError:
        return None
    return chosen


def keep_memory() -> bool:
    """Let glibc keep what an update on CPUs frees for the next one; call it before JAX starts.

    XLA allocates the memory of each update anew. glibc maps what is large and unmaps it afterwards,
    and the system has to fill every page with zeros. Kept, the process holds up to twice as much.
    Source: mallopt(3).

    Returns: whether it does: not where JAX has a GPU or TPU to run on, the C library is another, or
        a variable of the environment sets options of its malloc.
    """
    if any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ):
        return False
    accelerated = any(map(importlib.util.find_spec, ("jax_plugins", "libtpu")))
    if os.environ.get("JAX_PLATFORMS", "" if accelerated else "cpu") != "cpu":
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return all([library.mallopt(*option) for option in KEEPING.values()])


def keep_compiled() -> Path:
    """Keep compiled programs on disk for the next run, and return the folder.

    Also those that compile in 0.1 to 1 s, which JAX does not keep by itself. The variables
    JAX_COMPILATION_CACHE_DIR and JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS and JAX's own setting
    of the folder have priority.
    """
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    folder = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]  # set at run time
    if not folder:
        folder = str(cache())
        jax.config.update("jax_compilation_cache_dir", folder)
    return Path(folder)
