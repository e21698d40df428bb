"""The parts of a report: tables, curves, pictures; one HTML page that needs nothing else."""

import base64
import html
import io
import itertools
import math
import statistics

from matplotlib.figure import Figure

UNITS = {
    "dice": "Dice (0 to 1)",
    "bce": "loss, cross-entropy (nats)",
    "l1": "L1 (fraction of the full range)",
}
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")  # Okabe and Ito 2008
STYLE = """:root{color-scheme:light dark}img{display:block;width:100%}
body{max-width:66rem;margin:auto;padding:1rem;font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin:2.2rem 0 .3rem}p{margin:.3rem 0}
.wide{overflow-x:auto}.short{white-space:nowrap}.long{min-width:9rem}
table{border-collapse:collapse;font-size:.87rem;margin:.6rem 0}
td,th{padding:.3rem 1rem .3rem 0;text-align:left;vertical-align:top;border-bottom:1px solid #8886;
font-variant-numeric:tabular-nums}.curves{max-width:44rem;border-radius:4px}
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

    def line(tag, texts):  # short texts are not broken
        kinds = ("short" if len(text) < 24 else "long" for text in texts)
        return "".join(f'<{tag} class="{kind}">{html.escape(text)}</{tag}>'
                       for kind, text in zip(kinds, texts, strict=True))  # fmt: skip

    head, *texts = cells(rows)
    lines = [line("th", head), *(line("td", text) for text in texts)]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return section(title, f'<div class="wide"><table>{body}</table></div>')


def curves(title, networks):
    """The PNG of {network: [(label, runs)]}: a row a network, its validation scores over epochs.

    Beside a score that is no loss stands the loss. Thick: the mean over seeds; band: their range.
    """
    scores = [next(iter(networks.values()))[0][1][0].score]
    scores += ["val/bce"] if scores == ["val/dice"] else []
    size = (5.5 * len(scores) + 1.5, 3.3 * len(networks))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(networks), len(scores), squeeze=False)
    for row, (network, lines) in zip(axes, networks.items(), strict=True):
        for panel, score in zip(row, scores, strict=True):
            for colour, (label, runs) in zip(itertools.cycle(COLOURS), lines, strict=False):
                draw(panel, runs, score, color=colour, label=label)
            split, metric = score.split("/")
            panel.set(xlabel="epoch", ylabel=f"{split} {UNITS.get(metric, metric)}")
            panel.set_title(network, fontsize="medium")
            panel.grid(alpha=0.3)
        row[0].legend(fontsize="x-small")
    figure.suptitle(title, fontsize="medium")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def draw(panel, runs, score, *, color, label):
    """The mean and the range of a score over seeds, and the level of the corrupted images."""
    each = [{run.epoch(row["step"]): row[score] for row in run.evaluations if score in row}
            for run in runs]  # fmt: skip
    epochs = sorted(set.intersection(*map(set, each)))
    columns = [[scores[epoch] for scores in each] for epoch in epochs]
    panel.plot(epochs, [*map(statistics.fmean, columns)], color=color, linewidth=2, label=label)
    lowest, highest = [*map(min, columns)], [*map(max, columns)]
    panel.fill_between(epochs, lowest, highest, color=color, alpha=0.2, linewidth=0)
    level = runs[0].best().get("val/corrupted_l1", math.nan)
    if math.isfinite(level):
        panel.axhline(level, color=color, linestyle=":", label=f"corrupted, {label}")


def number(value, form=".4f"):
    """A number as text; - for none."""
    if math.isnan(value):
        return "-"
    return "never" if math.isinf(value) else f"{value:{form}}"
