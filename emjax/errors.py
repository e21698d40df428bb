"""Exceptions with exit codes, notes, and looking up a name in a dict."""

import functools
import sys


def choose(kind, name, table):
    """Return the entry `name` of `table`.

    Raises: UsageError naming `kind` and listing all entries if there is none.
    """
    if name not in table:
        raise UsageError(f"no {kind} {name!r}; there are: {', '.join(sorted(table))}")
    return table[name]


class EmjaxError(Exception):
    """A failure whose message is the whole answer; the commands print it and exit with `code`."""

    code = 1


class UsageError(EmjaxError):
    """The command line or the config asks for what cannot be: names what came and what is due."""

    code = 2


class InputError(EmjaxError):
    """A file, folder or record is missing or wrong: names it, what was due and what to do."""

    code = 3


class NonFiniteError(EmjaxError):
    """A loss is no longer a number: names the step and the terms."""

    code = 4


class Interrupted(EmjaxError):
    """Asked to stop, with everything saved: the same command goes on from there."""

    code = 75  # EX_TEMPFAIL: what schedulers take as "start me again"


def first_line(error):
    return (str(error).strip(" \n'\"").splitlines() or [type(error).__name__])[0].rstrip(".")


@functools.lru_cache(maxsize=10_000)
def note(path, text):
    """Say something about a file that is read all the same, once however often it is read."""
    print(f"note: {path}: {text}", file=sys.stderr)
