"""Each claim's rule on made-up runs for which it holds, and for which it does not."""

import copy
import json
from pathlib import Path

import pytest

from configs import pretrain, restore_temimagenet, segment_au
from emjax.config import plain
from emjax.experiments import claims
from emjax.experiments.arms import Arm, model_of
from emjax.runs.run import Run

SEEDS = (0, 1, 2)


def run_of(val, test=None, *, config=None, seed=0, score="val/dice", sign=1):
    """Return a finished run with an evaluation per epoch of 10 steps."""
    config = copy.deepcopy(config) or {"epochs": len(val)}
    config |= {"seed": seed, "epochs": len(val)}
    metric = score.split("/")[1]
    rows = [
        {"step": 10 * n, score: v, f"test/{metric}": t}
        for n, (v, t) in enumerate(zip(val, test or val, strict=True), start=1)
    ]
    total = 10 * len(val)
    return Run("", Path("/nowhere"), config, "c", rows, score, sign, total, total)


def finetuned(model, start, test, *, recipe=segment_au, lr=2e-4, records=50_000):
    """Return an arm of three seeds that score `test`, slightly apart, after each of 12 epochs."""
    variants = {segment_au: model, restore_temimagenet: f"denoise,{model}"}[recipe]
    config = plain(recipe.get_config(variants))
    config["optimizer"]["lr"] = lr
    is_dice = recipe is segment_au
    made = [
        run_of(
            [t + 0.001 * seed for t in test],
            config=config,
            seed=seed,
            score="val/dice" if is_dice else "val/l1",
            sign=1 if is_dice else -1,
        )
        for seed in SEEDS
    ]
    old = {} if start == "random" else {"records": records}
    return Arm("au:train", model_of(config), start, "", old, made)


def pretrained(model, best, subset="50k"):
    config = plain(pretrain.get_config(f"{model},{subset}"))
    count = int(subset[:-1]) * 1000
    made = [
        run_of([0.2, best + 0.0001 * seed], config=config, seed=seed, score="val/l1", sign=-1)
        for seed in SEEDS
    ]
    steps = 2 * (count // 128)
    made = [
        run._replace(
            done=steps,
            planned=steps,
            evaluations=[
                {**row, "step": steps // 2 * n} for n, row in enumerate(run.evaluations, start=1)
            ],
        )
        for run in made
    ]
    return Arm(f"cem500k:train[:{count}]", model, "pix2pix, cem", "", {}, made)


def rising(first, last, shake=0.0):
    """Twelve scores from `first` to `last`, shaking by `shake` from one to the next."""
    steps = [first + (last - first) * n / 11 for n in range(12)]
    return [score + shake * (n % 2) for n, score in enumerate(steps)]


P, R = "pix2pix, cem", "random"
SMALL, SAME, LARGE = "unet_2_44", "unet_2_116", "unet_4_424"

# claim: (arms for which it holds, arms for which it does not)
BOARDS = {
    "2a": ([(SMALL, P, rising(0.6, 0.8)), (SMALL, R, rising(0.4, 0.9))],
           [(SMALL, P, rising(0.3, 0.8)), (SMALL, R, rising(0.4, 0.7))]),
    "2b": ([(SMALL, P, rising(0.6, 0.8)), (LARGE, R, rising(0.5, 0.9))],
           [(SMALL, P, rising(0.4, 0.8)), (LARGE, R, rising(0.5, 0.7))]),
    "2c": ([(SMALL, P, rising(0.6, 0.8)), (SMALL, R, rising(0.4, 0.79))],
           [(SMALL, P, rising(0.6, 0.8)), (SMALL, R, rising(0.59, 0.7))]),
    "2d": ([(SMALL, P, rising(0.6, 0.8)), (SMALL, R, rising(0.4, 0.8, shake=0.1))],
           [(SMALL, P, rising(0.6, 0.8, shake=0.1)), (SMALL, R, rising(0.4, 0.8))]),
    "3": ([(SMALL, R, rising(0.4, 0.7)), (SAME, R, rising(0.4, 0.75)), (LARGE, R, [0.0] * 12)],
          [(SMALL, R, rising(0.4, 0.7)), (SAME, R, rising(0.4, 0.65)), (LARGE, R, [1.0] * 12)]),
    "4a": ([(SMALL, P, rising(0.4, 0.8)), ("hrnet_w48", R, rising(0.4, 0.7))],
           [(SMALL, P, rising(0.4, 0.6)), ("hrnet_w48", R, rising(0.4, 0.7))]),
    "4b": ([("hrnet_w48", P, rising(0.4, 0.8)), ("hrnet_w48", R, rising(0.4, 0.7))],
           [("hrnet_w48", P, rising(0.4, 0.6)), ("hrnet_w48", R, rising(0.4, 0.7))]),
    "4c": ([("hrnet_w48", P, rising(0.4, 0.8)), (SMALL, R, rising(0.4, 0.7)),
            (LARGE, P, rising(0.4, 0.79))],
           [("hrnet_w48", P, rising(0.4, 0.8)), (SMALL, R, rising(0.4, 0.7)),
            (LARGE, P, rising(0.4, 0.81))]),
}  # fmt: skip


def verdicts(arms, old=()):
    return {finding.claim.name: finding for finding in claims.judge(arms, list(old))}


@pytest.mark.parametrize("name", BOARDS)
def test_segmentation(name):
    holds, fails = ([finetuned(*arm) for arm in arms] for arms in BOARDS[name])
    found = verdicts(holds)[name]
    assert found.verdict == "supported" and found.where == "au:train, segmentation"
    assert verdicts(fails)[name].verdict == "not supported"
    assert verdicts(holds[:1])[name].verdict == "not measured"


@pytest.mark.parametrize(
    ("name", "holds", "fails"),
    [
        ("5a", [(P, rising(0.1, 0.02)), (R, rising(0.1, 0.03))],
         [(P, rising(0.1, 0.03)), (R, rising(0.1, 0.02))]),
        ("5b", [(P, rising(0.12, 0.02)), (P, rising(0.1, 0.02))],
         [(P, rising(0.1, 0.02)), (P, rising(0.1, 0.02))]),
        ("5c", [(P, [0.12] + 11 * [0.05]), (P, [0.1] + 11 * [0.05])],
         [(P, rising(0.12, 0.02)), (P, rising(0.1, 0.02))]),
        ("5d", [(P, rising(0.1, 0.02)), (R, rising(0.1, 0.02, shake=0.02))],
         [(P, rising(0.1, 0.02, shake=0.02)), (R, rising(0.1, 0.02))]),
    ],
)  # fmt: skip
def test_restoration(name, holds, fails):
    for arms, verdict in ((holds, "supported"), (fails, "not supported")):
        made = [
            finetuned("hrnet_w48", start, l1, recipe=restore_temimagenet, records=50_000 * n)
            for n, (start, l1) in enumerate(arms, start=1)
        ]
        assert verdicts(made)[name].verdict == verdict
    assert verdicts(made[:1])[name].verdict == "not measured"


def test_subsets_are_compared_within_a_network():
    made = [
        finetuned(model, P, rising(start, 0.02), recipe=restore_temimagenet, records=records)
        for model, start, records in ((SMALL, 0.12, 50_000), (LARGE, 0.10, 100_000))
    ]
    assert verdicts(made)["5b"].verdict == "not measured"
    made.append(
        finetuned(SMALL, P, rising(0.11, 0.02), recipe=restore_temimagenet, records=100_000)
    )
    assert verdicts(made)["5b"].difference.mean == pytest.approx(0.01)


def test_gains_are_those_of_one_network():
    arms = [finetuned("hrnet_w48", P, rising(0.4, 0.8)), finetuned("hrnet_w48", R, [0.7] * 12)]
    arms.append(finetuned("hrnet_w18", R, [0.0] * 12))
    assert verdicts(arms)["4b"].difference.mean == pytest.approx(0.1)


def test_pretrainings_of_other_settings_are_not_compared():
    large, hrnet = pretrained(LARGE, 0.03), pretrained("hrnet_w48", 0.05)
    for run in hrnet.runs:
        run.config["optimizer"]["lr"] = 1.0
    assert verdicts([], [large, hrnet])["1b"].verdict == "not measured"


def test_receptive_fields_of_dilations_and_runs_without_a_report():
    arms = [finetuned(SMALL, R, rising(0.4, 0.7)), finetuned(SAME, R, rising(0.4, 0.75))]
    for run in arms[0].runs:
        run.config["model"] |= {"receptive_field": None, "dilations": [1, 1, 1]}
    assert verdicts(arms)["3"].verdict == "supported"
    begun = pretrained(SMALL, 0.05)
    begun = begun._replace(runs=[run._replace(planned=None, evaluations=[]) for run in begun.runs])
    assert verdicts([], [begun, pretrained(SMALL, 0.04, "200k")])["1a"].verdict == "not measured"


def test_pretraining():
    falls = [pretrained(SMALL, 0.05), pretrained(SMALL, 0.04, "200k"), pretrained(LARGE, 0.03)]
    found = verdicts([], falls)
    assert found["1a"].verdict == "supported"
    assert found["1a"].difference.mean == pytest.approx(0.01)
    assert found["1b"].verdict == "not measured"
    rises = [pretrained(SMALL, 0.04), pretrained(SMALL, 0.05, "200k")]
    assert verdicts([], rises)["1a"].verdict == "not supported"
    copies = [pretrained(LARGE, 0.03), pretrained("hrnet_w48", 0.05)]
    assert verdicts([], copies)["1b"].verdict == "supported"
    copies = [pretrained(LARGE, 0.05), pretrained("hrnet_w48", 0.03)]
    assert verdicts([], copies)["1b"].verdict == "not supported"


def test_learning_rates():
    def arms(apart_random, apart_pretrained):
        return [
            finetuned(SMALL, start, rising(0.4, 0.8 - apart * n), lr=lr)
            for start, apart in ((R, apart_random), (P, apart_pretrained))
            for n, lr in enumerate((1e-4, 4e-4, 1.6e-3))
        ]

    found = verdicts(arms(0.1, 0.02))["6"]
    assert found.verdict == "supported" and found.difference.mean == pytest.approx(0.16)
    assert verdicts(arms(0.02, 0.1))["6"].verdict == "not supported"
    two_rates = [arm for arm in arms(0.1, 0.02) if arm.config["optimizer"]["lr"] < 1e-3]
    assert verdicts(two_rates)["6"].verdict == "not measured"


def test_arms_of_other_settings_are_not_compared():
    arms = [finetuned(SMALL, P, rising(0.6, 0.8)), finetuned(SMALL, R, rising(0.4, 0.7), lr=1e-3)]
    assert verdicts(arms)["2a"].verdict == "not measured"


def test_the_docs_have_every_rule():
    text = " ".join(Path("docs/background/claims.md").read_text().split())
    for claim in claims.CLAIMS:
        assert f"| {claim.name} | {claim.words} | {claim.rule} |" in text
    assert json.dumps([claim.name for claim in claims.CLAIMS]) == json.dumps(
        ["1a", "1b", "2a", "2b", "2c", "2d", "3", "4a", "4b", "4c", "5a", "5b", "5c", "5d", "6"]
    )
