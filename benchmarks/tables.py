"""Results as tables and a plot."""

import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from benchmarks import commands
from benchmarks.cases import EARLIER, Case, goal
from emjax.experiments.curves import COLOURS
from emjax.experiments.page import markdown


class Panel(NamedTuple):
    """A curve: of the cases `kind/axis/...`, `value` of a variant against what grows."""

    cases: str
    across: str
    up: str
    value: Callable


def rate(variant):
    return variant["images"] / np.median(variant["seconds"])


def seconds(variant):
    return np.median(variant["seconds"])


PANELS = (
    Panel("growth/batch", "images of a batch", "updates: images/s", rate),
    Panel("growth/side", "side of an image (pixels)", "updates: images/s", rate),
    Panel("growth/channels", "channels of the U-Net, times", "updates: images/s", rate),
    Panel("growth/seeds", "seeds at once", "updates: images/s", rate),
    Panel("growth/pixels", "side of an image (pixels)", "prediction: s", seconds),
    Panel("growth/pixels", "side of an image (pixels)", "prediction: GB of memory at most",
          lambda variant: variant["facts"]["memory"] / 1e9),
    Panel("startup", "convolutions of the network", "start to first update: s", seconds),
)  # fmt: skip
ACROSS = 4  # panels in a row


def capacity(results):
    """{"flops", "bytes"} a second of the device: the most that any side's product or copy did."""
    most = {}
    for result in results:
        for variant in result["variants"].values():
            for name in ("flops", "bytes"):
                if "error" not in variant and name in variant["facts"]:
                    rate = variant["facts"][name] / np.median(variant["seconds"])
                    most[name] = max(most.get(name, 0.0), rate)
    return most


def rows(results):
    """[{column: text}], a row for each variant that a case's first is compared with.

    Ratios are of the rounds done next to each other: their time / ours, so that above 1 emjax is
    faster; the median and, in brackets, the quartiles.
    """
    lines = []
    for result in results:
        case = Case(**result["case"])
        (first, ours), *others = result["variants"].items()
        head = {"case": case.name, "images": f"{case.batch} x {case.side}^2"}
        if case.seeds > 1:
            head["images"] = f"{case.seeds} x {head['images']}"
        head["cores"] = str(result["host_cores"])
        if "error" in ours:
            lines.append({**head, first: f"failed: {ours['error']}"})
            continue
        head |= {first: speed(case, ours), **share(result)}
        medians = {name: np.median(variant["seconds"]) / variant["images"]
                   for name, variant in others
                   if name.startswith("PyTorch") and "error" not in variant}  # fmt: skip
        fastest = min(medians, key=medians.get, default=None)
        for name, variant in others:
            line = {**head, "against": name}
            if "error" in variant:
                lines.append({**line, "its": f"failed: {variant['error']}"})
                continue
            line["against"] += " (fastest)" * (name == fastest and len(medians) > 1)
            ratios = ratios_of(variant, ours)
            low, ratio, high = np.percentile(ratios, (25, 50, 75))
            due = goal(case, name, fastest=name == fastest, cores=result["host_cores"])
            line |= {"its": speed(case, variant), "ratio": f"{ratio:.2f} [{low:.2f}, {high:.2f}]"}
            if due:
                line["goal"] = f"{due:g}: {'met' if ratio >= due else 'missed'}"
            lines.append(line)
        if not others:
            lines.append(head)
    return lines


def ratios_of(variant, ours):
    """Their time / ours of an image, round by round."""
    theirs = np.array(variant["seconds"]) / variant["images"]
    return theirs / (np.array(ours["seconds"]) / ours["images"])


def slower(results, least):
    """["case: why"] of results that are slower than the earlier build, or failed on either side.

    Cases that the earlier build does not have are passed over, but not if there are no others.

    Args:
        least: what the upper quartile of the ratio must reach.
    """
    found = []
    for result in results:
        ours, earlier = next(iter(result["variants"].values())), result["variants"].get(EARLIER)
        if earlier is None:
            continue
        broken = [variant["error"] for variant in (ours, earlier) if "error" in variant]
        high = 0.0 if broken else np.percentile(ratios_of(earlier, ours), 75)
        if high < least:
            why = f"failed: {broken[0]}" if broken else f"upper quartile {high:.3g}"
            found.append(f"{result['case']['name']}: {why}")
    if not any(EARLIER in result["variants"] for result in results):
        found.append("no case was compared with the earlier build")
    return found


def speed(case, variant):
    """Images/s, or seconds of a start, as text."""
    low, middle, high = np.percentile(variant["seconds"], (25, 50, 75))
    if case.kind in ("startup", *commands.KINDS):
        return f"{middle:.3g} s [{low:.3g}, {high:.3g}]"
    low, middle, high = (variant["images"] / seconds for seconds in (high, middle, low))
    return f"{middle:.3g} [{low:.3g}, {high:.3g}]"


def share(result):
    """{"TFLOP/s", "GB/s"} of emjax, with the shares of what the device can do.

    The operations of a step are the fewer of those that the sides count: another formulation of the
    same network may take more.
    """
    variants = [each for each in result["variants"].values() if "error" not in each]
    seconds, found = np.median(variants[0]["seconds"]), {}
    counts = [each["facts"]["flops"] for each in variants if each["facts"].get("flops")]
    moved = variants[0]["facts"].get("bytes", 0)
    for name, amount, unit in (
        ("TFLOP/s", min(counts, default=0), "flops"),
        ("GB/s", moved, "bytes"),
    ):
        if amount:
            rate = amount / seconds
            scale = 1e12 if unit == "flops" else 1e9
            part = rate / result["limits"][unit] if unit in result["limits"] else np.nan
            found[name] = f"{rate / scale:.3g} ({part:.0%})"
    return found


def plain(lines):
    """Rows for the terminal, one a line."""
    return "\n".join("  ".join(f"{name} {text}" if name in ("ratio", "goal", "TFLOP/s", "GB/s")
                               else text for name, text in line.items())
                     for line in lines)  # fmt: skip


def page(results):
    """All results as Markdown: a table a machine, and what virtual devices changed."""
    text = []
    for machine in dict.fromkeys(result["machine"] for result in results):
        here = [result for result in results if result["machine"] == machine]
        timed = [result for result in here if result["case"]["kind"] != "devices"]
        dates = sorted({result["date"] for result in here})
        able = here[-1]["limits"]
        about = f"**{machine}**; {' to '.join(dict.fromkeys((dates[0], dates[-1])))}"
        if len(able) == 2:
            about += (f"; a large product {able['flops'] / 1e12:.3g} TFLOP/s, a large copy "
                      f"{able['bytes'] / 1e9:.3g} GB/s")  # fmt: skip
        text += [about + ".", markdown(rows(timed))] if timed else []
        if virtual := equal(here):
            text.append(markdown(virtual))
    return "\n\n".join(text) + "\n"


def equal(results):
    """Rows of the loss after the same updates on 1, 2, ... virtual devices."""
    found = {
        result["case"]["devices"]: result["variants"]["emjax"]["facts"]["loss"]
        for result in results
        if result["case"]["kind"] == "devices" and "error" not in result["variants"]["emjax"]
    }
    alone = found.get(1, float("nan"))
    return [
        {"virtual devices": str(count), "loss": f"{loss:.7f}",
         "off that of one": f"{abs(loss / alone - 1):.1e}"}
        for count, loss in sorted(found.items())
    ]  # fmt: skip


def growth(results):
    """The PNG of speed, time and memory against what grows, a panel each; None if nothing grew."""
    drawn = {panel: points for panel in PANELS if len(points := points_of(panel, results)) > 1}
    if not drawn:
        return None
    high, wide = -(-len(drawn) // ACROSS), min(len(drawn), ACROSS)
    figure = Figure(figsize=(4.2 * wide, 3.6 * high), layout="constrained")
    axes = figure.subplots(high, wide, squeeze=False).ravel()
    colours = {}
    for place, (panel, points) in zip(axes, drawn.items(), strict=False):
        for name in dict.fromkeys(name for _, variants in points for name in variants):
            colour = colours.setdefault(name, COLOURS[len(colours) % len(COLOURS)])
            here = [(x, panel.value(variants[name])) for x, variants in points if name in variants]
            place.loglog(*zip(*here, strict=True), "o-", color=colour, label=name)
        place.set(xlabel=panel.across, ylabel=panel.up)
        low, high = place.get_ylim()
        subs = (1, 2, 3, 4, 5, 6, 8) if high < 20 * low else (1, 2, 5) if high < 200 * low else (1,)
        for side, ticks in (
            (place.xaxis, FixedLocator([x for x, _ in points])),
            (place.yaxis, LogLocator(subs=subs)),
        ):
            side.set_major_locator(ticks)
            side.set_minor_locator(NullLocator())
            side.set_major_formatter("{x:g}")
        place.grid(alpha=0.3)
        place.legend(fontsize="x-small")
    for place in axes[len(drawn) :]:
        place.remove()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def points_of(panel, results):
    """[(what has grown to how much, {variant that did not fail: what is known of it})], sorted."""
    points = []
    for result in results:
        name, variants = result["case"]["name"], result["variants"]
        going = {each: told for each, told in variants.items() if "error" not in told}
        if name.startswith(f"{panel.cases}/") and going:
            last = name.rpartition("/")[2]
            facts = next(iter(going.values()))["facts"]
            points.append((int(last) if last.isdigit() else facts.get("convolutions"), going))
    return sorted((point for point in points if point[0]), key=lambda point: point[0])
