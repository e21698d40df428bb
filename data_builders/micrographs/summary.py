"""What a micrograph and its mask show of mistakes by themselves, and what is kept of them."""

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Real, UInt8

from data_builders.micrographs.alignment import (
    LEAST_SIDE,
    SIDE,
    Fit,
    fit_of,
    polarity_of,
    reduced,
    turned_to,
)
from emjax.micrographs import banner
from emjax.micrographs.masks import has_grey_edges, without_alpha

KINDS = {
    "shifted": "the mask lies beside what it labels",
    "turned": "the mask is mirrored or turned",
    "inverted": "the background is labelled",
    "drawn": "a scale bar or banner is labelled",
    "empty": "nothing is labelled",
    "full": "every pixel is labelled",
    "copy": "the mask is a copy of the image",
    "repeated": "the image and its mask stand twice in the set",
    "contradicted": "the image stands twice in the set, with different masks",
    "alike": "the image looks like another one",
    "grey edges": "the mask has grey values, as JPEG leaves them",
    "rare class": "a class occurs in this mask only",
    "pixel size": "the pixel size is far from that of the others",
    "saturated": "many pixels have the lowest or the highest value",
    "constant": "the image has one value only",
}
COPY = 0.98  # correlation of an image and its copy
SMALL = 32  # side of the small pictures in which images are compared
BLUR = 3  # what is smoother than so many of their pixels is left out of them, such as vignetting


class Pair(NamedTuple):
    """An image and its mask, as they are to be trained on."""

    name: str  # of the image's file, as the user knows it
    image: Real[np.ndarray, "h w"]
    mask: UInt8[np.ndarray, "h w"]  # 0 background; 1.. classes
    drawn: Real[np.ndarray, "..."] | None = None  # the mask as stored, [h, w] or [h, w, samples]
    source: str = ""  # what stays in one split
    nm_per_pixel: tuple[float, float] = (np.nan, np.nan)  # y, x; NaN unknown


class Finding(NamedTuple):
    """What is wrong, or seems to be."""

    name: str
    kind: str  # one of KINDS
    text: str  # one line, without the name
    certain: bool
    other: str = ""  # the name of the other image, of two


class Summary(NamedTuple):
    """What is kept of a pair."""

    name: str
    source: str
    found: tuple[Finding, ...]  # by itself
    own: bytes  # digest of the image
    image: bytes  # digest of one of its views, the same for all turned copies
    mask: bytes  # digest of the mask, turned alike
    views: int  # how many are looked at
    small: Float32[np.ndarray, "y x"]  # a small picture, mean 0, length 1
    classes: tuple[int, ...]
    share: float  # of the pixels labelled
    border: float  # of the pixels along the four sides labelled
    polarity: float  # correlation of mask and image along the outlines
    ends: tuple[float, float]  # shares of the pixels at the lowest and the highest value
    size: float  # nm per pixel, NaN unknown
    fit: Fit | None


def summarise(pair: Pair, rotations: bool = True) -> Summary:
    """Return what there is to know of `pair` without the others.

    Raises: ValueError if the image and its mask differ in size.
    """
    if pair.image.shape != pair.mask.shape:
        raise ValueError(
            f"{pair.name}: expected a mask of {pair.image.shape}, got {pair.mask.shape}"
        )
    image = np.nan_to_num(pair.image.astype(np.float32), posinf=0, neginf=0)
    labelled = pair.mask > 0
    share = float(labelled.mean())
    edge = np.concatenate([labelled[0], labelled[-1], labelled[1:-1, 0], labelled[1:-1, -1]])
    low, high = float(image.min()), float(image.max())
    area = banner.picture(image)
    found = [Finding(pair.name, *one) for one in _alone(pair, image, area, share)]
    fit, polarity = None, 0.0
    factor = -(-max(image.shape) // SIDE)
    is_comparable = low < high and 0 < share < 1 and min(image.shape) >= LEAST_SIDE * factor
    if is_comparable and not any(one.kind == "copy" for one in found):
        small, mask = reduced(image, factor), reduced(pair.mask.astype(np.float32), factor)
        fit = fit_of(small, mask, factor, rotations)
        polarity = polarity_of(small, reduced(labelled.astype(np.float32), factor) >= 0.5)
    views = 8 if rotations else 1
    return Summary(
        pair.name,
        pair.source,
        tuple(found),
        _digest(pair.image),
        *_digests(pair, views),
        views,
        _small(image[area] if _is_banner(image, area) else image),
        tuple(np.unique(pair.mask[labelled]).tolist()),
        share,
        float(edge.mean()),
        polarity,
        (float(np.mean(image == low)), float(np.mean(image == high))),
        float(np.sqrt(pair.nm_per_pixel[0] * pair.nm_per_pixel[1])),
        fit,
    )


def _alone(
    pair: Pair, image: Float32[np.ndarray, "h w"], area: banner.Area, share: float
) -> Iterator[tuple[str, str, bool]]:
    """Yield (kind, text, certain) of what a pair shows by itself.

    Args:
        image: as numbers, all finite.
        area: rows and columns without banners.
        share: of the pixels labelled.
    """
    low, high = float(image.min()), float(image.max())
    if low == high:
        yield "constant", f"all pixels of the image are {low:g}", True
    if share == 0:
        yield "empty", "mask labels nothing; right only if the image shows nothing to label", False
    drawn = pair.mask if pair.drawn is None else without_alpha(pair.drawn)[0]
    copied = _is_copy(pair.image, drawn) if low < high else None
    if copied:
        yield "copy", f"mask is a copy of its image, {copied[1]}", copied[0]
    elif has_grey_edges("", drawn, is_asked=True):
        level = drawn.max(axis=-1) if drawn.ndim == 3 else drawn
        between = (level > level.min()) & (level < level.max())
        yield (
            "grey edges",
            f"mask has {len(np.unique(level[between]))} grey values between its two, in "
            f"{100 * between.mean():.2g} % of its pixels, as JPEG and resizing leave them; "
            "save masks as PNG or TIFF",
            False,
        )
    if 0 < share < 1 and low < high:
        what = _labelled_drawing(image, pair.mask > 0, area)
        if what:
            yield "drawn", what, True


def _is_copy(
    image: Real[np.ndarray, "h w"], drawn: Real[np.ndarray, "..."]
) -> tuple[bool, str] | None:
    """Return (certain, how it is known) if the mask as stored is the image."""
    level = drawn.mean(axis=-1) if drawn.ndim == 3 else drawn
    if level.shape != image.shape or level.min() == level.max():
        return None
    if np.array_equal(level, image):
        return True, "pixel by pixel"
    between = np.mean((level > level.min()) & (level < level.max()))
    if between < 0.2 or len(np.unique(level)) < 16:
        return None
    alike = abs(float(np.corrcoef(level.ravel(), image.ravel())[0, 1]))
    return (bool(between > 0.5), f"correlation {alike:.3f}") if alike >= COPY else None


def _labelled_drawing(
    image: Float32[np.ndarray, "h w"], labelled: Bool[np.ndarray, "h w"], area: banner.Area
) -> str:
    """Return which scale bar or banner is labelled, "" for none.

    It is labelled if most of it is, and not all that is next to it: a particle that reaches under
    a scale bar is not meant.
    """
    rows, columns = area
    h, w = image.shape
    sides = {"top": rows.start, "bottom": h - rows.stop}
    sides |= {"left": columns.start, "right": w - columns.stop}
    for side, thickness in sides.items():
        if thickness:
            turned = [labelled, labelled[::-1], labelled.T, labelled.T[::-1]]
            mask = turned[list(sides).index(side)]
            inside, after = mask[:thickness].mean(), mask[thickness : thickness + 8].mean()
            if inside >= 0.95 and after <= 0.8:
                return (
                    f"mask labels the banner of {thickness} pixels along the {side} of its image; "
                    "set it to background, or cut it off"
                )
    for box in (*_bars(image, slice(0, h // 3)), *_bars(image, slice(2 * h // 3, h))):
        around = tuple(slice(max(0, part.start - 4), part.stop + 4) for part in box)
        inside, outside = labelled[box], labelled[around].sum() - labelled[box].sum()
        if inside.mean() >= 0.95 and outside <= 0.65 * (labelled[around].size - inside.size):
            return (
                f"mask labels the scale bar in rows {box[0].start} to {box[0].stop - 1}, "
                f"columns {box[1].start} to {box[1].stop - 1}; set it to background"
            )
    return ""


def _bars(image: Float32[np.ndarray, "h w"], rows: slice) -> Iterator[tuple[slice, slice]]:
    """Yield the boxes of scale bars in some rows: long filled rectangles of one extreme value."""
    from scipy import ndimage  # slow to load

    w, low, high = image.shape[1], float(image.min()), float(image.max())
    strip, least = image[rows], max(1, int(banner.SHORTEST * image.shape[1]))
    for near in (banner.ALIKE * (high - low), banner.ALIKE * (high - low) / 10):
        for drawn in (strip >= high - near, strip <= low + near):
            sums = np.cumsum(drawn, axis=1, dtype=np.int32)
            if not (sums[:, least:] - sums[:, :-least] == least).any():
                continue  # no line is long enough: much quicker than to look at all groups
            found: Any = ndimage.label(drawn)
            for number, box in enumerate(ndimage.find_objects(found[0]), start=1):
                tall, wide = (part.stop - part.start for part in box)
                is_long = tall >= 3 and wide >= banner.LONG * tall
                if not (is_long and banner.SHORTEST * w <= wide <= banner.LONGEST * w):
                    continue
                inner = strip[box][1:-1, 1:-1]
                even = np.abs(inner - np.median(inner)) <= 0.02 * (high - low)
                if even.mean() >= 0.95 and (found[0][box] == number).mean() >= banner.FILLED:
                    yield slice(rows.start + box[0].start, rows.start + box[0].stop), box[1]


def _is_banner(image: Float32[np.ndarray, "h w"], area: banner.Area) -> bool:
    """Return whether most of what is outside of `area` is one value: not rows with a scale bar."""
    outside = np.ones(image.shape, bool)
    outside[area] = False
    if not outside.any():
        return False
    far = np.abs(image[outside] - np.median(image[outside]))
    return bool(np.mean(far <= banner.EVEN * (image.max() - image.min())) >= banner.ONE_VALUE)


def _digests(pair: Pair, views: int) -> tuple[bytes, bytes]:
    """Return the digests of image and mask in the view of the image with the least first rows."""
    heads = [turned_to(pair.image, k)[:2].tobytes() for k in range(views)]
    least = [k for k, head in enumerate(heads) if head == min(heads)]
    return min((_digest(turned_to(pair.image, k)), _digest(turned_to(pair.mask, k))) for k in least)


def _digest(image: np.ndarray) -> bytes:
    """Return 16 bytes that differ where shape or values do."""
    head = f"{image.shape}{image.dtype}".encode()
    return hashlib.blake2b(head + image.tobytes(), digest_size=16).digest()


def _small(image: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "y x"]:
    """Return `image` in SMALL x SMALL block means, fewer if it has fewer, mean 0 and length 1."""
    from scipy import ndimage

    sides = [min(SMALL, length) for length in image.shape]
    rows, columns = (
        np.arange(n) * length // n for n, length in zip(sides, image.shape, strict=True)
    )
    sums = np.add.reduceat(np.add.reduceat(image, rows, 0, np.float64), columns, 1)
    heights, widths = (
        np.diff(starts, append=n) for starts, n in zip((rows, columns), image.shape, strict=True)
    )
    means = sums / heights[:, None] / widths
    means = means - ndimage.gaussian_filter(means, BLUR, mode="nearest")
    means -= means.mean()
    return (means / (np.linalg.norm(means) + 1e-12)).astype(np.float32)
