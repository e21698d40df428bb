"""What a network costs: multiply-adds, operations of a traced function, memory per pixel."""

import math
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from emjax.models.formulation import PLAIN, counted_share, formulated
from emjax.models.model import Model


def multiply_adds(module: Model, side: int) -> int:
    """Return the multiply-adds of all convolutions of `module` for one image of side x side pixels.

    Padding is counted. A discriminator gets one pair of images.

    Args:
        module: with arrays or with their shapes alone, as `build_abstract` returns it.
    """
    definition, state = nnx.split(module)
    images = [jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32)] * module.inputs

    def forward(state: Any, *images: jax.Array) -> jax.Array:
        return nnx.merge(definition, state)(*images, train=False)

    with formulated(PLAIN):
        program = jax.make_jaxpr(forward)(state, *images)
    return count_operations(program)["conv_general_dilated"] // 2


def operations(program: Any) -> int:
    """Return the multiplications and additions in convolutions and matrix products of a jaxpr.

    Those of the plain formulation, whichever was traced: the work that there is, not what a device
    makes of it. Multiplications by the zeros that the gradient of a strided convolution puts
    between pixels are not counted. All branches of a condition are counted, and a loop of unknown
    length once.
    """
    return count_operations(program).total()


def count_operations(program: Any, share: Fraction = Fraction(1)) -> Counter[str]:
    """Return the operations of a jaxpr by primitive: "conv_general_dilated" and "dot_general".

    Those that no result depends on are left out, as compilers leave them out.

    Args:
        share: of the operations that the plain formulation has, see `formulation.counted_as`.
    """
    counts: Counter[str] = Counter()
    program = getattr(program, "jaxpr", program)
    needed = set(map(id, program.outvars))
    for equation in reversed(program.eqns):
        if not needed & set(map(id, equation.outvars)):
            continue
        needed |= set(map(id, equation.invars))
        name, params = equation.primitive.name, equation.params
        scopes = str(equation.source_info.name_stack)
        counted = share if (own := counted_share(scopes)) is None else own
        if name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            per_output = math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]
            size = equation.outvars[0].aval.size
            whole = 2 * size * per_output // math.prod(params["lhs_dilation"])
            counts[name] += int(whole * counted)
        elif name == "dot_general":
            shape = equation.invars[0].aval.shape
            (contracted, _), _ = params["dimension_numbers"]
            size = equation.outvars[0].aval.size
            whole = 2 * size * math.prod(shape[axis] for axis in contracted)
            counts[name] += int(whole * counted)
        for value in params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner, "eqns"):
                    for primitive, count in count_operations(inner, counted).items():
                        counts[primitive] += count * params.get("length", 1)
    return counts


def bytes_per_pixel(function: Callable[[jax.Array], jax.Array], divisor: int) -> int:
    """Return roughly the device memory in bytes that `function` of [1, h, w, 1] takes per pixel.

    Twice the largest sum of arrays that wait to be read, in the order of the traced operations:
    compilers need room of their own (0.9 to 1.5 times the sum, XLA on a CPU, JAX 0.10.2).
    """
    side = 4 * divisor
    program = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32)).jaxpr
    last_read = {}
    for index, equation in enumerate(program.eqns):
        last_read |= {id(value): index for value in equation.invars}
    last_read |= {id(value): len(program.eqns) for value in program.outvars}
    live: dict[int, int] = {}  # bytes by id of the value
    largest = 0
    for index, equation in enumerate(program.eqns):
        live |= {id(value): nbytes(value.aval) for value in equation.outvars}
        largest = max(largest, sum(live.values()))
        live = {value: size for value, size in live.items() if last_read.get(value, -1) > index}
    return 2 * -(-largest // side**2)


def nbytes(array: Any) -> int:
    """Return the size in bytes of what has a shape and a dtype."""
    return math.prod(array.shape) * array.dtype.itemsize
