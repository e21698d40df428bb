"""What all commands share: a parser with one-line errors, exit codes, `run(main)`."""

import argparse
import errno
import sys

from emjax.errors import EmjaxError, InputError, UsageError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are one line."""

    def error(self, message):
        raise UsageError(f"{message} (see --help)")


def exit_code_and_line(error):
    """(exit code, line) of an error; without a line where only a traceback says enough.

    A full disk is bad input, too.
    """
    if isinstance(error, EmjaxError):
        return error.code, str(error)
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return InputError.code, f"{error}; make room and run it again"
    return 1, None


def run(main, *args):
    """Exit with what `main(*args)` returns, or with an error's one line and its code."""
    try:
        sys.exit(main(*args))
    except (EmjaxError, OSError) as error:
        code, line = exit_code_and_line(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(code)
