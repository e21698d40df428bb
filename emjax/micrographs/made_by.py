"""What emjax writes keeps what it was made from, and nothing else is replaced.

Each result has one line of JSON in its tag or chunk Software, or in its first comment, with digests
of the result itself and of what it was made from. It holds no time, path, host or number of
workers, so that the same work gives the same bytes. Whatever is edited or was made by something
else differs from its digest, and counts as the user's own.
"""

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from emjax.errors import UsageError

RESULTS = "emjax-results"  # folder beside the inputs, where results go by default
# Kinds of images next to a mask, and in their names: x.tif, x.overlay.png, x.labels.tif. Each class
# of a model of several has a probability of its own: x.probability_1.tif.
NEXT_TO_MASKS = ("overlay", "labels", "probability", "spread")
OF_MASKS = ("mask", *NEXT_TO_MASKS)
START = 'emjax {"'
HEAD = 1 << 16  # bytes, of which the first ones hold the line


def line(made: Mapping[str, Any], kind: str, pixels: np.ndarray) -> str:
    """Return the text that a result of a `kind` is to keep.

    Args:
        made: JSON values, what determines the result.
        pixels: the result.
    """
    facts = {**made, "kind": kind, "result": digest(pixels)}
    return f"emjax {json.dumps(facts, sort_keys=True)}"


def digest(pixels: np.ndarray) -> str:
    """Return the SHA-256 of the values of an array, in hexadecimal digits.

    Sides of length 1 make no difference, since a TIFF may lose them.
    """
    native = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("="))
    shape = [side for side in pixels.shape if side != 1]
    total = hashlib.sha256(f"{native.dtype.name} {shape} ".encode())
    total.update(native.data)
    return total.hexdigest()


def sealed(made: Mapping[str, Any], kind: str, html: str) -> bytes:
    """Return the content of an HTML file that keeps the line, as a comment before its text."""
    text = html.encode()
    said = line(made, kind, np.frombuffer(text, np.uint8)).replace(">", "\\u003e")
    return f"<!-- {said} -->\n".encode() + text


def _values(path: Path) -> np.ndarray:
    """Return what the digest of a result is of: pixels, or the bytes of a text."""
    if path.suffix == ".html":
        return np.frombuffer(path.read_bytes().partition(b"\n")[2], np.uint8)
    return np.asarray(Image.open(path)) if path.suffix == ".png" else tifffile.imread(path)


def read(path: Path) -> dict[str, Any] | None:
    """Return what a result says of its making; None if it is not as emjax wrote it."""
    try:
        status = path.stat()
    except OSError:
        return None
    return _read(path.absolute(), status.st_mtime_ns, status.st_size)


def kind(path: Path) -> str:
    """Return what kind of result a file is, without the name of a class; "" as `read` has None."""
    return str((read(path) or {}).get("kind", "")).partition("_")[0]


def restored_of(kinds: Mapping[Path, str]) -> set[Path]:
    """Return the files that emjax restored from another one of these: x.tif of x.tif or x.dm3.

    Args:
        kinds: {file: its `kind`}.
    """
    others = {name for file in kinds if not kinds[file] for name in (file.name, file.stem)}
    return {file for file in kinds if kinds[file] == "restored" and file.stem in others}


@functools.lru_cache(maxsize=1 << 14)
def _read(path: Path, changed: int, size: int) -> dict[str, Any] | None:
    """Return what `read` does, of a file as it was `changed` last."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD).decode("latin-1")
        found = head.find(START)
        if found < 0:
            return None
        facts, _ = json.JSONDecoder().raw_decode(head, found + len("emjax "))
        return facts if facts["result"] == digest(_values(path)) else None
    except Exception:  # whatever a file leads decoders to: it is not a result of emjax
        return None


def check_replaceable(paths: Iterable[Path]) -> None:
    """Raise UsageError if a file is there that is not a result of emjax as it was written."""
    others = [path for path in paths if os.path.lexists(path) and read(path) is None]
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise UsageError(
            f"{others[0]}{more} would be overwritten: expected nothing or a result of emjax, got "
            "another file, or one that was changed since; choose another --out, or --overwrite"
        )
