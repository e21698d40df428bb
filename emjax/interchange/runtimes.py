"""Other libraries than JAX that run a network, on the CPU: onnxruntime and OpenVINO."""

import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float32

from emjax.errors import imported

Images = Float32[np.ndarray, "b h w c"]
Session = Callable[[Images], Images]
IMPORTING = threading.Lock()


def channels_first(images: Images) -> Float32[np.ndarray, "b c h w"]:
    """Return images of one channel [b, h, w, 1] as [b, 1, h, w], contiguous."""
    b, h, w, _ = images.shape
    return np.ascontiguousarray(images, np.float32).reshape(b, 1, h, w)


def onnxruntime_session(content: bytes) -> Session:
    """Return the function of an ONNX file's `content` in onnxruntime.

    Without its memory arena, which keeps what the largest image took.
    """
    onnxruntime = imported("onnxruntime", "onnx")
    options = onnxruntime.SessionOptions()
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()

    def run(images: Images) -> Images:
        (found,) = session.run(None, {given.name: channels_first(images)})
        return np.moveaxis(found, 1, -1)

    return run


def imported_openvino() -> ModuleType:
    """Return the library OpenVINO, imported without its telemetry.

    That reports each import to a server, from a fork of this process, and keeps a number for the
    user in the home folder. OpenVINO does without it where it is not installed.
    """
    name = "openvino_telemetry"
    modules: dict[str, Any] = sys.modules
    with IMPORTING:
        if "openvino" in modules or name in modules:
            return imported("openvino", "openvino")
        modules[name] = None  # so that its import fails
        try:
            return imported("openvino", "openvino")
        finally:
            del modules[name]


def openvino_session(content: bytes) -> Session:
    """Return the function of an ONNX file's `content` in OpenVINO, computed in float32.

    Its own choice on processors that have it is bfloat16, which is off by several percent.
    """
    openvino: Any = imported_openvino()
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(core.read_model(content), "CPU", settings)
    lock = threading.Lock()  # a compiled model has one request

    def run(images: Images) -> Images:
        with lock:
            found = compiled(channels_first(images))[0].copy()
        return np.moveaxis(found, 1, -1)

    return run


SESSIONS: dict[str, Callable[[bytes], Session]] = {
    "onnxruntime": onnxruntime_session,
    "openvino": openvino_session,
}
