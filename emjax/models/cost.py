"""What a network costs: multiply-adds, operations of a traced function, memory per pixel."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from emjax.models.formulation import PLAIN, formulated


def multiply_adds(module, side):
    """Of the convolutions of `module` (abstract or not) on one image of side x side pixels."""
    definition, state = nnx.split(module)
    image = jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32)
    images = [image] * (2 if type(module).__name__ == "PatchGAN" else 1)
    with formulated(PLAIN):
        program = jax.make_jaxpr(
            lambda state, *images: nnx.merge(definition, state)(*images, train=False)
        )(state, *images)
    return sum(
        math.prod(equation.outvars[0].aval.shape) * math.prod(equation.invars[1].aval.shape[:-1])
        for equation in program.eqns
        if equation.primitive.name == "conv_general_dilated"
    )


def bytes_per_pixel(function, divisor):
    """Device memory that `function` of [1, h, w, 1] takes, for each pixel, about.

    Twice the largest sum of arrays that wait to be read, in the order of the traced operations:
    compilers need room of their own (0.9 to 1.5 times the sum, XLA on a CPU, JAX 0.10.2).
    """
    side = 4 * divisor
    program = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32)).jaxpr
    last_read = {}
    for place, equation in enumerate(program.eqns):
        last_read |= {id(value): place for value in equation.invars}
    last_read |= {id(value): len(program.eqns) for value in program.outvars}
    held, most = {}, 0
    for place, equation in enumerate(program.eqns):
        held |= {
            id(value): math.prod(value.aval.shape) * value.aval.dtype.itemsize
            for value in equation.outvars
        }
        most = max(most, sum(held.values()))
        held = {value: size for value, size in held.items() if last_read.get(value, -1) > place}
    return 2 * -(-most // side**2)


def operations(function, *arguments):
    """Multiplications and additions in convolutions and matrix products of a function, as traced.

    In the plain formulation, whichever runs: the work that there is, not what a device makes of it.
    """
    with formulated(PLAIN):
        return operations_of(jax.make_jaxpr(lambda *a: function(*a))(*arguments))


def operations_of(program):
    """Of a jaxpr, as `operations` counts them.

    Those with the zeros that the gradient of a strided convolution puts between pixels are not
    counted. All branches of a condition are; a loop of unknown length is counted once.
    """
    total = 0
    for equation in program.eqns:
        name, params, out = equation.primitive.name, equation.params, equation.outvars[0].aval
        if name == "conv_general_dilated":
            kernel, of_output = (
                equation.invars[1].aval.shape,
                params["dimension_numbers"].rhs_spec[0],
            )
            each = math.prod(kernel) // kernel[of_output]
            total += 2 * out.size * each // math.prod(params["lhs_dilation"])
        elif name == "dot_general":
            sides = equation.invars[0].aval.shape
            total += 2 * out.size * math.prod(sides[i] for i in params["dimension_numbers"][0][0])
        for value in params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner, "eqns"):
                    total += operations_of(inner) * params.get("length", 1)
    return total
