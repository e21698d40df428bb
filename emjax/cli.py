"""What all commands share: a parser with one-line errors, printed notes, exit codes."""

import argparse
import contextlib
import errno
import functools
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from emjax.errors import EmjaxError, InputError, UsageError, logger

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

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
def printed_notes() -> Iterator[None]:
    """Print the package's warnings as notes, here and nowhere else, until the end of the `with`."""
    handler, propagated = NotePrinter(), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated


def command(main: Main) -> Main:
    """Decorate the `main(arguments)` of a command: notes are printed while it runs."""

    @functools.wraps(main)
    def printing(arguments: Sequence[str]) -> int:
        with printed_notes():
            return main(arguments)

    return printing


def exit_code_and_line(error: BaseException) -> tuple[int, str | None]:
    """Return (exit code, message) of an error; no message where a traceback is needed.

    A full disk counts as bad input.
    """
    if isinstance(error, EmjaxError):
        return error.code, str(error)
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
