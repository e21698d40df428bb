"""Which formulation of a layer to trace: the plain one, or a backend's fastest."""

from contextlib import contextmanager
from typing import NamedTuple

import jax


class Formulation(NamedTuple):
    """How layers compute what they compute: the same up to rounding, fast on different devices."""

    blocked: bool = False  # a U-Net's first level on blocks of pixels, see `to_blocks`
    strided: bool = False  # input gradients of strided convolutions by blocks, see `strided_conv`
    products: bool = False  # 1x1 convolutions as matrix products


PLAIN = Formulation()
FASTEST = {"cpu": Formulation(blocked=True, strided=True, products=True)}  # docs/performance.md
forced = []


def formulation():
    """The one to trace with: the fastest of this backend, unless `formulated` says otherwise."""
    return forced[-1] if forced else FASTEST.get(jax.default_backend(), PLAIN)


@contextmanager
def formulated(formulation):
    """Trace with this one. What is traced already stays as it is."""
    forced.append(formulation)
    try:
        yield
    finally:
        forced.pop()
