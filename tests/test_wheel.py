"""The package as people install it: a wheel, in an environment without the checkout."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from emjax import micrographs

ROOT = Path(__file__).parents[1]
PACKAGES = ("emjax", "data_builders", "configs")
NEEDED = 77  # the release of setuptools that pyproject.toml asks for

pytestmark = pytest.mark.skipif(
    int(metadata.version("setuptools").split(".")[0]) < NEEDED,
    reason=f"builds a wheel offline, which needs setuptools {NEEDED} or newer in the environment",
)


def run(*line, **options):
    done = subprocess.run([*map(str, line)], capture_output=True, text=True, timeout=900, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Return the wheel, built offline of a copy, so that nothing is left in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    offline = ("--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", folder, source)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """Return the bin/ of an environment with the wheel and this environment's other packages."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python,
        "install", "--no-index", "--no-deps", wheel)  # fmt: skip
    (packages,) = folder.glob("lib/python*/site-packages")
    others = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "dependencies.pth").write_text("\n".join(others) + "\n")
    return python.parent


def test_the_wheel_holds_every_file_of_the_packages_and_no_other(wheel):
    expected = {
        path.relative_to(ROOT).as_posix()
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "emjax/py.typed" in expected
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == expected


@pytest.mark.long
def test_commands_run_from_the_wheel_in_another_folder(environment, tmp_path):
    image = np.random.default_rng(0).integers(0, 4000, (50, 61)).astype(np.uint16)
    np.save(tmp_path / "mine.npy", image)
    free = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def emjax(*arguments):
        return run(environment / "emjax", *arguments, cwd=tmp_path, env=free)

    code = f"import {', '.join(PACKAGES)} as last; print(emjax.__file__, last.__file__)"
    found = run(environment / "python", "-c", code, cwd=tmp_path, env=free).split()
    assert all(Path(file).is_relative_to(environment.parent) for file in found)

    emjax("build", "simulated/unlabelled", "--data_dir=data", "--patch=64", "--records=40")
    said = emjax("train", "--config=pretrain:smoke", "--config.data.dir=data")
    assert "runs/pretrain/smoke: done, 3 steps" in said
    emjax("predict", "--model=runs/pretrain/smoke", "--out=out", "mine.npy")
    restored = micrographs.read(tmp_path / "out" / "mine.tif").image
    assert restored.shape == image.shape and restored.dtype == np.uint16
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "mine.npy", "out", "runs"]
