"""The command line: defaults are the paper's, every bad input is one clear line."""

import functools
import importlib
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import configs
from configs import restore_temimagenet
from configs.pretrain import VARIANTS
from data_builders import build
from emjax import micrographs
from emjax.__main__ import VERBS, run_verb
from emjax.config import find_recipe
from emjax.data.augment import Augmentation
from emjax.errors import InputError, NonFiniteError, UsageError
from emjax.main import main, parse
from emjax.models.build import build_abstract
from emjax.models.network import flat_arrays
from emjax.runs.metrics_log import read
from emjax.runs.provenance import describe
from emjax.runs.run import read_run
from emjax.training.assemble import assemble
from tests.conftest import SMALL

ROOT = Path(__file__).parents[1]
PRETRAIN, SEGMENT = "--config=configs/pretrain.py", "--config=configs/segment_au.py"


def test_defaults_are_the_papers_run():
    config, workdir = parse([PRETRAIN])
    assert str(workdir) == "runs/pretrain/default"
    assert config.epochs == 60 and config.data.batch_size == 128
    assert config.data.train == ("cem500k", "train")
    given = {name: value for name, value in config.model.items() if value is not None}
    assert given == dict(name="unet", blocks=4, receptive_field=424, norm="batch")
    assert config.objective.l1_weight == 100.0 and config.optimizer.lr == 2e-4
    assert config.discriminator.width == 64 and config.discriminator.depth == 3
    config, _ = parse([SEGMENT])
    assert config.epochs == 60 and config.augment.crop == 448 and config.passes_per_epoch == 8


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_loads(variant):
    config, workdir = parse([f"{PRETRAIN}:{variant}"])
    assert str(workdir) == f"runs/pretrain/{variant}"
    if variant == "unet_3_176":
        assert (config.model.blocks, config.model.receptive_field) == (3, 176)
    if variant == "100k":
        assert config.data.train == ("cem500k", "train[:100000]")


@pytest.mark.parametrize("variant", restore_temimagenet.VARIANTS)
def test_every_restoration_variant_loads(variant):
    config, _ = parse([f"--config=configs/restore_temimagenet.py:{variant}"])
    assert config.task in ("denoise", "background", "superresolution")
    if variant == "simulated":
        assert config.data.evals.test == ("simulated/atoms", "test")
        assert config.model.variant == "w48" and config.data.batch_size == 64


def test_the_recipe_of_sytwu_et_al():
    config, _ = parse([f"{SEGMENT}:au5nm,sytwu"])
    assert config.data.evals.test == ("au_nanoparticles/au5nm", "test")
    assert (config.epochs, config.passes_per_epoch, config.data.batch_size) == (100, 8, 32)
    assert config.optimizer.to_dict() == dict(
        name="adam", lr=1e-4, b1=0.9, b2=0.999, clip=0.0, schedule="constant", warmup=0
    )
    augmentation = Augmentation(**config.augment.to_dict())
    assert augmentation == Augmentation(crop=0, turns=True)
    assert config.select == "last"
    module = build_abstract(config.model.to_dict())
    assert sum(leaf.size for leaf in flat_arrays(module)[0].values()) == 8_074
    assert module.pools == (2, 2) and module.head.kernel.shape == (1, 1, 4, 2)
    for pools, field in ((2, 4), 64), ((8, 8), 392):
        config, _ = parse([f"{SEGMENT}:sytwu", f"--config.model.pools={pools[0]},{pools[1]}",
                           f"--config.model.receptive_field={field}"])  # fmt: skip
        module = build_abstract(config.model.to_dict())
        assert module.pools == pools and module.dilations == (1, 1, 1)


@pytest.mark.parametrize("names", ["smoke,masked", "masked,smoke"])
def test_a_variant_may_remove_a_field(names):
    config, _ = parse([f"{PRETRAIN}:{names}"])
    assert config.objective.name == "masked" and "discriminator" not in config
    assert config.augment.crop == 32


def test_variants_join_and_fields_override():
    config, _ = parse([f"{PRETRAIN}:unet_2_44,50k", "--config.optimizer.lr=1e-3", "--workdir=x",
                       "--config.objective.corruption.dose=(20.0,200.0)"])  # fmt: skip
    assert config.objective.corruption.dose == (20.0, 200.0)
    assert config.model.receptive_field == 44 and config.data.train[1] == "train[:50000]"
    assert config.optimizer.lr == 1e-3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([f"{PRETRAIN}:unet_5"], "no variant 'unet_5'; there are: 100k, .*unet_4_424"),
        (["--config=configs/nothing.py"], "--config=configs/nothing.py: no such file; recipes are"),
        (["--config=pretrian:smoke"], "--config=pretrian: .*models, paper, .*, or a Python file"),
        (["--config=configs"], "--config=configs: no such file"),
        ([PRETRAIN, "--config.modle.name=unet"], 'modle.*Did you mean "model"'),
        ([PRETRAIN, "--config.passes_per_epoch=1"], "has no field passes_per_epoch; docs"),
        ([PRETRAIN, "--config.foo.bar=1"], "has no field foo.bar; docs"),
        ([PRETRAIN, "--config.epochs=many"], "config.epochs=many"),
        ([PRETRAIN, "--wrkdir=x"], "wrkdir"),
        ([PRETRAIN, "stray"], "'stray' is not an option"),
        ([], "--config is missing; give --config=RECIPE.*RECIPE is few_images, models, paper, "),
        (["--config"], "config"),
    ],
)
def test_wrong_command_lines(arguments, words):
    with pytest.raises(UsageError, match=words) as error:
        parse(arguments)
    assert "\n" not in str(error.value) and "Traceback" not in str(error.value)


@pytest.mark.parametrize(
    "recipe", [["--config=pretrain:unet_2_44"], ["-config", "pretrain:unet_2_44"]]
)
def test_a_recipe_is_found_by_name_in_any_folder(recipe, tmp_path, monkeypatch):
    expected = parse([f"{PRETRAIN}:unet_2_44", "--config.epochs=7"])
    monkeypatch.chdir(tmp_path)
    config, workdir = parse([*recipe, "--config.epochs=7"])
    assert str(workdir) == str(expected[1]) == "runs/pretrain/unet_2_44"
    assert config.to_dict() == expected[0].to_dict() and config.epochs == 7


def test_a_recipe_by_path_is_not_looked_for_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"no such file; .*; use --config=pretrain$"):
        parse([PRETRAIN])


def test_a_file_goes_before_a_recipe_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("paper").write_text("raise SystemExit")
    assert find_recipe("paper") == Path("paper")
    assert find_recipe("pretrain").samefile(Path(configs.__file__).with_name("pretrain.py"))


def test_every_recipe_is_listed_with_a_line(capsys):
    with pytest.raises(SystemExit) as end:
        parse(["--help"])
    assert end.value.code == 0
    listed = capsys.readouterr().out.partition("Recipes:\n")[2].splitlines()
    folder = Path(configs.__file__).parent
    names = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    assert [line.split()[0] for line in listed] == names
    for line, name in zip(listed, names, strict=True):
        title = importlib.import_module(f"configs.{name}").__doc__.splitlines()[0]
        assert line.split(maxsplit=1)[1] == title


COMMANDS = {  # every file that has a command, and its verb
    "data_builders.build": "build",
    "data_builders.export": "export-records",
    "emjax.convert": "convert",
    "emjax.doctor": "doctor",
    "emjax.export": "export",
    "emjax.finetune": "finetune",
    "emjax.main": "train",
    "emjax.models.__main__": "models",
    "emjax.measure": "measure",
    "emjax.predict": "predict",
    "emjax.publish": "publish",
    "emjax.report": "report",
    "emjax.serve": "serve",
    "emjax.sweep": "sweep",
}


def test_every_command_has_a_verb():
    with_main = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for package in ("emjax", "data_builders")
        for path in (ROOT / package).rglob("*.py")
        if "cli.run(main" in path.read_text() or "    run(main" in path.read_text()
    }
    assert with_main == COMMANDS.keys()
    assert {module: verb for verb, (module, _) in VERBS.items()} == COMMANDS


@pytest.mark.parametrize("arguments, code", [([], 2), (["--help"], 0), (["-h"], 0)])
def test_verbs_are_listed_with_a_line_each(arguments, code, capsys):
    assert run_verb(arguments) == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "usage: emjax VERB ..."
    assert [line.split()[0] for line in lines if line.startswith("  ")] == [*VERBS]
    assert all(len(line) <= 80 for line in lines)


def test_an_unknown_verb_is_one_line():
    with pytest.raises(UsageError, match="expected a verb, one of build, .*doctor; got 'trian'"):
        run_verb(["trian", "--config=pretrain"])


def test_listing_the_verbs_loads_no_command():
    code = (
        "import sys; from emjax.__main__ import run_verb; run_verb(['--help']); "
        "sys.exit(bool({'numpy', 'jax', 'emjax.predict', 'data_builders'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_a_verb_runs_its_command(monkeypatch):
    seen = {}
    for verb, (module, _) in VERBS.items():
        stand_in = types.ModuleType(module)
        stand_in.main = functools.partial(seen.setdefault, verb)
        monkeypatch.setitem(sys.modules, module, stand_in)
    for verb in VERBS:
        run_verb([verb, "--a=b", "c"])
    assert seen == {verb: ["--a=b", "c"] for verb in VERBS}


def test_deterministic_reaches_xla(monkeypatch):
    """Before JAX looks; a flag that this XLA does not know would end the process."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    parse([PRETRAIN])
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=x"
    parse([PRETRAIN, "--deterministic"])
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=x --xla_gpu_deterministic_ops=true"
    monkeypatch.setenv("XLA_FLAGS", "")
    known = (
        "from emjax.main import parse; import jax; "
        f"parse(['{PRETRAIN}', '--deterministic']); print(jax.device_count())"
    )
    done = subprocess.run([sys.executable, "-c", known], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (["data.dir=nowhere"], InputError, "'simulated/unlabelled' is not built. Build it: python"),
        (["data.train=('simulated/unlabelled','train[:50000]')"], InputError, "It has: train 28"),
        (["data.batch_size=0"], UsageError, "data.batch_size=0, expected a whole number, at least"),
        (["data.batch_size=9"], UsageError, "cannot be spread over 8 devices; take 8 or 16"),
        (["model.name=unett"], UsageError, "no model 'unett'; there are: hrnet, patchgan, unet"),
        (["model.receptive_field=43"], UsageError, "nearest are 44, "),
        (["augment.crop=30"], UsageError, "divisible by 4; the nearest are 28 and 32"),
        (["augment.crop=16"], UsageError, "at least 24 pixels.*larger augment.crop"),
        (["objective.name=gan"], UsageError, "no objective 'gan'; there are: masked, pix2pix"),
        (["optimizer.name=sgd"], UsageError, "no optimizer 'sgd'; there are: adam"),
        (["optimizer.warmup=3"], UsageError, "optimizer.warmup=3, expected 0 to 2 updates"),
        (["mesh.fsdp=3"], UsageError, "mesh.fsdp=3 and mesh.space=1 on 8 devices"),
        (
            ["mesh.space=4", "augment.crop=40"],
            UsageError,
            "divisible by 32, with mesh.space=4; the nearest are 32 and 64",
        ),
        (
            ["data.accumulate=3"],
            UsageError,
            "data.accumulate=3, expected a whole number that divides 1: data.batch_size=8",
        ),
        (["ema=2.0"], UsageError, "ema=2.0, expected 0 for no averages or a number below 1"),
    ],
)
def test_wrong_runs_are_refused_and_leave_nothing(tiny_records, tmp_path, changes, error, words):
    workdir = tmp_path / "run"
    flags = [f"--config.{change}" for change in changes]
    with pytest.raises(error, match=words) as caught:
        main([f"{PRETRAIN}:smoke", f"--workdir={workdir}", f"--config.data.dir={tiny_records}",
              *flags])  # fmt: skip
    assert "\n" not in str(caught.value)
    assert not workdir.exists()


@pytest.fixture
def pair(tmp_path):
    """A data_dir with micrographs/pair: one image in train and one, without particles, in val."""
    drawn = np.zeros((64, 64), np.uint8)
    drawn[20:40, 10:30] = 255
    for name, mask in (("a", drawn), ("b", drawn * 0)):
        noise = np.random.default_rng(0).integers(0, 99, mask.shape).astype(np.uint8)
        micrographs.write(tmp_path / "images" / f"{name}.tif", noise + mask // 2)
        micrographs.write(tmp_path / "masks" / f"{name}.tif", mask)
    table = tmp_path / "t.csv"
    table.write_text("image,mask,split\na.tif,../masks/a.tif,train\nb.tif,../masks/b.tif,val\n")
    flags = [f"--data_dir={tmp_path / 'data'}", f"--source={tmp_path / 'images'}"]
    assert build.main(["micrographs", "--name=pair", *flags, f"--table={table}"]) == 0
    return tmp_path / "data"


def write_rows(run, scores):
    """Write a metrics.jsonl in which these are the scores of val, one step after the other."""
    rows = [{"step": n, "total": 9, "val/dice": each} for n, each in enumerate(scores, start=1)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_run_on_two_images_leaves_out_what_is_not_there_and_says_so(pair, caplog, tmp_path):
    splits = [
        f"--config.data.{field}=('micrographs/pair','{split}')"
        for field, split in (("train", "train"), ("evals.val", "val"), ("evals.test", "test"))
    ]
    config, _ = parse([f"{SEGMENT}:smoke", f"--config.data.dir={pair}", *splits])
    pieces = assemble(config)
    assert [*pieces.held_out] == [*pieces.evals] == ["val"]
    assert "micrographs/pair:test: no record is in this split; test is not evaluated" in caplog.text
    assert "micrographs/pair:val: no mask has foreground" in caplog.text
    assert config.select == "best" and pieces.select == "last"
    assert pieces.steps_per_epoch == pieces.total_steps == 1
    (tmp_path / "run").mkdir()
    describe(tmp_path / "run", config, select=pieces.select)
    write_rows(tmp_path / "run", [0.9, 0.1])
    assert read_run(tmp_path / "run", tmp_path).best()["val/dice"] == 0.1
    assert "data.batch_size=8: more than an epoch of 1 records" in caplog.text
    rows = next(pieces.batches.starting_at(0))
    assert rows["image"].shape == (8, 64, 64, 1)
    config.data.evals.val = config.data.evals.test
    with pytest.raises(InputError, match="no split 'test' of it.*train 1, val 1; its sources were"):
        assemble(config)


def test_held_out_records_are_as_those_of_training(pair, tmp_path):
    flags = [f"--data_dir={pair}", f"--source={tmp_path / 'images'}"]
    for name, extra, header in (("fixed", ["--range=fixed"], "image,mask,split"),
                                ("plain", [], "image,other,split")):  # fmt: skip
        table = tmp_path / "t.csv"
        table.write_text(f"{header}\na.tif,../masks/a.tif,train\nb.tif,../masks/b.tif,val\n")
        argv = ["micrographs", f"--name={name}", *flags, *extra, f"--table={table}"]
        assert build.main(argv) == 0
    train = "--config.data.train=('micrographs/pair','train')"
    for name, words in (
        ("fixed", "fixed:val: intensity ranges by the rule 'fixed', but .*pair:train has "),
        ("plain", "plain:val: task 'segmentation' needs the target 'mask'"),
    ):
        val = f"--config.data.evals.val=('micrographs/{name}','val')"
        config, _ = parse([f"{SEGMENT}:smoke", f"--config.data.dir={pair}", train, val,
                           "--config.data.evals.test=None"])  # fmt: skip
        with pytest.raises(InputError, match=words):
            assemble(config)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (
            ["task=segmantation"],
            UsageError,
            "no task 'segmantation'; there are: back",
        ),
        (
            ["data.train=('simulated/unlabelled','train')"],
            InputError,
            "task 'segmentation' needs the target 'mask'; the dataset's targets: none",
        ),
        (["select=first"], UsageError, "select='first', expected best or last"),
        (
            ["segmentation.loss=dice", "segmentation.foreground_weight=2"],
            UsageError,
            "foreground_weight=2.0 with segmentation.loss=dice, which has no cross-entropy",
        ),
        (
            ["augment.foreground_crops=0.5", "augment.crop=0", "augment.resize=0"],
            UsageError,
            "augment.foreground_crops=0.5, but augment.crop=0 takes whole patches; expected a crop",
        ),
        (
            ["task=denoise", "augment.foreground_crops=0.5"],
            UsageError,
            "augment.foreground_crops=0.5, but there are no masks to train on",
        ),
        (
            ["task=denoise", "segmentation.loss=dice"],
            UsageError,
            "segmentation.loss=dice, but the task is denoise",
        ),
        (["initialise.workdir=nowhere"], InputError, "nowhere: neither a run .* nor a model"),
    ],
)
def test_wrong_finetuning_is_refused_and_leaves_nothing(
    tiny_records, tmp_path, changes, error, words
):
    workdir = tmp_path / "run"
    flags = [f"--config.{change}" for change in changes]
    with pytest.raises(error, match=words):
        main([f"{SEGMENT}:smoke", f"--workdir={workdir}", f"--config.data.dir={tiny_records}",
              *flags])  # fmt: skip
    assert not workdir.exists()


@pytest.mark.long
def test_losses_that_are_no_numbers_stop_the_run(tiny_records, tmp_path, capsys, one_device):
    with pytest.raises(
        NonFiniteError, match="steps 1 to 10: .*no good checkpoint from before"
    ) as error:
        main([f"{PRETRAIN}:smoke", f"--workdir={tmp_path}", f"--config.data.dir={tiny_records}",
              "--config.optimizer.lr=1e30", "--config.log_every=1",
              "--config.epochs=4", *SMALL])  # fmt: skip
    assert error.value.code == 4
    said = capsys.readouterr().err
    assert re.search(r"note: step 2: the loss .* by index and source: \d+(, \d+)* of unlab", said)
    rows = read(tmp_path / "metrics.jsonl")
    assert rows[-1]["step"] == 10 and rows[-1]["train/skipped"] == 10
    assert not any("NaN" in line for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
                   if "train/" in line)  # fmt: skip
