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
LINES = tuple(itertools.product(("-", "--", "-."), COLOURS))  # so many arms can be told apart
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


BOXES = {  # what is drawn where: x, y, lines of text
    "unlabelled": (0, 30, "unlabelled", "micrographs"),
    "corrupted": (150, 30, "blurred, with", "noise added"),
    "generator": (300, 30, "generator", "(U-Net, HRNet)"),
    "restored": (450, 30, "restored", "micrograph"),
    "discriminator": (600, 30, "discriminator:", "restored or real?"),
    "labelled": (150, 140, "a few labelled", "micrographs"),
    "finetuned": (300, 140, "the same network,", "finetuned"),
    "results": (450, 140, "particles, or clean", "micrographs"),
}
ARROWS = [
    *itertools.pairwise(("unlabelled", "corrupted", "generator", "restored", "discriminator")),
    *itertools.pairwise(("labelled", "finetuned", "results")),
    ("generator", "finetuned"),
]


def overview():
    """Figure 1 as SVG: pretraining above, finetuning below, the weights between them."""
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="-5 0 735 205" width="735" '
        'font-family="system-ui,sans-serif" font-size="12" text-anchor="middle">'
        '<rect x="-5" width="735" height="205" fill="#fff"/><defs><marker id="tip" refX="6" '
        'refY="4" markerWidth="8" markerHeight="8" orient="auto"><path d="M0 0L8 4L0 8z"/></marker>'
        '</defs><text x="0" y="18" text-anchor="start">pretraining: least L1, and a discriminator '
        'that takes the restored micrograph for the original</text><text x="0" y="165" '
        'text-anchor="start">finetuning</text>'
    ]
    for start, end in ARROWS:
        (x, y, *_), (to_x, to_y, *_) = BOXES[start], BOXES[end]
        line = (x + 120, y + 25, to_x - 2, to_y + 25) if y == to_y else (x + 60, y + 50, to_x + 60,
                                                                         to_y - 2)  # fmt: skip
        parts.append('<line x1="{}" y1="{}" x2="{}" y2="{}" stroke="#000" marker-end="url(#tip)"/>'
                     .format(*line))  # fmt: skip
    parts.append('<text x="370" y="112" text-anchor="start">weights</text>')
    for name, (x, y, *lines) in BOXES.items():
        fill = "#cfe8f7" if name in ("generator", "finetuned") else "#f3f3f3"
        parts.append(f'<rect x="{x}" y="{y}" width="120" height="50" rx="6" fill="{fill}" '
                     'stroke="#000"/>')  # fmt: skip
        parts += [f'<text x="{x + 60}" y="{y + 21 + 17 * n}">{line}</text>'
                  for n, line in enumerate(lines)]  # fmt: skip
    return "\n".join([*parts, "</svg>"]) + "\n"


def curves(title, networks):
    """The PNG of {network: [(label, runs)]}: a row a network, its validation scores over epochs.

    Beside a score that is no loss stands the loss. Thick: the mean over seeds; band: their range.
    """
    scores = [next(iter(networks.values()))[0][1][0].score]
    scores += ["val/bce"] if scores == ["val/dice"] else []
    size = (5.5 * len(scores) + 4, 3.3 * len(networks))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(networks), len(scores), squeeze=False)
    for row, (network, lines) in zip(axes, networks.items(), strict=True):
        for panel, score in zip(row, scores, strict=True):
            for (style, colour), (label, runs) in zip(itertools.cycle(LINES), lines, strict=False):
                draw(panel, runs, score, color=colour, style=style, label=label)
            split, metric = score.split("/")
            panel.set(xlabel="epoch", ylabel=f"{split} {UNITS.get(metric, metric)}")
            panel.set_title(network + cut(panel, lines, score), fontsize="medium")
            panel.grid(alpha=0.3)
        row[-1].legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(title, fontsize="medium")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def cut(panel, lines, score):
    """Leave out of the panel what would press all else flat, a few huge losses; says so as text."""
    values = [row[score] for _, runs in lines for run in runs for row in run.evaluations
              if score in row]  # fmt: skip
    usual = statistics.quantiles(values, n=40)[-1] if len(values) > 1 else math.inf
    if max(values, default=0) <= 3 * usual:
        return ""
    panel.set_ylim(0, 1.1 * usual)
    return f", without some losses up to {max(values):.2g}"


def draw(panel, runs, score, *, color, style, label):
    """The mean and the range of a score over seeds, and the level of the corrupted images."""
    each = [{run.epoch(row["step"]): row[score] for row in run.evaluations if score in row}
            for run in runs]  # fmt: skip
    epochs = sorted(set.intersection(*map(set, each)))
    columns = [[scores[epoch] for scores in each] for epoch in epochs]
    means = [*map(statistics.fmean, columns)]
    panel.plot(epochs, means, style, color=color, linewidth=2, label=label)
    lowest, highest = [*map(min, columns)], [*map(max, columns)]
    panel.fill_between(epochs, lowest, highest, color=color, alpha=0.1, linewidth=0)
    level = runs[0].best().get("val/corrupted_l1", math.nan)
    if math.isfinite(level):
        panel.axhline(level, color=color, linestyle=":", label=f"corrupted, {label}")


def number(value, form=".4f"):
    """A number as text; - for none."""
    if math.isnan(value):
        return "-"
    return "never" if math.isinf(value) else f"{value:{form}}"
