"""What each network costs and sees: python -m emjax.models

Multiply-adds are those of the convolutions, padding included, for one image (for the discriminator
one pair). The receptive field is averaged over the phase of the coarsest level.
"""

import math
import sys

import jax
import jax.numpy as jnp
from flax import nnx

from configs.pretrain import GENERATORS, get_config
from emjax import cli, networks
from emjax.models.blocks import PLAIN, formulated

SIDES = (224, 256, 448, 512)


def main(arguments):
    """Print the table of the generators and the discriminator that the configs name."""
    cli.Parser(prog="emjax.models", description=__doc__.splitlines()[0]).parse_args(arguments)
    models = {name: get_config(name).model.to_dict() for name in GENERATORS}
    models["patchgan"] = get_config().discriminator.to_dict()
    sizes = [f"{side} x {side}" for side in SIDES]
    print(line("", "parameters", "receptive", "sides", "million multiply-adds an image of"))
    print(line("network", "", "field, px", "divide by", *sizes))
    for name, model in models.items():
        module = networks.build_abstract(model)
        parameters = sum(leaf.size for leaf in networks.arrays(module)[0].values())
        divisor = getattr(module, "divisor", None)
        if divisor:  # each layer's output is a whole fraction of the image, so cost goes by area
            cost = multiply_adds(module, divisor)
            costs = [cost * (side // divisor) ** 2 for side in SIDES]
        else:
            costs = [multiply_adds(module, side) for side in SIDES]
        cells = f"{parameters:,}", f"{module.receptive_field:,}", divisor or "-"
        print(line(name, *cells, *(f"{cost / 1e6:,.0f}" for cost in costs)))
    return 0


def line(name, *cells):
    return f"{name:20}" + " ".join(f"{cell:>11}" for cell in cells)


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


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
