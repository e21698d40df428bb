"""What all commands share: a parser with one-line errors, printed notes, exit codes."""

import argparse
import contextlib
import errno
import functools
import logging
import sys
import warnings
from collections.abc import Callable, Generator, Sequence
from typing import Any, NoReturn, TextIO

from emjax.errors import Adjustable, EmjaxError, InputError, UsageError, library_messages, logger

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# The flags that stand for the library's arguments, as the advice of an Adjustable names them.
FLAGS = {
    "index=": "--index",
    "channel=": "--channel",
    "limit=": "--memory_limit",
    "axis=": "--axes=",
    "entry=": "--entry=",
    "prefix=": "--prefix=",
}

Main = Callable[[Sequence[str]], int]


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UsageError with one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see --help)")


class NotePrinter(logging.Handler):
    """Prints each warning of the package once, as `note: ...` on stderr."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.printed: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self.printed:
            self.printed.add(message)
            print(f"note: {message}", file=sys.stderr)


@contextlib.contextmanager
def printed_notes() -> Generator[None]:
    """Print the package's warnings as notes, here and nowhere else, until the end of the `with`.

    A Python warning of a library that reads a file becomes a note that names the file.
    """
    handler, propagated, shown = NotePrinter(), logger.propagate, warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        collected = library_messages.get()
        if collected is None:
            shown(message, category, filename, lineno, file, line)
        else:
            collected.append(str(message))

    logger.addHandler(handler)
    logger.propagate = False
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = shown
        logger.removeHandler(handler)
        logger.propagate = propagated


def command(main: Main) -> Main:
    """Decorate the `main(arguments)` of a command: notes are printed while it runs."""

    @functools.wraps(main)
    def printing(arguments: Sequence[str]) -> int:
        with printed_notes():
            return main(arguments)

    return printing


def message(error: BaseException) -> str:
    """Return an error's message, with flags in place of the arguments that its advice names."""
    if not isinstance(error, Adjustable):
        return str(error)
    advice = error.advice
    for argument, flag in FLAGS.items():
        advice = advice.replace(argument, flag)
    return f"{error.problem}; {advice}"


def exit_code_and_line(error: BaseException) -> tuple[int, str | None]:
    """Return (exit code, message) of an error; no message where a traceback is needed.

    A full disk counts as bad input.
    """
    if isinstance(error, EmjaxError):
        return error.code, message(error)
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return InputError.code, f"{error}; make room and run it again"
    return 1, None


def run(main: Callable[..., int | None], *arguments: Any) -> NoReturn:
    """Exit with the code that `main(*arguments)` returns, or with an error's line and code."""
    try:
        sys.exit(main(*arguments))
    except (EmjaxError, OSError) as error:
        code, line = exit_code_and_line(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(code)
