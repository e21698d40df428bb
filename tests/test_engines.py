"""Which library runs a model where none is asked for."""

import sys
from types import SimpleNamespace

import pytest

from emjax.inference import engines
from emjax.interchange import runtimes


@pytest.fixture
def machine(monkeypatch):
    """machine(*libraries) has these installed, no JAX loaded and no JAX_PLATFORMS."""

    def machine(*libraries, works=True):
        def imported():
            if not works:
                raise ImportError("libopenvino.so: no such file")
            return SimpleNamespace(Core=object)

        monkeypatch.setattr(engines, "find_spec", lambda name: name if name in libraries else None)
        monkeypatch.setattr(runtimes, "imported_openvino", imported)
        monkeypatch.delitem(sys.modules, "jax", raising=False)
        monkeypatch.delenv("JAX_PLATFORMS", raising=False)

    return machine


def test_openvino_runs_models_on_a_cpu_where_it_is_installed(machine, monkeypatch):
    machine("openvino", "onnx")
    assert engines.default_engine() == "openvino" and "jax" not in sys.modules
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    assert engines.default_engine() == "jax"
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert engines.default_engine() == "openvino"
    for installed in ([], ["openvino"], ["onnx", "onnxruntime"]):
        machine(*installed)
        assert engines.default_engine() == "jax"
    assert "jax" not in sys.modules


def test_an_openvino_that_does_not_work_is_named_and_left(machine, caplog):
    machine("openvino", "onnx", works=False)
    assert engines.default_engine() == "jax"
    assert "does not work, so JAX predicts: libopenvino.so: no such file" in caplog.text


@pytest.mark.parametrize("plugin", ["jax_plugins", "libtpu"])
def test_where_a_plugin_is_installed_jax_says_what_it_computes_on(machine, monkeypatch, plugin):
    machine("openvino", "onnx", plugin)
    for backend, engine in (("gpu", "jax"), ("cpu", "openvino")):
        jax = SimpleNamespace(default_backend=lambda backend=backend: backend)
        monkeypatch.setattr(engines, "import_module", {"jax": jax}.get)
        assert engines.default_engine() == engine


def test_the_engine_of_onnx_files(machine):
    machine("openvino")
    assert engines.default_onnx_engine() == "openvino"
    machine("onnxruntime")
    assert engines.default_onnx_engine() == "onnxruntime"
