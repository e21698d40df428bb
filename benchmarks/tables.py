"""Results as tables and a plot."""

import io

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from benchmarks import commands
from benchmarks.cases import EARLIER, Case, goal
from emjax.experiments.curves import COLOURS
from emjax.experiments.page import markdown

GROWING = {
    "batch": "images of a batch",
    "side": "side of an image (pixels)",
    "channels": "channels of the U-Net, times",
    "seeds": "seeds at once",
}


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
    """The PNG of images/s against what grows, a panel each; None if nothing grew."""
    panels = {}
    for result in results:
        kind, axis, value = [*result["case"]["name"].split("/"), "", ""][:3]
        if kind == "growth" and axis in GROWING:
            panels.setdefault(axis, []).append((int(value), result["variants"]))
    if not panels:
        return None
    figure = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for panel, (axis, points) in zip(axes, panels.items(), strict=True):
        names = dict.fromkeys(name for _, variants in points for name in variants)
        for colour, name in zip(COLOURS, names, strict=False):
            here = sorted(
                (value, variants[name]["images"] / np.percentile(variants[name]["seconds"], 50))
                for value, variants in points
                if "error" not in variants.get(name, {"error"})
            )
            panel.loglog(*zip(*here, strict=True), "o-", color=colour, label=name)
        panel.set(xlabel=GROWING[axis], ylabel="images/s")
        for side, places in (
            (panel.xaxis, FixedLocator([value for value, _ in points])),
            (panel.yaxis, LogLocator(subs=(1, 2, 3, 4, 5, 6, 8))),
        ):
            side.set_major_locator(places)
            side.set_minor_locator(NullLocator())
            side.set_major_formatter("{x:g}")
        panel.grid(alpha=0.3)
    axes[0].legend(fontsize="x-small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
