"""Manifests: a folder is complete if every file matches its hash."""

import hashlib
import json

from emjax.errors import InputError, first_line
from emjax.files import write_atomically

UNFINISHED = "it was not saved to its end"


def seal(folder, process, processes):
    """Write the manifest of the files that `process` wrote below `folder`: what makes it good."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    mine = {
        name: digest(folder / name)
        for name in names
        if writer(name) == process and not is_manifest(folder / name)
    }
    content = json.dumps(mine, indent=0).encode()
    write_atomically(folder / f"manifest.{process}-of-{processes}.json", content)


def writer(name):
    """The process that wrote a file of a checkpoint: Orbax has a folder, or a file, for each."""
    for part in name.split("/"):
        before, _, number = part.rpartition("process_")
        if before in ("", "ocdbt.") and number.isdigit():
            return int(number)
    return 0


def is_manifest(path):
    return path.name.startswith("manifest.") and "-of-" in path.name


def digest(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fault(folder):
    """What is wrong with the checkpoint in `folder`, in words; None if it is good.

    Raises: InputError if the disk does not let it be read, which another time it may.
    """
    try:
        if not is_finished(folder):
            return UNFINISHED
        for manifest in filter(is_manifest, folder.iterdir()):
            for name, expected in json.loads(manifest.read_bytes()).items():
                if digest(folder / name) != expected:
                    return f"{name} is not what was written (SHA-256)"
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        return f"{error.filename} is missing"
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error}") from error
    except (AttributeError, ValueError) as error:
        return f"a manifest is damaged: {first_line(error)}"
    return None


def is_finished(folder):
    """Whether every process has sealed the checkpoint in `folder`."""
    found = {path.name for path in folder.iterdir() if is_manifest(path)}
    counts = {name.removesuffix(".json").rpartition("-")[2] for name in found}
    return any(
        count.isdigit() and found >= {f"manifest.{i}-of-{count}.json" for i in range(int(count))}
        for count in counts
    )
