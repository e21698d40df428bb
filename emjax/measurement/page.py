"""The report of a measurement: what was found, in tables, curves and pictures."""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from emjax.experiments import page
from emjax.experiments.page import Picture, Row, Section
from emjax.measurement.particles import Labels
from emjax.measurement.statistics import NANO, Sample
from emjax.micrographs.units import PixelSize
from emjax.pictures import OUTLINES, png, stretched

SIDE = 1000  # pixels of the longer side of a picture
AT_BORDER = (0, 114, 178)  # red, green, blue
BARS = (1.0, 2.0, 5.0)
PATIENCE = 400  # numbers that are drawn on one picture
WORDS = {
    "equivalent_diameter": "equivalent circular diameter",
    "feret_min": "smallest Feret diameter",
    "feret_max": "largest Feret diameter",
}


class Field(NamedTuple):
    """One measured plane, for its picture."""

    name: str
    image: np.ndarray | None  # [h, w]; None: the mask itself is drawn
    labels: Labels
    border: np.ndarray  # bool [n]
    size: PixelSize  # (y, x) of a pixel in `unit`
    unit: str


def picture(field: Field) -> Picture:
    """Return the plane in grey with outlines and numbers of its particles, and a scale bar."""
    from PIL import Image, ImageDraw, ImageFont
    from skimage.segmentation import find_boundaries

    labels = field.labels.image
    dim = (89 * (labels > 0)).astype(np.uint8)
    values = stretched(field.image) if field.image is not None else dim
    h, w = labels.shape
    factor = SIDE / max(h, w)
    factor = max(1, math.floor(factor)) if factor > 1 else factor
    shape = max(1, round(w * factor)), max(1, round(h * factor))
    grey = Image.fromarray(values).resize(shape, Image.Resampling.BOX)
    drawn = np.asarray(Image.fromarray(labels).resize(shape, Image.Resampling.NEAREST))
    rgb = np.repeat(np.asarray(grey)[..., None], 3, axis=2)
    edge = find_boundaries(drawn, mode="inner")
    outside = np.concatenate([[False], field.border])[drawn]
    rgb[edge & ~outside] = OUTLINES[0]
    rgb[edge & outside] = AT_BORDER
    canvas = Image.fromarray(rgb)
    draw = ImageDraw.Draw(canvas)
    small, large = ImageFont.load_default(13), ImageFont.load_default(18)
    if len(field.labels.names) <= PATIENCE:
        for name, (y, x) in zip(field.labels.names, middles(labels), strict=True):
            draw.text((x * factor, y * factor), str(name), (255, 255, 0), small, "mm",
                      stroke_width=1, stroke_fill=(0, 0, 0))  # fmt: skip
    length = nice(w * field.size[1] / 5)
    across, text = length / field.size[1] * factor, f"{length:g} {field.unit}"
    left, bottom = shape[0] - across - 16, shape[1] - 14
    draw.rectangle([left - 6, bottom - 34, shape[0] - 10, bottom + 6], (0, 0, 0))
    draw.rectangle([left, bottom - 5, left + across, bottom], (255, 255, 255))
    draw.text((left + across / 2, bottom - 19), text, (255, 255, 255), large, "mm")
    return Picture(png(np.asarray(canvas)), field.name)


def middles(labels: np.ndarray) -> Iterator[tuple[float, float]]:
    """Yield (y, x) of the middle of the box around each particle."""
    from scipy import ndimage

    for rows, columns in ndimage.find_objects(labels):
        yield (rows.start + rows.stop) / 2, (columns.start + columns.stop) / 2


def nice(length: float) -> float:
    """Return the largest 1, 2 or 5 times a power of ten that is not above `length`."""
    power = 10.0 ** math.floor(math.log10(length))
    return max(bar * power for bar in BARS if bar * power <= length * (1 + 1e-9))


def distribution(sample: Sample, fits: Mapping[str, Any], unit: str) -> Picture:
    """Return the histogram with both fits, next to the cumulative curves."""
    from matplotlib.figure import Figure

    order = np.argsort(sample.values)
    values, weights = sample.values[order], sample.weights[order]
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    edges = np.histogram_bin_edges(values, "auto" if len(values) > 1 else 1)
    edges = edges if len(edges) <= 61 else np.linspace(edges[0], edges[-1], 61)
    left.hist(values, edges, weights=weights, color="#56B4E9", edgecolor="white")
    at = np.linspace(max(edges[0] * 0.8, 1e-9), edges[-1] * 1.1, 300)
    scale = weights.sum() * (edges[1] - edges[0])
    for name, colour in (("normal", "#D55E00"), ("lognormal", "#009E73")):
        if fit := fits.get(name):
            left.plot(at, scale * density(name, fit, at), color=colour, label=name)
    label = f"{WORDS['equivalent_diameter']} ({unit})"
    left.set(xlabel=label, ylabel="particles")
    shares = (("by number", weights, "#0072B2"), ("by volume", weights * values**3, "#CC79A7"))
    for name, share, colour in shares:
        right.step(values, np.cumsum(share) / share.sum(), where="post", color=colour, label=name)
    right.set(xlabel=label, ylabel="share up to this diameter", ylim=(0, 1))
    for panel in (left, right):
        panel.grid(alpha=0.3)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize="small")
    return Picture(as_png(figure), "Histogram and cumulative curves")


def density(name: str, fit: Mapping[str, float], at: np.ndarray) -> np.ndarray:
    """Return the probability density of a fit at some diameters."""
    if name == "normal":
        z, sd = (at - fit["mean"]) / fit["sd"], fit["sd"]
    else:
        z, sd = np.log(at / fit["median"]) / math.log(fit["gsd"]), at * math.log(fit["gsd"])
    return np.exp(-z * z / 2) / (sd * math.sqrt(2 * math.pi))


def as_png(figure: Any) -> bytes:
    """Return the bytes of a PNG of a figure, without the version of the program that drew it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def number(value: float | None, bounds: Sequence[float] | None = None, form: str = ".4g") -> str:
    """Return `value [low, high]`, and - for None."""
    if value is None:
        return "-"
    return f"{value:{form}}" + (f" [{bounds[0]:{form}}, {bounds[1]:{form}}]" if bounds else "")


def texts(values: Mapping[str, float | None]) -> Row:
    """Return the cells of a table's row."""
    return {name: number(value) for name, value in values.items()}


def row(first: Row, described: Mapping[str, Any]) -> Row:
    """Return a table's row of what `statistics.describe` returned."""
    intervals = described["intervals"]
    return {**first, **{name: number(described[name], intervals[name]) for name in intervals}}


def cell(value: Any) -> str:
    """Return a value of the table of images; a pixel size as y x x."""
    if isinstance(value, list):
        return " x ".join(f"{side:.6g}" for side in value)
    return "-" if value is None else str(value)


def screening(share: Mapping[str, Any]) -> str:
    """Return one sentence about EU recommendation 2022/C 229/01."""
    value, bounds = share["value"], share["interval"]
    if value is None:
        return "No particle is counted."
    verdict = "that interval includes 50 %, so these particles do not decide it"
    if bounds is None:
        verdict = "one particle does not decide it"
    elif bounds[0] >= 0.5:
        verdict = "these particles meet that criterion"
    elif bounds[1] < 0.5:
        verdict = "these particles do not meet that criterion"
    return (
        f"{number(100 * value, bounds and [100 * b for b in bounds], '.3g')} % of the particles "
        f"measure {NANO:g} nm or less across their smallest dimension (smallest Feret diameter); "
        "by EU recommendation 2022/C 229/01 a material is a nanomaterial if at least 50 % of its "
        f"particles, by number, have a dimension from 1 to 100 nm: {verdict}, as far as the images "
        "stand for the material."
    )


def needed(precision: Mapping[str, Any]) -> str:
    """Return in words how many particles the median needs."""
    if not precision["by_number"]:
        return "Too few particles to say how many are needed."
    text = f"The median is known to ± {100 * precision['by_number'][-1]['half_width']:.2g} %. "
    if not precision["more"]:
        return text + "Enough for ± 5 %."
    return text + (
        f"For ± 5 % about {precision['needed']} particles are needed, {precision['more']} more, "
        "in further images like these."
    )


def render(summary: Mapping[str, Any], sample: Sample, fields: Sequence[Field]) -> str:
    """Return the page as one HTML file.

    Args:
        summary: the contents of summary.json.
        fields: the planes that are shown.
    """
    unit = summary["unit"]
    planes = sum(image["planes"] for image in summary["images"])
    shown = f", the first {len(fields)} of {planes}" if planes > len(fields) else ""
    sections = [
        Section(
            f"Sizes by number ({unit}; gsd without unit)",
            table=[row({"": WORDS[name]}, summary[name]) for name in WORDS],
        ),
        Section(
            f"Sizes by volume of equal spheres ({unit})",
            table=[row({"": WORDS["equivalent_diameter"]}, summary["volume_weighted"])],
        ),
    ]
    if summary["number"]:
        sections.append(Section("Distribution", curves=distribution(sample, summary["fits"], unit)))
    if summary["fits"]:
        rows = [{"fit": name, **texts(fit)} for name, fit in summary["fits"].items()]
        text = "The smaller the distance (0 to 1), the better the fit. p below 0.05: it is no such "
        sections.append(Section("Fits", text=text + "distribution.", table=rows))
    sections.append(
        Section("How sure the median is", text=needed(summary["precision"]),
                table=[{"particles": str(each["number"]), "median known to ±":
                        f"{100 * each['half_width']:.2g} %"}
                       for each in summary["precision"]["by_number"]])
    )  # fmt: skip
    if unit == "nm":
        text = screening(summary["share_below_100_nm"])
        sections.append(Section("Smallest dimension", text=text))
    sections += [
        Section("Shape", table=[{"": name.replace("_", " "), **texts(each)}
                                for name, each in summary["shape"].items()]),
        Section(
            f"Outlines{shown}",
            text="Orange: counted. Blue: at the border, not counted. Numbers, of up to "
            f"{PATIENCE} particles, as in the column label of particles.csv.",
            pictures=[[picture(field)] for field in fields],
        ),
        Section("Images", table=[{name: cell(value) for name, value in each.items()}
                                 for each in summary["images"]]),
    ]  # fmt: skip
    paragraphs = [
        f"Particles: {summary['number']}; files: {len(summary['images'])}. "
        f"{summary['counting_rule']}",
        *summary["remarks"],
        f"In brackets: {summary['interval']}.",
    ]
    return page.render("emjax measure", paragraphs, sections)
