"""Both sides of the benchmarks do the same work; results become tables. No speed is asserted."""

import math

import pytest

from benchmarks import run, tables
from benchmarks.cases import Case, chosen, everything, goal
from benchmarks.side import Side
from emjax.errors import UsageError

CALM = {"OMP_WAIT_POLICY": "passive"}  # PyTorch's threads wait without taking the cores


def told(name, case, data="-"):
    """What a side tells of its variants after preparing `case`."""
    with Side(name, case, data, seconds=0.01, modes=[], environment=CALM) as side:
        variants = side.answer()
        for found in variants.values():
            assert "error" not in found, found
        assert side.seconds(next(iter(variants)), 1) > 0
    return variants


@pytest.mark.parametrize("objective", ["pix2pix", "segmentation"])
def test_both_sides_do_the_same_work(objective):
    """As many images and operations, but for those at borders that one counts and one does not."""
    pytest.importorskip("torch", reason="needs PyTorch: make test TORCH=1")
    case = Case("step", "step", objective=objective, network="unet_2_44", batch=2, side=64)
    ours, theirs = told("ours", case)["emjax"], told("theirs", case)["PyTorch, eager"]
    assert ours["images"] == theirs["images"] == 2
    assert ours["facts"]["flops"] == pytest.approx(theirs["facts"]["flops"], rel=0.1)
    for side in (ours, theirs):
        assert math.isfinite(side["facts"]["loss"])


def test_both_sides_train_on_the_same_images(tmp_path, monkeypatch):
    """From records, from files and from one array, with what is built for them."""
    pytest.importorskip("torch", reason="needs PyTorch: make test TORCH=1")
    monkeypatch.setattr(run, "RECORDS", 12)
    run.build(tmp_path)
    case = Case("end", "end_to_end", network="unet_2_44", batch=2, side=32)
    ours, theirs = told("ours", case, tmp_path), told("theirs", case, tmp_path)
    assert list(ours) == ["emjax", "emjax, resident", "emjax, one fixed batch"]
    assert len(theirs) == 3
    for side in (*ours.values(), *theirs.values()):
        assert side["images"] == 2
        assert math.isfinite(side["facts"]["loss"])


def result(name="step/segmentation/unet_4_424", **fields):
    """A made-up result: emjax at 100 images/s, eager at 50, compiled at 80."""

    def variant(seconds, **facts):
        return {"steps": 1, "images": 16, "seconds": [16 * s for s in seconds], "facts": facts}

    case = Case(name, "step", "gpu", "segmentation", batch=16, side=448)
    return {
        "case": vars(case),
        "variants": {
            "emjax": variant([0.01] * 3, flops=4e12, bytes=8e10, loss=0.7),
            "PyTorch, eager": variant([0.018, 0.02, 0.022], flops=3.2e12),
            "PyTorch, compiled": variant([0.0125] * 3),
            "PyTorch, compiled, reduce-overhead": {"error": "RuntimeError: no"},
        },
        "limits": {"flops": 8e13, "bytes": 1e12},
        "host_cores": 16,
        "date": "2026-01-02",
        "machine": "a GPU",
        **fields,
    }  # fmt: skip


def test_a_table_says_rates_ratios_goals_and_shares():
    eager, compiled, failed = tables.rows([result()])
    assert eager["emjax"] == "100 [100, 100]"
    assert eager["its"] == "50 [47.6, 52.6]"
    assert eager["ratio"] == "2.00 [1.90, 2.10]" and eager["goal"] == "1.5: met"
    assert compiled["against"] == "PyTorch, compiled (fastest)"
    assert compiled["ratio"] == "1.25 [1.25, 1.25]" and compiled["goal"] == "1.1: met"
    assert failed["its"] == "failed: RuntimeError: no" and "ratio" not in failed
    assert eager["TFLOP/s"] == "20 (25%)", "of the fewer operations of the two counts"
    assert eager["GB/s"] == "500 (50%)"


def test_results_are_kept_and_replaced(tmp_path):
    run.keep(tmp_path, result())
    run.keep(tmp_path, result(host_cores=4))
    run.keep(tmp_path, result(name="growth/batch/16"))
    run.keep(tmp_path, result(date="2026-01-03"))
    text = (tmp_path / "results.md").read_text()
    assert text.startswith("**a GPU**; 2026-01-02 to 2026-01-03; a large product 80 TFLOP/s")
    assert text.count("PyTorch, eager") == 3
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_losses_on_virtual_devices_are_compared():
    results = [
        {"case": vars(Case(f"growth/devices/{count}", "devices", devices=count)),
         "variants": {"emjax": {"facts": {"loss": loss}}}}
        for count, loss in ((2, 0.5000001), (1, 0.5))
    ]  # fmt: skip
    alone, two = tables.equal(results)
    assert alone["off that of one"] == "0.0e+00" and two["off that of one"] == "2.0e-07"


def test_goals_depend_on_the_device_and_its_host():
    case = Case("end_to_end/pix2pix/unet_4_424", "end_to_end", "gpu")
    assert goal(case, "PyTorch", fastest=True, cores=4) == 2
    assert goal(case, "PyTorch", fastest=True, cores=16) == 1.2
    assert goal(case, "PyTorch", fastest=False, cores=16) is None
    assert goal(case, "emjax, one fixed batch", fastest=False, cores=4) == 0.98


def test_cases_are_chosen_by_name():
    cases = everything("cpu")
    assert len({case.name for case in cases}) == len(cases)
    names = {case.name for case in chosen(cases, None)}
    assert "step/pix2pix/unet_4_424" in names and "step/pix2pix/hrnet_w48" not in names
    (large,) = chosen(cases, "step/pix2pix/hrnet_w48")
    assert large.network == "hrnet_w48"
    with pytest.raises(
        UsageError, match="^--only=step/none matches no case; there are step/pix2pix/"
    ):
        run.main(["--out=unused", "--only=read/*,step/none"])
