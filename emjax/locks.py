"""One process at a time in a folder."""

import contextlib
import fcntl
import os

from emjax.errors import BadInput


@contextlib.contextmanager
def alone_in(folder, advice):
    """Hold the lock of `folder`; it falls with this process, so a killed one blocks nobody.

    Raises: BadInput that names the folder and gives `advice` if another process holds it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise BadInput(f"{folder} is in use by another process; {advice}") from None
    finally:
        os.close(handle)
