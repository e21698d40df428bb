"""The words of messages and docstrings: plain English, the field's terms."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("emjax", "data_builders", "configs")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# What must not come back, and what stands instead. Messages are what users read, so they have
# the longer list.
EVERYWHERE = {
    r"\b(was|were|is|are) due\b": "expected ..., got ...",
    r"\b(a|is) no number\b": "not a number, not finite",
    r"\bis no (file|folder|matrix|JSON|option|micrograph)\b": "is not a ...",
    r"\b(images|records|operations|steps|bytes) an? (second|epoch|pixel|step|image|row)\b": "per",
    r"\ba (row|line|file|process|key|group) a \w+": "one ... per ...",
    r"\bbeside (PyTorch|an array|it lies)\b": "compared with, next to",
}
MESSAGES = {
    r"\btold\b": "stated, given",
    r"\bgoes on\b": "continues",
    r"\bat once\b": "at a time, immediately",
    r"\blacks?\b.*\bwhose\b": "of which",
}


def strings(path):
    """Yield (line, text, whether it is a message) of every string of a file, f-strings joined."""
    tree = ast.parse(path.read_text())
    inside = {
        id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)
        for part in ast.walk(node) if part is not node
    }  # fmt: skip
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                docstrings.add(id(first.value))
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            texts = [part.value for part in node.values if isinstance(part, ast.Constant)]
            yield node.lineno, " ... ".join(map(str, texts)), True
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in inside:
                yield node.lineno, node.value, id(node) not in docstrings


def errors(path):
    """Yield (line, text) of every message that a file raises or notes."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if name.endswith("Error") or name in ("note", "Interrupted"):
            text = " ".join(
                str(part.value)
                for argument in node.args
                for part in ast.walk(argument)
                if isinstance(part, ast.Constant)
            )
            if text:
                yield node.lineno, text


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_no_old_words(path):
    found = [
        f"{path.name}:{line}: {match[0]!r}; write {instead!r}"
        for line, text, is_message in strings(path)
        for pattern, instead in (EVERYWHERE | (MESSAGES if is_message else {})).items()
        if (match := re.search(pattern, text))
    ]
    assert found == []


def test_every_error_of_the_package_is_listed_and_has_no_old_word():
    listed = [(path, line, text) for path in FILES for line, text in errors(path)]
    assert len(listed) > 200  # the search finds what is there
    patterns = EVERYWHERE | MESSAGES
    old = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path, line, text in listed
        if any(re.search(pattern, text) for pattern in patterns)
    ]
    assert old == []


def test_an_old_word_is_found(tmp_path):
    module = tmp_path / "module.py"
    module.write_text('def f(n):\n    raise ValueError(f"n={n}; at least 1 was due")\n')
    assert [line for line, text in errors(module) if re.search("was due", text)] == [2]
    with pytest.raises(AssertionError, match="expected"):
        test_no_old_words(module)
