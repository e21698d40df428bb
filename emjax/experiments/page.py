"""The parts of a report: tables, curves, pictures; one HTML page that needs nothing else."""

import base64
import html
import math

STYLE = """:root{color-scheme:light dark}img{display:block;width:100%}
body{max-width:100rem;margin:auto;padding:1rem;font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin:2.2rem 0 .3rem}p{max-width:60rem;margin:.3rem 0}
.wide{overflow-x:auto}.short{white-space:nowrap}.long{min-width:9rem}
table{border-collapse:collapse;font-size:.87rem;margin:.6rem 0}
td,th{padding:.3rem 1rem .3rem 0;text-align:left;vertical-align:top;border-bottom:1px solid #8886;
font-variant-numeric:tabular-nums}.curves{max-width:66rem;border-radius:4px}
.row{display:grid;gap:.6rem;max-width:52rem;margin:.8rem 0;grid-auto-columns:minmax(0,1fr);
grid-auto-flow:column}figure{margin:0}figcaption{font-size:.78rem;overflow-wrap:anywhere}"""


def whole(title, paragraphs, body):
    """The page of a title, some paragraphs of text and a list of HTML."""
    text = "".join(f"<p>{html.escape(paragraph)}</p>" for paragraph in paragraphs)
    head = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style><h1>{html.escape(title)}</h1>"
    )
    return "\n".join([head + text, *body])


def section(title, body):
    return f"<h2>{html.escape(title)}</h2>{body}"


def image(png, text):
    """An HTML image that carries its bytes; `text` for those who cannot see it."""
    source = "data:image/png;base64," + base64.b64encode(png).decode()
    return f'<img alt="{html.escape(text)}" src="{source}">'


def cells(rows):
    """The heads and the texts of [{column: text}]; - where a row lacks a column."""
    heads = list(dict.fromkeys(name for row in rows for name in row))
    return [heads, *([row.get(name, "-") for name in heads] for row in rows)]


def markdown(rows):
    """A Markdown table, its columns aligned for the terminal."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in cells(rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)


def table(title, rows):
    """The same as HTML, under its title."""

    def line(tag, texts):  # short texts, and intervals, are not broken
        kinds = ("short" if len(text) < 27 else "long" for text in texts)
        return "".join(f'<{tag} class="{kind}">{html.escape(text)}</{tag}>'
                       for kind, text in zip(kinds, texts, strict=True))  # fmt: skip

    head, *texts = cells(rows)
    lines = [line("th", head), *(line("td", text) for text in texts)]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return section(title, f'<div class="wide"><table>{body}</table></div>')


def number(value, form=".4f"):
    """A number as text; - for none."""
    if math.isnan(value):
        return "-"
    return "never" if math.isinf(value) else f"{value:{form}}"
