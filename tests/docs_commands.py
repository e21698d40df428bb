"""Read the fenced commands and snippets of a Markdown page, so that tests can run them."""

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

FENCE = re.compile(r"^( *)(```+)(\S*).*?\n(.*?)^\1\2 *$", re.DOTALL | re.MULTILINE)
SHELLS = ("sh", "bash")


def fences(path: Path | str) -> Iterator[tuple[str, str]]:
    """Yield (language, text) of every fenced block of a page; the language may be empty.

    Raises:
        ValueError: a fence is not closed.
    """
    text = Path(path).read_text(encoding="utf-8")
    if rest := re.search(r"^ *```.*", FENCE.sub("", text), re.MULTILINE):
        raise ValueError(f"{path}: expected a closing ``` for {rest[0].strip()!r}")
    for _, _, language, block in FENCE.findall(text):
        yield language, textwrap.dedent(block)


def blocks(path: Path | str) -> Iterator[tuple[str, str]]:
    """Yield (language, command) for what a reader of the page may run, in its order.

    A block of `sh` or `bash` gives one item per command: lines that end in a backslash are joined
    to the next, comments and empty lines are left out. A block of `console` gives the lines after
    `$ `, without what they print. A block of `python` is one item. Other blocks are not run.

    Raises:
        ValueError: a fence is not closed.
    """
    for language, block in fences(path):
        if language == "python":
            yield language, block
        elif language in SHELLS or language == "console":
            for line in re.sub(r"\\\n\s*", "", block).splitlines():
                if language == "console":
                    line = line[2:] if line.startswith("$ ") else ""
                if line.strip() and not line.lstrip().startswith("#"):
                    yield language, line.strip()
