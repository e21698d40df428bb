"""The flags of Apache Beam, for the commands that can work on it; it is loaded if asked for."""

import argparse
import contextlib
import importlib
import io
import shlex
from typing import Any, NamedTuple

from emjax.errors import UsageError, choose

RUNNERS = ("DirectRunner", "DataflowRunner", "FlinkRunner", "PortableRunner", "SparkRunner")
QUIET = "--default_sdk_harness_log_level=ERROR"  # `data_builders.beam` reports what fails


class Runner(NamedTuple):
    """Where the work is done: a runner of Beam, and flags for Beam."""

    name: str
    flags: list[str]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags of Beam to `parser`."""
    add = parser.add_argument
    add("--beam_runner", metavar="RUNNER", help=f"work on Apache Beam: {', '.join(RUNNERS)}")
    add("--workers", type=int, metavar="N", help="processes of DirectRunner; default: 1")
    add("--beam_options", metavar="'--FLAG=VALUE ...'", help="for Beam itself: launch/beam.md")


def runner_of(options: argparse.Namespace) -> Runner | None:
    """Return the Runner that the flags of `add_options` ask for; None for one process.

    Raises: UsageError if Beam is not installed, or does not know the runner or an option.
    """
    runner, workers, flags = options.beam_runner, options.workers, options.beam_options
    if runner is None:
        for flag in ("workers", "beam_options"):
            if getattr(options, flag) is not None:
                given = f"--{flag}={getattr(options, flag)}"
                raise UsageError(
                    f"{given} without --beam_runner; expected one of {', '.join(RUNNERS)}"
                )
        return None
    choose("runner", runner, dict.fromkeys(RUNNERS))
    if workers is not None and workers < 1:
        raise UsageError(f"--workers={workers}, expected at least 1")
    if workers is not None and runner != "DirectRunner":
        raise UsageError(
            f"--workers={workers} is for DirectRunner, got {runner}; set its number of workers "
            "by --beam_options: launch/beam.md"
        )
    try:
        flags = shlex.split(flags or "")
    except ValueError as error:
        raise UsageError(f"--beam_options={flags}: {error}") from None
    if not all(flag.startswith("--") for flag in flags):
        raise UsageError(f"--beam_options={shlex.join(flags)}, expected --FLAG=VALUE for each")
    if workers is not None and workers > 1:
        # Threads share one interpreter, which decoding in Python holds.
        flags = [
            QUIET,
            f"--direct_num_workers={workers}",
            "--direct_running_mode=multi_processing",
            *flags,
        ]
    return Runner(runner, _checked(runner, flags))


def imported(module: str) -> Any:
    """Return a module of Apache Beam, which only the extra `beam` installs."""
    return importlib.import_module(f"apache_beam{module}")


def _checked(runner: str, flags: list[str]) -> list[str]:
    """Return `flags`; Beam itself would only warn of unknown ones.

    Raises: UsageError if Beam is not installed, or does not know the runner or a flag.
    """
    try:
        pipeline_options = imported(".options.pipeline_options").PipelineOptions
        create_runner = imported(".runners").create_runner
    except ImportError:
        raise UsageError(
            "--beam_runner needs Apache Beam, which is not installed: pip install -e '.[beam]', "
            "in an environment of its own"
        ) from None
    try:
        create_runner(runner)
    except ImportError as error:
        raise UsageError(f"--beam_runner={runner}: {error}") from None
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            known = pipeline_options([]).get_all_options()
            got = pipeline_options(flags).get_all_options(retain_unknown_options=True)
    except SystemExit:
        raise UsageError(
            f"--beam_options: {printed.getvalue().splitlines()[-1].partition('error: ')[2]}"
        ) from None
    unknown = sorted(got.keys() - known.keys())
    if unknown:
        raise UsageError(
            f"--beam_options: Beam has no option {', '.join(f'--{key}' for key in unknown)}"
        )
    return flags
