"""Matrices of runs: what the paper's holds, which runs are selected together."""

import collections
import json

import pytest
from ml_collections import ConfigDict

from configs import paper, real_small
from emjax.config import plain, run_of
from emjax.errors import UsageError
from emjax.experiments import plan


def test_the_matrix_of_the_paper():
    matrix = paper.runs(1)
    configs = {name: plain(make()) for name, make in matrix.items()}
    kinds = collections.Counter(
        config.get("task", config["objective"]["name"]) for config in configs.values()
    )
    assert kinds == {
        "pix2pix": 30,
        "segmentation": 205,
        "denoise": 4,
        "background": 4,
        "superresolution": 4,
    }
    assert len({json.dumps(config, sort_keys=True) for config in configs.values()}) == 247
    for name, config in configs.items():
        start = config.get("initialise", {}).get("workdir", "")
        if not start:
            assert name.startswith("pretrain/") or "/random/" in name
            continue
        assert configs[start]["model"] == config["model"]
        assert start.split("/")[1:] == name.split("/")[1:]  # model, arm and seed
    theirs = {name for name, config in configs.items() if config["epochs"] != 60}
    assert len(theirs) == 5 and all("/sytwu/" in name for name in theirs)
    assert len(paper.runs(3)) == 3 * 247


@pytest.mark.parametrize("matrix", [paper, real_small])
def test_each_run_is_a_config_of_its_own(matrix):
    for name, make in [*matrix.runs(3).items()][-7:]:
        assert plain(run_of(matrix.runs, name)) == plain(make())
    with pytest.raises(UsageError, match="no run 'unet/seed_x'; there are: "):
        run_of(matrix.runs, "unet/seed_x")


def test_selected_runs_bring_those_they_start_from():
    configs = {name: make() for name, make in real_small.runs(2).items()}
    names = plan.select_runs(
        configs, "np_sintering_2/unet_2_44/pix2pix/*,atomagined*/unet_2_44/random/seed_0"
    )
    assert set(names) == {
        "np_sintering_2/unet_2_44/pix2pix/seed_0",
        "pretrain/unet_2_44/pix2pix/seed_0",
        "np_sintering_2/unet_2_44/pix2pix/seed_1",
        "pretrain/unet_2_44/pix2pix/seed_1",
        "atomagined_denoise/unet_2_44/random/seed_0",
    }
    with pytest.raises(UsageError, match=r"--only=nothing\* matches no run; there are atomagined"):
        plan.select_runs(configs, "nothing*")


def test_a_run_brings_all_that_its_start_starts_from():
    configs = {
        name: ConfigDict({"initialise": {"workdir": start}})
        for name, start in {"a": "b", "b": "c", "c": "", "d": "elsewhere/run"}.items()
    }
    assert [*plan.select_runs(configs, "a")] == ["a", "b", "c"]
    assert [*plan.select_runs(configs, "d")] == ["d"]


def test_shares_are_all_runs_once_and_whole():
    configs = {name: make() for name, make in real_small.runs(3).items()}
    shares = [plan.select_share(configs, f"{part}/4") for part in range(4)]
    assert sorted(name for share in shares for name in share) == sorted(configs)
    for share in shares:
        assert 0 < len(share) < len(configs)
        assert {plan.start_of(config) for config in share.values()} <= share.keys() | {""}
    assert plan.select_share(configs, "0/1") == configs
    for share in ("4/4", "-1/4", "1", "a/b"):
        message = f"--share={share}, expected I/N with I from 0 to N - 1"
        with pytest.raises(UsageError, match=message):
            plan.select_share(configs, share)
