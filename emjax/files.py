"""Whole-file writes and folder locks."""

import contextlib
import fcntl
import os
from collections.abc import Generator
from pathlib import Path

from emjax.errors import InputError


@contextlib.contextmanager
def lock_folder(folder: Path, advice: str) -> Generator[None]:
    """Hold the lock of `folder`; it is released when the process ends, however it ends.

    Raises: InputError naming the folder, with `advice`, if another process holds the lock.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise InputError(f"{folder} is in use by another process; {advice}") from None
    finally:
        os.close(handle)


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that readers see either the old file or the new one."""
    draft = path.with_name(path.name + ".partial")
    draft.write_bytes(content)
    os.replace(draft, path)
