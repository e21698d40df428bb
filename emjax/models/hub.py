"""Models by name from the Hugging Face Hub, or a server with its layout. Needs the extra `hub`.

Three files are fetched and read as data; no code of a repository is run. What a name stood for when
it was first used on this machine is kept: if it stands for another model later, it is refused.
"""

import functools
import json
import re
from pathlib import Path
from typing import Any

from emjax.errors import InputError, UsageError, first_line, imported, note
from emjax.files import cache, write_atomically

PREFIX = "hf:"
NAME = re.compile(r"hf:([\w.-]+/[\w.-]+?)(?:@([0-9a-f]{12,64}))?")
LARGEST = {"config.json": 1 << 20, "README.md": 1 << 22, "model.safetensors": 2 << 30}  # bytes
SHORT = 16  # digits of a digest in messages


@functools.cache
def fetch(name: str) -> Path:
    """Return the folder, in the Hub's cache, of hf:OWNER/NAME or hf:OWNER/NAME@DIGEST.

    Without a connection, or with HF_HUB_OFFLINE=1, that is what was fetched last.

    Raises: UsageError for another form of name, or if huggingface_hub is not installed; InputError
        if there is no such model, a file is too large, or the digest is not the one expected.
    """
    from emjax.models import saved  # which asks this module for folders

    match = NAME.fullmatch(name)
    if not match:
        raise UsageError(
            f"{name}: expected hf:OWNER/NAME, or hf:OWNER/NAME@DIGEST with 12 digits or more"
        )
    repository, pinned = match.groups()
    folder = downloaded(name, repository)
    saved.read(folder)  # says what is wrong with it
    digest = saved.digest(folder)
    if not pinned:
        check_known(repository, digest)
    elif not digest.startswith(pinned):
        raise InputError(
            f"{name}: the digest of the model is {digest[: len(pinned)]}, expected {pinned}: it "
            "was changed, or is another one"
        )
    return folder


def downloaded(name: str, repository: str) -> Path:
    """Return the folder with the files of a repository, all of one commit.

    Raises: InputError as `fetch`.
    """
    hub: Any = imported("huggingface_hub", "hub")
    errors: Any = imported("huggingface_hub.errors", "hub")
    unreachable = (ConnectionError, TimeoutError, errors.LocalEntryNotFoundError)
    folders: set[Path] = set()  # one for each commit
    try:
        for file, largest in LARGEST.items():
            try:
                size = hub.hf_hub_download(repository, file, dry_run=True).file_size
            except unreachable:
                size = 0  # of what is there already
            if size is None or size > largest:
                raise InputError(
                    f"{name}: its {file} has {size or 'an unknown number of'} bytes, expected at "
                    f"most {largest}"
                )
            path = Path(hub.hf_hub_download(repository, file))
            folders.add(path.parent)
            if file == "config.json":
                check_is_ours(name, path)
    except errors.EntryNotFoundError as error:
        missing = isinstance(error, errors.LocalEntryNotFoundError)
        reason = "there is no connection, and it was not fetched before" if missing else (
            "there is no model.safetensors, config.json and README.md of emjax")  # fmt: skip
        raise InputError(f"{name}: {reason}") from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(f"{name}: there is no such repository, or it is private") from error
    except errors.HFValidationError as error:
        raise UsageError(f"{name}: {first_line(error)}") from error
    except InputError:
        raise
    except Exception as error:  # of the connection: each library has its own
        raise InputError(f"{name}: cannot be fetched: {first_line(error)}") from error
    if len(folders) != 1:
        raise InputError(f"{name}: was changed while it was fetched; run it again")
    return folders.pop()


def check_is_ours(name: str, path: Path) -> None:
    """Raise InputError unless a config.json is of a model of emjax, before the weights come."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        config = None
    if not isinstance(config, dict) or not {"format", "emjax", "model"} <= config.keys():
        raise InputError(f"{name}: expected a model of emjax, got another kind of repository")


def known_file(repository: str) -> Path:
    """Return where it is kept what a name stood for."""
    return cache() / "models" / repository.replace("/", "--")


def check_known(repository: str, digest: str) -> None:
    """Keep what a name stands for when it is used first, and compare with it later.

    Raises: InputError if it is another model now.
    """
    path, named = known_file(repository), f"{PREFIX}{repository}"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        before = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        before = ""
    if before == digest:
        return
    if before:
        raise InputError(
            f"{named}: was the model {before[:SHORT]} when it was first used here, and is "
            f"{digest[:SHORT]} now; if you trust it, name it {named}@{digest[:SHORT]}, or delete "
            f"{path}"
        )
    write_atomically(path, digest.encode())
    note(named, f"is used for the first time here; --model={named}@{digest[:SHORT]} takes this "
         "model or none")  # fmt: skip
