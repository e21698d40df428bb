"""Whole-file writes and folder locks."""

import contextlib
import fcntl
import os

from emjax.errors import InputError


@contextlib.contextmanager
def lock_folder(folder, advice):
    """Hold the lock of `folder`; it falls with this process, so a killed one blocks nobody.

    Raises: InputError that names the folder and gives `advice` if another process holds it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise InputError(f"{folder} is in use by another process; {advice}") from None
    finally:
        os.close(handle)


def write_atomically(path, content):
    """Write `content` to `path` so that a reader sees the old file or the new one."""
    draft = path.with_name(path.name + ".partial")
    draft.write_bytes(content)
    os.replace(draft, path)
