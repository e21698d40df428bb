"""Which library runs a model where none is asked for."""

import sys

import pytest

from emjax.inference import engines


@pytest.fixture
def machine(monkeypatch):
    """machine(*libraries) has these installed, no JAX loaded and no JAX_PLATFORMS."""

    def machine(*libraries):
        monkeypatch.setattr(engines, "find_spec", lambda name: name if name in libraries else None)
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


@pytest.mark.parametrize("plugin", ["jax_plugins", "libtpu"])
def test_where_a_plugin_is_installed_jax_says_what_it_computes_on(machine, monkeypatch, plugin):
    import jax

    for backend, engine in (("gpu", "jax"), ("cpu", "openvino")):
        machine("openvino", "onnx", plugin)
        monkeypatch.setitem(sys.modules, "jax", jax)
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        assert engines.default_engine() == engine


def test_the_engine_of_onnx_files(machine):
    machine("openvino")
    assert engines.default_onnx_engine() == "openvino"
    machine("onnxruntime")
    assert engines.default_onnx_engine() == "onnxruntime"
