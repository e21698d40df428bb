"""Lay a model out as model hubs have it: python -m emjax.publish MODEL --to=FOLDER

MODEL is a run's workdir, its model/ folder, or a model that comes with emjax. FOLDER gets
model.safetensors, config.json and README.md, the card with what a hub wants to know at its
beginning. Nothing is sent: upload the folder with the hub's own program, and anyone predicts with
--model=hf:OWNER/NAME; or hand the folder on, which is a model as it is.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from emjax import cli
from emjax.errors import UsageError
from emjax.files import check_writable, write_atomically
from emjax.inference.options import add_model_to_hand_on
from emjax.models import pretrained, saved

TASKS = {"segmentation": "image-segmentation"}  # else image-to-image, in words of the Hub
TAGS = ("electron-microscopy", "jax", "microscopy")
LICENCE = "apache-2.0"  # of the models that come with emjax


def card(text: str, task: str | None, licence: str) -> str:
    """Return a card with the facts that the Hub reads before its `text`.

    Args:
        licence: an identifier as the Hub lists them, such as cc-by-4.0; "" for none.
    """
    lines = [
        "library_name: emjax",
        *([f"license: {licence}"] if licence else []),
        f"pipeline_tag: {TASKS.get(task or '', 'image-to-image')}",
        "tags:",
        *(f"- {tag}" for tag in TAGS),
    ]
    if text.startswith("---\n"):  # the facts of an earlier publication
        text = text.partition("\n---\n")[2].lstrip("\n")
    return "---\n" + "\n".join(lines) + f"\n---\n\n{text}"


@cli.command
def main(arguments: Sequence[str]) -> int:
    """Write the folder; returns the exit code."""
    parser = cli.Parser(prog="emjax publish", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add_model_to_hand_on(parser)
    add("--to", required=True, type=Path, metavar="FOLDER")
    add("--licence", help="as the Hub lists them, such as cc-by-4.0")
    add("--overwrite", action="store_true", help="replace files that are no model of emjax, too")
    options = parser.parse_args(arguments)
    licence, to = (options.licence or "").lower(), options.to
    if licence and not all(letter.isalnum() or letter in "-." for letter in licence):
        raise UsageError(f"--licence={options.licence}: expected an identifier such as cc-by-4.0")
    if not options.overwrite:
        saved.check_replaceable(to, "choose another --to, or --overwrite")
    _, _, config = saved.read(options.model)
    folder = saved.inside(options.model)
    if to.resolve() == folder.resolve():
        raise UsageError(f"--to={to} is the model itself, expected another folder")
    if folder.parent == pretrained.BOX:
        licence = licence or LICENCE
    check_writable(to)
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    to.mkdir(parents=True, exist_ok=True)
    for name in ("model.safetensors", "config.json"):
        write_atomically(to / name, (folder / name).read_bytes())
    write_atomically(to / "README.md", card(text, config["task"], licence).encode())
    print(f"{options.model} -> {to}  digest {saved.digest(to)}")
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
