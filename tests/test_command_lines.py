"""Whatever is typed on a command line, it ends in at most one line: spellings drawn at random.

`SPELLINGS=10000 pytest tests/test_command_lines.py` draws others each time; `make soak` does.
"""

import contextlib
import importlib
import io
import json
import os
import re
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs import pretrain, restore_temimagenet, segment_au
from data_builders.build import BUILDERS
from emjax import cli
from emjax.__main__ import VERBS, run_verb
from emjax.config import FIELDS, flat, plain
from emjax.data.augment import Augmentation
from emjax.data.corruptions import Corruption, Masking
from emjax.errors import InputError, UsageError
from emjax.main import parse
from emjax.models.build import build_abstract
from emjax.training import optimizers

IN_MAKE_TEST = 300
SPELLINGS = int(os.environ.get("SPELLINGS", IN_MAKE_TEST))
MODULES = [module for module, _ in VERBS.values()]
REQUIRED = {  # what gets a command beyond its first check; nothing of it exists
    "emjax.finetune": ["--images=no", "--out=out"],
    "emjax.predict": ["--model=no", "--out=out", "no.tif"],
    "emjax.measure": ["--model=no", "--out=out", "no.tif"],
    "emjax.report": ["--runs=no", "--out=out"],
    "emjax.sweep": ["--config=paper", "--runs=no"],
    "emjax.convert": ["--from=no", "--to=no"],
    "emjax.publish": ["no", "--to=no"],
    "emjax.export": ["no", "--to=no.stablehlo"],
    "data_builders.export": ["no", "--data_dir=no", "--split=val", "--out=out"],
}
RECIPES = {"pretrain": pretrain, "segment_au": segment_au, "restore": restore_temimagenet}
AWKWARD = [
    *["", " ", "0", "1", "-1", "3", "2.5", "-0.5", "1e400", "1e39", "nan", "inf", "None", "True"],
    *["()", "(", ")", "[", "[]", "{}", "(2)", "2 2", "2,2", "1,1,two", "nan,nan", "(1,(2,3))"],
    *["a,b", "('a','b')", "('a',)", "('a','b',2.0)", "[('a','b',1),('a','b',2)]", "(('a','b'),)"],
    *["'", '"', "'a", "b'x'", "1j", "1_000", "0x10", "9" * 30, "9" * 5000, "((((((((", "*" * 40],
    *["%s", "{x}", "{0}", "$x", "a=b", "a:b", "20:10", "1:2", "a/b", "..", ".", "-", "--", "-x"],
    *["ü", "☃", "\n", "\t", "٣", "x" * 300, "best", "last", "unet", "hrnet", "cosine", "gpu", "h("],
]
# Without a slash: a folder outside the test's own would be read.
TYPED = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), max_size=12)
VALUES = st.one_of(st.sampled_from(AWKWARD), TYPED)


@pytest.mark.parametrize(
    "module, typed",
    [("measure", "--out="), ("predict", "--model="), ("finetune", "--images="), ("predict", "")],
)
def test_a_name_that_is_nothing_is_refused(module, typed):
    """As --out=$OUT is, and "$IN", without such a variable: it would be the folder one is in."""
    with pytest.raises(UsageError, match="expected a value, got nothing"):
        importlib.import_module(f"emjax.{module}").main([*REQUIRED[f"emjax.{module}"], typed])


def options_of(module, *first):
    """Return the flags that --help of a command names."""
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        importlib.import_module(module).main([*first, "--help"])
    return sorted(set(re.findall(r"--\w+", said.getvalue())) - {"--help", "--config"})


@st.composite
def spellings(draw):
    """Draw (module, arguments)."""
    module = draw(st.sampled_from(MODULES))
    if module == "emjax.main":
        recipe = draw(st.sampled_from(list(RECIPES)))
        variant = draw(st.one_of(VALUES, st.sampled_from(list(RECIPES[recipe].VARIANTS))))
        recipe = "restore_temimagenet" if recipe == "restore" else recipe
        start = [f"--config={recipe}", f"--config={recipe}:{variant}"][draw(st.booleans())]
        start, flags = [start], [f"--config.{field}" for field in FIELDS]
        flags += ["--config.data", "--config.model", "--config.optimizer", "--config.data.evals"]
        flags += ["--workdir", "--profile", "--require", "--deterministic", "--processes"]
    elif module == "data_builders.build":
        start = [draw(st.sampled_from(sorted(BUILDERS))), "--data_dir=data", "--source=no"]
        flags = OPTIONS[start[0]]
    else:
        start, flags = REQUIRED.get(module, []), OPTIONS[module]
    typed = []
    for _ in range(draw(st.integers(1, 3))):
        flag = draw(st.sampled_from(flags)) if flags else "--x"
        if draw(st.integers(0, 9)) == 0:  # a slip
            at = draw(st.integers(0, len(flag) - 1))
            flag = flag[:at] + draw(st.sampled_from(string.printable[:95])) + flag[at + 1 :]
        value = draw(VALUES)
        form = draw(st.integers(0, 9))
        typed += [[flag], [flag, value], [value]][form] if form < 3 else [f"{flag}={value}"]
    return module, [*start, *typed] if draw(st.integers(0, 9)) else typed


OPTIONS = {module: options_of(module) for module in [*REQUIRED, "emjax.doctor"]}
OPTIONS |= {name: options_of("data_builders.build", name) for name in BUILDERS}
OPTIONS["emjax.models.__main__"] = []


def stop(*arguments, **options):
    raise InputError("it would begin here")


def pieces(config, workdir, profile):
    """Make what a run is made of, except what its data decide."""
    build_abstract(config.model.to_dict())
    optimizers.build(config.optimizer.to_dict(), 1000)
    Augmentation(**config.augment.to_dict())
    Corruption(**config.objective.get("corruption", {}))
    Masking(**config.objective.get("masking", {}))


@pytest.fixture(scope="module")
def nothing_begins(tmp_path_factory):
    """Commands in an empty folder, that end where their work would begin."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("empty"))
        for name in (
            "emjax.doctor.devices.probe",
            "emjax.doctor.matrix_product",
            "emjax.experiments.plan.load_matrix",
            "emjax.report.find_runs",
            "data_builders.common.build",
            "data_builders.au_nanoparticles.fetch.from_zenodo",
            "data_builders.temimagenet.fetch.from_github",
        ):
            patch.setattr(name, stop)
        patch.setattr("emjax.main.train", pieces)
        patch.setattr("emjax.main.processes.connected", contextlib.nullcontext)
        patch.setattr("emjax.main.devices.keep_compiled", lambda: None)
        patch.setattr("emjax.models.__main__.GENERATORS", {})
        patch.setattr("emjax.models.__main__.DISCRIMINATORS", {})
        patch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
        yield


def ends_well(main, arguments):
    """Assert that a command ends with a code, --help, or one line."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            assert main(arguments) in (0, 2, 3)
        except SystemExit as end:
            assert end.code == 0, end.code
        except Exception as error:
            code, line = cli.exit_code_and_line(error)
            if line is None:
                raise
            typed = any("\n" in argument for argument in arguments)  # as in the name of a file
            assert code in (2, 3) and ("\n" not in line or typed), line
            assert "Traceback" not in line


@settings(
    max_examples=SPELLINGS,
    derandomize=SPELLINGS == IN_MAKE_TEST,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(spelling=spellings())
def test_every_spelling_ends_in_at_most_one_line(nothing_begins, spelling):
    module, arguments = spelling
    ends_well(importlib.import_module(module).main, arguments)


@settings(max_examples=50, derandomize=True, database=None, deadline=None)
@given(arguments=st.lists(VALUES, max_size=2))
def test_every_verb_ends_in_at_most_one_line(arguments):
    ends_well(run_verb, arguments)


SEGMENT = ["--config=segment_au:smoke"]
SAME = ("simulated/nanoparticles", "train")
TWICE = ((*SAME, 1.0), ("simulated/nanoparticles", "val", 1.0))


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("('simulated/nanoparticles','train')", SAME),
        ("simulated/nanoparticles,train", SAME),
        ("simulated/nanoparticles, train", SAME),
        ("(simulated/nanoparticles,train)", SAME),
        ("['simulated/nanoparticles','train']", SAME),
        ("('simulated/nanoparticles,train',)", SAME),
        ("('simulated/nanoparticles','train',2.0)", ((*SAME, 2.0),)),
        ("simulated/nanoparticles,train[:10]", ("simulated/nanoparticles", "train[:10]")),
        ("[('simulated/nanoparticles','train'),('simulated/nanoparticles','val')]", TWICE),
        ("(['simulated/nanoparticles','train',1],['simulated/nanoparticles','val'])", TWICE),
    ],
)
def test_records_to_train_on_are_taken_as_meant(typed, meant):
    config, _ = parse([*SEGMENT, f"--config.data.train={typed}"])
    assert config.data.train == meant


@pytest.mark.parametrize("typed", ["None", "()", ""])
def test_a_split_that_is_not_scored_is_left_out(typed):
    config, _ = parse([*SEGMENT, f"--config.data.evals.test={typed}"])
    assert config.data.evals.to_dict() == {"val": ("simulated/nanoparticles", "val")}


def test_other_tuples_are_taken_as_meant():
    config, _ = parse([*SEGMENT, "--config.model.pools=None", "--config.model.filters=4,8,16",
                       "--config.initialise.fresh=head/bias,head/kernel",
                       "--config.data.evals.val=a/b,val"])  # fmt: skip
    assert config.model.pools is None and config.model.filters == (4, 8, 16)
    assert config.initialise.fresh == ("head/bias", "head/kernel")
    assert config.data.evals.val == ("a/b", "val")


@pytest.mark.parametrize(
    ("field", "typed", "words"),
    [
        ("data.train", "simulated/nanoparticles", r"expected \(dataset, split\), or several .*; "
         r"for instance --config.data.train=\"\('micrographs/mine','train'\)\"$"),
        ("data.train", "('a','b',-1.0)", "expected .*weight"),
        ("data.train", "()", "expected"),
        ("data.evals.val", "val", r"expected \(dataset, split\); for instance --config.data.evals"),
        ("model.pools", "2 2", "one per level, or None; for instance --config.model.pools=2,2$"),
        ("model.dilations", "1,1,two", "one per level"),
        ("model.pools", "(2,-2)", "one per level"),
        ("model.input_interval", "1,0", "lowest, highest"),
        ("initialise.fresh", "head(", "regular expressions"),
    ],
)  # fmt: skip
def test_a_tuple_of_another_form_is_refused_with_an_example(field, typed, words):
    with pytest.raises(UsageError, match=words) as error:
        parse([*SEGMENT, f"--config.{field}={typed}"])
    assert field in str(error.value) and "\n" not in str(error.value)


def test_a_group_of_fields_cannot_be_emptied():
    with pytest.raises(UsageError, match="optimizer.lr.*set its fields one by one"):
        parse([*SEGMENT, "--config.optimizer={}"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("x = 1", r"no get_config\(\)"),
        ("def get_config():\n    return {}", "returns dict, expected a ConfigDict"),
        ("def get_config():\n    return unknown", "line 2: NameError: name 'unknown'"),
        ("def get_config(:", "SyntaxError"),
        ("import nowhere", "line 1: ModuleNotFoundError"),
    ],
)
def test_a_recipe_that_fails_is_one_line(tmp_path, content, words):
    path = tmp_path / "mine.py"
    path.write_text(content)
    with pytest.raises(UsageError, match=f"--config={path}.*{words}") as error:
        parse([f"--config={path}"])
    assert "\n" not in str(error.value)


def test_a_matrix_needs_no_more_than_its_runs(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from configs.pretrain import get_config as recipe\n"
        "def runs(seeds):\n"
        "    return {f'small/seed_{n}': lambda: recipe('unet_2_44') for n in range(seeds)}\n"
    )
    assert parse([f"--config={path}:small/seed_4"])[0].model.receptive_field == 44
    for form, words in ((f"{path}", "is a matrix of runs"), (f"{path}:small", "no run 'small'")):
        with pytest.raises(UsageError, match=words):
            parse([f"--config={form}"])


def test_fields_can_be_unset_and_those_of_a_run_set_again(tmp_path):
    unset = ["--config.model.receptive_field=None", "--config.model.dilations=1,1,2"]
    config, _ = parse([*SEGMENT, *unset])
    assert config.model.receptive_field is None and config.model.dilations == (1, 1, 2)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(plain(config)))
    config, _ = parse([f"--config={path}"])
    assert config.data.resident is None and config.model.pools is None
    fields = {"data.resident": True, "model.receptive_field": 44, "model.pools": (2, 2)}
    words = ["True", "44", "2,2"]
    typed = [f"--config.{f}={word}" for f, word in zip(fields, words, strict=True)]
    config, _ = parse([f"--config={path}", *typed, "--config.model.dilations=None"])
    assert dict(flat(config.to_dict())).items() >= {**fields, "model.dilations": None}.items()


def test_a_recipes_path_may_have_colons(tmp_path):
    path = tmp_path / "a:b" / "mine.py"
    path.parent.mkdir()
    path.write_text("from configs.pretrain import get_config")
    for form in ([f"--config={path}:unet_2_44,50k"], ["--config", f"{path}:unet_2_44,50k"]):
        config, workdir = parse(form)
        assert config.model.receptive_field == 44
        assert str(workdir) == "runs/mine/unet_2_44,50k"
