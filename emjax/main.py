"""Train: python -m emjax.main --config=RECIPE[:variant] [--workdir=DIR] [--config.a.b=v].

RECIPE is one of the names below, a Python file, or the config.json of a run. A run continues from
the latest checkpoint in its workdir. --deterministic: the same bits on a GPU in every run, which is
slower. --require=gpu or tpu: refuse to run on anything else. --profile=FROM:TO: trace these steps
into the workdir's profile/.

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
from typing import Any

from absl import flags
from ml_collections import config_flags

from emjax import cli
from emjax.config import (
    RANGES,
    Config,
    advice,
    find_recipe,
    flat,
    read_recipe,
    recipes,
    settle,
    shortened,
)
from emjax.errors import UsageError
from emjax.parallel import devices, processes
from emjax.training.timing import parse_profile
from emjax.training.train import train

USAGE = "give --config=RECIPE[:variant] [--workdir=DIR] [--config.a.b=v]"
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"  # rules out autotuning and atomic sums


@cli.command
def main(arguments: Sequence[str]) -> int:
    """Parse the command line and train; returns the exit code."""
    multi_process, arguments = processes.split_flags(arguments)
    config, workdir, values = command_line(arguments)
    profile = parse_profile(values["profile"].value, workdir / "profile")
    devices.keep_memory()
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

    Raises: UsageError for whatever absl, ml_collections and the recipe do not accept.
    """
    if {"--help", "-help", "-h"} & set(arguments):
        print(f"{__doc__}\n{recipes_listed()}")
        sys.exit(0)
    recipe, others = split_recipe(arguments)
    if recipe is None:
        raise UsageError(f"--config is missing; {USAGE}, where RECIPE is {known_recipes()}")
    path, variant = find_variant(recipe)
    config = read_recipe(path, variant)
    fields = dict(flat(config.to_dict())).keys()
    unset = {word: field for word in others if (field := unset_by(word)) in fields}
    with config.ignore_type():
        config.update_from_flattened_dict(dict.fromkeys(unset.values()))
    others = [word for word in others if word not in unset]
    values = flags.FlagValues()
    argv = ["emjax.main", *others]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        define_string = partial(flags.DEFINE_string, flag_values=values)
        define_string("workdir", None, "Default: runs/<recipe>/<variant>.")
        define_string("profile", None, "FROM:TO, steps to trace.")
        flags.DEFINE_boolean("deterministic", False, "The same bits on a GPU.", flag_values=values)
        platforms = ["gpu", "tpu"]
        flags.DEFINE_enum("require", None, platforms, "Run on nothing else.", flag_values=values)
        extra = values(argv)[1:]
    except Exception as error:  # of many kinds, for what somebody typed
        problem = shortened(" ".join(str(error.args[0] if error.args else error).split()))
        typed = [found[1] for word in argv if (found := re.match(r"--?config\.([\w.]+)", word))]
        known = {*fields, *(name.rpartition(".")[0] for name in fields)}
        if (absent := {*typed} - known) and "Did you mean" not in problem:
            listed = ", ".join(sorted(absent))
            problem = f"this recipe has no field {listed}; docs/reference/configs.md lists them"
        elif not isinstance(error, flags.Error):
            problem = f"a field of --config is wrong: {problem}"
        named = re.search(r"--config\.([\w.]+)=", problem)
        expected = f"; {advice(named[1])}" if named and named[1] in RANGES else ""
        raise UsageError(problem + expected) from error
    if extra:
        raise UsageError(
            f"{extra[0]!r} is not an option; {USAGE}, where RECIPE is {known_recipes()}"
        )
    config: Any = values["config"].value
    if lost := sorted(fields - dict(flat(config.to_dict())).keys()):
        raise UsageError(f"{', '.join(lost)}: missing in the config; set its fields one by one")
    settle(config)
    if values["deterministic"].value:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()
    default = Path("runs") / path.stem / (variant or "default")
    return config, Path(values["workdir"].value or default), values


def unset_by(word: str) -> str | None:
    """Return the field that an argument unsets, as in --config.model.receptive_field=None."""
    found = re.fullmatch(r"--?config\.([\w.]+)=None", word)
    return found[1] if found and found[1] in RANGES and RANGES[found[1]].holds(None) else None


def split_recipe(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return (the last value of --config or None, the other arguments)."""
    recipe, others, waiting = None, [], False
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if waiting:
            recipe, waiting = argument, False
        elif flag in ("--config", "-config"):
            recipe, waiting = value, not equals
        else:
            others.append(argument)
    return (None if waiting else recipe), others


def find_variant(recipe: str) -> tuple[Path, str | None]:
    """Return (the recipe's file, its variant or None) of a value of --config.

    The path of a file may have colons.

    Raises: UsageError for an unknown recipe, listing the known ones.
    """
    names = recipe.split(":")
    for count in range(1, len(names) + 1):
        if Path(":".join(names[:count])).is_file():
            return Path(":".join(names[:count])), ":".join(names[count:]) or None
    return find_recipe(names[0]), ":".join(names[1:]) or None


def known_recipes() -> str:
    """Return the names of the recipes and what else --config takes."""
    return f"{', '.join(recipes())}, a Python file or the config.json of a run"


def recipes_listed() -> str:
    """Return the names of the recipes, each with the first line of its file."""
    titles = {
        name: (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        for name, path in recipes().items()
    }
    return "\n".join(["Recipes:", *(f"  {name:21}{title}" for name, title in titles.items())])


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
