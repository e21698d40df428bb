"""Models by name from the Hugging Face Hub, or a server with its layout. Needs the extra `hub`.

Three files are fetched and read as data; no code of a repository is run. What a name stood for when
it was first used on this machine is kept: if it stands for another model later, it is refused.
"""

import functools
import json
import os
import re
from pathlib import Path
from typing import Any

from emjax.errors import InputError, UsageError, first_line, imported, note
from emjax.files import write_atomically

PREFIX = "hf:"
NAME = re.compile(r"hf:([\w.-]+/[\w.-]+?)(?:@([0-9a-f]{12,64}))?")
LARGEST = {"config.json": 1 << 20, "README.md": 1 << 22, "model.safetensors": 2 << 30}  # bytes
SHORT = 16  # digits of a digest in messages


def known_file() -> Path:
    """Return where it is kept what names stood for."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "emjax/models.json"


@functools.cache
def fetch(name: str) -> Path:
    """Return the folder, in the Hub's cache, of hf:OWNER/NAME or hf:OWNER/NAME@DIGEST.

    Without a connection, or with HF_HUB_OFFLINE=1, that is what was fetched before.

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
    digest = saved.digest(folder)
    if pinned:
        if not digest.startswith(pinned):
            raise InputError(
                f"{name}: the digest of the model is {digest[: len(pinned)]}, expected {pinned}: "
                "it was changed, or is another one"
            )
        return folder
    check_known(repository, digest)
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
            folders.add(Path(hub.hf_hub_download(repository, file)).parent)
    except errors.EntryNotFoundError as error:
        missing = isinstance(error, errors.LocalEntryNotFoundError)
        reason = "there is no connection, and it was not fetched before" if missing else (
            "there is no model.safetensors, config.json and README.md of emjax")  # fmt: skip
        raise InputError(f"{name}: {reason}") from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(f"{name}: there is no such repository, or it is private") from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise InputError(f"{name}: cannot be fetched: {first_line(error)}") from error
    if len(folders) != 1:
        raise InputError(f"{name}: was changed while it was fetched; run it again")
    return folders.pop()


def check_known(repository: str, digest: str) -> None:
    """Keep what a name stands for when it is used first, and compare with it later.

    Raises: InputError if it is another model now.
    """
    path = known_file()
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        known = {}
    before = known.get(repository)
    if before is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**known, repository: digest}, indent=1, sort_keys=True) + "\n"
        write_atomically(path, text.encode())
        pin = f"{PREFIX}{repository}@{digest[:SHORT]}"
        note(f"{PREFIX}{repository}", f"is used for the first time here; --model={pin} names this "
             "model for good")  # fmt: skip
    elif before != digest:
        named = f"{PREFIX}{repository}"
        raise InputError(
            f"{named}: was the model {before[:SHORT]} when it was first used here, and is "
            f"{digest[:SHORT]} now; if you trust it, name it {named}@{digest[:SHORT]}"
        )
