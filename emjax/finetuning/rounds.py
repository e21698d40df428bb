"""A finetuning's folder: its record, and what is set aside when the pairs have changed."""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from emjax.errors import InputError, UsageError
from emjax.files import check_writable, lock_folder, write_atomically

RECORD = "finetune.json"  # what the command was called with, and what came of it

DATA = "data"  # the folder of the records
ADVICE = "wait for it, or choose another --out"
DIGEST = 64  # characters, of an image and its target

Splits = dict[str, str]  # by name of a pair


class Earlier(NamedTuple):
    """A finished finetuning, set aside, some of whose pairs have changed since."""

    folder: Path
    splits: Splits | None  # of those that held some out; None after a cross-validation
    changed: list[str]  # names of pairs that are new or have changed
    gone: list[str]
    seen: set[str]  # names of pairs that it, or one that it continued, was trained on


def read_record(out: Path) -> dict[str, Any]:
    """Return the record of a finetuning; {} of a folder that is not there or empty.

    Raises: UsageError for a folder of something else.
    """
    if not out.exists() or not any(not p.name.endswith(".partial") for p in out.iterdir()):
        return {}
    try:
        record = json.loads((out / RECORD).read_text())
        [record[key] for key in ("options", "pairs", "earlier", "splits", "finished")]
        return record
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(
            f"--out={out}: expected a new folder or one of emjax finetune, got other files; choose "
            "another"
        ) from None


def base_of(out: Path) -> str | None:
    """Return the base that a finetuning was begun with; None of a new folder or another's."""
    whole = out.exists() or not begun(out).exists()
    try:
        return read_record(out if whole else begun(out)).get("options", {}).get("base")
    except (UsageError, OSError):  # `check_out` says so
        return None


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record of a finetuning."""
    write_atomically(folder / RECORD, (json.dumps(record, indent=1) + "\n").encode())


def begun(out: Path) -> Path:
    """Return the folder that becomes `out` when what is in `out` is set aside."""
    return out.absolute().with_name(f".{out.absolute().name}.begun")


def check_out(out: Path, asked: Mapping[str, Any]) -> None:
    """Raise UsageError unless `out` is new, or of a finetuning with the same options.

    Args:
        asked: the options, as they read back from JSON.
    """
    check_writable(out)
    if not out.exists() and begun(out).exists():  # stopped between two renames
        begun(out).rename(out)
    before = read_record(out).get("options")
    if before is None or before == asked:
        return
    changed = sorted(name for name in {**before, **asked} if before.get(name) != asked.get(name))

    old, new = (", ".join(_flag(n, options.get(n)) for n in changed) for options in (before, asked))
    raise UsageError(
        f"--out={out} was begun with {old}, this call has {new}; choose another --out or delete it"
    )


def _flag(name: str, value: object) -> str:
    """Return how an option was given on the command line, in words if it was not."""
    if value is None or value is False:
        return f"no --{name}"
    return f"--{name}" if value is True else f"--{name}={value}"


def begin(out: Path, asked: Mapping[str, Any], digests: Splits) -> dict[str, Any]:
    """Return the record of a finetuning, new or begun before, and write it if it is new.

    What is in `out` of other pairs is set aside first; a finished one is to be continued.

    Args:
        asked: as `check_out` takes it.
        digests: of the pairs, by name.

    Raises: InputError if another process uses what is to be set aside.
    """
    record = read_record(out)
    if record and record["pairs"] == digests:
        return record
    new: dict[str, Any] = dict(
        options=asked, pairs=digests, earlier=None, splits=None, finished=False
    )
    if not record:
        out.mkdir(parents=True, exist_ok=True)
        write_record(out, new)
        return new
    used = (out / DATA, out, *out.glob("folds/*"), *out.glob("trials/*"))  # by it, by trainings
    with contextlib.ExitStack() as held:
        for folder in filter(Path.exists, used):
            held.enter_context(lock_folder(folder, ADVICE))
        _set_aside(out, record, new)
    return new


def hold(out: Path) -> AbstractContextManager[None]:
    """Return the lock of a finetuning that has begun, for as long as it goes on.

    Raises: InputError, on entering, if another process holds it.
    """
    (out / DATA).mkdir(exist_ok=True)
    return lock_folder(out / DATA, ADVICE)


def _set_aside(out: Path, record: Mapping[str, Any], new: dict[str, Any]) -> None:
    """Rename `out`, which has `record`, and begin it anew with the record `new`."""
    whole = out.absolute()
    pattern = re.compile(re.escape(f"{whole.name}.before-") + r"(\d+)")
    numbers = [
        int(m[1]) for p in out.absolute().parent.iterdir() if (m := pattern.fullmatch(p.name))
    ]
    aside = whole.with_name(f"{whole.name}.before-{max(numbers, default=0) + 1}")
    new["earlier"] = str(aside) if record["finished"] else record["earlier"]
    shutil.rmtree(begun(out), ignore_errors=True)
    begun(out).mkdir()
    write_record(begun(out), new)
    for path in out.glob("**/config.json"):  # its records move with it
        if path.parent == out or path.parent.name != "model":
            config = json.loads(path.read_text())
            inside = os.path.relpath(path.parent, out)
            config["data"]["dir"] = str(Path(os.path.normpath(aside / inside), "data"))
            write_atomically(path, json.dumps(config, indent=2).encode())
    whole.rename(aside)
    begun(out).rename(whole)
    print(f"the pairs have changed: {out} is {aside} now")


def earlier_of(record: Mapping[str, Any]) -> Earlier | None:
    """Return the finetuning that a record continues, if it does.

    A finished one needs it no more.

    Raises: InputError if it is gone.
    """
    if not record["earlier"]:
        return None
    folder = Path(record["earlier"])
    before = read_record(folder)
    if not before and record["finished"]:
        return None
    if not before:
        raise InputError(
            f"{folder}: no such folder, expected the finetuning that --out continues; choose "
            "another --out"
        )
    old, new = before["pairs"], record["pairs"]
    then = names_then(old, new)
    splits = before["splits"]
    if splits and held_out(splits) not in splits.values():
        splits = None
    changed = [n for n in new if n not in then or old[then[n]][:DIGEST] != new[n][:DIGEST]]
    return Earlier(
        folder,
        splits and {name: splits[was] for name, was in then.items() if was in splits},
        changed,
        [name for name in old if name not in then.values()],
        seen_by(before, new),
    )


def names_then(old: Splits, new: Splits) -> dict[str, str]:
    """Return {name of a pair: its name in an earlier training}, of those that it had.

    Pairs are the same by what is in their files, else by their names.

    Args:
        old, new: digests by name.
    """
    named = {digest[:DIGEST]: name for name, digest in old.items()}
    there = {digest[:DIGEST] for digest in new.values()}
    then: dict[str, str] = {}
    for name, digest in new.items():
        same = old.get(name, "")[:DIGEST]
        if same == digest[:DIGEST]:
            then[name] = name
        elif digest[:DIGEST] in named:  # it has another name now
            then[name] = named[digest[:DIGEST]]
        elif same and same not in there:  # corrected
            then[name] = name
    return then


def seen_by(before: Mapping[str, Any] | None, new: Splits) -> set[str]:
    """Return which pairs a finetuning, or one that it continued, was trained on.

    Args:
        before: its record.
        new: digests of the pairs by name.
    """
    seen: set[str] = set()
    while before:
        splits = before["splits"] or {}
        then = names_then(before["pairs"], new)
        seen |= {name for name, was in then.items() if splits.get(was, "train") == "train"}
        folder = before["earlier"] if before.get("continued", True) else None
        before = read_record(Path(folder)) if folder else None
    return seen


def held_out(split_of: Splits) -> str:
    """Return the split that is for the score: `test`, or `val` where there is no `test`."""
    return "test" if "test" in split_of.values() else "val"
