"""Types of arrays with their shapes.

jaxtyping takes about as long to import as all other libraries of the readers together. So its
types stand here for type checkers, and where it is loaded already, as in training and the tests;
elsewhere they are plain arrays.
"""

import sys
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING or "jaxtyping" in sys.modules:
    from jaxtyping import Bool, Float, Float32, Num, Shaped, UInt8, UInt16

    # A plane as stored, and in the three number formats of a Micrograph.
    Stored: TypeAlias = Shaped[np.ndarray, "h w"] | Shaped[np.ndarray, "h w samples"]
    Grey: TypeAlias = (
        UInt8[np.ndarray, "h w"] | UInt16[np.ndarray, "h w"] | Float32[np.ndarray, "h w"]
    )
    RGB: TypeAlias = (
        UInt8[np.ndarray, "h w 3"] | UInt16[np.ndarray, "h w 3"] | Float32[np.ndarray, "h w 3"]
    )
    Volume: TypeAlias = (
        UInt8[np.ndarray, "z y x *rgb"]
        | UInt16[np.ndarray, "z y x *rgb"]
        | Float32[np.ndarray, "z y x *rgb"]
    )
    Planes: TypeAlias = Num[np.ndarray, "*planes h w"]
    Mask: TypeAlias = Bool[np.ndarray, "h w"]
    Numbers: TypeAlias = Num[np.ndarray, "*shape"]
    Floats: TypeAlias = Float32[np.ndarray, "*shape"]  # with Numbers in a signature: as many
    Pair: TypeAlias = Float[np.ndarray, "2"]
else:
    Stored = Grey = RGB = Volume = Planes = Mask = Numbers = Floats = Pair = np.ndarray
