"""What each network costs and sees: python -m emjax.models

Multiply-adds are those of the convolutions, padding included, for one image (for the discriminator
one pair). The receptive field is averaged over the phase of the coarsest level.
"""

import sys
from collections.abc import Sequence

from ml_collections import ConfigDict

from emjax import cli
from emjax.models.build import build_abstract
from emjax.models.cost import multiply_adds
from emjax.models.named import DISCRIMINATORS, GENERATORS
from emjax.models.network import flat_arrays

SIDES = (224, 256, 448, 512)


@cli.command
def main(arguments: Sequence[str]) -> int:
    """Print the table of the generators and the discriminator that the configs name."""
    description = str(__doc__).splitlines()[0]
    cli.Parser(prog="emjax.models", description=description).parse_args(arguments)
    fields = {**GENERATORS, **DISCRIMINATORS}
    models = {name: ConfigDict(model).to_dict() for name, model in fields.items()}
    sizes = [f"{side} x {side}" for side in SIDES]
    print(line("", "parameters", "receptive", "sides", "million multiply-adds per image of"))
    print(line("network", "", "field, px", "divide by", *sizes))
    for name, model in models.items():
        module = build_abstract(model)
        parameters = sum(leaf.size for leaf in flat_arrays(module)[0].values())
        divisor = getattr(module, "divisor", None)
        if divisor:  # each layer's output is a whole fraction of the image: cost scales with area
            cost = multiply_adds(module, divisor)
            costs = [cost * (side // divisor) ** 2 for side in SIDES]
        else:
            costs = [multiply_adds(module, side) for side in SIDES]
        cells = f"{parameters:,}", f"{module.receptive_field:,}", divisor or "-"
        print(line(name, *cells, *(f"{cost / 1e6:,.0f}" for cost in costs)))
    return 0


def line(name: str, *cells: object) -> str:
    """Return one line of the table."""
    return f"{name:20}" + " ".join(f"{cell:>11}" for cell in cells)


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
