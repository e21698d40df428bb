"""Hand a model on: python -m emjax.export MODEL --to=FILE

MODEL is a run's workdir, its model/ folder, or a model that comes with emjax. FILE says the format
by its ending: .stablehlo is for emjax and JAX, on any device, without the code of the network;
.onnx is for onnxruntime, OpenVINO and others; .zip is a package of bioimage.io; .safetensors has
the weights under PyTorch's names. All but the last are compared with the model before anything is
written.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from emjax import cli
from emjax.errors import UsageError
from emjax.files import check_writable
from emjax.inference.options import add_model_to_hand_on
from emjax.micrographs.units import amount
from emjax.models import pretrained, saved

FORMATS = (".stablehlo", ".onnx", ".zip", ".safetensors")
OURS = ("emjax developers", "Apache-2.0")  # author and licence of the models that come with emjax


def export(
    model: str | Path, path: str | Path, *, author: str = "", licence: str = ""
) -> float | None:
    """Write the model in a folder to the file `path`, in the format that its ending names.

    Args:
        model: a workdir, a model folder, or the name of a model that comes with emjax.
        author, licence: for a package of bioimage.io; the licence as SPDX names it.

    Returns: the largest difference between the export and the model, in standard deviations of the
        model's output; None for weights alone.

    Raises: UsageError for another ending, or if a library is not installed; EmjaxError if the
        export differs from the model. Nothing is written then.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise UsageError(f"{path}: expected a name that ends in {', '.join(FORMATS)}")
    if (author or licence) and suffix != ".zip":
        raise UsageError(f"{path}: an author and a licence are for .zip alone; leave them out")
    if suffix == ".safetensors":
        from emjax.interchange.pytorch import export_pytorch

        export_pytorch(saved.inside(model), path)
        return None
    if suffix == ".stablehlo":
        from emjax.interchange import stablehlo

        return stablehlo.write(model, path)
    if suffix == ".onnx":
        from emjax.interchange import onnx

        return onnx.write(model, path)
    from emjax.interchange import bioimageio

    if saved.inside(model).parent == pretrained.BOX:
        author, licence = author or OURS[0], licence or OURS[1]
    return bioimageio.write(model, path, author=author, licence=licence)


@cli.command
def main(arguments: Sequence[str]) -> int:
    """Export a model; returns the exit code."""
    parser = cli.Parser(prog="emjax export", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add_model_to_hand_on(parser)
    add("--to", required=True, type=Path, metavar="FILE", help="ends in " + ", ".join(FORMATS))
    add("--author", help="of a .zip: a name")
    add("--licence", help="of a .zip: an identifier of SPDX, such as CC-BY-4.0")
    add("--overwrite", action="store_true", help="replace FILE if it is there")
    options = parser.parse_args(arguments)
    to = options.to
    if to.is_dir():
        raise UsageError(f"--to={to} is a folder, expected a file")
    if os.path.lexists(to) and not options.overwrite:
        raise UsageError(f"--to={to} is there already; choose another name, or --overwrite")
    if not to.parent.is_dir():
        raise UsageError(f"--to={to}: the folder {to.parent} does not exist; make it")
    check_writable(to.parent)
    far = export(options.model, to, author=options.author or "", licence=options.licence or "")
    agreement = "" if far is None else f", at most {far:.1g} standard deviations from the model"
    print(f"{options.model} -> {to}  {amount(to.stat().st_size)}{agreement}")
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
