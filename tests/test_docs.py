"""The pages: links and anchors lead somewhere, paths in the code exist, lengths are kept."""

import importlib
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from emjax.config import FIELDS, flat
from tests.docs_commands import blocks, fences

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path
    for where in ("*.md", "docs/**/*.md", "launch/**/*.md", "emjax/models/box/*/README.md")
    for path in ROOT.glob(where)
)
RUNNABLE = [ROOT / "README.md", *sorted((ROOT / "docs/tutorials").glob("*.md"))]
MOST_LINES = {"README.md": 120, "CONTRIBUTING.md": 80}
MOST_WORDS = 80  # of a paragraph

FENCED = re.compile(r"^ *(```+).*?^ *\1 *$", re.DOTALL | re.MULTILINE)
INLINE_CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
LINK = re.compile(
    r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE
)


def named(path):
    return str(path.relative_to(ROOT))


def links(text):
    """Return the targets of all links and pictures of Markdown, code left out."""
    prose = INLINE_CODE.sub("", FENCED.sub("", text))
    return [inline or reference for inline, reference in LINK.findall(prose)]


def anchors(text):
    """Return the anchors that GitHub gives to the headings of Markdown."""
    found, seen = set(), Counter()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", FENCED.sub("", text), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def broken(page):
    """Return the links of a page that lead nowhere in the project."""
    wrong = []
    for link in links(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z][a-z0-9+.-]*:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.is_relative_to(ROOT):
            wrong.append(link)
        elif not target.exists():
            wrong.append(link)
        elif anchor and anchor not in anchors(target.read_text(encoding="utf-8")):
            wrong.append(link)
    return wrong


def paragraphs(text):
    """Return the paragraphs and list items of Markdown, without code, tables and headings."""
    prose = re.sub(r"^ *(\||#|!\[).*$", "", FENCED.sub("", text), flags=re.MULTILINE)
    return [part.strip() for part in re.split(r"\n\s*\n|\n(?= *(?:[-*]|\d+\.) )", prose)]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page):
    assert broken(page) == []


def test_a_broken_link_is_seen(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "other.md").write_text("# One `two`, three!\n## Same\n## Same\n")
    (tmp_path / "page.md").write_text(
        "# Here\n[a](other.md) [b](other.md#one-two-three) [c](other.md#same-1) [d](#here)\n"
        "[e](https://example.org/x#y) `[code](nowhere.md)`\n```\n[code](nowhere.md)\n```\n"
        "[f](none.md) [g](other.md#same-2) ![h](none.png) [i](#there) [j](../outside.md)\n"
    )
    wrong = ["none.md", "other.md#same-2", "none.png", "#there", "../outside.md"]
    assert broken(tmp_path / "page.md") == wrong


def test_pages_that_the_code_names_exist():
    named_in = {}
    for where in ("Makefile", "*.t*", "configs", "launch", "emjax", "data_builders", "benchmarks"):
        for path in [file for root in ROOT.glob(where) for file in (root, *root.rglob("*"))]:
            if path.suffix in (".md", ".pyc") or not path.is_file():
                continue
            text = path.read_text(encoding="utf-8", errors="ignore")
            for name in re.findall(r"\b(?:docs|launch)/[\w/.-]+\.(?:md|png|svg)\b", text):
                named_in.setdefault(name, set()).add(named(path))
    assert named_in
    gone = {name: files for name, files in named_in.items() if not (ROOT / name).exists()}
    assert gone == {}


def test_code_that_the_pages_name_exists():
    path = r"(?<![\w./])(?:emjax|data_builders|tests|benchmarks|configs)/[\w/.-]*\w"
    gone = set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        names = re.findall(path, text)
        names += [f"tests/{name}" for name in re.findall(r"(?<![\w/])test_\w+\.py", text)]
        gone |= {
            f"{named(page)}: {name}"
            for name in names
            if not (ROOT / name).exists() and "NAME" not in name
        }
    assert gone == set()


@pytest.mark.parametrize("name", MOST_LINES)
def test_short_pages_stay_short(name):
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= MOST_LINES[name]


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=named)
def test_paragraphs_are_short(page):
    long = [part for part in paragraphs(page.read_text(encoding="utf-8"))
            if len(part.split()) >= MOST_WORDS]  # fmt: skip
    assert long == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_fence_is_closed_and_tagged(page):
    assert "" not in [language for language, _ in fences(page)]


@pytest.mark.parametrize("page", RUNNABLE, ids=named)
def test_commands_have_no_placeholder(page):
    """What README and tutorials show runs word for word: no FOLDER, no <name>, no `...`."""
    commands = [*blocks(page)]
    assert commands
    for language, command in commands:
        if language == "python":
            compile(command, named(page), "exec")
        else:
            command = command.partition(" #")[0]
            assert not re.search(r"\b[A-Z]{3,}\b(?!=)|<|\.\.\.", command), command


def test_commands_are_read_as_a_shell_does(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "```sh\n# a comment\none --a \\\n    --b   # why\n\ntwo\n```\ntext\n"
        "- item\n\n  ```console\n  $ three\n  what it prints\n  ```\n"
        "```python\nif x:\n    y\n```\n```text\nnot run\n```\n````md\n```sh\nnot run\n```\n````\n"
    )
    assert [*blocks(page)] == [
        ("sh", "one --a --b   # why"),
        ("sh", "two"),
        ("console", "three"),
        ("python", "if x:\n    y\n"),
    ]
    page.write_text("```sh\none\n")
    with pytest.raises(ValueError, match="closing"):
        [*blocks(page)]


@pytest.mark.long
def test_the_generated_pages_are_current():
    line = [sys.executable, "docs/generate.py", "--check"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_field_of_the_recipes_has_a_meaning():
    found = set()
    for name in ("pretrain", "segment_au", "restore_temimagenet"):
        recipe = importlib.import_module(f"configs.{name}")
        for variant in ("", *recipe.VARIANTS):
            found |= {field for field, _ in flat(recipe.get_config(variant).to_dict())}
    assert found == set(FIELDS)
