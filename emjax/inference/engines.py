"""The names of the libraries that run a network, and which of them does it by default."""

import os
import sys
from importlib import import_module
from importlib.util import find_spec

from emjax.errors import first_line, note

ENGINES = ("jax", "onnxruntime", "openvino")
NEEDS = ("onnx", "openvino")  # of a model in a folder: the extra `openvino`


def default_engine() -> str:
    """Return the engine of a model in a folder: OpenVINO on a CPU where it is installed, else JAX.

    Which is faster by how much: docs/background/performance.md.
    """
    if not (all(map(find_spec, NEEDS)) and computes_on_cpu()):
        return "jax"
    from emjax.interchange.runtimes import imported_openvino

    try:
        imported_openvino().Core()
    except Exception as error:  # of an installation that is old or in pieces: of any kind
        note("OpenVINO", f"is installed and does not work, so JAX predicts: {first_line(error)}")
        return "jax"
    return "openvino"


def default_onnx_engine() -> str:
    """Return the engine of an ONNX file: OpenVINO where it is installed, else onnxruntime."""
    return "openvino" if find_spec("openvino") else "onnxruntime"


def computes_on_cpu() -> bool:
    """Return whether JAX computes on the CPU here; it is loaded only if that is not plain."""
    if "jax" not in sys.modules:
        if platforms := os.environ.get("JAX_PLATFORMS"):
            return platforms.split(",")[0] == "cpu"
        if not any(map(find_spec, ("jax_plugins", "libtpu"))):
            return True
    return import_module("jax").default_backend() == "cpu"
