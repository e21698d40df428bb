"""Train: python -m emjax.main --config=configs/X.py[:variant] [--workdir=DIR] [--config.a.b=v].

Takes up whatever the workdir holds, from its latest checkpoint. --deterministic: bit for bit the
same run on a GPU, too, which is slower. --require=gpu or tpu: never on anything else.
--profile=FROM:TO: a trace of these steps, in the workdir's profile/.

On several hosts, the same command on each: on a TPU pod and under SLURM they find each other;
elsewhere by --coordinator=HOST:PORT --processes=N --process=I. --processes=1 is a run without
others, wherever it is.
"""

import os
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from emjax import cli
from emjax.errors import UsageError
from emjax.parallel import devices, processes
from emjax.training.timing import parse_profile
from emjax.training.train import train

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"  # rules out autotuning and atomic sums


@cli.command
def main(arguments):
    """Parse the command line and train; returns the exit code."""
    flags, arguments = processes.split_flags(arguments)
    config, workdir, values = command_line(arguments)
    profile = parse_profile(values["profile"].value, workdir / "profile")
    with processes.connected(flags):
        devices.require(values["require"].value)
        devices.keep_compiled()
        train(config, workdir, profile)
    return 0


def parse(arguments):
    """(config, workdir) of a command line."""
    return command_line(arguments)[:2]


def command_line(arguments):
    """(config, workdir, all flags) of one; --deterministic goes to XLA, which has not begun yet.

    Raises: UsageError in place of every error absl, ml_collections and the config file have.
    """
    argv = ["emjax.main", *arguments]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "The recipe.", lock_config=True, flag_values=values, sys_argv=argv
    )
    flags.DEFINE_string(
        "workdir", None, "Default: runs/<config>/<variant>.", flag_values=values
    )  # fmt: skip
    flags.DEFINE_boolean("deterministic", False, "The same bits on a GPU.", flag_values=values)
    flags.DEFINE_enum(
        "require", None, ["gpu", "tpu"], "Run on nothing else.", flag_values=values
    )  # fmt: skip
    flags.DEFINE_string("profile", None, "FROM:TO, steps to trace.", flag_values=values)
    if {"--help", "-help", "-h"} & set(argv):
        print(f"{__doc__}\nconfigs: {', '.join(map(str, sorted(Path('configs').glob('*.py'))))}")
        sys.exit(0)
    try:
        extra = values(argv)[1:]
        config = values["config"].value
        if config is not None:
            config.is_locked  # noqa: B018  a config that did not load raises here
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        lines = str(error.args[0]).split("\n")
        raise UsageError(lines[-1].strip() if "Traceback" in lines[0] or isinstance(error, OSError)
                    else " ".join(lines)) from error  # fmt: skip
    if extra or config is None:
        what = f"{extra[0]!r} is no option." if extra else "--config is missing."
        raise UsageError(
            f"{what} Give --config=configs/X.py[:variant] [--workdir=DIR] [--config.a.b=v]"
        )
    if values["deterministic"].value:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()
    recipe, _, variant = values["config"].config_filename.partition(":")
    default = Path("runs") / Path(recipe).stem / (variant or "default")
    return config, Path(values["workdir"].value or default), values


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
