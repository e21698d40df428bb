"""Turn raw files into sharded records, once, before any training.

    python -m data_builders.build simulated/nanoparticles --data_dir=data
    python -m data_builders.build simulated/unlabelled --data_dir=data
    python -m data_builders.build cem500k --data_dir=data --source=FOLDER
    python -m data_builders.build au_nanoparticles/au5nm --data_dir=data --source=FOLDER [--fetch]
    python -m data_builders.build micrographs --data_dir=data --source=FOLDER [--patch=224] ...
    python -m data_builders.build temimagenet --data_dir=data --source=CLONE
    python -m data_builders.build NAME --help

The records go to DATA_DIR/NAME/1.0.0, with a card.json that states what they were built from.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from data_builders import au_nanoparticles, beam, beam_flags, cem500k, common
from data_builders.micrographs import Micrographs
from data_builders.simulated import Atoms, Nanoparticles, Noisy, Particles, Unlabelled
from data_builders.temimagenet import Multislice, TEMImageNet
from emjax.cli import Parser, command, run
from emjax.errors import UsageError, choose

BUILDERS: dict[str, common.Builder] = {
    **dict.fromkeys(au_nanoparticles.NAMES, au_nanoparticles.AuNanoparticles),
    **dict.fromkeys(cem500k.DATASETS, cem500k.Cem500k),
    "micrographs": Micrographs,
    "simulated/atoms": Atoms,
    "simulated/noisy": Noisy,
    "simulated/particles": Particles,
    "simulated/nanoparticles": Nanoparticles,
    "simulated/unlabelled": Unlabelled,
    "temimagenet": TEMImageNet,
    "temimagenet/multislice": Multislice,
}


@command
def main(arguments: Sequence[str]) -> int:
    """Build the dataset that `arguments` name, and print its card; once built, only print it."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{__doc__}\nNAME is one of: {', '.join(sorted(BUILDERS))}")
        return 0 if arguments else 2
    if arguments[0].startswith("-"):
        raise UsageError(f"the dataset's name comes first, not {arguments[0]}; see --help")
    builder = choose("dataset", arguments[0], BUILDERS)
    parser = Parser(
        prog=f"python -m data_builders.build {arguments[0]}",
        description=builder.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--data_dir", required=True, help="the folder of all datasets")
    parser.add_argument(
        "--left_out",
        type=float,
        default=common.MAX_SKIPPED,
        metavar="SHARE",
        help="stop if more than this share of the images cannot be used; default: %(default)s",
    )
    parser.set_defaults(dataset=arguments[0])
    beam_flags.add_options(parser)
    builder.add_options(parser)
    options = parser.parse_args(arguments[1:])
    if not 0 <= options.left_out <= 1:
        raise UsageError(f"--left_out={options.left_out}, expected a share from 0 to 1")
    make_writer = beam.writer_of(options)
    dataset = builder(options)
    card, existed = common.build(
        dataset, options.data_dir, max_skipped=options.left_out, make_writer=make_writer
    )
    print(summary(card, os.path.join(options.data_dir, dataset.folder), existed))
    return 0


def summary(card: dict[str, Any], folder: str, existed: bool) -> str:
    """Return `card` as a few lines of text.

    Args:
        folder: of the dataset.
        existed: whether it had been built before.
    """
    splits = ", ".join(f"{split} {card['splits'].get(split, 0)}" for split in common.SPLITS)
    empty = [split for split in common.SPLITS if split not in card["splits"]]
    size = "x".join(str(side) for side in card["shape"]) if card["shape"] else "of various sizes"
    targets = ", ".join(card["targets"]) or "none"
    about, sizes = card["about"], card["nm_per_pixel"]
    pixels = []
    if sizes["range"]:
        pixels.append(f"{' to '.join(f'{nm:g}' for nm in sorted(set(sizes['range'])))} nm")
    if sizes["unknown"]:
        pixels.append(f"not stated for {sizes['unknown']} records")
    options = ", ".join(f"{key}={value}" for key, value in card["options"].items())
    versions = ", ".join(f"{name} {version}" for name, version in card["versions"].items())
    # Cards of older builds have no `dropped`.
    dropped = ", ".join(f"{reason} {n}" for reason, n in card.get("dropped", {}).items())
    more_left_out = len(card["left_out"]) - 20
    lines = [
        f"{card['name']}: {'already built, nothing to do' if existed else 'built'}",
        f"  what      {about['title']}",
        f"  licence   {about['licence']}",
        f"  cite      {about['citation']}",
        f"  from      {about['address']}",
        f"  records   {splits}",
        *[f"  empty     {split}: no record is in it" for split in empty],
        f"  images    {card['dtype']} {size}, range by {card['range_rule']}",
        f"  pixels    {', '.join(pixels)}",
        f"  targets   {targets}",
        f"  options   {options}",
        *[f"  note      {note}" for note in card["notes"]],
        *([f"  dropped   {dropped}"] if dropped else []),
        f"  left out  {len(card['left_out'])}",
        *[f"    {path}: {reason}" for path, reason in card["left_out"][:20]],
        *([f"    and {more_left_out} more, see card.json"] if more_left_out > 0 else []),
        *_alike(card["near_duplicates"]),
        f"  with      {versions}",
        f"  where     {os.path.join(folder, common.VERSION)}",
    ]
    return "\n".join(lines)


def _alike(near_duplicates: list[dict[str, Any]]) -> Iterator[str]:
    """Yield lines about records that look the same in two splits."""
    if not any(found["records"] for found in near_duplicates):
        yield "  alike     no records of different splits"
    for found in near_duplicates:
        if found["records"]:
            first, second = found["splits"]
            pairs = ", ".join(f"{b} ~ {a}" for a, b in found["first"])
            yield (
                f"  alike     {found['records']} of {found['of']} in {second} look like one in "
                f"{first}: {pairs}"
            )


if __name__ == "__main__":
    run(main, sys.argv[1:])
