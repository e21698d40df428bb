"""What the project says when something is wrong: one line, one exit code."""

import argparse
import errno
import sys

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class EmjaxError(Exception):
    """A failure whose message is the whole answer; the commands print it and exit with `code`."""

    code = 1


class Usage(EmjaxError):
    """The command line or the config asks for what cannot be: names what came and what is due."""

    code = 2


class BadInput(EmjaxError):
    """A file, folder or record is missing or wrong: names it, what was due and what to do."""

    code = 3


class NonFinite(EmjaxError):
    """A loss is no longer a number: names the step and the terms."""

    code = 4


class Stopped(EmjaxError):
    """Asked to stop, with everything saved: the same command goes on from there."""

    code = 75  # EX_TEMPFAIL: what schedulers take as "start me again"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are one line."""

    def error(self, message):
        raise Usage(f"{message} (see --help)")


def told(error):
    """(exit code, line) of an error; without a line where only a traceback says enough.

    A full disk is bad input, too.
    """
    if isinstance(error, EmjaxError):
        return error.code, str(error)
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return BadInput.code, f"{error}; make room and run it again"
    return 1, None


def first_line(error):
    return (str(error).strip(" \n'\"").splitlines() or [type(error).__name__])[0].rstrip(".")


def run(main, *args):
    """Exit with what `main(*args)` returns, or with an error's one line and its code."""
    try:
        sys.exit(main(*args))
    except (EmjaxError, OSError) as error:
        code, line = told(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(code)
