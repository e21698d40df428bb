"""What a workdir says of its run: which programs it has been on, and whose it is."""

import importlib.metadata
import json

import pytest

import emjax
from emjax.config import plain
from emjax.errors import UsageError
from emjax.main import parse
from emjax.runs.provenance import check_same_run, describe, ranking

PRETRAIN, SEGMENT = "--config=configs/pretrain.py", "--config=configs/segment_au.py"


def test_a_run_says_which_programs_it_has_been_on(tmp_path, monkeypatch):
    config, _ = parse([f"{PRETRAIN}:smoke"])
    for digest in ("aaa", "bbb", "aaa"):
        monkeypatch.setattr("emjax.runs.provenance.code", lambda digest=digest: digest)
        describe(tmp_path, config)
    assert json.loads((tmp_path / "versions.json").read_text())["code"] == "aaa+bbb"


def test_a_checkout_that_is_not_installed_runs_too(tmp_path, monkeypatch):
    def version(library):
        if library in ("emjax", "grain"):
            raise importlib.metadata.PackageNotFoundError(library)
        return "1.2.3"

    monkeypatch.setattr(importlib.metadata, "version", version)
    describe(tmp_path, parse([f"{PRETRAIN}:smoke"])[0])
    told = json.loads((tmp_path / "versions.json").read_text())
    assert (told["emjax"], told["grain"], told["jax"]) == (emjax.__version__, "missing", "1.2.3")


@pytest.mark.parametrize(("recipe", "score"), [(PRETRAIN, "val/l1"), (SEGMENT, "val/dice")])
def test_the_validation_split_chooses_the_best_and_no_other(recipe, score):
    config, _ = parse([recipe])
    assert ranking(config)[0] == ranking(plain(config))[0] == score
    with config.unlocked():
        config.data.evals = dict(test=("simulated/nanoparticles", "test"))
    with pytest.raises(UsageError, match="data.evals has test, but no val to choose by"):
        ranking(config)


def test_a_workdir_of_another_config_is_refused_by_field(tmp_path):
    config, _ = parse([f"{SEGMENT}:smoke"])
    (tmp_path / "config.json").write_text(json.dumps(json.loads(config.to_json())))
    check_same_run(config, tmp_path)
    with config.unlocked():
        config.epochs, config.eval_every, config.data.dir = 99, 7, "elsewhere"
    check_same_run(config, tmp_path)
    config.optimizer.lr, config.augment.crop = 1e-3, 64
    with pytest.raises(UsageError, match="augment.crop 32 -> 64; optimizer.lr 0.0002 -> 0.001"):
        check_same_run(config, tmp_path)
    config, _ = parse([f"{SEGMENT}:smoke", "--config.optimizer.schedule=cosine"])
    (tmp_path / "config.json").write_text(config.to_json())
    with config.unlocked():
        config.mesh.space, config.remat = 2, True
    check_same_run(config, tmp_path)
    config.epochs = 99
    with pytest.raises(
        UsageError, match="another config: epochs 1 -> 99"
    ):  # the rate ends with them
        check_same_run(config, tmp_path)
    config, _ = parse([f"{SEGMENT}:smoke"])
    old = json.loads(config.to_json())  # from before there were these fields
    old = {name: value for name, value in old.items() if name not in ("mesh", "remat", "ema")}
    old["optimizer"] = dict(name="adam", lr=2e-4, b1=0.9, b2=0.999)
    del old["data"]["accumulate"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    check_same_run(config, tmp_path)
    config, _ = parse([f"{SEGMENT}:smoke", "--config.initialise.workdir=runs/x"])
    with pytest.raises(UsageError, match="initialise 'random' -> 'pretrained'"):
        check_same_run(config, tmp_path)
