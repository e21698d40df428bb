"""Both sides of the benchmarks do the same work; results become tables. No speed is asserted."""

import json
import math

import pytest

from benchmarks import ours, run, tables
from benchmarks.cases import Case, chosen, everything, goal
from benchmarks.side import ROOT, Side
from emjax.errors import UsageError

CALM = {"OMP_WAIT_POLICY": "passive"}  # PyTorch's threads wait without taking the cores


def told(name, case, data="-", **options):
    """What a side tells of its variants after preparing `case`."""
    with Side(name, case, data, seconds=0.01, modes=[], environment=CALM, **options) as side:
        variants = side.answer()
        for found in variants.values():
            assert "error" not in found, found
        assert side.seconds(next(iter(variants)), 1) > 0
    return variants


@pytest.mark.long
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


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with what is built for the cases, of twelve images."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "RECORDS", 12)
        run.build(folder)
    return folder


@pytest.mark.long
def test_both_sides_train_on_the_same_images(data):
    """From records, from files and from one array."""
    pytest.importorskip("torch", reason="needs PyTorch: make test TORCH=1")
    case = Case("end", "end_to_end", network="unet_2_44", batch=2, side=32)
    ours, theirs = told("ours", case, data), told("theirs", case, data)
    assert list(ours) == ["emjax", "emjax, resident", "emjax, one fixed batch"]
    assert len(theirs) == 3
    for side in (*ours.values(), *theirs.values()):
        assert side["images"] == 2
        assert math.isfinite(side["facts"]["loss"])


@pytest.mark.long
def test_a_start_of_a_command_is_timed(data):
    """The model is trained and the image predicted by the commands."""
    assert list(told("commands", Case("start", "start_predict"), data)) == ["emjax"]
    assert len([*data.glob("*/predicted/*.tif")]) == 1


def test_commands_are_those_of_the_checkout(tmp_path):
    (tmp_path / "data" / "files").mkdir(parents=True)
    (tmp_path / "data" / "files" / "0.tif").touch()
    other = tmp_path / "other"
    (other / "emjax").mkdir(parents=True)
    (other / "emjax" / "__init__.py").touch()
    for name in ("main", "predict"):
        (other / "emjax" / f"{name}.py").write_text(
            f"print({name!r}, file=open({str(other / 'started')!r}, 'a'))"
        )
    told("commands", Case("start", "start_predict"), tmp_path / "data", checkout=other)
    assert (other / "started").read_text().split() == ["main", *2 * ["predict"]]


def beside(folder, *arguments):
    """The exit code of benchmarks.run, and {case: {variant: what it did}}."""
    line = ["--device=cpu", "--without_torch", "--repeats=2", "--seconds=0.01"]
    code = run.main([*line, f"--out={folder}", *arguments])
    path = folder / "results.json"
    results = json.loads(path.read_text()) if path.exists() else []
    return code, {result["case"]["name"]: result["variants"] for result in results}


@pytest.fixture
def tiny_cases(monkeypatch):
    """Two cases of the real names, and one that no checkout has."""
    cases = [
        Case("read/alone", "copy", side=1),
        Case("growth/batch/2", "step", "cpu", "segmentation", "unet_2_44", batch=2, side=32),
        Case("growth/batch/3", "copy", side=1),
    ]
    small = [Case("limits/product", "product", side=16)]
    monkeypatch.setattr(run, "everything", lambda device: cases)
    monkeypatch.setattr(run, "limits", lambda device: small)


@pytest.mark.long
def test_an_earlier_checkout_is_a_side_of_its_own(tmp_path, tiny_cases, capsys):
    """Here this checkout itself: the same work. What it does not have is measured without it."""
    code, found = beside(tmp_path, f"--beside={ROOT}", "--only=growth/*")
    step = found["growth/batch/2"]
    assert code == 0 and list(step) == ["emjax", "earlier build"]
    assert step["earlier build"]["images"] == 2 and len(step["earlier build"]["seconds"]) == 2
    assert step["earlier build"]["facts"]["flops"] == step["emjax"]["facts"]["flops"]
    assert list(found["growth/batch/3"]) == ["emjax"]
    said = capsys.readouterr().out
    assert "note: growth/batch/3 is not a case of the earlier build; measured without it" in said
    assert "earlier build" in (tmp_path / "results.md").read_text()


def test_no_case_begins_too_late(tmp_path, tiny_cases, capsys):
    code, found = beside(tmp_path, "--only=growth/batch/3,read/alone", "--minutes=1e-9")
    assert code == 0 and not found
    said = capsys.readouterr().out
    assert "note: read/alone: not measured, the time of --minutes is over" in said
    line = ("--only=read/alone", "--minutes=1e-9", f"--beside={ROOT}", "--at_least=0.9")
    assert beside(tmp_path, *line)[0] == 1


EARLIER_BUILD = """
import json, os, sys
assert os.environ["PYTHONPATH"].split(os.pathsep)[0] == os.getcwd()
name, request = sys.argv[1], json.loads(sys.argv[2])
assert name == "ours" and request["case"]["name"] == "read/alone"
assert os.path.isabs(request["data"]) and request["seconds"] == 0.01 and request["modes"] == []
print(json.dumps({"emjax": {"steps": 3, "images": 1, "facts": {}}, "more": {"error": "not used"}}),
      flush=True)
for line in sys.stdin:
    assert json.loads(line) == ["emjax", 3]
    print(ANSWER, flush=True)
"""


@pytest.mark.parametrize(
    ("answer", "code", "error"),
    [
        ("1e9", 0, ""),
        ("1e-12", 1, "error: --at_least=0.97: read/alone: upper quartile "),
        ("'\"MemoryError: all of it\"'", 1,
         "error: --at_least=0.97: read/alone: failed: MemoryError: all of it"),
    ],
)  # fmt: skip
def test_a_slower_case_fails_by_name(tmp_path, tiny_cases, capfd, monkeypatch, answer, code, error):
    """Beside a made-up checkout that answers so many seconds a step, by the protocol of 80922af."""
    other = tmp_path / "other" / "benchmarks"
    other.mkdir(parents=True)
    (other / "cases.py").write_text("everything = lambda device: [type('C', (), {'name': n}) "
                                    "for n in ('read/alone', 'read/gone')]")  # fmt: skip
    (other / "side.py").write_text(EARLIER_BUILD.replace("ANSWER", answer))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    arguments = ["--beside=other", "--at_least=0.97", "--only=read/alone"]
    got, found = beside(tmp_path / "out", *arguments)
    assert got == code and error in capfd.readouterr().err
    assert list(found["read/alone"]) == ["emjax", "earlier build"]


def test_slower_is_by_the_upper_quartile():
    """Of earlier / ours, round by round: 0.9, 0.95, 0.96, 0.98, 1.1; the quartile is 0.98."""
    case = result()
    variants = {
        "emjax": {"images": 2, "seconds": [1.0, 2.0, 1.0, 1.0, 1.0]},
        "earlier build": {"images": 2, "seconds": [0.9, 1.9, 0.98, 0.96, 1.1]},
    }
    compared = {**case, "variants": variants}
    assert tables.slower([compared], 0.979) == []
    assert tables.slower([compared, case], 0.981) == [
        "step/segmentation/unet_4_424: upper quartile 0.98"
    ]
    assert tables.slower([case], 0.5) == ["no case was compared with the earlier build"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--beside=configs"], "^--beside=.*configs; expected an earlier checkout of emjax"),
        (["--at_least=0.97"], "^--at_least=0.97; expected a ratio above 0, and --beside=CHECKOUT"),
        (["--at_least=0", "--beside=."], "^--at_least=0.0; expected a ratio above 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, arguments, message):
    with pytest.raises(UsageError, match=message):
        run.main([f"--out={tmp_path / 'out'}", *arguments])
    assert not (tmp_path / "out").exists()


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
    assert not (tmp_path / "growth.png").exists(), "one point shows no growth"
    run.keep(tmp_path, result(name="growth/batch/8"))
    run.keep(tmp_path, result(date="2026-01-03"))
    text = (tmp_path / "results.md").read_text()
    assert text.startswith("**a GPU**; 2026-01-02 to 2026-01-03; a large product 80 TFLOP/s")
    assert text.count("PyTorch, eager") == 4
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_points_of_a_curve_are_sorted_by_what_grows():
    found = [result(name=f"growth/pixels/{side}") for side in (1024, 16384, 256)]
    found += [result(name=f"startup/{name}") for name in ("hrnet_w18", "unet_2_44", "old")]
    for each, count in zip(found[3:5], (325, 12), strict=True):
        each["variants"]["emjax"]["facts"]["convolutions"] = count
    pixels, starts = (tables.points_of(panel, found) for panel in tables.PANELS[-2:])
    assert [x for x, _ in pixels] == [256, 1024, 16384] and [x for x, _ in starts] == [12, 325]
    assert [*pixels[0][1]] == ["emjax", "PyTorch, eager", "PyTorch, compiled"], "one failed"


def test_convolutions_of_a_network_are_counted():
    cases = (Case("startup", "startup", network=name) for name in ("unet_2_44", "hrnet_w18"))
    blocks = 2 * (2 + 1 + 2)  # two convolutions in each block: two down, the lowest, two up
    small, large = map(ours.convolutions, cases)
    assert blocks <= small < 20 and large > 300


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
