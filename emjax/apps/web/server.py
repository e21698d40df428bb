"""The page's server: an ASGI application of Starlette.

Nobody but the visitor of a session can act in it: each request has to name this server as its host,
and each that does something has to bring the session's cookie, its token in a header, and no origin
but this one.
"""

# Starlette is of the extra `app`.
# pyright: reportMissingImports=false

import asyncio
import contextlib
import json
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from emjax import micrographs
from emjax.apps.web.sessions import FORGOTTEN, GONE, Limits, Session
from emjax.errors import UsageError
from emjax.inference.options import MODEL
from emjax.models import pretrained

COOKIE = "emjax_session_{}"  # with the port: browsers send cookies to all ports of a host
LARGEST = 1 << 20  # bytes of an order
AT_ONCE = 1  # pieces of work: each may take the memory limit
SAFE = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'"
    "; script-src 'self'; connect-src 'self'; frame-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
# A report is a page of its own with pictures in it, and no script.
REPORT = {
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "sandbox; frame-ancestors 'self'"
}
TYPES = {".png": "image/png", ".html": "text/html; charset=utf-8"}
FLAGS = {  # what the page may set, and of which kind
    "model": str,
    "pixel_size": float,
    "range": str,
    "mrc_rows": str,
    "cut_banner": bool,
    "no_resample": bool,
    "min_size": int,
    "no_split": bool,
}
Handler = Callable[[Request, Session], Awaitable[Response]]


class Refused(Exception):
    """A request that is not answered as it asks: its status, and why in one line."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Page:
    """All sessions, and what each request does.

    Args:
        hosts: what a request may name as its host, such as "127.0.0.1:8765".
        key: what the address of the page has to hold as ?key=; "" on this machine alone.
    """

    def __init__(self, hosts: set[str], limits: Limits, key: str = "") -> None:
        self.hosts, self.limits, self.key = hosts, limits, key
        self.sessions: dict[str, Session] = {}
        self.turn = asyncio.Semaphore(AT_ONCE)
        self.root = Path(tempfile.mkdtemp(prefix="emjax-serve-"))  # for this user alone
        template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
        self.template = jinja2.Environment(autoescape=True).from_string(template)
        self.script = Path(__file__).with_name("page.js").read_text(encoding="utf-8")

    def application(self) -> Starlette:
        """Return the ASGI application."""

        def own(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
            async def handle(request: Request) -> Response:
                return await handler(request, self.session_of(request))

            return handle

        return Starlette(
            routes=[
                Route("/", self.page),
                Route("/page.js", self.send_script),
                Route("/files", own(self.list), methods=["GET"]),
                Route("/files", own(self.receive), methods=["POST"]),
                Route("/files/{file:int}", own(self.forget), methods=["DELETE"]),
                Route("/work", own(self.start), methods=["POST"]),
                Route("/work/{work:int}", own(self.tell)),
                Route("/work/{work:int}", own(self.stop), methods=["DELETE"]),
                Route("/work/{work:int}/{name:path}", own(self.send)),
                Route("/here", own(self.here), methods=["POST"]),
            ],
            middleware=[Middleware(Guard, page=self)],
            lifespan=self.lifespan,
        )

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Look after the sessions while the server runs; delete everything at its end."""
        watch = asyncio.create_task(self.watch())
        try:
            yield
        finally:
            watch.cancel()
            await asyncio.gather(*(session.close() for session in self.sessions.values()))
            shutil.rmtree(self.root, ignore_errors=True)

    async def watch(self) -> None:
        """Stop the work of pages that were closed; later delete their files."""
        while True:
            await asyncio.sleep(5)
            await self.tend()

    async def tend(self) -> None:
        """Do what `watch` does, once."""
        for name, session in list(self.sessions.items()):
            silent = time.monotonic() - session.heard
            if silent > FORGOTTEN:
                del self.sessions[name]
                await session.close()
            elif silent > GONE:
                await session.stop()

    def check(self, request: Request) -> None:
        """Raise Refused unless a request names this server, and comes from its page."""
        if request.headers.get("host", "") not in self.hosts:
            raise Refused(421, "this server is not called so; open the address that it printed")
        acts = request.method not in ("GET", "HEAD")
        origin = request.headers.get("origin")
        site = request.headers.get("sec-fetch-site", "same-origin")
        mine = {f"{scheme}://{host}" for host in self.hosts for scheme in ("http", "https")}
        if origin is not None and origin not in mine:
            raise Refused(403, "a page of another origin cannot do this")
        if acts and site not in ("same-origin", "none"):
            raise Refused(403, "a page of another site cannot do this")

    def session_of(self, request: Request) -> Session:
        """Return the session of a request.

        Raises: Refused if it has none, or does not show that it comes from the session's page.
        """
        session = self.sessions.get(request.cookies.get(cookie_of(request), ""))
        if session is None:
            raise Refused(401, "this page is too old: load it again")
        if request.method not in ("GET", "HEAD"):
            shown = request.headers.get("x-emjax-token", "")
            if not secrets.compare_digest(shown.encode(), session.token.encode()):
                raise Refused(403, "the token of the page is missing: load it again")
        session.heard = time.monotonic()
        return session

    async def page(self, request: Request) -> Response:
        """Send the page, with a session of its own."""
        given = request.query_params.get("key", "")
        if self.key and not secrets.compare_digest(given.encode(), self.key.encode()):
            raise Refused(403, "open the address that emjax serve printed, with its key")
        if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise Refused(403, "open this page by its address, not from another page")
        name = request.cookies.get(cookie_of(request), "")
        session = self.sessions.get(name)
        if session is None:
            await self.make_room()
            session, name = Session(self.root, self.limits), secrets.token_urlsafe(32)
            self.sessions[name] = session
        session.heard = time.monotonic()
        text = self.template.render(
            token=session.token,
            models=pretrained.for_use(),
            model=MODEL,
            rows=micrographs.MRC_ROWS,
        )
        response = HTMLResponse(text)
        response.set_cookie(cookie_of(request), name, httponly=True, samesite="strict")
        return response

    async def make_room(self) -> None:
        """Forget the oldest session without files if there are too many.

        Raises: Refused if all have files.
        """
        if len(self.sessions) < self.limits.sessions:
            return
        idle = [
            name
            for name, session in self.sessions.items()
            if not (session.files or session.arriving)
        ]
        if not idle:
            raise Refused(503, "too many visitors; close another page and wait half an hour")
        oldest = min(idle, key=lambda name: self.sessions[name].heard)
        await self.sessions.pop(oldest).close()

    async def send_script(self, request: Request) -> Response:
        """Send what the page does."""
        return Response(self.script, media_type="text/javascript")

    async def receive(self, request: Request, session: Session) -> Response:
        """Keep a file, and begin to look at it."""
        length = request.headers.get("content-length", "")
        name = request.query_params.get("name", "")
        declared = int(length) if length.isdecimal() else None
        number = await session.receive(name, declared, request.stream())
        file = session.files[number]
        try:
            file.look = session.start(dict(kind="look", files=[number], flags={}), self.turn)
        except UsageError:
            await session.forget(number)
            raise
        return JSONResponse({"file": number, "label": file.label, "work": file.look})

    async def list(self, request: Request, session: Session) -> Response:
        """Say which files are there, and the last run, for a page that was loaded again."""
        files = [
            {"file": number, "label": file.label, "work": file.look}
            for number, file in session.files.items()
        ]
        runs = [
            {"work": number, "pixel_size": work.flags.get("pixel_size")}
            for number, work in session.works.items()
            if work.kind == "run"
        ]
        return JSONResponse({"files": files, "run": runs[-1] if runs else None})

    async def forget(self, request: Request, session: Session) -> Response:
        """Delete a file."""
        number = request.path_params["file"]
        if number not in session.files:
            raise Refused(404, "there is no such file")
        await session.forget(number)
        return JSONResponse({})

    async def start(self, request: Request, session: Session) -> Response:
        """Begin to predict and measure."""
        order = await read_json(request)
        if not isinstance(order, dict) or not isinstance(order.get("files"), list):
            raise UsageError("expected files and flags")
        files = [each for each in order["files"] if isinstance(each, int)]
        if not files or any(each not in session.files for each in files):
            raise UsageError("no such file; drop it again")
        flags = checked_flags(order.get("flags", {}))
        earlier = [number for number, work in session.works.items() if work.kind == "run"]
        if any(session.works[number].is_unfinished for number in earlier):
            raise UsageError("a run is not finished, of this page or of another one; stop it first")
        number = session.start(dict(kind="run", files=files, flags=flags), self.turn)
        for each in earlier:  # one run is kept
            await session.drop(each)
        return JSONResponse({"work": number})

    def work_of(self, request: Request, session: Session) -> Any:
        """Return the Work that a request names."""
        work = session.works.get(request.path_params["work"])
        if work is None:
            raise Refused(404, "there is no such work")
        return work

    async def tell(self, request: Request, session: Session) -> Response:
        """Say how work goes."""
        work = self.work_of(request, session)
        return JSONResponse(
            {"state": work.state, "lines": work.lines, "result": work.result or None}
        )

    async def stop(self, request: Request, session: Session) -> Response:
        """Stop work."""
        self.work_of(request, session)
        await session.stop(request.path_params["work"])
        return JSONResponse({})

    async def send(self, request: Request, session: Session) -> Response:
        """Send a file that work has written: a picture, a report, or a download."""
        work, name = self.work_of(request, session), request.path_params["name"]
        there = {
            path.relative_to(work.folder).as_posix(): path
            for path in work.folder.rglob("*")
            if path.is_file() and not path.is_symlink()
        }
        if name not in there:
            raise Refused(404, "there is no such result")
        path = there[name]
        shown = TYPES.get(path.suffix)
        label = request.query_params.get("as", "")
        if shown and not label:
            headers = REPORT if path.suffix == ".html" else {}
            return FileResponse(path, media_type=shown, headers=headers)
        called = quote(label[:200] or path.name, safe="")
        return FileResponse(
            path,
            media_type="application/octet-stream",
            headers={"Content-Disposition": f"attachment; filename*=UTF-8''{called}"},
        )

    async def here(self, request: Request, session: Session) -> Response:
        """Note that the page is still open."""
        return JSONResponse({})


def cookie_of(request: Request) -> str:
    """Return the name of the cookie of this server."""
    return COOKIE.format(request.url.port or 80)


async def read_json(request: Request) -> Any:
    """Return what the body of a request says.

    Raises: UsageError for a large one, or if it is not JSON.
    """
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LARGEST:
            raise UsageError(f"expected an order of at most {LARGEST} bytes")
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise UsageError("expected JSON") from None


def checked_flags(given: Any) -> dict[str, Any]:
    """Return the flags of an order.

    Raises: UsageError for one that there is not, or of another kind.
    """
    flags: dict[str, Any] = {}
    for name, value in given.items() if isinstance(given, dict) else [("flags", given)]:
        kind = FLAGS.get(name)
        if kind is None:
            raise UsageError(f"{name}: expected one of {', '.join(FLAGS)}")
        if kind is float and type(value) is int and abs(value) < LARGEST:
            value = float(value)
        if type(value) is not kind:
            raise UsageError(f"{name}={value!r}: expected {kind.__name__}")
        flags[name] = value
    model = flags.get("model")
    if model is not None and model not in pretrained.for_use():
        raise UsageError(f"model={model}: expected one of {', '.join(pretrained.for_use())}")
    return flags


class Guard:
    """Checks each request before anything else, and makes one line of what is refused."""

    def __init__(self, app: Any, page: Page) -> None:
        self.app, self.page = app, page

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                there = {name.lower() for name, _ in message["headers"]}
                message["headers"] += [
                    (name.lower().encode(), value.encode())
                    for name, value in SAFE.items()
                    if name.lower().encode() not in there
                ]
            await send(message)

        request = Request(scope, receive)
        try:
            self.page.check(request)
            await self.app(scope, receive, with_headers)
        except Refused as error:
            await JSONResponse({"error": error.reason}, error.status)(scope, receive, with_headers)
        except UsageError as error:
            await JSONResponse({"error": str(error)}, 400)(scope, receive, with_headers)
        except ClientDisconnect:
            pass
        except OSError as error:  # the disk is full
            answer = JSONResponse({"error": f"cannot be kept: {error.strerror}"}, 507)
            await answer(scope, receive, with_headers)
