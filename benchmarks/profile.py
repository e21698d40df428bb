"""Where a step's time goes, before and after: python -m benchmarks.profile [CASE] --out=FILE.png

Three updates of a case of benchmarks.run in this backend's formulation and in the other, each under
JAX's profiler: the time of the compiled operations by kind, summed over threads.
"""

import argparse
import collections
import re
import tempfile
import warnings
from pathlib import Path

import jax
from matplotlib.figure import Figure

from benchmarks import ours
from benchmarks.cases import chosen, everything

STEPS = 3
SHOWN = 8  # kinds; the others are one


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", nargs="?", default="step/pix2pix/unet_4_424")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    device = "cpu" if jax.default_backend() == "cpu" else "gpu"
    (case,) = chosen(everything(device), options.case)
    spent = {}
    for name, prepare in ours.prepare(case, None).items():
        prepared = prepare()
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                prepared.run(STEPS)
            spent[name] = kinds(folder)
        print(name, {kind: f"{ms:.0f} ms" for kind, ms in spent[name].most_common(SHOWN)})
    draw(spent, f"{case.name}, {case.batch} x {case.side}²").savefig(options.out, dpi=120)


def kinds(folder):
    """Counter of ms a step for each kind of operation in the trace of a folder."""
    (path,) = Path(folder).rglob("*.xplane.pb")
    spent = collections.Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the trace's own reader
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            for event in (event for line in plane.lines for event in line.events):
                if operation := dict(event.stats).get("hlo_op"):
                    kind = re.sub(r"[.\d]+$", "", operation)
                    spent[kind] += event.duration_ns / 1e6 / STEPS
    return spent


def draw(spent, title):
    """A bar a formulation, from the kinds that take longest in any of them."""
    total = sum(spent.values(), collections.Counter())
    shown = [kind for kind, _ in total.most_common(SHOWN)]
    parts = {
        kind: [max(counts[kind], 0.0) for counts in spent.values()] for kind in shown
    } | {"others": [sum(ms for kind, ms in counts.items() if kind not in shown)
                    for counts in spent.values()]}  # fmt: skip
    figure = Figure(figsize=(9, 1.8 + 0.7 * len(spent)), layout="constrained")
    axes, left = figure.subplots(), [0.0] * len(spent)
    for kind, values in parts.items():
        axes.barh([*spent], values, left=left, label=kind)
        left = [a + b for a, b in zip(left, values, strict=True)]
    axes.set(xlabel="ms a step, summed over threads", title=title)
    figure.legend(fontsize=7, ncols=3, loc="outside lower center")
    return figure


if __name__ == "__main__":
    main()
