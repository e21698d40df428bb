"""Weights from PyTorch and back.

    python -m emjax.convert --from=FILE --to=DIR              a PyTorch file to a model folder
    python -m emjax.convert --from=DIR --to=FILE.safetensors  and back, under the original names

FILE is a safetensors file, a state dict or a whole pickled module; no code in it is run. It holds
a residual U-Net as Sytwu et al. released theirs or an HRNet as its authors and timm name it. DIR
serves `emjax.predict --model` and `--config.initialise.workdir`; DIR/conversion.json lists what
became of every array.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from emjax import cli
from emjax.errors import UsageError, note
from emjax.files import check_writable, write_atomically
from emjax.interchange.pytorch import (
    INPUTS,
    ImportOptions,
    check_exported,
    export_pytorch,
    import_pytorch,
)
from emjax.models import saved
from emjax.models.blocks import UPSAMPLING
from emjax.models.network import Network
from emjax.tasks import TASKS


def whole_numbers(text: str) -> list[int]:
    """Return the numbers of `2,2`."""
    return [int(part) for part in text.split(",")]


@cli.command
def main(arguments: Sequence[str]) -> int:
    """Convert to emjax or to PyTorch, by whether --from is a folder; returns the exit code."""
    parser = cli.Parser(prog="emjax.convert", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--from", required=True, type=Path, dest="source", metavar="FILE_OR_DIR")
    add("--to", required=True, type=Path, metavar="DIR_OR_FILE")
    add("--input", choices=INPUTS, help="what a U-Net was trained on; default: by its BatchNorm")
    add("--pools", type=whole_numbers, help="of a U-Net whose file lacks them, e.g. 2,2")
    add("--dilations", type=whole_numbers, help="likewise, the bottleneck's last, e.g. 1,1,1")
    add("--task", choices=TASKS, help="default: segmentation for two channels, or restoration")
    add("--upsampling", choices=UPSAMPLING, help="of an HRNet; default: by its head")
    add("--entry", help="of a checkpoint that holds several networks, e.g. state_dict_ema")
    add("--prefix", help="of the names of one of several networks, e.g. generator.")
    add("--overwrite", action="store_true", help="replace files that emjax has not written, too")
    options = parser.parse_args(arguments)
    source, to = options.source, options.to
    check_writable(to.parent)
    if source.is_dir():
        if to.suffix != ".safetensors":
            raise UsageError(f"--to={to}, expected a name that ends in .safetensors")
        if not options.overwrite:
            check_exported(to)
        print(f"{source} -> {to}: {export_pytorch(source, to)} arrays")
        return 0
    if to.exists() and not to.is_dir():
        raise UsageError(f"--to={to} is a file, expected a folder")
    if not options.overwrite:
        saved.check_replaceable(to, "choose another --to, or --overwrite")
    imported = import_pytorch(
        source,
        ImportOptions(
            input=options.input,
            pools=options.pools,
            dilations=options.dilations,
            task=options.task,
            upsampling=options.upsampling,
            entry=options.entry,
            prefix=options.prefix,
        ),
    )
    if imported.assumed:
        flags = ", ".join(f"--{field}" for field in imported.assumed)
        note(source, f"if an assumption is wrong, convert again with {flags}")
    print(f"{source}: {imported.description}")
    saved.write(to, Network(imported.params, imported.stats), imported.config)
    report = json.dumps(imported.report, indent=2, sort_keys=True) + "\n"
    write_atomically(to / "conversion.json", report.encode())
    parameters = sum(value.size for value in imported.params.values())
    print(f"{to}: {imported.config['title']}, {parameters} parameters")
    for outcome in ("used", "folded", "left out", "not in the file"):
        number = sum(text.startswith(outcome) for text in imported.report.values())
        print(f"  {outcome:16} {number}")
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
