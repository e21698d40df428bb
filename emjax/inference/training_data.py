"""What a model remembers of the micrographs it was trained on, and how far others are from them.

The range rules of a record take the darkest and brightest pixels of an image for the ends of what
the network sees. In a field with hardly any particle these are the noise, which would be stretched
until it looks like particles. So a model that segments remembers the grey level and the noise of
background and particles in training, and a field of noise is given the range that has the same.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from emjax.errors import Adjustable
from emjax.inference.labels import label_particles
from emjax.micrographs.intensity import Range, is_far
from emjax.micrographs.reading import Grey
from emjax.micrographs.units import PixelSize, is_known

if TYPE_CHECKING:  # prediction loads no library of records
    from emjax.data.records import Records

RECORDS = 128  # that are looked at
PIXELS = 1 << 14  # of each image that are looked at
ENOUGH = 64  # pixels that have a level and a noise
MOST = (0.05, 0.95)  # quantiles between which most particles and most noises are
# Quantiles, and how many standard deviations of a normal distribution are between opposite ones.
QUANTILES = (0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99)
BETWEEN_1_99, NINE_TENTHS, BETWEEN_10_90, BETWEEN_25_75 = 4.653, 3.290, 2.563, 1.349
NORMAL = 0.75, 1.33  # of these, of a distribution that counts as normal
WIDER = 1.25  # times, where the range of a field of noise is replaced
FAR = 2.0  # times: a range that is narrower or wider than those of training by more is named
FAR_PIXELS = 1.5  # times: a pixel size that is smaller or larger by more is named
GIVE_A_RANGE = "intensity_range=(low, high)"  # the argument that sets one; commands name their flag
FILLED = 8.0  # a fixed range of which pixels fill less than one in so many parts is named
FAR_BEYOND = 3.0  # widths of the range beyond which an extreme value is named

Facts = Mapping[str, Any]  # JSON values


class Levels(NamedTuple):
    """The grey values of images: quantiles, texture and extremes."""

    dtype: str
    quantiles: tuple[float, ...]  # QUANTILES
    texture: float  # standard deviation by the differences of neighbours, as of white noise
    lowest: float
    highest: float

    @property
    def median(self) -> float:
        return self.quantiles[4]

    @property
    def spread(self) -> float:
        """Standard deviation by the quartiles."""
        return (self.quantiles[5] - self.quantiles[3]) / BETWEEN_25_75

    @property
    def is_normal(self) -> bool:
        """Whether the quantiles are those of one normal distribution, as of noise."""
        q1, _, q10, _, _, _, q90, _, q99 = self.quantiles
        spreads = ((q90 - q10) / BETWEEN_10_90, (q99 - q1) / BETWEEN_1_99)
        least, most = NORMAL
        return all(least * self.spread < spread < most * self.spread for spread in spreads)

    @property
    def most(self) -> float:
        """Width of the values of nine tenths of the pixels."""
        return self.quantiles[7] - self.quantiles[1]

    def beyond(self, values: Range) -> float:
        """Return how far the extremes are outside of `values`, in widths of it."""
        low, high = values
        return max(low - self.lowest, self.highest - high) / (high - low)


class Watch:
    """Takes a sample of images that pass by, for their Levels."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.pairs: list[np.ndarray] = []
        self.lowest, self.highest, self.dtype = np.inf, -np.inf, ""

    def over(self, images: Iterable[Grey]) -> Iterator[Grey]:
        """Yield `images`."""
        for image in images:
            flat = image.reshape(-1)
            first = self.rng.integers(0, max(1, flat.size - 1), min(PIXELS, flat.size))
            second = np.minimum(first + 1, flat.size - 1)
            self.pairs.append(np.stack([flat[first], flat[second]]).astype(np.float32))
            self.lowest = min(self.lowest, float(flat.min()))
            self.highest = max(self.highest, float(flat.max()))
            self.dtype = self.dtype or image.dtype.name
            yield image

    def levels(self) -> Levels:
        """Return the Levels of all images so far, of which there is one at least."""
        pairs = np.concatenate(self.pairs, axis=1)
        found = levels_of(pairs[0], pairs[1], self.dtype)
        return found._replace(lowest=self.lowest, highest=self.highest)


def levels_of(pixels: np.ndarray, neighbours: np.ndarray, dtype: str) -> Levels:
    """Return the Levels of `pixels` and of as many `neighbours`, one of each.

    Whole numbers are spread over their interval, so that few levels have quantiles too.
    """
    step = 0.0 if dtype == "float32" else 1.0
    dither = np.random.default_rng(1).uniform(-step / 2, step / 2, (2, pixels.size))
    pixels, neighbours = pixels + dither[0], neighbours + dither[1]
    lower, upper = np.quantile(pixels - neighbours, [0.25, 0.75])
    return Levels(
        dtype,
        tuple(map(float, np.quantile(pixels, QUANTILES))),
        float(upper - lower) / BETWEEN_25_75 / 2**0.5,
        float(pixels.min()),
        float(pixels.max()),
    )


def describe(mixture: Sequence["Records"]) -> dict[str, Any]:
    """Return what a model is to remember of the records it is trained on, JSON values.

    Up to RECORDS of them are read, evenly spread.

    Returns:
        `nm_per_pixel`: the smallest and the largest; None if no record has one. `diameters`, of
        the particles in pixels: those of which 5 % are smaller and larger; None without masks.
        `intensity`, of the records' ranges and pixels: `dtype`; smallest, median and largest `low`
        and `high` end; narrowest and widest `width`; the least share that nine tenths of the pixels
        fill (`filled`); how many widths an extreme value is outside (`beyond`); and where there are
        masks, level, noise and texture of `background` and `foreground` (medians), and between
        which the `noise` of most backgrounds is, where the network sees -1 to 1.
    """
    ranges: list[np.ndarray] = []
    sizes: list[float] = []
    filled: list[float] = []
    beyond: list[float] = []
    areas: list[int] = []
    parts: dict[str, list[tuple[float, float, float]]] = {"background": [], "foreground": []}
    each = -(-RECORDS // len(mixture))
    for records in mixture:
        count = len(records.source)
        for index in np.unique(np.linspace(0, count - 1, min(each, count)).astype(int)):
            record = records.source[int(index)]
            image, low, high = record["image"][..., 0], *map(float, record["intensity_range"])
            sizes += [float(size) for size in record["nm_per_pixel"] if np.isfinite(size)]
            if "mask" in record:
                areas += np.bincount(label_particles(record["mask"][..., 0]).ravel())[1:].tolist()
            watch = Watch()
            list(watch.over([image]))
            levels = watch.levels()
            ranges.append(np.array([low, high]))
            filled.append(levels.most / (high - low))
            beyond.append(levels.beyond((low, high)))
            for part, where in _parts(record):
                pairs = np.flatnonzero(where[:, :-1] & where[:, 1:])
                if pairs.size < ENOUGH:
                    continue
                pixels, neighbours = image[:, :-1].ravel()[pairs], image[:, 1:].ravel()[pairs]
                found = levels_of(pixels, neighbours, image.dtype.name)
                scale = 2 / (high - low)
                level = (found.median - low) * scale - 1
                parts[part].append((level, found.spread * scale, found.texture * scale))
    diameters = [2 * float(q / np.pi) ** 0.5 for q in np.quantile(areas, MOST)] if areas else None
    lows, highs = np.array(ranges).T
    widths = highs - lows
    return {
        "nm_per_pixel": [min(sizes), max(sizes)] if sizes else None,
        "diameters": diameters,
        "intensity": {
            "dtype": str(mixture[0].source[0]["image"].dtype),
            "low": [float(f(lows)) for f in (np.min, np.median, np.max)],
            "high": [float(f(highs)) for f in (np.min, np.median, np.max)],
            "width": [float(widths.min()), float(widths.max())],
            "filled": min(filled),
            "beyond": max(beyond),
            **{
                part: [float(value) for value in np.median(found, axis=0)]
                for part, found in parts.items()
                if found
            },
            **({"noise": noise_of(parts["background"])} if parts["background"] else {}),
        },
    }


def noise_of(backgrounds: Sequence[tuple[float, float, float]]) -> list[float]:
    """Return the noise that few backgrounds (level, noise, texture) have less, and few more of."""
    return [float(q) for q in np.quantile([noise for _, noise, _ in backgrounds], MOST)]


def _parts(record: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield ("background", where), ("foreground", where) of a record with a mask."""
    if "mask" in record:
        inside = record["mask"][..., 0] > 0
        yield "background", ~inside
        yield "foreground", inside


def sparse_range(facts: Facts, values: Range, levels: Levels) -> Range | None:
    """Return the range of a field of noise, in which noise is what it was in training; else None.

    A field of noise has the quantiles of one normal distribution, and as much of it from pixel to
    pixel as the background of training. It counts as background, or as the inside of a particle if
    training had one grey value for that and this is nearer to it by far.

    Args:
        facts: the `intensity` of `describe`.
        values: the range by the rule of the model.
    """
    part = facts.get("background")
    if part is None or not levels.is_normal:
        return None
    least, most = facts.get("noise") or (part[1], part[1])
    if least <= levels.spread * 2 / (values[1] - values[0]) <= most:
        return None  # the network has seen so much noise, with and without particles
    typical = facts["low"][1], facts["high"][1]
    width = typical[1] - typical[0]
    varies = max(np.ptp(facts["low"]), np.ptp(facts["high"])) > width / 4
    if "foreground" in facts and levels.dtype == facts["dtype"] and not varies:
        seen = (levels.median - typical[0]) * 2 / width - 1
        inside = facts["foreground"]
        if abs(seen - inside[0]) < abs(inside[0] - part[0]) / 4:
            part = inside
    level, spread, texture = part
    is_noise = levels.texture / levels.spread > NORMAL[0] * texture / spread
    width = 2 * levels.spread / spread
    if not is_noise or width < WIDER * (values[1] - values[0]):
        return None
    low = levels.median - (level + 1) / 2 * width
    return low, low + width


def sparse_remark(values: Range, wider: Range) -> str:
    """Return in words that `sparse_range` has put `wider` in place of `values`."""
    (low, high), (wider_low, wider_high) = values, wider
    return (
        "hardly more than noise, as a field with few particles or none, or a part of one: its "
        f"intensity range is {wider_low:.4g} to {wider_high:.4g}, in which its noise is that of "
        f"the training images, instead of {low:.4g} to {high:.4g}; {GIVE_A_RANGE} sets another"
    )


def remarks(facts: Facts, values: Range, levels: Levels) -> Iterator[tuple[str, str]]:
    """Yield (kind, words) for each way in which grey values are far from those of training.

    Args:
        facts: the `intensity` of `describe`.
        values: the range in which the network sees the input.
    """
    low, high = values
    seen = f"its intensity range, {low:.4g} to {high:.4g}"
    if levels.beyond(values) > max(FAR_BEYOND, 2 * facts["beyond"]):
        extreme = levels.highest if levels.highest - high > low - levels.lowest else levels.lowest
        yield (
            "extreme values",
            f"the value {extreme:g} is far outside of {seen}, and is cut; look for hot and dead "
            "pixels",
        )
    filled = levels.most / (high - low)
    least = facts["filled"]
    if "background" in facts:  # of which alone a field may be
        least = min(least, facts["background"][1] * NINE_TENTHS / 2)
    if filled < least / 3:
        yield (
            "an intensity range that few pixels fill",
            f"nine tenths of its pixels fill {filled:.1%} of {seen}, in training {least:.1%} or "
            f"more; look for hot pixels, or give the range by {GIVE_A_RANGE}",
        )
    lowest, highest = facts["low"][0], facts["high"][2]
    narrowest, widest = facts["width"]
    if levels.dtype == facts["dtype"] and (
        not narrowest / FAR <= high - low <= FAR * widest or high < lowest or low > highest
    ):
        yield (
            "an intensity range far from those of the training images",
            f"{seen}, is far from those of training, {lowest:.4g} to {highest:.4g}; if it is a "
            f"cut-out or has hardly any particle, give the range of a whole one by {GIVE_A_RANGE}",
        )


def fixed_remark(values: Range, levels: Levels) -> str:
    """Return in words how little of a fixed range the pixels of an image fill; "" if they fill it.

    Raises: InputError if most of its pixels are far outside.
    """
    low, high = values
    width = high - low
    if is_far((float(low), float(high)), levels.quantiles[1], levels.median, levels.quantiles[7]):
        raise Adjustable(
            f"its grey values are {levels.lowest:g} to {levels.highest:g}, but this model sees "
            f"{low:g} to {high:g} as they are",
            f"give the range by {GIVE_A_RANGE}",
        )
    if levels.most >= width / FILLED:
        return ""
    return (
        f"nine tenths of its pixels fill {levels.most / width:.1%} of {low:g} to {high:g}, which "
        f"this model sees as they are; give the range by {GIVE_A_RANGE}"
    )


def resampling(trained: Sequence[float] | None, here: PixelSize) -> tuple[float, float]:
    """Return the factors (y, x) of pixels per length that bring an image to the pixel size trained.

    1 where that is not known, or no more than FAR_PIXELS times larger or smaller.
    """
    if not pixel_size_remark(trained, here) or trained is None:
        return 1.0, 1.0
    smallest, largest = trained
    nearest = min(max((here[0] * here[1]) ** 0.5, smallest), largest)
    return here[0] / nearest, here[1] / nearest


def scaled(nm_per_pixel: PixelSize, scale: tuple[float, float]) -> PixelSize:
    """Return the pixel size (y, x) of an image with `scale` times as many pixels per length."""
    return nm_per_pixel[0] / scale[0], nm_per_pixel[1] / scale[1]


def pixel_size_remark(trained: Sequence[float] | None, here: PixelSize) -> str:
    """Return in words how a pixel size is far from those of training; "" if it is not, or unknown.

    Args:
        trained: the smallest and the largest nm per pixel.
    """
    if trained is None or not is_known(here):
        return ""
    short, long = sorted(here)
    smallest, largest = trained
    if smallest / FAR_PIXELS <= short and long <= FAR_PIXELS * largest:
        return ""
    is_large = long > FAR_PIXELS * largest
    size, times = (long, long / largest) if is_large else (short, short / smallest)
    known = f"{smallest:.3g}" if smallest == largest else f"{smallest:.3g} to {largest:.3g}"
    return (
        f"{size:.3g} nm per pixel, {times:.3g} times that of the training images, {known}; "
        "use a model trained at its pixel size"
    )
