"""Train: python -m emjax.main --config=RECIPE[:variant] [--workdir=DIR] [--config.a.b=v].

RECIPE is one of the names below or a Python file. A run continues from the latest checkpoint in its
workdir. --deterministic: the same bits on a GPU in every run, which is slower. --require=gpu or
tpu: refuse to run on anything else. --profile=FROM:TO: trace these steps into the workdir's
profile/.

On several hosts, run the same command on each: on a TPU pod and under SLURM they find each other;
elsewhere by --coordinator=HOST:PORT --processes=N --process=I. --processes=1 is a run without
others, wherever it is.
"""

import ast
import os
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from emjax import cli
from emjax.config import Config, find_recipe, recipes
from emjax.errors import UsageError
from emjax.parallel import devices, processes
from emjax.training.timing import parse_profile
from emjax.training.train import train

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"  # rules out autotuning and atomic sums


@cli.command
def main(arguments: Sequence[str]) -> int:
    """Parse the command line and train; returns the exit code."""
    multi_process, arguments = processes.split_flags(arguments)
    config, workdir, values = command_line(arguments)
    profile = parse_profile(values["profile"].value, workdir / "profile")
    with processes.connected(multi_process):
        devices.require(values["require"].value)
        devices.keep_compiled()
        train(config, workdir, profile)
    return 0


def parse(arguments: Sequence[str]) -> tuple[Config, Path]:
    """Return (config, workdir) of a command line."""
    return command_line(arguments)[:2]


def command_line(arguments: Sequence[str]) -> tuple[Config, Path, flags.FlagValues]:
    """Return (config, workdir, all flags) of a command line.

    --deterministic goes to XLA, which has not started yet.

    Raises: UsageError for every error of absl, ml_collections and the recipe.
    """
    if {"--help", "-help", "-h"} & set(arguments):
        print(f"{__doc__}\n{recipes_listed()}")
        sys.exit(0)
    argv = ["emjax.main", *with_recipe_files(arguments)]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "The recipe.", lock_config=True, flag_values=values, sys_argv=argv
    )
    define_string = partial(flags.DEFINE_string, flag_values=values)
    define_string("workdir", None, "Default: runs/<recipe>/<variant>.")
    define_string("profile", None, "FROM:TO, steps to trace.")
    flags.DEFINE_boolean("deterministic", False, "The same bits on a GPU.", flag_values=values)
    platforms = ["gpu", "tpu"]
    flags.DEFINE_enum("require", None, platforms, "Run on nothing else.", flag_values=values)
    try:
        extra = values(argv)[1:]
        config = values["config"].value
        if config is not None:
            config.is_locked  # noqa: B018  a config that did not load raises here
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        lines = str(error.args[0]).split("\n")
        last_line_alone = "Traceback" in lines[0] or isinstance(error, OSError)
        raise UsageError(lines[-1].strip() if last_line_alone else " ".join(lines)) from error
    if extra or config is None:
        problem = f"{extra[0]!r} is not an option" if extra else "--config is missing"
        raise UsageError(
            f"{problem}; give --config=RECIPE[:variant] [--workdir=DIR] [--config.a.b=v], where "
            f"RECIPE is {', '.join(recipes())} or a Python file"
        )
    if values["deterministic"].value:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()
    recipe, _, variant = config_flags.get_config_filename(values["config"]).partition(":")
    default = Path("runs") / Path(recipe).stem / (variant or "default")
    return config, Path(values["workdir"].value or default), values


def with_recipe_files(arguments: Sequence[str]) -> list[str]:
    """Return `arguments` with the file of each recipe that --config names.

    Raises: UsageError for an unknown recipe, listing the known ones.
    """

    def file_of(value: str) -> str:
        name, colon, variant = value.partition(":")
        return f"{find_recipe(name)}{colon}{variant}"

    changed = list(arguments)
    for index, argument in enumerate(changed):
        if argument in ("--config", "-config") and index + 1 < len(changed):
            changed[index + 1] = file_of(changed[index + 1])
        elif re.match("--?config=", argument):
            flag, _, value = argument.partition("=")
            changed[index] = f"{flag}={file_of(value)}"
    return changed


def recipes_listed() -> str:
    """Return the names of the recipes, each with the first line of its file."""
    titles = {
        name: (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        for name, path in recipes().items()
    }
    return "\n".join(["Recipes:", *(f"  {name:21}{title}" for name, title in titles.items())])


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
