"""What this machine can do: python -m emjax.doctor [--require=gpu|tpu]

Devices and their memory, a timed convolution, libraries, and what is missing. Exits with 0, or
with 2 if what --require names is not there.
"""

import importlib.util
import os
import platform
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp

import emjax
from emjax import cli
from emjax.parallel import devices, sharding

SIDE, CHANNELS = 256, 64  # of the timed convolution: a layer of a U-Net in the middle
EXTRAS = {  # module: the extra that has it, and what for
    "tensorboard": ("tensorboard", "curves and pictures of runs in TensorBoard"),
    "rsciio": ("rsciio", "micrographs in hspy, blockfile, nexus, semper, prz and tvips files"),
    "apache_beam": ("beam", "building records on Apache Beam, in an environment of its own"),
    "torch": ("torch", "parity tests and benchmarks"),
}


def main(arguments):
    """Print what there is; returns the exit code."""
    parser = cli.Parser(prog="emjax.doctor", description=__doc__.splitlines()[0])
    parser.add_argument("--require", choices=["gpu", "tpu"], help="fail on anything else")
    devices.require(parser.parse_args(arguments).require)
    devices.backend()
    tell("machine", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
                    f"Python {platform.python_version()}")  # fmt: skip
    tell("backend", jax.default_backend())
    tell("devices", sharding.devices_in_use())
    for device in jax.local_devices():
        tell(f"device {device.id}", ", ".join([device.device_kind, *facts(device)]))
    for dtype in ("float32", "bfloat16") if jax.default_backend() != "cpu" else ("float32",):
        tell("convolution", convolution(dtype))
    tell("compiled programs", where(devices.keep_compiled()))
    versions = emjax.versions(devices.LIBRARIES)
    tell("libraries", ", ".join(f"{name} {found}" for name, found in versions.items()))
    for line in missing():
        tell("missing", line)
    return 0


def tell(what, text):
    print(f"{what + ':':19}{text}", flush=True)


def facts(device):
    """What is known of a device: its memory and its peak."""
    stats, peak = device.memory_stats() or {}, devices.peak(device.device_kind)
    if "bytes_limit" in stats:
        used = stats.get("bytes_in_use", 0)
        yield f"{stats['bytes_limit'] / 1e9:.1f} GB for JAX, {used / 1e9:.1f} in use"
    else:
        yield "memory not told"
    yield f"peak {peak / 1e12:.0f} TFLOP/s" if peak else "peak not known"


def convolution(dtype):
    """Time and TFLOP/s of one device at a 3 x 3 convolution, the best of five."""
    images = 1 if jax.default_backend() == "cpu" else 32
    image = jnp.ones((images, SIDE, SIDE, CHANNELS), dtype)
    kernel = jnp.ones((3, 3, CHANNELS, CHANNELS), dtype)
    convolve = jax.jit(
        lambda image, kernel: jax.lax.conv_general_dilated(
            image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    )
    convolve(image, kernel).block_until_ready()
    times = []
    for _ in range(5):
        began = time.monotonic()
        convolve(image, kernel).block_until_ready()
        times.append(time.monotonic() - began)
    operations = 2 * 9 * CHANNELS**2 * SIDE**2 * images
    return (
        f"3 x 3, {CHANNELS} channels, {images} x {SIDE} x {SIDE}, {dtype}: "
        f"{1e3 * min(times):.3g} ms, {operations / min(times) / 1e12:.3g} TFLOP/s"
    )


def where(folder):
    """The folder and whether it can be written to, by it or its nearest parent that is there."""
    folder = folder.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if there.is_dir() and os.access(there, os.W_OK):
        return f"kept in {folder}"
    return f"cannot be kept: {there} is not writable; set JAX_COMPILATION_CACHE_DIR"


def missing():
    """A line for each thing that is not there and what it would be good for."""
    if jax.default_backend() == "cpu" and Path("/dev/nvidia0").exists():
        yield "this machine has an NVIDIA GPU that JAX does not use: pip install 'jax[cuda13]'"
    for module, (extra, purpose) in EXTRAS.items():
        if importlib.util.find_spec(module) is None:
            yield f"{module}, for {purpose}: the extra `{extra}`"


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
