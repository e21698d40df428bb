"""Exceptions with exit codes, notes, and looking up a name or a library."""

import importlib
import logging
from collections.abc import Mapping
from contextvars import ContextVar
from types import ModuleType
from typing import TypeVar

Entry = TypeVar("Entry")

# The commands print its warnings as notes; a program that imports emjax handles them as it likes.
logger = logging.getLogger("emjax")

# Collects what libraries log or warn of while a file is read in this context; None otherwise.
library_messages: ContextVar[list[str] | None] = ContextVar("library_messages", default=None)


class EmjaxError(Exception):
    """A failure with a complete message; commands print it and exit with `code`."""

    code = 1


class UsageError(EmjaxError):
    """The command line or the config asks for something impossible; says what is possible."""

    code = 2


class InputError(EmjaxError):
    """A file, folder or record is missing or wrong: names it, what was expected and what to do."""

    code = 3


class Adjustable(InputError):
    """Bad input that another argument allows: `advice` names it, such as "choose one by index=".

    The commands put their flags in its place; the message is "problem; advice".
    """

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(problem, advice)
        self.problem, self.advice = problem, advice

    def __str__(self) -> str:
        return f"{self.problem}; {self.advice}"


class NonFiniteError(EmjaxError):
    """A loss is no longer finite: names the step and the terms."""

    code = 4


class Interrupted(EmjaxError):
    """Asked to stop, with everything saved: the same command continues from there."""

    code = 75  # EX_TEMPFAIL: schedulers take it as "start me again"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    return (str(error).strip(" \n'\"").splitlines() or [type(error).__name__])[0].rstrip(".")


# Where it is set, it gets the subject, text and kind of each note of this thread, in place of the
# logger.
kept_notes: ContextVar[list[tuple[str, str, str]] | None] = ContextVar("kept_notes", default=None)


def note(subject: object, text: str, kind: str = "") -> None:
    """Log a warning about something that is used nevertheless, such as a file.

    Args:
        kind: of the warning, for who counts them.
    """
    kept = kept_notes.get()
    if kept is None:
        logger.warning("%s: %s", subject, text)
    else:
        kept.append((str(subject), text, kind))


def counted(number: int, thing: str = "particle") -> str:
    """Return "1 particle", "2 particles"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def choose(kind: str, name: str, table: Mapping[str, Entry]) -> Entry:
    """Return the entry `name` of `table`.

    Raises: UsageError naming `kind` and listing all entries if there is none.
    """
    if name not in table:
        raise UsageError(f"no {kind} {name!r}; there are: {', '.join(sorted(table))}")
    return table[name]


def imported(library: str, extra: str) -> ModuleType:
    """Return a library of an extra.

    Raises: UsageError, with the extra, if it is not installed.
    """
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        if not f"{library}.".startswith(f"{error.name}."):
            raise
        raise UsageError(
            f"{library} is not installed; python -m pip install 'emjax[{extra}]'"
        ) from None
