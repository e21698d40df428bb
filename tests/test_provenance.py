"""What a workdir records of its run: its config, and the programs that have run it."""

import hashlib
import importlib.metadata
import json
from pathlib import Path

import pytest

import emjax
from emjax.config import plain
from emjax.errors import UsageError
from emjax.main import parse
from emjax.runs.provenance import (
    check_same_data,
    check_same_run,
    code_digest,
    data_digests,
    describe,
    ranking,
)

PRETRAIN, SEGMENT = "--config=configs/pretrain.py", "--config=configs/segment_au.py"


def test_a_run_records_the_programs_that_have_run_it(tmp_path, monkeypatch):
    config, _ = parse([f"{PRETRAIN}:smoke"])
    for digest in ("aaa", "bbb", "aaa"):
        monkeypatch.setattr("emjax.runs.provenance.code_digest", lambda digest=digest: digest)
        describe(tmp_path, config)
    assert json.loads((tmp_path / "versions.json").read_text())["code"] == "aaa+bbb"


def test_the_digest_is_of_every_source_file_of_the_package(tmp_path, monkeypatch):
    """Any file that is added or changed, in whatever folder, makes another program."""
    (tmp_path / "models").mkdir()
    (tmp_path / "__init__.py").write_text("")
    monkeypatch.setattr(emjax, "__file__", str(tmp_path / "__init__.py"))
    digests = [code_digest()]
    for content in ("a = 1", "a = 2"):
        (tmp_path / "models" / "unet.py").write_text(content)
        digests.append(code_digest())
    (tmp_path / "models" / "notes.txt").write_text("no source")
    assert len({*digests}) == 3 and code_digest() == digests[-1]


def test_a_checkout_that_is_not_installed_runs_too(tmp_path, monkeypatch):
    def version(library):
        if library in ("emjax", "grain"):
            raise importlib.metadata.PackageNotFoundError(library)
        return "1.2.3"

    monkeypatch.setattr(importlib.metadata, "version", version)
    describe(tmp_path, parse([f"{PRETRAIN}:smoke"])[0])
    versions = json.loads((tmp_path / "versions.json").read_text())
    assert (versions["emjax"], versions["grain"], versions["jax"]) == (
        emjax.__version__,
        "missing",
        "1.2.3",
    )


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
    # The learning rate ends with the last epoch.
    with pytest.raises(UsageError, match="another config: epochs 1 -> 99"):
        check_same_run(config, tmp_path)
    config, _ = parse([f"{SEGMENT}:smoke"])
    old = json.loads(config.to_json())  # from before these fields existed
    new = ("mesh", "remat", "ema", "segmentation")
    old = {name: value for name, value in old.items() if name not in new}
    old["optimizer"] = dict(name="adam", lr=2e-4, b1=0.9, b2=0.999)
    del old["data"]["accumulate"], old["augment"]["foreground_crops"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    check_same_run(config, tmp_path)
    config, _ = parse([f"{SEGMENT}:smoke", "--config.initialise.workdir=runs/x"])
    with pytest.raises(UsageError, match="initialise 'random' -> 'pretrained'"):
        check_same_run(config, tmp_path)


def test_the_digest_covers_the_whole_package():
    root, expected = Path(emjax.__file__).parent, hashlib.sha256()
    paths = sorted(root.rglob("*.py"))
    assert root / "models" / "unet.py" in paths
    for path in paths:
        expected.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    assert code_digest() == expected.hexdigest()[:12]


def test_a_run_on_records_of_other_files_is_refused_by_both_digests(tmp_path):
    def digests(sha="a" * 64, **options):
        card = dict(name="micrographs/x", files_sha256=sha, options=dict(patch=64) | options)
        return data_digests([card, card | {"name": "other"}, {"targets": []}])

    config, _ = parse([f"{SEGMENT}:smoke"])
    describe(tmp_path, config)  # a run from before the records were recorded
    check_same_data(tmp_path, digests())
    (tmp_path / "data.json").unlink()
    check_same_data(tmp_path, digests())
    describe(tmp_path, config, digests())
    check_same_data(tmp_path, digests())
    check_same_data(tmp_path, {})
    changed = "micrographs/x files 'aaaaaaaaaaaa' -> 'bbbbbbbbbbbb'"
    with pytest.raises(UsageError, match=f"other records, .*: {changed}; other files .*workdir"):
        check_same_data(tmp_path, digests("b" * 64))
    with pytest.raises(UsageError, match="micrographs/x foreground None -> '2'; .*patch 64 -> 32"):
        check_same_data(tmp_path, digests(patch=32, foreground="2"))


def test_a_workdir_with_files_of_another_is_refused(tmp_path):
    config, _ = parse([f"{SEGMENT}:smoke"])
    check_same_run(config, tmp_path)
    (tmp_path / "notes.txt").touch()
    check_same_run(config, tmp_path)
    (tmp_path / "data.json").write_text("{}")
    with pytest.raises(UsageError, match="holds data.json, but no run with its config.json"):
        check_same_run(config, tmp_path)
    for content in ("", "[1]", "{"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UsageError, match="config.json: not the record of a run"):
            check_same_run(config, tmp_path)
