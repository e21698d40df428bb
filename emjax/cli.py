"""What all commands share: a parser with one-line errors, printed notes, signals, exit codes."""

import argparse
import contextlib
import errno
import functools
import io
import logging
import math
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeVar

from emjax.errors import (
    Adjustable,
    EmjaxError,
    InputError,
    Interrupted,
    UsageError,
    library_messages,
    logger,
)

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ADVICE = {  # what to do about an error of the operating system
    **dict.fromkeys(NO_ROOM, "make room and run it again"),
    errno.EACCES: "change its permissions, or choose another place",
    errno.EPERM: "change its permissions, or choose another place",
    errno.EROFS: "choose a place that can be written to",
    errno.ENOENT: "check the name",
    errno.ENOTDIR: "a file is where a folder is expected; choose another name",
    errno.EEXIST: "a file is where a folder is expected; choose another name",
    errno.EISDIR: "a folder is where a file is expected; choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
}
HANGUP = [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []  # not on Windows
STOPS = (signal.SIGINT, signal.SIGTERM, *HANGUP)  # each asks a command to end
PIPE = 13  # the number of SIGPIPE, which Windows has not
BY_SIGNAL = 128  # the exit code of a command that a signal ended, less the signal's number
# The flags that stand for the library's arguments, as the advice of an Adjustable names them.
FLAGS = {
    "intensity_range=(low, high)": "--range=LOW,HIGH",
    "index=": "--index",
    "channel=": "--channel",
    "limit=": "--memory_limit",
    "axis=": "--axes=",
    "entry=": "--entry=",
    "prefix=": "--prefix=",
}

GIB = 2**30
EVERY = 30  # seconds between reports of progress
Item = TypeVar("Item")
Main = Callable[[Sequence[str]], int]


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UsageError with one line, also for a value that is empty.

    An option of `type=str` may be empty.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register("type", None, given)
        self.register("type", Path, lambda text: Path(given(text)))

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{' '.join(message.splitlines())} (see --help)")

    if not TYPE_CHECKING:  # its types are argparse's, which declares overloads

        def parse_known_args(self, args=None, namespace=None):
            """Parse as argparse does, which in Python 3.11 takes the value of `--flag=--` away."""
            for argument in args or ():
                if argument.startswith("-") and argument.endswith("=--"):
                    self.error(f"{argument}: a flag cannot have the value --")
            return super().parse_known_args(args, namespace)


def given(text: str) -> str:
    """Return what an option is given, which may not be nothing, as --model=$MODEL is without MODEL.

    Raises: argparse.ArgumentTypeError.
    """
    if not text:
        raise argparse.ArgumentTypeError("expected a value, got nothing")
    return text


def memory(gib: float) -> int:
    """Return the bytes of --memory_limit, at most 2**62.

    Raises: UsageError unless it is a number above 0.
    """
    if not 0 < gib < math.inf:
        raise UsageError(f"--memory_limit={gib}: expected GiB, more than 0")
    return int(min(gib * GIB, 1 << 62))


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


def progress(items: Iterable[Item], total: int) -> Iterator[Item]:
    """Yield `items`; print every EVERY seconds how many are done and when the rest will be.

    Args:
        total: how many there are.
    """
    begun = told = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - told > EVERY:
            rest = timedelta(seconds=round((now - begun) / done * (total - done)))
            print(f"{done} of {total} inputs  ETA {rest}", flush=True)
            told = now
        yield item


def for_each(files: Mapping[Path, Item], work: Callable[[Path, Item], str]) -> int:
    """Print what `work` says of each file, or why it cannot be read; return how many cannot.

    Args:
        work: takes a file and its value in `files`; may raise InputError.
    """
    unread = 0
    for file, value in progress(files.items(), len(files)):
        try:
            print(work(file, value))
        except InputError as error:
            line = f"error: {file}: {message(error)}"
            print(line.replace(f"{file}: {file}", str(file)), file=sys.stderr)
            unread += 1
    return unread


def exit_code_and_line(error: BaseException) -> tuple[int, str | None]:
    """Return (exit code, message) of an error; no message where a traceback is needed.

    What the operating system refuses counts as bad input. A closed pipe has an empty message.
    """
    if isinstance(error, EmjaxError):
        return error.code, message(error)
    if isinstance(error, Stopped | KeyboardInterrupt):
        received = error.received if isinstance(error, Stopped) else signal.SIGINT
        return BY_SIGNAL + received, f"stopped by {received.name}; only what was finished is kept"
    if isinstance(error, BrokenPipeError):
        return BY_SIGNAL + PIPE, ""
    if isinstance(error, OSError) and error.errno:
        problem = error.strerror or os.strerror(error.errno)
        if error.filename is not None:
            problem = f"{os.fsdecode(error.filename)}: {problem}"
        return InputError.code, f"{problem}; {ADVICE.get(error.errno, 'check the disk')}"
    return 1, None


class Stopped(KeyboardInterrupt):
    """A signal asked the command to end."""

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(received)
        self.received = received


def stop_on_signals() -> list[Stopped]:
    """Let each of STOPS raise Stopped, once, in the main thread; a second one ends the process.

    A signal that the process was started to ignore, as by nohup, stays ignored. Returns the list
    that the exception is put into as well, because a library may replace it with one of its own.
    """
    raised: list[Stopped] = []
    handled = [each for each in STOPS if signal.getsignal(each) is not signal.SIG_IGN]

    def stop(number: int, frame: object) -> None:
        for each in handled:
            signal.signal(each, signal.SIG_DFL)
        raised.append(Stopped(signal.Signals(number)))
        raise raised[0]

    for each in handled:
        signal.signal(each, stop)
    return raised


def run(main: Callable[..., int | None], *arguments: Any) -> NoReturn:
    """Exit with the code that `main(*arguments)` returns, or with an error's line and code."""
    stopped = stop_on_signals()
    open_streams()
    try:
        try:
            code = main(*arguments)
        except SystemExit as end:  # of --help
            code = end.code
        sys.stdout.flush()
    except BaseException as error:
        said = isinstance(error, EmjaxError) or not stopped
        code, line = exit_code_and_line(error if said else stopped[0])
        if line is None:
            raise
        if line:
            with contextlib.suppress(OSError):  # the terminal may be closed
                print(f"error: {line}", file=sys.stderr)
    drop_unwritten()
    sys.exit(code)


def open_streams() -> None:
    """Let everything be printed: to nowhere where the streams are closed, as those of a daemon.

    Characters that the terminal's encoding lacks are printed as their numbers.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", errors="backslashreplace"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def drop_unwritten() -> None:
    """Make the end of the process quiet where its output is closed: Python would complain then."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError):  # a stream without a file
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class LastingStream:
    """A stream that drops what it cannot write, because its pipe or its terminal is closed.

    Attributes:
        error: what the first failed write raised; None so far.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write `text` or drop it."""
        self._try(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered or drop it."""
        self._try(self.stream.flush)

    def _try(self, do: Callable[..., object], *arguments: str) -> None:
        if self.error is None:
            try:
                do(*arguments)
            except OSError as error:
                self.error = error


@contextlib.contextmanager
def lasting_output() -> Generator[Callable[[], bool]]:
    """Let no failed print end what is inside the `with`, which asks instead whether one failed.

    Yields: a function that returns whether the output is closed.

    Raises: BrokenPipeError in place of Interrupted if a pipe is closed.
    """
    out, err = LastingStream(sys.stdout), LastingStream(sys.stderr)
    streams: tuple[Any, Any] = out, err
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        try:
            yield lambda: bool(out.error or err.error)
        except Interrupted as stopped:
            for error in (out.error, err.error):
                if isinstance(error, BrokenPipeError):
                    raise error from stopped
            raise
