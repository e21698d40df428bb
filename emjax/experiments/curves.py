"""Validation curves as one PNG."""

import io
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from emjax.runs.run import Run

UNITS = {
    "dice": "Dice (0 to 1)",
    "bce": "loss, cross-entropy (nats)",
    "l1": "L1 (fraction of the full range)",
}
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")  # Okabe and Ito 2008
LINES = tuple(itertools.product(("-", "--", "-."), COLOURS))  # enough for 18 arms

Curves = Sequence[tuple[str, Sequence[Run]]]  # [(label, runs)]


def curves_png(title: str, networks: Mapping[str, Curves]) -> bytes:
    """Return a PNG with a row of panels per network: validation scores over epochs.

    A score that is not a loss has the loss in a panel next to it. Thick lines are means over seeds,
    bands their range.
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
            panel.set_title(network + cut_outliers(panel, lines, score), fontsize="medium")
            panel.grid(alpha=0.3)
        row[-1].legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(title, fontsize="medium")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def cut_outliers(panel: Axes, lines: Curves, score: str) -> str:
    """Limit the panel's range where a few huge losses would flatten the rest.

    Returns: a remark for the panel's title; empty if all values are shown.
    """
    values = [
        row[score] for _, runs in lines for run in runs for row in run.evaluations if score in row
    ]
    usual = statistics.quantiles(values, n=40)[-1] if len(values) > 1 else math.inf
    if max(values, default=0) <= 3 * usual:
        return ""
    panel.set_ylim(0, 1.1 * usual)
    return f", without some losses up to {max(values):.2g}"


def draw(
    panel: Axes, runs: Sequence[Run], score: str, *, color: str, style: str, label: str
) -> None:
    """Draw the mean and the range of a score over seeds, and the level of the corrupted images."""
    each = [
        {run.epoch(row["step"]): row[score] for row in run.evaluations if score in row}
        for run in runs
    ]
    epochs = sorted(set.intersection(*map(set, each)))
    columns = [[scores[epoch] for scores in each] for epoch in epochs]
    means = [*map(statistics.fmean, columns)]
    panel.plot(epochs, means, style, color=color, linewidth=2, label=label)
    lowest, highest = [*map(min, columns)], [*map(max, columns)]
    panel.fill_between(epochs, lowest, highest, color=color, alpha=0.1, linewidth=0)
    level = runs[0].best().get("val/corrupted_l1", math.nan)
    if math.isfinite(level):
        panel.axhline(level, color=color, linestyle=":", label=f"corrupted, {label}")
