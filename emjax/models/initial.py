"""Initial values of a network: all that are of one kind and shape are drawn at once.

Each array has a random key of its own, so the values are those of drawing one after the other. That
took 88 s of CPU time for an HRNet W18, nearly all of it compilation; together it takes 19 s (2-core
x86 CPU, 2026-11-29).
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from emjax.models.model import KeySource

Initializer = Callable[..., Array]  # of a key, a shape and perhaps a dtype
Request = tuple[Initializer, tuple[int, ...]]


class Keys:
    """Replaces nnx.Rngs while a module is built: a new key at each `params()`.

    nnx.Rngs counts in an array. Tracing looks that up again at every layer, which took 4 of the 5
    seconds that building the shapes of a large HRNet takes.
    """

    def __init__(self, key: Key[Array, ""]) -> None:
        self.key, self.count = key, 0

    def params(self) -> Key[Array, ""]:
        """Return the next key."""
        self.count += 1
        return jax.random.fold_in(self.key, self.count)


class Requests(Keys):
    """Lists what a module without values would draw: (initializer, shape), in order."""

    def __init__(self) -> None:
        self.made: list[Request] = []

    def drawn(self, request: Request) -> Any:
        """Return zeros, which take no memory until they are read."""
        self.made.append(request)
        return np.zeros(request[1], jnp.float32)


class Drawn(Keys):
    """Hands out arrays that are drawn already, in the order of the requests."""

    def __init__(self, arrays: Iterator[Array]) -> None:
        self.arrays = arrays

    def drawn(self, _: Request) -> Array:
        """Return the next array."""
        return next(self.arrays)


def draw(initializer: Initializer, shape: tuple[int, ...], rngs: KeySource) -> Array:
    """Return the initial values of one array, float32 of `shape`."""
    if isinstance(rngs, Requests | Drawn):
        return rngs.drawn((initializer, shape))
    return initializer(rngs.params(), shape, jnp.float32)


# Run once, so compiled fast rather than well: a quarter of the time for the same values.
@partial(jax.jit, static_argnums=1, compiler_options={"xla_backend_optimization_level": 0})
def draw_all(
    key: Key[Array, ""], groups: tuple[tuple[Request, tuple[int, ...]], ...]
) -> list[Array]:
    """Return the values of each of `groups`, (request, numbers of all that are alike), stacked.

    It is jitted once for networks of one architecture.
    """
    count = sum(len(same) for _, same in groups)
    keys = jax.vmap(partial(jax.random.fold_in, key))(1 + np.arange(count))
    return [
        jax.vmap(partial(initializer, shape=shape, dtype=jnp.float32))(keys[np.array(same)])
        for (initializer, shape), same in groups
    ]


def build_together(build: Callable[[Keys], Any], key: Key[Array, ""]) -> Any:
    """Return `build(Keys(key))`, with all arrays of one initializer and shape drawn at once."""
    requests = Requests()
    build(requests)
    numbers: dict[Request, list[int]] = {}
    for number, request in enumerate(requests.made):
        numbers.setdefault(request, []).append(number)

    groups = tuple((request, tuple(same)) for request, same in numbers.items())
    together = jax.device_get(draw_all(key, groups))
    arrays = {
        number: array
        for same, stack in zip(numbers.values(), together, strict=True)
        for number, array in zip(same, stack, strict=True)
    }
    return build(Drawn(arrays[number] for number in sorted(arrays)))
