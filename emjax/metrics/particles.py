"""Particles of masks, and which predicted one is which true one; inside the jitted step.

A particle is a set of mask pixels that touch at edges or corners (8-connected), as for
skimage.measure.label, ImageJ's Analyze Particles and OpenCV; scipy.ndimage.label splits at corners
unless told otherwise. Particles that touch are one.

Runs, the unbroken stretches of mask in a row, stand for their pixels: there are far fewer of them.
They are numbered in reading order.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

Masks = Bool[Array, "b h w"]


class Matches(NamedTuple):
    """What each image has; a pair is a predicted and a true particle with an IoU above 0.5.

    They share more than half of either, so no particle is in two pairs.
    """

    predicted: Int[Array, " b"]  # particles
    true: Int[Array, " b"]  # particles
    pairs: Int[Array, " b"]
    size_error: Float[Array, " b"]  # sum over the pairs of |predicted - true| / true diameter


@jax.jit
def match(*, predicted: Masks, true: Masks) -> Matches:
    """The Matches of two masks."""
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


def count_runs(mask):
    """(begun, ended): how many runs of bool [h, w] have, at each pixel, int32 [h * (w + 1)].

    A column without mask is put at the right, so that no run and no touch leads from one row into
    the next. The pixel after a run is the one where it has ended.
    """
    inside = jnp.pad(mask, ((0, 0), (0, 1))).ravel()
    begins = inside & ~jnp.pad(inside, (1, 0))[:-1]
    begun = jnp.cumsum(begins, dtype=jnp.int32)
    return begun, begun - inside


def places(counts, capacity):
    """(start, end) of each run, int32 [capacity]: its first pixel and the one after its last.

    Both are the number of pixels for runs that are not there.
    """
    numbers = jnp.arange(1, capacity + 1, dtype=jnp.int32)
    return [jnp.searchsorted(count, numbers).astype(jnp.int32) for count in counts]


def neighbours(counts, start, end, *, width):
    """int32 [2, capacity]: the first run that each touches in the row above and in that below.

    A run that touches none there has its own number.
    """
    begun, ended = counts
    own = jnp.arange(len(start), dtype=jnp.int32)

    def touched(step):
        before, until = start + step - 1, end + step  # from corner to corner
        first = jnp.where(before < 0, 0, ended.at[before].get(mode="clip"))
        past = jnp.where(until < 0, 0, begun.at[until].get(mode="clip"))
        return jnp.where((first < past) & (start < end), first, own)

    return jnp.stack([touched(-width), touched(width)])


def unite(touched):
    """(root, rounds): the least run that each is connected to, int32 [capacity].

    Of two runs that touch, one is the first that the other touches: else each would touch one
    further left, on the other's row, and these two would cross. So `neighbours` has all that is
    needed. In each round every tree's root is hung below the least root that its tree touches, and
    every run is pointed at its root. A tree that has no lesser neighbour takes one in, or its
    neighbours go to lesser trees, and it to one of these a round later: two rounds halve the number
    of unfinished trees. Trees are flattened in a number of steps that is the logarithm of their
    depth.
    Source: Liu and Tarjan 2019, Simple Concurrent Labeling Algorithms for Connected Components
    (arXiv 1812.06177).
    """

    def unfinished(state):
        root, _ = state
        return (root[touched] != root[None]).any()

    def joined(state):
        root, rounds = state
        ours, theirs = jnp.broadcast_to(root[None], touched.shape), root[touched]
        root = root.at[jnp.maximum(ours, theirs)].min(jnp.minimum(ours, theirs))
        root = lax.while_loop(
            lambda root: (root != root[root]).any(), lambda root: root[root], root
        )
        return root, rounds + 1

    return lax.while_loop(unfinished, joined, (jnp.arange(touched.shape[1], dtype=jnp.int32), 0))


def label(counts, pixels, *, width, capacity):
    """(number of particles, their areas, labels of `pixels`) of one mask, by its `count_runs`.

    A particle's label is its first run; areas are int32 [capacity], by label.
    """
    start, end = places(counts, capacity)
    root, _ = unite(neighbours(counts, start, end, width=width))
    number = ((root == jnp.arange(capacity)) & (start < end)).sum(dtype=jnp.int32)
    run = counts[0].at[pixels].get(mode="clip") - 1
    return number, jax.ops.segment_sum(end - start, root, capacity), root.at[run].get(mode="clip")


def match_runs(counts, *, width, capacity):
    """The Matches of one image from the `count_runs` of two masks and of what is in both.

    None of the three has more runs than `capacity`.
    """
    both, either = ([count[part] for count in counts] for part in (2, slice(2)))
    shared, end = places(both, capacity)
    labelled = jax.vmap(partial(label, width=width, capacity=capacity), (0, None))
    number, areas, labels = labelled(either, shared)

    # Shared runs, those of the same two particles one after the other. Runs that are not there
    # are zero pixels long, and change nothing wherever they come to stand.
    *labels, pixels = lax.sort((*labels, end - shared), num_keys=2)
    changes = (labels[0][1:] != labels[0][:-1]) | (labels[1][1:] != labels[1][:-1])
    first, last = (jnp.pad(changes, pad, constant_values=True) for pad in ((1, 0), (0, 1)))
    total = jnp.cumsum(pixels)
    overlap = total - lax.cummax(jnp.where(first, total - pixels, 0))
    area, due = (sizes[label] for sizes, label in zip(areas, labels, strict=True))
    pair = last & (2 * overlap > area + due - overlap)
    error = jnp.abs(jnp.sqrt(area / jnp.maximum(due, 1)) - 1)  # diameters go as roots of areas
    return Matches(*number, pair.sum(dtype=jnp.int32), (error * pair).sum())
