"""What decoders log or warn of while they read a file, as notes that name the file.

Reading changes nothing that other code of the process sees, whatever other threads do:

- Log lines. A logger has one list of handlers for all threads, so nothing is added to it or
  removed from it while a file is read. The loggers of the decoders get one filter for good when
  they are imported here. It takes a warning or an error only in a context that reads a file, and
  passes on everything else unseen. The context is a ContextVar: each thread has its own, and the
  thread that Zarr decodes in inherits that of its reader.
- Python warnings. Until Python 3.14 no way to catch them is confined to a thread:
  `warnings.catch_warnings` replaces the filters of the process. So the caller's filters decide
  about them. The commands, which own their process, turn them into notes (emjax/cli.py).
"""

import contextlib
import logging
from collections.abc import Generator

from emjax.errors import library_messages, note

MESSAGES = 20  # notes of one file at most: broken files may have thousands
LENGTH = 200  # characters of a note


class _Collector(logging.Filter):
    """Takes the warnings and errors of a context that reads a file, and passes on the rest."""

    def filter(self, record: logging.LogRecord) -> bool:
        collected = library_messages.get()
        if collected is None or record.levelno < logging.WARNING:
            return True
        collected.append(record.getMessage())
        return False


_collector = _Collector()


def collect_from(library: str) -> None:
    """Let the loggers of an imported library and of its modules pass through the filter."""
    below = [
        name for name in list(logging.root.manager.loggerDict) if name.startswith(f"{library}.")
    ]
    for name in (library, *below):
        logging.getLogger(name).addFilter(_collector)  # nothing happens where it is already


@contextlib.contextmanager
def as_notes(path: object) -> Generator[None]:
    """Log what decoders report inside the `with` as notes on `path`, unless it raises an error."""
    collected: list[str] = []
    token = library_messages.set(collected)
    try:
        yield
    finally:
        library_messages.reset(token)
    for line in dict.fromkeys(collected[:MESSAGES]):
        note(path, " ".join(line.split())[:LENGTH])
