"""What this machine can do: python -m emjax.doctor [--require=gpu|tpu] [--json]

Prints devices and their memory, a timed matrix product, libraries, and what is missing; with --json
what a sweep plans with. Exits with 0, or with 2 if the device of --require is missing.
"""

import importlib.util
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

import emjax
from emjax import cli
from emjax.parallel import devices, sharding

EXTRAS = {  # module: (the extra that installs it, its purpose)
    "tensorboardX": ("tensorboard", "curves and pictures of runs in TensorBoard"),
    "rsciio": ("rsciio", "micrographs in blockfile, semper, prz and tvips files"),
    "hdf5plugin": ("hdf5plugin", "HDF5 compressed by bitshuffle, LZ4, Blosc, Zstandard or bzip2"),
    "napari": ("napari", "micrographs and particles in napari"),
    "huggingface_hub": ("hub", "models by name from the Hugging Face Hub"),
    "starlette": ("app", "the page of emjax serve"),
    "onnxruntime": ("onnx", "models as ONNX files, and onnxruntime as an engine"),
    "openvino": ("openvino", "OpenVINO as an engine, the fastest on CPUs"),
    "bioimageio": ("bioimageio", "models as packages of bioimage.io"),
    "apache_beam": ("beam", "building records on Apache Beam, in an environment of its own"),
    "torch": ("torch", "parity tests and benchmarks"),
}


@cli.command
def main(arguments: Sequence[str]) -> int:
    """Print what this machine supports; returns the exit code."""
    parser = cli.Parser(prog="emjax.doctor", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--require", choices=["gpu", "tpu"], help="fail on anything else")
    parser.add_argument("--json", action="store_true", help="print what a sweep plans with")
    options = parser.parse_args(arguments)
    devices.require(options.require)
    devices.backend()
    if options.json:
        print(json.dumps(devices.probe()))
        return 0
    system, cores = f"{platform.system()} {platform.machine()}", os.cpu_count()
    print_fact("machine", f"{system}, {cores} cores, Python {platform.python_version()}")
    print_fact("backend", jax.default_backend())
    print_fact("devices", sharding.devices_in_use())
    for device in jax.local_devices():
        print_fact(f"device {device.id}", ", ".join([device.device_kind, *facts(device)]))
    for dtype in ("float32", "bfloat16") if jax.default_backend() != "cpu" else ("float32",):
        print_fact("matrix product", matrix_product(dtype))
    print_fact("compiled programs", cache_state(devices.keep_compiled()))
    versions = emjax.versions(devices.LIBRARIES)
    print_fact("libraries", ", ".join(f"{name} {found}" for name, found in versions.items()))
    for line in missing():
        print_fact("missing", line)
    return 0


def print_fact(name: str, text: str) -> None:
    """Print `name: text`, the texts below each other."""
    print(f"{name + ':':19}{text}", flush=True)


def facts(device: Any) -> Iterator[str]:
    """Yield what is known of a jax.Device: its memory and its peak."""
    stats, peak = device.memory_stats() or {}, devices.peak(device.device_kind)
    if "bytes_limit" in stats:
        used = stats.get("bytes_in_use", 0)
        yield f"{stats['bytes_limit'] / 1e9:.1f} GB for JAX, {used / 1e9:.1f} in use"
    else:
        yield "memory unknown"
    yield f"peak {peak / 1e12:.0f} TFLOP/s" if peak else "peak unknown"


def matrix_product(dtype: str) -> str:
    """Return the time and TFLOP/s of one device for a large matrix product, as text."""
    side, seconds = devices.matrix_product(dtype)
    speed = 2 * side**3 / seconds / 1e12
    return f"{side} x {side}, {dtype}: {1e3 * seconds:.3g} ms, {speed:.3g} TFLOP/s"


def cache_state(folder: Path) -> str:
    """Return where compiled programs are kept, or that the folder cannot be written to."""
    folder = folder.absolute()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if nearest.is_dir() and os.access(nearest, os.W_OK):
        return f"kept in {folder}"
    return f"cannot be kept: {nearest} is not writable; set JAX_COMPILATION_CACHE_DIR"


def missing() -> Iterator[str]:
    """Yield a line per missing library, with its purpose and how to install it."""
    if jax.default_backend() == "cpu" and Path("/dev/nvidia0").exists():
        yield "this machine has an NVIDIA GPU that JAX does not use: pip install 'jax[cuda13]'"
    for module, (extra, purpose) in EXTRAS.items():
        if importlib.util.find_spec(module) is None:
            yield f"{module}, for {purpose}: the extra `{extra}`"


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
