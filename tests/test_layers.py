"""The order of the layers: what each module may import, read from its source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A module imports what stands before it or in its own layer, nothing that comes later.
LAYERS = [
    {"errors", "config", "files", "cli", "pictures"},
    {"metrics", "micrographs", "parallel"},
    {"tasks", "models"},
    {"data"},
    {"objectives", "inference", "interchange"},
    {"runs"},
    {"training"},
    {"experiments", "measurement"},
    {"finetuning"},
    {"commands", "apps"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
LAST_FOR_BUILDERS = RANK["data"]
BUILDS = {"finetuning", "commands", "apps"}  # may import builders
COMMANDS = {"emjax.models.__main__"}  # in a folder, for `python -m emjax.models`
GROUND = LAYERS[0] | {"__init__"}


def modules(package):
    """Yield (dotted name, path) of every module of a package."""
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


KNOWN = {name for package in ("emjax", "data_builders", "configs") for name, _ in modules(package)}


def imported(path):
    """Yield the project's modules that a file imports, inside functions and for types included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            joined = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in KNOWN else node.module for name in joined]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in ("emjax", "data_builders"))
        yield from (name for name in names if name.split(".")[0] == "configs")


def layer(name):
    """Return the layer of a module: a folder of emjax, a file of the ground, or `commands`."""
    if name in COMMANDS:
        return "commands"
    part = name.split(".")[1]
    return part if part in RANK else "commands"


def violations(name, path):
    """Return what a module of emjax imports though it comes later."""
    found = []
    for other in imported(path):
        if other == "emjax":
            continue  # the version
        if other.startswith("data_builders") and layer(name) in BUILDS:
            continue
        if other.split(".")[0] != "emjax":
            found.append(f"{name} imports {other}")
        elif RANK[layer(other)] > RANK[layer(name)]:
            found.append(f"{name} ({layer(name)}) imports {other} ({layer(other)})")
    return found


INSIDE = [(name, path) for name, path in modules("emjax") if "." in name]


@pytest.mark.parametrize("name, path", INSIDE, ids=[name for name, _ in INSIDE])
def test_no_module_imports_a_later_layer(name, path):
    if layer(name) == "commands":
        assert name in COMMANDS or path.parent.name == "emjax", f"{name} has no layer"
    assert violations(name, path) == []


def test_the_test_finds_what_it_looks_for(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def f():\n    from emjax.training import loop\n    import configs.pretrain\n")
    assert violations("emjax.models.unet", wrong) == [
        "emjax.models.unet (models) imports emjax.training.loop (training)",
        "emjax.models.unet imports configs.pretrain",
    ]


def test_builders_import_emjax_up_to_data():
    for name, path in modules("data_builders"):
        for other in imported(path):
            if other.startswith("emjax."):
                assert RANK[layer(other)] <= LAST_FOR_BUILDERS, f"{name} imports {other}"
            assert not other.startswith("configs"), f"{name} imports {other}"


def test_files_at_the_top_are_commands_or_the_ground():
    for path in (ROOT / "emjax").glob("*.py"):
        if path.stem not in GROUND:
            assert "def main(" in path.read_text(), f"{path.name} is no command"


@pytest.mark.parametrize(
    "module, absent",
    [
        ("emjax", ["jax", "numpy", "flax", "tensorflow_datasets"]),
        ("emjax.config", ["jax", "numpy", "ml_collections"]),
        ("emjax.cli", ["jax", "numpy"]),
        ("emjax.micrographs", ["jax", "flax", "tensorflow_datasets"]),
        ("emjax.measure", ["jax", "flax", "skimage", "scipy", "pyarrow", "matplotlib"]),
        (
            "emjax.predict",
            ["jax", "flax", "jinja2", "scipy.ndimage", "skimage", "pyarrow", "matplotlib"],
        ),
        ("data_builders.build", ["scipy.ndimage", "skimage"]),
        ("emjax.runs.run", ["flax", "tensorflow_datasets", "grain"]),
    ],
)
def test_importing_a_module_does_not_load(module, absent):
    code = f"import sys, {module}; print(*(set({absent}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr
