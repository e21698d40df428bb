"""Images larger than a network's memory, tile by tile, with the values of the whole image.

A tile starts at a multiple of the network's divisor, so pooling and strides meet the same pixels
as in the whole image. The border of a tile, one margin wide, is taken from the neighbour; at an
edge of the image there is no border, since the tile ends where the image does.
"""

from collections import deque
from collections.abc import Callable
from itertools import product
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Real

if TYPE_CHECKING:  # other runtimes load no JAX
    import jax

COARSE = 256  # pixels between the sides that tiles have: few of them, since each is compiled
SQUARES = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)  # sides, for images of any size
INSIDE = 2048  # pixels of a tile without one margin: two tiles make a camera's 4096

Image = Real[np.ndarray, "h w"]
Output = Float32[np.ndarray, "h w"] | Float32[np.ndarray, "h w c"]
Batch = Real[np.ndarray, "1 h w 1"]


@runtime_checkable
class SeesPixels(Protocol):
    """What a network says of its geometry, in pixels."""

    @property
    def receptive_field(self) -> int: ...

    @property
    def divisor(self) -> int: ...


def margin(module: SeesPixels) -> int:
    """Return the width of the border of a tile where the output may differ from the whole image's.

    Half the receptive field is the mean over the phases of pooling and of strides; no phase sees
    more than one divisor further, in either direction.
    """
    return module.receptive_field // 2 + module.divisor


def largest_side(margin: int, divisor: int) -> int:
    """Return the side of a tile if memory does not limit it; margins are at most half of it."""
    return round_up(max(INSIDE + margin, 4 * margin), divisor)


def round_up(number: int, step: int) -> int:
    """Return `number` rounded up to a multiple of `step`."""
    return -(-number // step) * step


def split_axis(
    side: int, largest: int, margin: int, divisor: int
) -> tuple[int, list[tuple[int, int, int]]]:
    """Return how tiles cover an axis: (their side, [(start, first kept, end of kept)]).

    There are as many tiles as of the side `largest`, but they are no larger than that number
    needs, in steps of COARSE; the last one ends with the axis.

    Args:
        side, largest: multiples of `divisor`; `largest` is above 2 * margin + divisor.
    """

    def step(tile: int) -> int:
        return (tile - 2 * margin) // divisor * divisor

    def count(tile: int) -> int | None:
        return 1 + -(-(side - tile) // step(tile)) if step(tile) > 0 else None

    if side <= largest:
        return side, [(0, 0, side)]
    tile, smaller, n = largest, round_up(COARSE, divisor), 1 + -(-(side - largest) // step(largest))
    while count(tile - smaller) == n:
        tile -= smaller
    return tile, place(side, tile, margin, divisor)


def place(side: int, tile: int, margin: int, divisor: int) -> list[tuple[int, int, int]]:
    """Return (start, first kept, end of kept) of the tiles of one side that cover an axis.

    Args:
        side, tile: multiples of `divisor`; `tile` is `side`, or less and at least 2 * margin +
            divisor.
    """
    step = (tile - 2 * margin) // divisor * divisor
    n = 1 if tile == side else 1 + -(-(side - tile) // step)
    starts = [min(index * step, side - tile) for index in range(n)]
    edges = [0, *(start + margin for start in starts[1:]), side]
    return list(zip(starts, edges, edges[1:], strict=False))


def square(shape: tuple[int, ...], largest: int, margin: int, divisor: int) -> int | None:
    """Return the side of the square tiles, one of SQUARES, that cover `shape` with fewest pixels.

    None if none is small enough for `shape` and large enough for its margins.
    """
    least, most = 2 * margin + divisor, min(*shape, largest)
    sides = {round_up(side, divisor) for side in SQUARES}

    def pixels(tile: int) -> int:
        h, w = (len(place(side, tile, margin, divisor)) for side in shape)
        return h * w * tile**2

    return min((tile for tile in sides if least <= tile <= most), key=pixels, default=None)


def apply(
    function: "Callable[[Batch], jax.Array | np.ndarray]",
    image: Image,
    *,
    largest: int,
    margin: int,
    divisor: int,
    square: int | None = None,
    in_flight: int = 1,
) -> Output:
    """Return `function` of `image`, computed tile by tile: [h, w], or [h, w, c] of c channels.

    Args:
        function: of parts of the image, [1, h, w, 1], that returns float32 [1, h, w, c].
        image: [h, w], with sides that are multiples of `divisor`.
        largest, margin, divisor: as in `split_axis`.
        square: the side of all tiles, as `square` returns it, instead of `largest`.
        in_flight: tiles that wait at once: with 2, an accelerator computes one while the previous
            one is fetched. A CPU would compute both at once.
    """
    (h, rows), (w, columns) = (
        (square, place(side, square, margin, divisor))
        if square
        else split_axis(side, largest, margin, divisor)
        for side in image.shape
    )
    output: np.ndarray | None = None
    queue: deque[tuple[tuple[int, int, int], tuple[int, int, int], Any]] = deque()

    def fetch() -> None:
        nonlocal output
        (y, *kept_y), (x, *kept_x), tile = queue.popleft()
        inside = tuple(slice(a - y0, b - y0) for y0, (a, b) in ((y, kept_y), (x, kept_x)))
        if output is None:
            output = np.empty((*image.shape, tile.shape[-1]), np.float32)
        output[slice(*kept_y), slice(*kept_x)] = np.asarray(tile)[0][inside]

    for row, column in product(rows, columns):
        if len(queue) == in_flight:
            fetch()
        y, x = row[0], column[0]
        tile = function(image[None, y : y + h, x : x + w, None])
        if not isinstance(tile, np.ndarray):  # of JAX
            tile.copy_to_host_async()
        queue.append((row, column, tile))
    while queue:
        fetch()
    assert output is not None  # there is a tile at least
    return output[..., 0] if output.shape[-1] == 1 else output
