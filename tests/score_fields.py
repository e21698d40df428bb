"""Print what models make of unusual fields: python -m tests.score_fields [MODEL...].

Bright-field images of round particles, 512 x 512 pixels of 0.5 nm, of known masks: none, one, as
many as fit, all at the border, a field inside one particle; and a part that is cut out of a field.
Models that segment get Dice and counts, those that restore the error that is left, as a share of
the noise that was added. For docs/background/models.md.
"""

import sys

import numpy as np
from scipy import ndimage

import emjax
from emjax.measurement import label

SIDE, NM, NOISE = 512, 0.5, 8.0
PIXELS = np.mgrid[:SIDE, :SIDE] + 0.5


def discs(places, radius):
    """Return the mask of discs at `places`, [n] of (y, x)."""
    mask = np.zeros((SIDE, SIDE), bool)
    for y, x in places:
        mask |= np.hypot(PIXELS[0] - y, PIXELS[1] - x) < radius
    return mask


def fields(rng):
    """Yield (name, mask) of each kind of field."""
    yield "empty", discs([], 1)
    yield "one particle", discs([(250, 260)], 16)
    step = 36
    grid = [(y, x) for y in range(step // 2, SIDE, step) for x in range(step // 2, SIDE, step)]
    yield "scattered", discs([grid[i] for i in rng.choice(len(grid), 30, replace=False)], 14)
    yield "full", discs(grid, 16)
    edge = [at for at in range(30, SIDE, 60)]
    ends = [(end, at) for end in (0, SIDE) for at in edge]
    yield "cut by the border", discs([*ends, *(place[::-1] for place in ends)], 16)
    yield "inside a particle", np.ones((SIDE, SIDE), bool)


def image_of(mask, rng):
    """Return (image, the same without noise), uint8 and float."""
    thickness = ndimage.gaussian_filter(mask.astype(float), 2)
    support = ndimage.gaussian_filter(rng.normal(size=mask.shape), 40)
    clean = 150 + 8 * support / support.std() - 50 * thickness
    return np.clip(clean + rng.normal(0, NOISE, mask.shape), 0, 255).astype(np.uint8), clean


def scores(model, image, clean, mask):
    """Return what is known of one field, as text."""
    if model.config["task"] == "segmentation":
        probability = model.predict(image, NM)
        found = probability > 0.5
        counted = len(label(found).without_unsure(probability).names)
        inside = min(found.sum(), mask.sum())
        dice = 2 * (found & mask).sum() / max(found.sum() + mask.sum(), 1)
        value = f"{dice:.3f}" if inside else f"{found.mean():.2%} of the pixels"
        return f"{value}; {counted} of {len(label(mask).names)}"
    restored = np.asarray(model.predict(image, NM), np.float64)
    return f"{np.sqrt(np.mean((restored - clean) ** 2)) / NOISE:.2f} of the noise"


def main(names):
    models = {name: emjax.load_model(name) for name in names}
    print(f"| field | {' | '.join(models)} |\n|---|{'---|' * len(models)}")
    rng = np.random.default_rng(0)
    for name, mask in fields(rng):
        image, clean = image_of(mask, rng)
        cells = (scores(model, image, clean, mask) for model in models.values())
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
        if name == "scattered":
            place = (slice(100, 356), slice(100, 356))
            cells = (scores(m, image[place], clean[place], mask[place]) for m in models.values())
            print(f"| a part of it, 256 x 256 | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["particles", "denoise"])
