"""Download files of a Zenodo record, verified by checksum, and snapshots of GitHub repositories."""

import hashlib
import http.client
import json
import shutil
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_builders.common import file_sha256
from emjax.errors import InputError

ZENODO = "https://zenodo.org/api/records"
GITHUB = "https://github.com"
TIMEOUT = 60  # seconds without an answer


def from_zenodo(
    record: str, names: Iterable[str], folder: str | Path, *, base: str = ZENODO
) -> None:
    """Download those files `names` of a Zenodo `record` into `folder` that it lacks.

    A file gets its name when it is whole and has the MD5 that Zenodo publishes. Until then it is
    NAME.partial, which the next call continues.

    Raises: InputError that names the files to download by hand, if there is no network, the record
    lacks a file, or the download differs from what was published.
    """
    folder = Path(folder)
    missing = [name for name in names if not (folder / name).exists()]
    if not missing:
        return
    address = f"{base}/{record}"
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT) as answer:
            published = {file["key"]: file for file in json.load(answer)["files"]}
        absent = [name for name in missing if name not in published]
        if absent:
            raise ValueError(f"it has no {', '.join(absent)}, only {', '.join(sorted(published))}")
        folder.mkdir(parents=True, exist_ok=True)
        for name in missing:
            address = published[name]["links"]["self"]
            _fetch(address, published[name], folder / name)
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException) as error:
        raise InputError(
            f"{address}: {_reason(error)}. Try again, or download "
            f"{', '.join(missing)} from https://doi.org/10.5281/zenodo.{record} into {folder}"
        ) from None


def from_github(repository: str, folder: str | Path, *, base: str = GITHUB) -> None:
    """Unpack the latest snapshot of `repository` ("owner/name") into `folder`, once.

    GitHub publishes no checksum of it, so the SHA-256 of the download is printed and kept next to
    it, in name.sha256.

    Raises: InputError that says what to do by hand, if there is no network or the download is no
    whole archive.
    """
    folder, name = Path(folder), repository.split("/")[1]
    record = folder / f"{name}.sha256"
    if record.exists():
        return
    address = f"{base}/{repository}/archive/refs/heads/master.zip"
    partial, unpacked = folder / f"{name}.zip.partial", folder / f".{name}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        print(f"fetching {address}", flush=True)
        with urllib.request.urlopen(address, timeout=TIMEOUT) as answer, open(partial, "wb") as out:
            shutil.copyfileobj(answer, out, 1 << 20)
            size = int(answer.headers.get("Content-Length") or out.tell())
        if partial.stat().st_size != size:
            raise ValueError(f"it broke off after {partial.stat().st_size} of {size} bytes")
        digest = file_sha256(partial)
        with zipfile.ZipFile(partial) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > 10 * size:
                raise ValueError("it unpacks to more than ten times its size")
            archive.extractall(unpacked)  # skips whatever would be outside
        for path in unpacked.iterdir():
            path.rename(folder / path.name)
        record.write_text(f"{digest}  {address}\n")
        print(f"{name}: SHA-256 {digest}, {size / 1e6:.1f} MB")
    except (OSError, ValueError, http.client.HTTPException, zipfile.BadZipFile) as error:
        raise InputError(
            f"{address}: {_reason(error)}. Try again, or run "
            f"git clone {GITHUB}/{repository} in {folder}"
        ) from None
    finally:
        partial.unlink(missing_ok=True)
        shutil.rmtree(unpacked, ignore_errors=True)


def _reason(error: Exception) -> str:
    """Return what went wrong, in one line, and close the answer of a server."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
    return " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__


def _fetch(address: str, file: dict[str, Any], path: Path) -> None:
    """Download `address` to `path`.

    Args:
        file: its entry in Zenodo's record.
    """
    partial, size = path.with_name(f"{path.name}.partial"), int(file["size"])
    kind, published = file["checksum"].split(":")
    have = partial.stat().st_size if partial.exists() else 0
    print(f"{path.name}: fetching {(size - have) / 1e6:.1f} MB", flush=True)
    if have < size:
        request = urllib.request.Request(address)
        if have:
            request.add_header("Range", f"bytes={have}-")
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            with open(partial, "ab" if answer.status == 206 else "wb") as out:
                shutil.copyfileobj(answer, out, 1 << 20)
    have = partial.stat().st_size
    if have < size:
        raise ValueError(f"it broke off after {have} of {size} bytes; the next call continues it")
    with open(partial, "rb") as content:
        digest = hashlib.file_digest(content, kind).hexdigest()
    if digest != published:
        partial.unlink()
        raise ValueError(f"{path.name} has the {kind.upper()} {digest}, expected {published}")
    partial.rename(path)
