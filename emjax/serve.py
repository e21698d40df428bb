"""A page to drop micrographs on: python -m emjax.serve

Prints an address to open in a browser on this machine. What is dropped there is kept in a private
folder, predicted and measured as `emjax predict` and `emjax measure` do it, and deleted half an
hour after the page was closed, or when this command ends.
"""

import contextlib
import ipaddress
import secrets
import socket
import sys
from collections.abc import Sequence

from emjax import cli
from emjax.errors import UsageError, imported, note
from emjax.inference.options import MEMORY

LOOPBACK = ("127.0.0.1", "localhost")
CONCURRENT = 64  # requests at once; further ones are told to come back


@cli.command
def main(arguments: Sequence[str]) -> int:
    """Serve the page until the command is stopped; returns 0."""
    parser = cli.Parser(prog="emjax serve", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--port", type=int, default=8765, help="default: 8765")
    add("--host", default=LOOPBACK[0], help="the address of this machine to listen at; by default "
        "127.0.0.1, which other machines cannot reach")  # fmt: skip
    add("--memory_limit", type=float, default=MEMORY, help="GiB for an image and the network")
    add("--upload_limit", type=float, default=2, help="GiB of one file")
    options = parser.parse_args(arguments)
    if not 0 < options.port < 1 << 16:
        raise UsageError(f"--port={options.port}: expected a number from 1 to 65535")
    for name in ("memory_limit", "upload_limit"):
        if not 0 < getattr(options, name) < 1 << 20:
            raise UsageError(f"--{name}={getattr(options, name)}: expected GiB, more than 0")
    imported("starlette", "app")
    uvicorn = imported("uvicorn", "app")
    from emjax.apps.web.server import Page
    from emjax.apps.web.sessions import Limits

    upload = int(options.upload_limit * (1 << 30))
    limits = Limits(upload=upload, session=4 * upload, memory=options.memory_limit)
    key, names = "", LOOPBACK
    if options.host not in LOOPBACK:
        key, names = secrets.token_urlsafe(16), (in_address(options.host),)
    listening = listen(options.host if key else LOOPBACK[0], options.port)
    if key:
        note(f"--host={options.host}", "other machines can reach this page; whoever has its "
             "address with the key can use it, and others may read along")  # fmt: skip
    end = "" if options.port == 80 else f":{options.port}"  # which browsers leave out, too
    page = Page({f"{name}{end}" for name in names}, limits, key)
    address = f"http://{names[0]}{end}/{f'?key={key}' if key else ''}"
    print(f"open {address} in a browser; Ctrl-C ends it", flush=True)
    config = uvicorn.Config(
        page.application(), log_level="error", limit_concurrency=CONCURRENT, timeout_keep_alive=30,
        timeout_graceful_shutdown=3, h11_max_incomplete_event_size=1 << 16,
    )  # fmt: skip
    with contextlib.suppress(KeyboardInterrupt), listening:  # how it is meant to end
        uvicorn.Server(config).run(sockets=[listening])
    return 0


def in_address(host: str) -> str:
    """Return how browsers write a host.

    Raises: UsageError if it stands for all addresses of this machine.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        if host:
            return host.lower()
        address = None
    if address is None or address.is_unspecified:
        raise UsageError(
            f"--host={host}: expected one address or name of this machine, by which browsers will "
            "call it"
        )
    return f"[{address}]" if address.version == 6 else str(address)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens there.

    Raises: UsageError if that is impossible.
    """
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server((where[0], where[1]), family=family)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no such name"
        raise UsageError(
            f"--host={host} --port={port}: cannot be listened at: {reason}; choose another"
        ) from None


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
