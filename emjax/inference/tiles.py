"""Images larger than a network's memory, tile by tile, with the values of the whole image.

A tile starts at a multiple of the network's divisor, so pooling and strides fall on the pixels
they fall on in the whole image. What lies within a margin of a tile's edge is left to the
neighbour, but for edges of the image: there a tile ends as the image does.
"""

import math
from collections import deque
from itertools import product

import jax
import numpy as np

COARSE = 256  # pixels between the sides that tiles have: few of them, since each is compiled
INSIDE = 2048  # pixels a tile has beside one margin: two tiles make a camera's 4096


def margin(module):
    """Pixels from a tile's edge within which a network may answer otherwise than in the image.

    Half the receptive field is the mean over the phases of pooling and of strides; no phase sees
    more than one divisor further, on either side.
    """
    return module.receptive_field // 2 + module.divisor


def largest_side(margin, divisor):
    """The side of a tile where memory is no matter; margins are at most half of it."""
    return up(max(INSIDE + margin, 4 * margin), divisor)


def up(number, step):
    """`number` rounded up to a multiple of `step`."""
    return -(-number // step) * step


def along(side, largest, margin, divisor):
    """How tiles up to `largest` cover an axis: (their side, [(start, first kept, end of kept)]).

    As many as those of the largest side would be, but no larger than that takes, in steps of
    COARSE; the last ends with the axis.

    Args:
        side, largest: multiples of `divisor`; `largest` is above 2 * margin + divisor.
    """

    def step(tile):
        return (tile - 2 * margin) // divisor * divisor

    def count(tile):
        return 1 + -(-(side - tile) // step(tile)) if step(tile) > 0 else math.inf

    if side <= largest:
        return side, [(0, 0, side)]
    tile, smaller = largest, up(COARSE, divisor)
    while count(tile - smaller) == count(largest):
        tile -= smaller
    starts = [min(index * step(tile), side - tile) for index in range(count(tile))]
    edges = [0, *(start + margin for start in starts[1:]), side]
    return tile, list(zip(starts, edges, edges[1:], strict=False))


def apply(function, image, *, largest, margin, divisor):
    """`function` of `image`, float32 [h, w], tile by tile.

    Args:
        function: a compiled one of float32 [1, h, w, 1], which answers float32 [1, h, w, 1].
        largest, margin, divisor: as `along` has them; h and w are multiples of `divisor`.
    """
    (h, rows), (w, columns) = (along(side, largest, margin, divisor) for side in image.shape)
    # One tile is computed while the one before is fetched. A CPU would compute both at once.
    under_way = 1 if jax.default_backend() == "cpu" else 2
    output, queue = np.empty(image.shape, np.float32), deque()

    def fetch():
        (y, *kept_y), (x, *kept_x), answer = queue.popleft()
        inside = tuple(slice(a - y0, b - y0) for y0, (a, b) in ((y, kept_y), (x, kept_x)))
        output[slice(*kept_y), slice(*kept_x)] = np.asarray(answer)[0, ..., 0][inside]

    for row, column in product(rows, columns):
        if len(queue) == under_way:
            fetch()
        y, x = row[0], column[0]
        answer = function(image[None, y : y + h, x : x + w, None])
        answer.copy_to_host_async()
        queue.append((row, column, answer))
    while queue:
        fetch()
    return output
