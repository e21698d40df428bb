"""Whole-file writes and folder locks."""

import contextlib
import errno
import os
import secrets
from collections.abc import Generator
from pathlib import Path

from emjax.errors import InputError

LONGEST_NAME = 255  # bytes, on the usual file systems


@contextlib.contextmanager
def lock_folder(folder: Path, advice: str) -> Generator[None]:
    """Hold the lock of `folder`; it is released when the process ends, however it ends.

    Raises: InputError naming the folder, with `advice`, if another process holds the lock.
    """
    import fcntl  # not on Windows, where nothing takes a lock: there is no training or building

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise InputError(f"{folder} is in use by another process; {advice}") from None
    finally:
        os.close(handle)


def check_writable(folder: Path) -> None:
    """Raise the OSError that writing to `folder`, or making it, would raise; write nothing.

    Called before hours of work that would end in it.
    """
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(nearest))
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(nearest))


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that readers see either the old file or the new one."""
    draft = path.with_name(draft_name(path.name, f".{secrets.token_hex(4)}.partial"))
    try:
        draft.write_bytes(content)
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def cache() -> Path:
    """Return the folder in which emjax keeps what it can make or fetch again.

    That is in XDG_CACHE_HOME if it is an absolute path, as its specification has it.

    Raises: RuntimeError if this user has no home.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (folder if folder.is_absolute() else Path.home() / ".cache") / "emjax"


def draft_name(name: str, ending: str) -> str:
    """Return the name of a file that becomes `name`: with `ending`, and cut to 255 bytes."""
    kept = os.fsencode(name)[: LONGEST_NAME - len(ending)]
    return os.fsdecode(kept) + ending
