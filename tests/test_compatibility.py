"""What commit 80922af has written and documented is still taken; tests/golden/make.py made it.

The commands run one after the other in one process on one CPU device: `after`.
"""

import argparse
import importlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
import tifffile
from flax import nnx
from safetensors.numpy import load_file

from emjax import micrographs
from emjax.errors import InputError
from emjax.models import MODELS
from tests.golden import make

ROOT = Path(__file__).absolute().parent.parent
GOLDEN = ROOT / "tests" / "golden"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
CONFIGS = json.loads((GOLDEN / "configs.json").read_text())
COMMANDS = make.command_lines()
MATRIX = GOLDEN / "matrix.py"
PRETRAIN, SEGMENT = "pretrain/pix2pix/seed_0", "segment/pix2pix/seed_0"

# Runs the commands that stdin names as `python -m` does, and prints how each ended.
ONE_AFTER_THE_OTHER = """
import contextlib, io, json, runpy, sys, traceback, warnings
warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
ends = {}
for name, (module, *arguments) in json.load(sys.stdin).items():
    sys.argv, code = [module, *arguments], 0
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = end.code or 0
        except Exception:
            code = 1
            traceback.print_exc()
    ends[name] = [code, out.getvalue(), err.getvalue()]
print(json.dumps(ends))
"""


def training(run, workdir, *changes):
    return ["emjax.main", f"--config={MATRIX}:{run}", f"--workdir={workdir}", *changes]


RUN = {
    "labelled": ["data_builders.export", "simulated/nanoparticles", "--data_dir=data",
                 "--split=train", "--out=labelled"],
    "unlabelled": ["data_builders.export", "simulated/unlabelled", "--data_dir=data",
                   "--split=test", "--out=unlabelled"],
    "build again": ["data_builders.build", "simulated/unlabelled", "--data_dir=data",
                    "--patch=64", "--records=20"],
    "build other": ["data_builders.build", "simulated/unlabelled", "--data_dir=data",
                    "--patch=64", "--records=21"],
    "other config": training(PRETRAIN, "refused", "--config.optimizer.b1=0.9"),
    "resume": training(PRETRAIN, "resumed"),
    "from the start": training(PRETRAIN, "whole"),
    # With a learning rate of 0 the weights stay what they were when they were taken over. The rest
    # is quick to compile: no augmentation, all splits in batches of one size.
    "take over": training(SEGMENT, "taken_over", "--config.initialise.workdir=stopped",
                          "--config.optimizer.lr=0.0", "--config.epochs=1",
                          "--config.passes_per_epoch=1"),
    **{what: ["emjax.predict", f"--model=runs/{run}", f"--out=out/{what}", "micrograph.tif"]
       for what, run in make.MODELS.items()},
    "to PyTorch": ["emjax.convert", f"--from=runs/{SEGMENT}", "--to=torch.safetensors"],
    "from PyTorch": ["emjax.convert", "--from=torch.safetensors", "--to=converted"],
    "report": ["emjax.report", "--runs=reported", "--out=report"],
    "plan": ["emjax.sweep", f"--config={MATRIX}", "--runs=reported", "--seeds=1", "--dry_run"],
}  # fmt: skip


@pytest.fixture(scope="module")
def after(tmp_path_factory):
    """(the folder, {command: (exit code, stdout, stderr)}) after RUN in the unpacked archive."""
    folder = tmp_path_factory.mktemp("golden")
    with tarfile.open(GOLDEN / f"{make.COMMIT}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    for name in ("refused", "resumed"):
        shutil.copytree(folder / "stopped", folder / name)
    shutil.copytree(folder / "runs", folder / "reported")
    for run in ("pix2pix", "instance"):  # its pictures would be compiled for
        shutil.rmtree(folder / "reported" / "pretrain" / run / "seed_0" / "model")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": make.FLAGS,
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_THE_OTHER],
        input=json.dumps(RUN), capture_output=True, text=True, cwd=folder, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


def rows(path):
    """The rows of a metrics.jsonl without what clocks said."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if k != "seconds" and not k.startswith("pace/")}
        for row in rows
    ]


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_records_hold_the_same_arrays(after):
    """As TFDS's own reader found them at 80922af."""
    folder, ended = after
    for out, key in {
        "labelled": "simulated/nanoparticles:train",
        "unlabelled": "simulated/unlabelled:test",
    }.items():
        assert ended[out][0] == 0, ended[out]
        expected = EXPECTED["records"][key]
        for record, facts in expected.items():
            for what in facts.keys() - {"nm_per_pixel"}:
                path = folder / out / what / f"{record}.tif"
                found = micrographs.read(path)
                pixels = found.image // 255 if what == "mask" else found.image
                dtype, *shape, sha256 = facts[what]
                assert (str(pixels.dtype), list(pixels.shape)) == (dtype, shape)
                assert make.digest(pixels.tobytes()) == sha256, path
                sizes = [np.nan if x is None else x for x in facts["nm_per_pixel"]]
                assert found.nm_per_pixel == pytest.approx(sizes, rel=1e-5, nan_ok=True)
        assert len([*(folder / out / "image").iterdir()]) == len(expected)


def test_a_build_finds_its_records_again_and_refuses_others(after):
    _, ended = after
    assert ended["build again"][0] == 0 and "simulated/unlabelled" in ended["build again"][1]
    code, _, told = ended["build other"]
    assert code == 3 and "records=20" in told and "records=21" in told


def test_a_checkpoint_is_resumed(after):
    """To the end that 80922af came to, up to rounding, with its rows from before as they were.

    Tolerance: full optimisation, or SSE4 instructions alone, moved no value by more than 1e-6.
    """
    folder, ended = after
    code, out, told = ended["resume"]
    assert code == 0, told
    assert re.search(rf"\b{make.STOPPED_AT}\b", out.splitlines()[0]), out
    stopped = rows(folder / "stopped" / "metrics.jsonl")
    resumed = rows(folder / "resumed" / "metrics.jsonl")
    golden = rows(folder / "runs" / PRETRAIN / "metrics.jsonl")
    assert resumed[: len(stopped)] == stopped
    assert len(resumed) == len(golden)
    for mine, theirs in zip(resumed, golden, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


def test_a_run_from_the_start_is_the_same_one(after):
    """The same initial weights, examples in the same order, and draws; up to rounding."""
    folder, ended = after
    assert ended["from the start"][0] == 0, ended["from the start"]
    whole = rows(folder / "whole" / "metrics.jsonl")
    golden = rows(folder / "runs" / PRETRAIN / "metrics.jsonl")
    assert len(whole) == len(golden)
    for mine, theirs in zip(whole, golden, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


def test_the_same_bits(after):
    """The checkpoint, continued, and the same run in one go end with 80922af's bits.

    Bits are promised on machines of one kind only: elsewhere this is skipped.
    """
    here, there = make.machine(), EXPECTED["machine"]
    if here != there:
        pytest.skip(
            "another kind of machine: " + ", ".join(k for k in there if here[k] != there[k])
        )
    folder, _ = after
    golden = rows(folder / "runs" / PRETRAIN / "metrics.jsonl")
    for run in ("resumed", "whole"):
        assert rows(folder / run / "metrics.jsonl") == golden
        model = (folder / run / "model" / "model.safetensors").read_bytes()
        assert make.digest(model) == EXPECTED["pretrained"], run


def test_another_config_is_refused_and_nothing_is_touched(after):
    folder, ended = after
    code, _, told = ended["other config"]
    assert code == 2 and told.count("\n") == 1
    assert "refused" in told and "optimizer.b1" in told and "0.5" in told and "0.9" in told
    assert files(folder / "refused") == files(folder / "stopped")


def test_weights_of_a_pretraining_are_taken_over_bit_for_bit(after):
    folder, ended = after
    code, out, told = ended["take over"]
    assert code == 0, told
    assert "head/bias" in out and "head/kernel" in out
    before = load_file(folder / "stopped" / "model" / "model.safetensors")
    now = load_file(folder / "taken_over" / "model" / "model.safetensors")
    assert before.keys() == now.keys()
    for name in (name for name in before if name.startswith("params/")):
        assert np.array_equal(before[name], now[name]) != name.startswith("params/head/"), name
    config = json.loads((folder / "taken_over" / "model" / "config.json").read_text())
    golden = json.loads((folder / "runs" / SEGMENT / "model" / "config.json").read_text())
    assert golden.keys() <= config.keys() and config["model"] == golden["model"]


@pytest.mark.parametrize("what", make.MODELS)
def test_models_predict_what_they_did(after, what):
    """Tolerance: full optimisation, or SSE4 instructions alone, moved no value by more than 2e-6.

    No probability was so near to one half that this would change the mask.
    """
    folder, ended = after
    assert ended[what][0] == 0, ended[what]
    path = folder / "out" / what / "micrograph.tif"
    found = micrographs.read(path)
    golden = micrographs.read(folder / "predictions" / f"{what}.tif")
    assert found.image.dtype == golden.image.dtype and found.nm_per_pixel == golden.nm_per_pixel
    if what == "mask":
        assert EXPECTED["mask is at least so far from 0.5"] > 1e-4
        assert np.array_equal(found.image, golden.image)
        assert path.with_name("micrograph.overlay.png").exists()
    else:
        np.testing.assert_allclose(found.image, golden.image, rtol=1e-5)


def test_models_go_to_pytorch_and_back_under_the_same_names(after):
    folder, ended = after
    assert ended["to PyTorch"][0] == ended["from PyTorch"][0] == 0, ended
    assert make.digest((folder / "torch.safetensors").read_bytes()) == EXPECTED["converted"]
    before = load_file(folder / "runs" / SEGMENT / "model" / "model.safetensors")
    now = load_file(folder / "converted" / "model.safetensors")
    assert before.keys() == now.keys()
    assert all(np.array_equal(before[name], now[name]) for name in before)


def test_the_report_finds_the_same_numbers(after):
    folder, ended = after
    assert ended["report"][0] == 0, ended["report"]
    text = (folder / "report" / "report.md").read_text()
    assert len(EXPECTED["report"]) > 20
    assert [number for number in EXPECTED["report"] if number not in text] == []
    assert all(name in text for name in json.loads((folder / "runs/matrix.json").read_text()))
    assert (folder / "report" / "report.html").read_text().count("<img") > 0


def test_a_sweep_sees_what_is_done(after):
    _, ended = after
    code, out, told = ended["plan"]
    assert code == 0, told
    for run, steps in {"pretrain/pix2pix": 9, "pretrain/instance": 12, "segment/pix2pix": 84,
                       "segment/random": 84}.items():  # fmt: skip
        assert re.search(rf"^{run} +1 +{steps} +1 ", out, re.M), out


class Parsed(BaseException):
    """The command line was accepted; the command is not to go on."""


def parsed(words):
    """Raise Parsed if the command takes its arguments; otherwise what it does then."""
    module = words[2] if words[:2] == ["python", "-m"] else words[0]
    arguments = words[3:] if words[:2] == ["python", "-m"] else words[1:]
    parse_args = argparse.ArgumentParser.parse_args

    def and_stop(*args, **how):
        parse_args(*args, **how)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
        patch.setattr(argparse.ArgumentParser, "parse_args", and_stop)
        patch.setattr(sys, "argv", [module, *arguments])
        runpy.run_module(module, run_name="__main__", alter_sys=True)


OTHERS = [line for line, words in COMMANDS.items()
          if words[:3] != ["python", "-m", "emjax.main"] and words[0] != "make"]  # fmt: skip


@pytest.mark.parametrize("line", OTHERS)
def test_documented_commands_are_accepted(line):
    try:
        parsed(COMMANDS[line])
    except Parsed:
        return
    except SystemExit as end:
        assert end.code == 0 and "--help" in line


def test_a_wrong_command_would_be_noticed(capsys):
    modules = sorted(
        {words[2] for line in OTHERS for words in [COMMANDS[line]] if words[1] == "-m"}
    )
    assert {"emjax.predict", "emjax.sweep", "data_builders.build"} <= {*modules}
    for module in modules:
        first = next(w for line, w in COMMANDS.items() if line in OTHERS and w[2:3] == [module])
        with pytest.raises(SystemExit) as end:
            parsed([*(word for word in first if word != "--help"), "--nonsense=1"])
        assert end.value.code == 2, module
    assert "--nonsense" in capsys.readouterr().err


@pytest.mark.parametrize("line", CONFIGS["commands"])
def test_documented_runs_have_the_same_config(line, monkeypatch):
    """Every field that the config had at 80922af, with its value; new fields may come."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("XLA_FLAGS", "")  # --deterministic writes there
    recipe = COMMANDS[line][3].removeprefix("--config=").split(":")[0]
    config, workdir = importlib.import_module("emjax.main").parse(COMMANDS[line][3:])
    known = CONFIGS["commands"][line]
    expected = {**CONFIGS["recipes"].get(recipe, {}), **known["changed"]}
    found = dict(flat(json.loads(config.to_json())))
    assert str(workdir) == known["workdir"]
    assert [name for name in known["removed"] if name in found] == []
    gone = {name: value for name, value in expected.items() if name not in known["removed"]}
    if ":demo" in COMMANDS[line][3]:  # its settings were chosen anew
        assert gone.keys() <= found.keys()
        return
    assert {name: found.get(name, "missing") for name in gone} == gone


def flat(config, prefix=""):
    for name, value in config.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def test_every_documented_run_is_looked_at():
    lines = {
        line for line, words in COMMANDS.items() if words[:3] == ["python", "-m", "emjax.main"]
    }
    assert lines == CONFIGS["commands"].keys()


@pytest.mark.parametrize("line", [line for line, words in COMMANDS.items() if words[0] == "make"])
def test_documented_targets_are_there(line):
    done = subprocess.run([*COMMANDS[line], "-n"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", CONFIGS["matrices"])
def test_matrices_have_the_same_runs(name):
    found = importlib.import_module(f"configs.{name}").runs(1)
    assert sorted(found) == CONFIGS["matrices"][name]


def test_networks_of_scripts_have_the_same_arrays_and_values(after):
    """A network from MODELS with the golden arrays: `emjax.predict` of a pretraining, by hand."""
    folder, _ = after

    def build():
        return MODELS["unet"](blocks=2, receptive_field=44, rngs=nnx.Rngs(0))

    module = nnx.eval_shape(build)
    arrays = load_file(folder / "runs" / PRETRAIN / "model" / "model.safetensors")
    arrays = {name.split("/", 1)[1]: value for name, value in arrays.items()}
    definition, state = nnx.split(module)
    leaves = {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}
    assert leaves.keys() == arrays.keys()
    for name, leaf in leaves.items():
        assert leaf.get_value().shape == arrays[name].shape
        leaf.set_value(jax.numpy.asarray(arrays[name]))
    assert module.divisor == 4 and module.receptive_field == 44

    image = tifffile.imread(folder / "micrograph.tif")
    low, high = np.sort(image.ravel())[[3, -4]]  # 0.1 and 99.9 percent of 3050
    assert micrographs.intensity_range([image], "percentile") == (low, high)
    scaled = np.clip((image - low) * 2 / (high - low) - 1, -1, 1).astype(np.float32)
    padded = np.pad(scaled, ((0, 2), (0, 3)), mode="reflect")[None, ..., None]
    run = jax.jit(lambda state, x: nnx.merge(definition, state)(x, train=False))
    output = np.asarray(run(state, padded))[0, :50, :61, 0]
    golden = tifffile.imread(folder / "predictions" / "restored.tif")
    np.testing.assert_allclose((output + 1) * (high - low) / 2 + low, golden, rtol=1e-5)


def test_hrnets_of_scripts():
    """Parameters of HRNet-W18-small-v1 with one channel: docs/how-to/convert-weights.md."""

    def build():
        return MODELS["hrnet"](variant="w18_small_v1", rngs=nnx.Rngs(0))

    module = nnx.eval_shape(build)
    sizes = [leaf.get_value().size for _, leaf in nnx.to_flat_state(nnx.state(module, nnx.Param))]
    assert f"{sum(sizes):,}" == "1,535,329"
    assert module.divisor == 32 and {*MODELS} >= {"unet", "hrnet", "patchgan"}


def test_micrographs_of_scripts(tmp_path):
    """open_all, planes, read, read_pixels, write and intensity_range, as scripts call them."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 4000, (50, 61)).astype(np.uint16)
    for suffix in (".tif", ".ome.tif", ".mrc", ".zarr"):
        path = tmp_path / f"image{suffix}"
        micrographs.write(path, image, (0.5, 0.25))
        read = micrographs.read(path)
        assert np.array_equal(read.image, image) and read.image.dtype == np.uint16
        assert read.nm_per_pixel == pytest.approx((0.5, 0.25)) and read.origin != "none"
        with micrographs.open_all(path) as signals:
            (signal,) = signals
            assert signal.shape == (50, 61) and signal.planes == 1 and signal.samples == 1
            assert signal.refused == "" and signal.nm_per_pixel == pytest.approx((0.5, 0.25))
            assert signal.origin == read.origin and np.isnan(signal.nm_per_plane)
            assert "50x61 uint16" in str(signal)
            assert np.array_equal(signal.finish(signal.raw(0)), image)
    micrographs.write(tmp_path / "unknown.tif", image)
    image, sizes, origin = micrographs.read(tmp_path / "unknown.tif")
    assert np.isnan(sizes).all() and origin == "none"

    stack = rng.normal(size=(3, 20, 30)).astype(np.float32)
    micrographs.write(tmp_path / "stack.tif", stack, (2.0, 2.0))
    found = [plane.image for plane in micrographs.planes(tmp_path / "stack.tif")]
    assert np.array_equal(found, stack)
    slices = [plane.image for plane in micrographs.planes(tmp_path / "stack.tif", axis="y")]
    assert np.array_equal(slices, np.moveaxis(stack, 1, 0))
    with pytest.raises(InputError, match="stack.tif") as refused:
        micrographs.read(tmp_path / "stack.tif", index=0)
    assert refused.value.code == 3

    colours = rng.integers(0, 256, (8, 9, 3)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "colours.tif", colours, photometric="rgb")
    assert np.array_equal(micrographs.read_pixels(tmp_path / "colours.tif"), colours)
    (plane,) = micrographs.planes(tmp_path / "colours.tif", colours=True)
    assert np.array_equal(plane.image, colours)
    luminance = np.rint(colours @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    assert np.array_equal(micrographs.read(tmp_path / "colours.tif").image, luminance)

    assert micrographs.intensity_range([image], "fixed") == (0.0, 65535.0)
    low, high = micrographs.intensity_range(iter(stack), "sigma")
    spread = 4 * stack.std(dtype=np.float64)
    assert (low, high) == pytest.approx((stack.mean() - spread, stack.mean() + spread), rel=1e-5)
