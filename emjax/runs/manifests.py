"""Manifests: a checkpoint is valid if every file of it matches its hash."""

import hashlib
import json
from pathlib import Path

from emjax.errors import InputError, first_line
from emjax.files import write_atomically

UNFINISHED = "its save was not completed"


def seal(folder: Path, process: int, n_processes: int) -> None:
    """Write the manifest of the files that `process` wrote below `folder`."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    mine = {
        name: digest(folder / name)
        for name in names
        if writer(name) == process and not is_manifest(folder / name)
    }
    content = json.dumps(mine, indent=0).encode()
    write_atomically(folder / f"manifest.{process}-of-{n_processes}.json", content)


def writer(name: str) -> int:
    """Return the process that wrote a file: Orbax has a folder, or a file, for each."""
    for part in name.split("/"):
        before, _, number = part.rpartition("process_")
        if before in ("", "ocdbt.") and number.isdigit():
            return int(number)
    return 0


def is_manifest(path: Path) -> bool:
    """Return whether `path` is a manifest by its name."""
    return path.name.startswith("manifest.") and "-of-" in path.name


def digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fault(folder: Path) -> str | None:
    """Return what is wrong with the checkpoint in `folder`, in words; None if it is valid.

    Raises: InputError if the disk cannot be read now; another time it may.
    """
    try:
        if not is_finished(folder):
            return UNFINISHED
        for manifest in filter(is_manifest, folder.iterdir()):
            for name, expected in json.loads(manifest.read_bytes()).items():
                if digest(folder / name) != expected:
                    return f"{name} differs from what was written (SHA-256)"
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        return f"{error.filename} is missing"
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error}") from error
    except (AttributeError, ValueError) as error:
        return f"a manifest is damaged: {first_line(error)}"
    return None


def is_finished(folder: Path) -> bool:
    """Return whether every process has sealed the checkpoint in `folder`, and it is still there."""
    try:
        found = {path.name for path in folder.iterdir() if is_manifest(path)}
    except FileNotFoundError:  # a run has just removed it
        return False
    counts = {name.removesuffix(".json").rpartition("-")[2] for name in found}
    return any(
        count.isdigit() and found >= {f"manifest.{i}-of-{count}.json" for i in range(int(count))}
        for count in counts
    )
