"""Every command and snippet of the README and the tutorials runs, in order, in a new folder.

As they stand but for their length: the records are fewer and a training has one epoch.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from emjax import micrographs
from tests.docs_commands import blocks

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "tutorials").glob("*.md"))]

# Set-up that the environment of the tests has done; .ci/run runs `make demo` and `make test`.
ACTIVATE = ". .venv/bin/activate"
DONE = ("make venv", "make demo", "make test", ACTIVATE, f"make venv && {ACTIVATE}")
SHORTER = {
    "emjax build simulated/": ["--records=40"],
    "emjax finetune ": ["--steps=2"],
    "emjax train ": ["--config.epochs=1", "--config.data.batch_size=4", "--config.log_every=5"],
}
PASSES = "--config.passes_per_epoch=1"  # of the finetuning recipe

# Runs commands and snippets one after the other in one process, so that they share what is
# imported and compiled, and stops at the first that fails.
ONE_AFTER_THE_OTHER = """
import json, runpy, sys
for language, command in json.load(sys.stdin):
    print("\\n$", command if language == "python" else " ".join(command), flush=True)
    if language == "python":
        exec(compile(command, "<snippet>", "exec"), {"__name__": "__main__"})
        continue
    sys.argv = command
    try:
        runpy.run_module("emjax", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            sys.exit(f"{command} ended with {end.code}")
"""


def runnable(page):
    """Yield (language, snippet or argv) of a page, shortened."""
    for language, command in blocks(page):
        if language == "python":
            yield language, command
            continue
        command = re.sub(r"\s+# .*", "", command)
        if command in DONE:
            continue
        words = shlex.split(command)
        assert words[0] == "emjax", f"{page.name}: {command} is not tried by this test"
        for start, flags in SHORTER.items():
            words += flags if command.startswith(start) else []
        if command.startswith("emjax train --config=segment_au"):
            words.append(PASSES)
        yield language, words


def follow(page, folder):
    """Run a page in `folder`; return the finished process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ONE_AFTER_THE_OTHER],
        input=json.dumps(list(runnable(page))),
        capture_output=True,
        text=True,
        timeout=900,
        cwd=folder,
        env=environment,
    )


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("pages")


def own_files(folder):
    """Write the folders that the README takes for the reader's own: unlabelled, images, masks."""
    rng = np.random.default_rng(0)
    for name in ("unlabelled", "images", "masks"):
        (folder / name).mkdir()
    for index in range(12):
        name = f"{'micrograph' if index == 0 else f'micrograph_{index}'}.tif"
        mask = np.zeros((128, 128), np.uint8)
        mask[20 + 2 * index : 60, 30:90] = 255
        image = rng.normal(100, 20, mask.shape) + mask * 0.3
        image = np.clip(image, 0, 255).astype(np.uint8)
        micrographs.write(folder / "images" / name, image, (0.1, 0.1))
        micrographs.write(folder / "masks" / name, mask, (0.1, 0.1))
        micrographs.write(folder / "unlabelled" / name, image[::-1], (0.1, 0.1))


@pytest.mark.long
@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_a_page_runs_as_it_is_written(page, shared):
    folder = shared / page.stem
    folder.mkdir()
    if page.name == "README.md":
        own_files(folder)
    done = follow(page, folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert list(folder.rglob("report.html")), "the page ends with a report"
    assert list(folder.rglob("*.overlay.png")), "and has predicted masks"
    shutil.rmtree(folder)


def test_a_command_that_fails_is_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```sh\nemjax predict --model=nowhere --out=masks missing.tif\n```\n")
    done = follow(page, tmp_path)
    assert done.returncode == 1 and "ended with 3" in done.stderr


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    import matplotlib

    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    notebook = json.loads((ROOT / "docs/tutorials/in-python.ipynb").read_text())
    names = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    assert len(names["diameters"]) > 5 and 0.5 < np.median(names["diameters"]) < 20
    assert np.abs(names["same"] - names["model"].predict(names["micrograph"].image)).max() < 1e-4
    assert (tmp_path / "sizes.png").stat().st_size > 1000
    assert "particles, median diameter" in capsys.readouterr().out
