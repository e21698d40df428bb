"""A report as Markdown tables, and as one HTML page that needs no other file."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2

Row = Mapping[str, str]  # {column: text} of a table

# In this folder: the template, page.html, and the drawings that it includes.
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


class Picture(NamedTuple):
    """A PNG and its caption, which is also the text for those who cannot see it."""

    png: bytes
    caption: str

    @property
    def source(self) -> str:
        """The picture as a data URI, so that the page carries it."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


class Section(NamedTuple):
    """A part of the page under a heading; what is empty is left out."""

    title: str
    text: str = ""  # a paragraph
    drawing: str = ""  # name of an SVG file in this folder
    table: Sequence[Row] = ()
    curves: Picture | None = None
    pictures: Sequence[Sequence[Picture | str]] = ()  # in rows; text where a picture is missing

    @property
    def cells(self) -> list[list[str]]:
        """The table's cells, the column heads first."""
        return cells(self.table)


def render(title: str, paragraphs: Sequence[str], sections: Sequence[Section]) -> str:
    """Return the HTML page; all texts are escaped."""
    template = TEMPLATES.get_template("page.html")
    return template.render(title=title, paragraphs=paragraphs, sections=sections)


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """Return the column heads, then the texts of each row; - where a row lacks a column."""
    heads = list(dict.fromkeys(name for row in rows for name in row))
    return [heads, *([row.get(name, "-") for name in heads] for row in rows)]


def markdown(rows: Sequence[Row]) -> str:
    """Return a Markdown table, its columns aligned for the terminal."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in cells(rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)
