"""Weights from PyTorch and back.

    python -m emjax.convert --from=FILE --to=DIR              a PyTorch file to a model folder
    python -m emjax.convert --from=DIR --to=FILE.safetensors  and back, under the original names

FILE is a safetensors file, a state dict or a whole pickled module; no code in it is run. It holds
a residual U-Net as Sytwu et al. released theirs or an HRNet as its authors and timm name it. DIR
serves `emjax.predict --model` and `--config.initialise.workdir`; DIR/conversion.json says what
became of every array.
"""

import json
import sys
from pathlib import Path

from emjax import cli
from emjax.errors import UsageError
from emjax.files import write_atomically
from emjax.interchange.pytorch import INPUTS, export_pytorch, import_pytorch
from emjax.models import saved
from emjax.models.blocks import UPSAMPLING
from emjax.models.network import Network
from emjax.tasks import TASKS


def whole_numbers(text):
    return [int(part) for part in text.split(",")]


@cli.command
def main(arguments):
    """Convert one way or the other, by whether --from is a folder; returns the exit code."""
    parser = cli.Parser(prog="emjax.convert", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--from", required=True, type=Path, dest="source", metavar="FILE_OR_DIR")
    add("--to", required=True, type=Path, metavar="DIR_OR_FILE")
    add("--input", choices=INPUTS, help="what a U-Net was trained on; default: by its BatchNorm")
    add("--pools", type=whole_numbers, help="of a U-Net whose file does not say, e.g. 2,2")
    add("--dilations", type=whole_numbers, help="likewise, the bottleneck's last, e.g. 1,1,1")
    add("--task", choices=TASKS, help="default: segmentation for two channels, or restoration")
    add("--upsampling", choices=UPSAMPLING, help="of an HRNet; default: by its head")
    options = parser.parse_args(arguments)
    if options.source.is_dir():
        if options.to.suffix != ".safetensors":
            raise UsageError(f"--to={options.to}: a name that ends in .safetensors was due")
        export_pytorch(options.source, options.to)
        return 0
    if options.to.exists() and not options.to.is_dir():
        raise UsageError(f"--to={options.to} is a file; a folder was due")
    params, stats, config, account = import_pytorch(options.source, options)
    network = Network(params, stats)
    saved.write(options.to, network, config)
    told = json.dumps(account, indent=2, sort_keys=True) + "\n"
    write_atomically(options.to / "conversion.json", told.encode())
    parameters = sum(value.size for value in params.values())
    print(f"{options.to}: {config['title']}, {parameters} parameters")
    for what in ("used", "folded", "left out", "not in the file"):
        number = sum(told.startswith(what) for told in account.values())
        print(f"  {what:16} {number}")
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
