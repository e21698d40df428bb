"""The interface of a network, and of what draws its initial values."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Float, Key


@runtime_checkable
class Model(Protocol):
    """An nnx.Module from images to images, which can be a run's generator.

    A discriminator has the same attributes but no `divisor`, and is called with as many images as
    `inputs` says.

    Attributes:
        inputs: number of images that it is called with.
        divisor: of the height and width of images.
        receptive_field: pixels that one output pixel sees along an axis.
    """

    inputs: int
    divisor: int
    receptive_field: int

    @property
    def wiring(self) -> dict[str, Any]:
        """The settings that change what the same arrays compute, by the names of the arguments."""
        ...

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w d"]:
        """Return the output for `x`; in training, running statistics are updated."""
        ...


class KeySource(Protocol):
    """A source of random keys for initial values: `initial.Keys` or nnx.Rngs."""

    def params(self) -> Key[Array, ""]:
        """Return a key that was not returned before."""
        ...
