"""emjax VERB: every command under one name. `emjax train` is `python -m emjax.main`, and so on."""

import importlib
import sys
from typing import NoReturn

from emjax import cli
from emjax.errors import UsageError

VERBS = {  # in the order of use: the module of each, and what it does
    "build": ("data_builders.build", "turn raw micrographs into records, once, before training"),
    "train": ("emjax.main", "pretrain or finetune a network by a recipe"),
    "finetune": ("emjax.finetune", "finetune a model on a few images and masks of yours"),
    "predict": ("emjax.predict", "apply a trained model to micrographs"),
    "measure": ("emjax.measure", "measure the particles of masks or micrographs"),
    "serve": ("emjax.serve", "a page in the browser to drop micrographs on"),
    "sweep": ("emjax.sweep", "train all runs of a matrix, in dependency order"),
    "report": ("emjax.report", "write tables, curves and pictures of all runs in a folder"),
    "export": ("emjax.export", "write a model as one file, for other programs"),
    "publish": ("emjax.publish", "lay a model out as model hubs have it"),
    "convert": ("emjax.convert", "read and write weights of PyTorch"),
    "export-records": ("data_builders.export", "write records back as micrographs"),
    "models": ("emjax.models.__main__", "print what each network costs and sees"),
    "doctor": ("emjax.doctor", "print what this machine can do"),
}

NOT_ON_WINDOWS = ("array_record", "fcntl", "grain", "tensorflow_datasets")  # libraries


def usage() -> str:
    """Return the list of all verbs, one line each."""
    lines = [f"  {verb:16}{what}" for verb, (_, what) in VERBS.items()]
    return "\n".join(["usage: emjax VERB ...", "", *lines, "", "emjax VERB --help lists options."])


def run_verb(arguments: list[str]) -> int | None:
    """Run the command that the first of `arguments` names; returns its exit code.

    Only the module of that command is imported.
    """
    verb, *others = arguments or ["--help"]
    if verb in ("-h", "--help"):
        print(usage())
        return 0 if arguments else UsageError.code
    if verb not in VERBS:
        raise UsageError(f"expected a verb, one of {', '.join(VERBS)}; got {verb!r}")
    try:
        module = importlib.import_module(VERBS[verb][0])
    except ModuleNotFoundError as error:
        if error.name not in NOT_ON_WINDOWS:
            raise
        raise UsageError(
            f"emjax {verb}: expected {error.name}, which there is for Linux and macOS only; on "
            "Windows use WSL, or the verbs predict, measure, export, convert and doctor"
        ) from None
    return module.main(others)


def main() -> NoReturn:
    """Run `emjax` with the arguments of the process."""
    cli.run(run_verb, sys.argv[1:])


if __name__ == "__main__":
    main()
