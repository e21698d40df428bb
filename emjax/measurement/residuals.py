"""What a restoration took away: the residual's statistics, and a page that says what is alarming.

Noise that was removed as it should be leaves a residual without mean, without structure, and
without a likeness to the result. The Fourier ring correlation needs two independent halves of one
field, as a stack of frames has them (van Heel and Schatz 2005, doi 10.1016/j.jsb.2005.05.009).
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from emjax.experiments import page
from emjax.experiments.page import Picture, Section
from emjax.measurement.page import as_png
from emjax.micrographs.reading import Grey
from emjax.pictures import png, stretched

LAGS = 8  # pixels, up to which the residual is compared with itself
BIAS, LIKE, SHARED = 0.05, 0.1, 0.1  # from which on a mean, a likeness, an autocorrelation is named
THRESHOLD = 1 / 7  # of the Fourier ring correlation, as is usual for two halves
SIDE = 512  # pixels of a picture

Plane = Float32[np.ndarray, "h w"]


def residual(image: Grey, restored: Plane) -> dict[str, Any]:
    """Return the statistics of `image` less `restored`, in its grey values.

    Returns:
        `mean` and `standard_deviation`; `autocorrelation`, {"y": [...], "x": [...]} at distances of
        1 to LAGS pixels, 0 for white noise; `likeness`, Pearson's correlation with `restored`. None
        where the residual is constant.
    """
    rest = image.astype(np.float64) - restored
    mean, deviation = float(rest.mean()), float(rest.std())
    facts: dict[str, Any] = {"mean": mean, "standard_deviation": deviation}
    if not deviation:
        return {**facts, "autocorrelation": None, "likeness": None}
    unit = (rest - mean) / deviation
    shape = restored - restored.mean(dtype=np.float64)
    return {
        **facts,
        "autocorrelation": {"y": correlations(unit), "x": correlations(unit.T)},
        "likeness": float((unit * shape).mean() / max(float(shape.std()), 1e-12)),
    }


def correlations(unit: Float[np.ndarray, "h w"]) -> list[float]:
    """Return the correlation of rows with the rows 1 to LAGS below, of values of variance 1."""
    lags = range(1, min(LAGS, len(unit) - 1) + 1)
    return [float((unit[lag:] * unit[:-lag]).mean()) for lag in lags]


def ring_correlation(
    a: Float[np.ndarray, "h w"], b: Float[np.ndarray, "h w"]
) -> Float[np.ndarray, " rings"]:
    """Return the Fourier ring correlation of two images, from low frequencies to 0.5 per pixel.

    The borders are faded out by a Hann window, since images do not wrap around.
    """
    h, w = a.shape
    window = np.outer(np.hanning(h + 2)[1:-1], np.hanning(w + 2)[1:-1])
    first, second = (np.fft.fft2((each - each.mean()) * window) for each in (a, b))
    radius = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w)[None, :])
    rings = np.rint(radius * min(h, w)).astype(int)
    inside = rings <= min(h, w) // 2

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(rings[inside], values[inside])

    power = total(np.abs(first) ** 2) * total(np.abs(second) ** 2)
    return total((first * second.conj()).real) / np.sqrt(np.maximum(power, 1e-30))


def frequencies(side: int) -> Float[np.ndarray, " rings"]:
    """Return the frequency, per pixel, of each ring of images whose smaller side is `side`."""
    return np.arange(side // 2 + 1) / side


def resolution(correlation: Float[np.ndarray, " rings"], side: int) -> float | None:
    """Return the frequency, per pixel, at which the correlation first falls below THRESHOLD.

    Args:
        side: the smaller one of the images, in pixels.
    """
    below = np.flatnonzero(correlation[1:] < THRESHOLD)
    return float(frequencies(side)[below[0] + 1]) if len(below) else None


class Check:
    """Collects what a restoration did to the planes of one file."""

    def __init__(self) -> None:
        self.planes: list[dict[str, Any]] = []
        self.halves: list[list[np.ndarray]] = [[], []]  # sums of images, restored: even, odd
        self.counts = [0, 0]
        self.shown: tuple[np.ndarray, np.ndarray] | None = None  # the first plane

    def add(self, image: Grey, restored: Plane) -> None:
        """Take one plane, as it was and as it was restored."""
        half = len(self.planes) % 2
        self.planes.append(residual(image, restored))
        values = [image.astype(np.float64), restored.astype(np.float64)]
        if not self.counts[half]:
            self.halves[half] = values
        elif all(a.shape == b.shape for a, b in zip(self.halves[half], values, strict=True)):
            self.halves[half] = [a + b for a, b in zip(self.halves[half], values, strict=True)]
        self.counts[half] += 1
        self.shown = self.shown or (image, restored)

    @property
    def is_alarming(self) -> bool:
        """Whether something in the residual of a plane is."""
        return bool(alarms({"planes": self.planes}))

    def numbers(self) -> dict[str, Any]:
        """Return what the page says in numbers, JSON values."""
        facts: dict[str, Any] = {"planes": self.planes}
        even, odd = self.halves
        if even and odd and even[0].shape == odd[0].shape and min(even[0].shape) >= 2 * LAGS:
            for index, name in enumerate(("input", "restored")):
                first, second = (
                    sums[index] / count
                    for sums, count in zip(self.halves, self.counts, strict=True)
                )
                curve, side = ring_correlation(first, second), min(first.shape)
                facts["frequencies"] = frequencies(side).round(6).tolist()
                facts[f"ring_correlation_{name}"] = [round(float(c), 6) for c in curve]
                facts[f"resolution_{name}"] = resolution(curve, side)
        return facts


def alarms(facts: Mapping[str, Any]) -> list[str]:
    """Return in words what is alarming in the `numbers` of a Check; nothing if all is well."""
    found: dict[str, str] = {}
    for index, plane in enumerate(facts["planes"]):
        at = f" (plane {index})" if len(facts["planes"]) > 1 else ""
        deviation = plane["standard_deviation"]
        if plane["autocorrelation"] is None:
            found.setdefault("nothing", f"Nothing was taken away{at}: the result is the input.")
            continue
        if abs(plane["mean"]) > BIAS * deviation:
            darker = "darker" if plane["mean"] > 0 else "brighter"
            found.setdefault(
                "bias",
                f"The result is {darker} than the input by {abs(plane['mean']):.4g} in the mean, "
                f"{abs(plane['mean']) / deviation:.0%} of the residual's deviation{at}: do not "
                "compare its grey values with those of other images.",
            )
        if abs(plane["likeness"]) > LIKE:
            found.setdefault(
                "likeness",
                f"The residual looks like the result (correlation {plane['likeness']:.2f}){at}: "
                "structure of the specimen was weakened, or strengthened if it is negative.",
            )
        shared = max((abs(c) for axis in plane["autocorrelation"].values() for c in axis),
                     default=0.0)  # fmt: skip
        if shared > SHARED:
            found.setdefault(
                "shared",
                f"The residual is not white (autocorrelation up to {shared:.2f}){at}: either "
                "neighbouring pixels shared their noise in the input already (a camera, binning, "
                "interpolation), or structure was taken away. Outlines of the specimen in the "
                "picture of the residual mean the second.",
            )
    return list(found.values())


def render(name: str, check: Check, spreads: Plane | None = None) -> str:
    """Return the page of a file as HTML that needs no other file; its numbers are in it as JSON.

    Args:
        spreads: of the first plane, as `Predictor.spread` returns it.
    """
    facts = check.numbers()
    warned = alarms(facts)
    paragraphs = warned or ["Nothing is alarming in these numbers."]
    image, restored = check.shown or (np.zeros((1, 1)), np.zeros((1, 1)))
    low, high = (float(v) for v in np.percentile(image, [0.1, 99.9]))
    rest = image.astype(np.float64) - restored
    width = 4 * float(rest.std())
    pictures = [
        as_picture(image, low, high, "input"),
        as_picture(restored, low, high, "result, in the same grey levels"),
        as_picture(rest, -width, width, f"residual, black {-width:.4g}, white {width:.4g}"),
    ]
    if spreads is not None:
        most = float(spreads.max())
        text = f"spread over eight flips and turns, black 0, white {most:.4g}"
        pictures.append(as_picture(spreads, 0.0, most, text))
    sections = [
        Section("Pictures", text="The first plane.", pictures=[pictures]),
        Section(
            "Residual: input less result",
            text="White noise has the autocorrelation 0 at all distances, and no likeness.",
            table=[table_row(index, plane) for index, plane in enumerate(facts["planes"])],
        ),
    ]
    if "ring_correlation_input" in facts:
        title = "Fourier ring correlation of even and odd planes, if they are frames of one field"
        text = (
            "A network can make both halves alike by itself: the curve of the result is no proof "
            "of resolution beyond that of the input."
        )
        rows = [
            {"": name, "falls below 1/7 at": in_words(facts[f"resolution_{name}"])}
            for name in ("input", "restored")
        ]
        sections.append(Section(title, text=text, table=rows, curves=curves(facts)))
    html = page.render(name, paragraphs, sections)
    data = json.dumps(facts).replace("<", "\\u003c")
    tag = f'<script type="application/json" id="numbers">{data}</script>'
    return html.replace("</body>", f"{tag}\n</body>")


def table_row(index: int, plane: Mapping[str, Any]) -> dict[str, str]:
    """Return the row of a plane."""
    row = {"plane": str(index), "mean": f"{plane['mean']:.4g}",
           "standard deviation": f"{plane['standard_deviation']:.4g}"}  # fmt: skip
    if plane["autocorrelation"] is None:
        return row
    for axis, values in plane["autocorrelation"].items():
        row[f"autocorrelation, {axis}, 1 to {LAGS} pixels"] = " ".join(f"{v:.2f}" for v in values)
    return {**row, "likeness": f"{plane['likeness']:.2f}"}


def in_words(frequency: float | None) -> str:
    """Return a frequency per pixel as a period."""
    return f"a period of {1 / frequency:.3g} pixels" if frequency else "no frequency"


def as_picture(values: np.ndarray, low: float, high: float, caption: str) -> Picture:
    """Return `values` in grey, at most SIDE pixels high and wide."""
    from PIL import Image

    picture = Image.fromarray(stretched(values, (low, high)))
    picture.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    return Picture(png(np.asarray(picture)), caption)


def curves(facts: Mapping[str, Any]) -> Picture:
    """Return the ring correlations over the frequency."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    for name in ("input", "restored"):
        curve = facts[f"ring_correlation_{name}"]
        axes.plot(facts["frequencies"], curve, label=name)
    axes.axhline(THRESHOLD, color="grey", linewidth=0.8)
    axes.set(xlabel="frequency, 1 / pixel", ylabel="Fourier ring correlation")
    axes.legend()
    return Picture(as_png(figure), "Fourier ring correlation of even and odd planes")
