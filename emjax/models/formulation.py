"""Which formulation of a layer to trace: the plain one, or a backend's fastest."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from fractions import Fraction
from typing import Any, NamedTuple

import jax


class Formulation(NamedTuple):
    """How layers compute: the results are equal up to rounding, the speed depends on the device."""

    blocked: bool = False  # a U-Net's first level on 2 x 2 pixels as channels, see models/blocks
    strided: bool = False  # input gradients of strided convolutions likewise
    products: bool = False  # 1x1 convolutions as matrix products
    apart: bool = False  # images for gradients of kernels are not computed once more
    sums: bool = False  # sums over pixels row by row, see models/norms


PLAIN = Formulation()
FASTEST = {  # docs/background/performance.md
    "cpu": Formulation(blocked=True, strided=True, products=True, apart=True, sums=True)
}
_forced: ContextVar[Formulation | None] = ContextVar("forced formulation", default=None)


def formulation() -> Formulation:
    """Return the one to trace with: that of `formulated`, else the fastest of this backend."""
    forced = _forced.get()
    return FASTEST.get(jax.default_backend(), PLAIN) if forced is None else forced


@contextmanager
def formulated(chosen: Formulation) -> Iterator[None]:
    """Trace with `chosen` in this thread until the end of the `with`.

    What is traced already stays as it is.
    """
    token = _forced.set(chosen)
    try:
        yield
    finally:
        _forced.reset(token)


def counted_as(part: int, whole: int) -> AbstractContextManager[Any]:
    """Trace operations inside that are `part / whole` in the plain formulation: see `cost`."""
    return jax.named_scope(f"counted_{part}_of_{whole}")


def counted_share(scopes: str) -> Fraction | None:
    """Return `part / whole` of the innermost `counted_as` in the `scopes` of an operation."""
    shares = re.findall(r"counted_(\d+)_of_(\d+)", scopes)
    return Fraction(*map(int, shares[-1])) if shares else None
