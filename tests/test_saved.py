"""Models as people keep them: whole files, exact values, a card."""

import json

import jax
import numpy as np
import optax
import pytest

from emjax.errors import InputError
from emjax.models import saved
from emjax.models.build import create

UNET = dict(name="unet", blocks=2, receptive_field=44)
FACTS = dict(model=UNET, task="segmentation", range_rule="sigma", scores={"val/dice": 0.5}, step=7)


@pytest.fixture(scope="module")
def network():
    return create(UNET, optax.sgd(1.0), key=jax.random.key(0))


def test_what_is_written_reads_back_exactly(network, tmp_path):
    saved.write(tmp_path / "model", network, FACTS)
    params, stats, config = saved.read(tmp_path / "model")
    assert params.keys() == network.params.keys() and stats.keys() == network.stats.keys()
    for path, value in {**params, **stats}.items():
        np.testing.assert_array_equal(value, {**network.params, **network.stats}[path])
    assert config["model"] == UNET and config["range_rule"] == "sigma" and config["format"] == 1
    card = (tmp_path / "model" / "README.md").read_text()
    assert "8069 parameters" in card and "val/dice: 0.5000" in card and "updates: 7" in card
    assert not list(tmp_path.rglob("*.partial"))


def test_a_workdir_stands_for_its_model(network, tmp_path):
    saved.write(tmp_path / "model", network, FACTS)
    image = np.random.default_rng(0).normal(size=(1, 8, 8, 1)).astype(np.float32)
    outputs = [
        saved.load(folder)[0](image, train=False) for folder in (tmp_path, tmp_path / "model")
    ]
    np.testing.assert_array_equal(*outputs)


def test_a_failed_write_leaves_the_old_model(network, tmp_path, monkeypatch):
    saved.write(tmp_path, network, FACTS)
    before = (tmp_path / "model.safetensors").read_bytes()

    def full(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        saved.write(tmp_path, network, {**FACTS, "step": 8})
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert json.loads((tmp_path / "config.json").read_text())["step"] == 7


def test_missing_and_damaged_models_are_named(network, tmp_path):
    with pytest.raises(InputError, match="no such file; .*workdir of a run that has saved a model"):
        saved.read(tmp_path)
    saved.write(tmp_path, network, FACTS)
    (tmp_path / "model.safetensors").write_bytes(b"\x08" + b"\0" * 7 + b"nonsense")
    with pytest.raises(InputError, match="not a readable model"):
        saved.read(tmp_path)
    saved.write(tmp_path, network, {**FACTS, "format": 2})
    with pytest.raises(InputError, match="expected a model of format 1, got format 2"):
        saved.read(tmp_path)
    for content in (b"[1]", b"\xff\xfe", b"{"):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(
            InputError, match="a readable model|a model of format 1, got format unkn"
        ):
            saved.read(tmp_path)


def test_the_digest_is_of_what_predictions_depend_on(network, tmp_path):
    saved.write(tmp_path / "model", network, FACTS)
    digest = saved.digest(tmp_path)
    saved.write(tmp_path / "model", network, FACTS | {"title": "elsewhere", "step": 8})
    assert saved.digest(tmp_path) == saved.digest(tmp_path / "model") == digest
    saved.write(tmp_path / "model", network, FACTS | {"range_rule": "fixed"})
    assert saved.digest(tmp_path) != digest
    other = create(UNET, optax.sgd(1.0), key=jax.random.key(1))
    saved.write(tmp_path / "model", other, FACTS)
    assert saved.digest(tmp_path) != digest
