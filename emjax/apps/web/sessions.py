"""What one visitor of the page has: files in a private folder, and the work on them.

Files and work go by numbers; what the visitor calls a file is a label that is shown, and never a
path. Work is done by a process of its own, so that a file that is too large, or broken, ends that
process with one line, and memory is what the page itself takes.
"""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emjax.errors import InputError, UsageError
from emjax.micrographs import reading
from emjax.micrographs.units import amount

RESULT = "result: "  # begins the line in which a worker says its result
LINES = 200  # of a piece of work that are kept
LONGEST = 500  # characters of a line
LONGEST_NAME = 120  # characters of a label
GONE = 240  # seconds without a word from the page, after which its work is stopped; browsers let
# pages in the background speak once a minute
FORGOTTEN = 1800  # seconds after which its files are deleted
UNFINISHED = 8  # pieces of work of a visitor that may wait
TEXT = "a text that lies next to an image; drop the image alone, and type its pixel size"
BESIDE = {  # endings of files that hold no image, and what to do instead
    ".emi": "its images are in the .ser files of the same name; drop those",
    **dict.fromkeys((".hdr", ".mdoc", ".txt"), TEXT),
}


@dataclass(frozen=True)
class Limits:
    """What visitors may take.

    Attributes:
        upload: bytes of one file.
        session: bytes of all files of a visitor, results included.
        files: of a visitor.
        sessions: visitors at once.
        memory: GiB for an image, and the network on it.
    """

    upload: int = 2 << 30
    session: int = 8 << 30
    files: int = 500
    sessions: int = 32
    memory: float = 4.0


@dataclass
class File:
    """A micrograph that was dropped: its label, where it is, and the work that looks at it."""

    label: str
    path: Path
    look: int = 0


@dataclass
class Work:
    """A process that looks at a file, or predicts and measures.

    Attributes:
        kind: look or run.
        state: waiting, running, done, failed or stopped.
        lines: what it said, paths replaced by labels.
        result: what its worker returned.
        flags: of its order.
    """

    folder: Path
    kind: str = "run"
    flags: dict[str, Any] = field(default_factory=dict)
    state: str = "waiting"
    lines: list[str] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None

    @property
    def is_unfinished(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ("waiting", "running")


def named(number: int) -> str:
    """Return what the file of a number is called, without its suffix; so are its results."""
    return f"micrograph-{number}"


def label_of(name: str) -> str:
    """Return what a file is called on the page: the last part of a name, without odd characters."""
    last = name.replace("\\", "/").rpartition("/")[2]
    kept = "".join(letter if letter.isprintable() else "?" for letter in last).strip()
    return kept[-LONGEST_NAME:] or "file"


def distinct(labels: list[str]) -> list[str]:
    """Return labels of which no two are the same: a.tif, a.tif (2)."""
    found: list[str] = []
    for label in labels:
        number, named = 1, label
        while named in found:
            number += 1
            named = f"{label} ({number})"
        found.append(named)
    return found


def used(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    sizes = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # it may be deleted just now
            sizes += path.stat().st_size if path.is_file() else 0
    return sizes


def suffix_of(label: str) -> str:
    """Return the ending of a label if it is one of those that readers know, else ""."""
    known = [*reading.SUFFIXES, *reading.COMPRESSED]
    lower = label.lower()
    return max((suffix for suffix in known if lower.endswith(suffix)), key=len, default="")


class Session:
    """One visitor."""

    def __init__(self, root: Path, limits: Limits) -> None:
        self.token = secrets.token_urlsafe(32)
        self.folder = Path(tempfile.mkdtemp(prefix="session-", dir=root))
        self.limits = limits
        self.files: dict[int, File] = {}
        self.works: dict[int, Work] = {}
        self.heard = time.monotonic()
        self.next = 1
        self.arriving: dict[int, int] = {}  # bytes of the files that are on their way, so far

    def number(self) -> int:
        """Return a number that was not given before."""
        self.next += 1
        return self.next - 1

    async def receive(self, name: str, declared: int | None, body: AsyncIterator[bytes]) -> int:
        """Keep a file that arrives; returns its number.

        Raises: UsageError where it is larger, or one more, than the limits allow, or of BESIDE;
            then nothing of it is kept.
        """
        label = label_of(name)
        if advice := BESIDE.get(Path(label).suffix.lower()):
            raise UsageError(f"{label}: {advice}")
        if len(self.files) >= self.limits.files:
            raise UsageError(f"{self.limits.files} files are there already; delete some")
        number = self.number()
        folder = self.folder / f"file-{number}"
        folder.mkdir()
        path = folder / f"{named(number)}{suffix_of(label)}"
        size, room = 0, self.limits.session - used(self.folder)
        self.arriving[number] = declared or 0
        try:
            self.check_room(label, declared or 0, room)
            with open(path, "wb") as file:
                async for part in body:
                    size += len(part)
                    self.arriving[number] = max(size, declared or 0)
                    self.check_room(label, size, room)
                    file.write(part)
            if declared is not None and size != declared:
                raise UsageError(f"{label}: only {amount(size)} of {amount(declared)} arrived")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            del self.arriving[number]
        self.files[number] = File(label, path)
        return number

    def check_room(self, label: str, size: int, room: int) -> None:
        """Raise UsageError if a file of `size` bytes is too large, or there is no `room` for it."""
        if size > self.limits.upload:
            raise UsageError(
                f"{label}: more than {amount(self.limits.upload)}; use emjax predict, which has no "
                "limit"
            )
        if max(size, sum(self.arriving.values())) > room:
            raise UsageError(
                f"{label}: with it, your files and results are more than "
                f"{amount(self.limits.session)}; remove some"
            )

    async def forget(self, number: int) -> None:
        """Delete a file, and what was made to look at it."""
        file = self.files.pop(number)
        shutil.rmtree(file.path.parent, ignore_errors=True)
        await self.drop(file.look)

    async def drop(self, number: int) -> None:
        """Stop a piece of work and delete its results."""
        if number in self.works:
            await self.stop(number)
            if work := self.works.pop(number, None):
                shutil.rmtree(work.folder, ignore_errors=True)

    def start(self, order: dict[str, Any], turn: asyncio.Semaphore) -> int:
        """Begin work; returns its number.

        Args:
            order: what `worker.main` takes, less the folder; `files` are numbers.
            turn: that work waits for.

        Raises: UsageError if too much waits already.
        """
        if sum(work.is_unfinished for work in self.works.values()) >= UNFINISHED:
            raise UsageError(f"{UNFINISHED} pieces of work are not finished; wait for one")
        number = self.number()
        folder = self.folder / f"work-{number}"
        folder.mkdir()
        work = self.works[number] = Work(folder, order["kind"], order["flags"])
        chosen = [self.files[each] for each in order["files"]]
        labels = distinct([file.label for file in chosen])
        files = {str(file.path): label for file, label in zip(chosen, labels, strict=True)}
        whole = {**order, "files": files, "out": str(folder), "memory": self.limits.memory}
        work.task = asyncio.create_task(self.do(work, whole, turn))
        return number

    async def do(self, work: Work, order: dict[str, Any], turn: asyncio.Semaphore) -> None:
        """Run a worker to its end."""
        try:
            async with turn:
                await self.run(work, order)
        except asyncio.CancelledError:
            work.state = "stopped"
            work.lines.append("stopped")
        except Exception as error:  # of the machine: no process, no memory
            work.state = "failed"
            work.lines.append(f"error: {error}")

    async def run(self, work: Work, order: dict[str, Any]) -> None:
        """Start the process of `work` and take what it says."""
        pipe = asyncio.subprocess.PIPE
        work.state = "running"
        # -P: a tifffile.py in the current folder is not the library.
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "emjax.apps.web.worker"),
            stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.STDOUT, limit=1 << 20,
        )  # fmt: skip
        assert process.stdin and process.stdout
        try:
            process.stdin.write(json.dumps(order).encode() + b"\n")
            await process.stdin.drain()
            process.stdin.close()
            while line := await process.stdout.readline():
                self.take(work, line.decode(errors="replace").rstrip(), order)
            code = await process.wait()
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        work.state = "done" if work.result and code in (0, InputError.code) else "failed"
        if code not in (0, InputError.code, UsageError.code):
            work.lines.append(
                f"error: it ended with {code}"
                + (": too little memory, perhaps; try fewer or smaller files" if code < 0 else "")
            )

    def take(self, work: Work, line: str, order: dict[str, Any]) -> None:
        """Keep a line that a worker said, or its result."""
        if line.startswith(RESULT):
            work.result = json.loads(line.removeprefix(RESULT))
            return
        for path, label in order["files"].items():
            line = line.replace(path, label)
        line = line.replace(f"{order['out']}{os.sep}", "").replace(str(self.folder), "")
        if line in work.lines:  # a note of both commands
            return
        work.lines = [*work.lines, line[:LONGEST]][-LINES:]

    async def stop(self, number: int | None = None) -> None:
        """Stop one piece of work, or all."""
        chosen = [self.works[number]] if number is not None else list(self.works.values())
        tasks = [work.task for work in chosen if work.task and not work.task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for work in chosen:
            if work.is_unfinished:  # it had not begun
                work.state = "stopped"

    async def close(self) -> None:
        """Stop all work and delete all files."""
        await self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
