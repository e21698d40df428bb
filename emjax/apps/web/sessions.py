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

LINES = 200  # of a piece of work that are kept
LONGEST = 500  # characters of a line
LONGEST_NAME = 120  # characters of a label
GONE = 60  # seconds without a word from the page, after which its work is stopped
FORGOTTEN = 1800  # seconds after which its files are deleted
KINDS = ("look", "run")


@dataclass(frozen=True)
class Limits:
    """What visitors may take.

    Attributes:
        upload: bytes of one file.
        session: bytes of all files of a visitor.
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
    """A micrograph that was dropped: its label, and where it is."""

    label: str
    path: Path
    size: int
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Work:
    """A process that looks at a file, or predicts and measures.

    Attributes:
        state: waiting, running, done, failed or stopped.
        lines: what it said, paths replaced by labels.
        result: what its worker returned.
    """

    folder: Path
    state: str = "waiting"
    lines: list[str] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)
    process: asyncio.subprocess.Process | None = None
    task: asyncio.Task[None] | None = None


def label_of(name: str) -> str:
    """Return what a file is called on the page: the last part of a name, without odd characters."""
    last = name.replace("\\", "/").rpartition("/")[2]
    kept = "".join(letter if letter.isprintable() else "?" for letter in last).strip()
    return kept[-LONGEST_NAME:] or "file"


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
        self.receiving = 0  # bytes of files that are on their way

    def number(self) -> int:
        """Return a number that was not given before."""
        self.next += 1
        return self.next - 1

    async def receive(self, name: str, declared: int | None, body: AsyncIterator[bytes]) -> int:
        """Keep a file that arrives; returns its number.

        Raises: UsageError where it is larger, or one more, than the limits allow; then nothing of
            it is kept.
        """
        if len(self.files) >= self.limits.files:
            raise UsageError(f"{self.limits.files} files are there already; delete some")
        label, number = label_of(name), self.number()
        folder = self.folder / f"file-{number}"
        folder.mkdir()
        path = folder / f"micrograph{suffix_of(label)}"
        size = 0
        try:
            self.check_room(label, declared or 0)
            with open(path, "wb") as file:
                async for part in body:
                    size += len(part)
                    self.receiving += len(part)
                    self.check_room(label, size)
                    file.write(part)
            if declared is not None and size != declared:
                raise UsageError(f"{label}: only {amount(size)} of {amount(declared)} arrived")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            self.receiving -= size
        self.files[number] = File(label, path, size)
        return number

    def check_room(self, label: str, size: int) -> None:
        """Raise UsageError if a file of `size` bytes is too large, or all are together."""
        if size > self.limits.upload:
            raise UsageError(
                f"{label}: more than {amount(self.limits.upload)}; use emjax predict, which has no "
                "limit"
            )
        kept = sum(file.size for file in self.files.values())
        if kept + max(size, self.receiving) > self.limits.session:
            raise UsageError(
                f"{label}: with it, your files are more than {amount(self.limits.session)}; delete "
                "some"
            )

    def forget(self, number: int) -> None:
        """Delete a file."""
        file = self.files.pop(number)
        shutil.rmtree(file.path.parent, ignore_errors=True)

    def start(self, order: dict[str, Any], turn: asyncio.Semaphore) -> int:
        """Begin work; returns its number.

        Args:
            order: what `worker.main` takes, less the folder; `files` are numbers.
            turn: that work waits for.
        """
        number = self.number()
        folder = self.folder / f"work-{number}"
        folder.mkdir()
        work = self.works[number] = Work(folder)
        files = {str(self.files[each].path): self.files[each].label for each in order["files"]}
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
        work.process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "emjax.apps.web.worker"),
            stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.STDOUT, limit=1 << 20,
            start_new_session=True,
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
                    os.killpg(process.pid, 9)
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
        work.lines = [*work.lines, line[:LONGEST]][-LINES:]

    async def stop(self, number: int | None = None) -> None:
        """Stop one piece of work, or all."""
        chosen = [self.works[number]] if number is not None else list(self.works.values())
        tasks = [work.task for work in chosen if work.task and not work.task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for work in chosen:
            if work.state in ("waiting", "running"):  # it had not begun
                work.state = "stopped"

    async def close(self) -> None:
        """Stop all work and delete all files."""
        await self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


RESULT = "result: "  # begins the line in which a worker says its result
