"""Label the particles of masks and match predicted with true ones, inside the jitted step.

A particle is a set of mask pixels that touch at edges or corners (8-connected), as in
skimage.measure.label, ImageJ's Analyze Particles and OpenCV; scipy.ndimage.label splits at corners
by default. Particles that touch are one.

The unit of work is a run, an unbroken stretch of mask in one row: there are far fewer runs than
pixels. Runs are numbered in reading order.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

Masks = Bool[Array, "b h w"]
Runs = Int[Array, " capacity"]  # a number per run
Counts = tuple[Int[Array, "..."], Int[Array, "..."]]  # [h * (w + 1)] each, or stacked


class Matches(NamedTuple):
    """Counts per image. A pair is a predicted and a true particle with an IoU above 0.5.

    The two share more than half of each, so no particle is in two pairs.
    """

    predicted: Int[Array, " b"]  # particles
    true: Int[Array, " b"]  # particles
    pairs: Int[Array, " b"]
    size_error: Float[Array, " b"]  # sum over the pairs of |predicted - true| / true diameter


@jax.jit
def match(*, predicted: Masks, true: Masks) -> Matches:
    """Return the Matches of two masks."""
    height, width = true.shape[1:]
    masks = jnp.stack([predicted, true, predicted & true], 1)
    counts = jax.vmap(jax.vmap(count_runs))(masks)
    usual, most = max(4096, height * width // 32), height * -(-width // 2)
    small, large = (
        jax.vmap(partial(match_runs, width=width + 1, capacity=capacity))
        for capacity in (usual, most)
    )
    if most <= usual:
        return large(counts)
    return lax.cond(jnp.max(counts[0][..., -1]) <= usual, small, large, counts)


def count_runs(mask: Bool[Array, "h w"]) -> Counts:
    """Return (begun, ended): how many runs have begun and ended at each pixel of a mask.

    An empty column is added at the right, so that no run and no contact leads from one row into
    the next. A run has ended at the pixel after its last.
    """
    inside = jnp.pad(mask, ((0, 0), (0, 1))).ravel()
    begins = inside & ~jnp.pad(inside, (1, 0))[:-1]
    begun = jnp.cumsum(begins, dtype=jnp.int32)
    return begun, begun - inside


def positions(counts: Counts, capacity: int) -> tuple[Runs, Runs]:
    """Return (start, end) of each run: its first pixel and the one after its last.

    Both are the number of pixels where there are fewer runs than `capacity`.
    """
    numbers = jnp.arange(1, capacity + 1, dtype=jnp.int32)
    start, end = (jnp.searchsorted(count, numbers).astype(jnp.int32) for count in counts)
    return start, end


def neighbours(counts: Counts, start: Runs, end: Runs, *, width: int) -> Int[Array, "2 capacity"]:
    """Return the first run that each run touches in the row above, and in the row below.

    A run that touches none there has its own number.
    """
    begun, ended = counts
    own = jnp.arange(len(start), dtype=jnp.int32)

    def touched(step: int) -> Runs:
        before, until = start + step - 1, end + step  # from corner to corner
        first = jnp.where(before < 0, 0, ended.at[before].get(mode="clip"))
        past = jnp.where(until < 0, 0, begun.at[until].get(mode="clip"))
        return jnp.where((first < past) & (start < end), first, own)

    return jnp.stack([touched(-width), touched(width)])


def unite(touched: Int[Array, "2 capacity"]) -> tuple[Runs, Int[Array, ""]]:
    """Return (root, rounds); the root is the smallest run that each run is connected to.

    Of two runs that touch, one is the first that the other touches: otherwise each would touch one
    further left, in the other's row, and these two would cross. So `neighbours` is sufficient.
    Each round hangs every tree's root below the smallest root that the tree touches, and points
    every run at its root. A tree without a smaller neighbour takes one in, or its neighbours join
    smaller trees and it joins one of these a round later: two rounds halve the number of unfinished
    trees. Flattening takes a number of steps that is the logarithm of a tree's depth.

    Source: Liu and Tarjan 2019, Simple Concurrent Labeling Algorithms for Connected Components
    (arXiv 1812.06177).
    """

    def unfinished(state: tuple[Array, Array]) -> Array:
        root, _ = state
        return (root[touched] != root[None]).any()

    def join(state: tuple[Array, Array]) -> tuple[Array, Array]:
        root, rounds = state
        ours, theirs = jnp.broadcast_to(root[None], touched.shape), root[touched]
        root = root.at[jnp.maximum(ours, theirs)].min(jnp.minimum(ours, theirs))
        root = lax.while_loop(
            lambda root: (root != root[root]).any(), lambda root: root[root], root
        )
        return root, rounds + 1

    start = jnp.arange(touched.shape[1], dtype=jnp.int32), jnp.zeros((), jnp.int32)
    return lax.while_loop(unfinished, join, start)


def label(
    counts: Counts, pixels: Runs, *, width: int, capacity: int
) -> tuple[Int[Array, ""], Runs, Runs]:
    """Return (number of particles, areas, labels of `pixels`) of one mask, from its `count_runs`.

    A particle's label is its first run; areas are int32 [capacity], by label.
    """
    start, end = positions(counts, capacity)
    root, _ = unite(neighbours(counts, start, end, width=width))
    number = ((root == jnp.arange(capacity)) & (start < end)).sum(dtype=jnp.int32)
    run = counts[0].at[pixels].get(mode="clip") - 1
    return number, jax.ops.segment_sum(end - start, root, capacity), root.at[run].get(mode="clip")


def match_runs(counts: Counts, *, width: int, capacity: int) -> Matches:
    """Return the Matches of one image.

    Args:
        counts: `count_runs` of the predicted mask, the true mask and their overlap, stacked; none
            of the three has more runs than `capacity`.
    """
    begun, ended = counts
    both, either = ((begun[part], ended[part]) for part in (2, slice(2)))
    shared, end = positions(both, capacity)
    labelled = jax.vmap(partial(label, width=width, capacity=capacity), (0, None))
    number, areas, labels = labelled(either, shared)

    # Shared runs, sorted so that those of the same two particles follow each other. Unused entries
    # are zero pixels long and change nothing wherever they end up.
    *labels, pixels = lax.sort((*labels, end - shared), num_keys=2)
    changes = (labels[0][1:] != labels[0][:-1]) | (labels[1][1:] != labels[1][:-1])
    first, last = (jnp.pad(changes, pad, constant_values=True) for pad in ((1, 0), (0, 1)))
    total = jnp.cumsum(pixels)
    overlap = total - lax.cummax(jnp.where(first, total - pixels, 0))
    area, true_area = (sizes[label] for sizes, label in zip(areas, labels, strict=True))
    pair = last & (2 * overlap > area + true_area - overlap)
    error = jnp.abs(
        jnp.sqrt(area / jnp.maximum(true_area, 1)) - 1
    )  # diameters go as roots of areas
    pairs, size_error = pair.sum(dtype=jnp.int32), (error * pair).sum()
    return Matches(number[0], number[1], pairs, size_error)
