"""The trained models that come with the package, found by name and checked by digest.

What each is for, was trained on, and how good it is: the README.md in its folder.
"""

import functools
import json
import os
from pathlib import Path

from emjax.errors import InputError, UsageError

BOX = Path(__file__).with_name("box")
DIGESTS: dict[str, str] = json.loads((BOX / "digests.json").read_text())  # name: `saved.digest`


def find(model: str | Path) -> Path:
    """Return the folder of `model`: of the package if it is one of its names, else as given.

    A Path is always a folder of the user's, as is a text with a separator, such as "./particles".
    A text that begins with "hf:" is fetched from the Hugging Face Hub.

    Raises: UsageError for a name of the package that is also a path here; else as `hub.fetch`.
    """
    if isinstance(model, str) and model.startswith("hf:"):
        from emjax.models import hub  # of which most need nothing

        return hub.fetch(model)
    if not isinstance(model, str) or model not in DIGESTS:
        return Path(model)
    if os.path.lexists(model):
        raise UsageError(
            f"{model}: is a model that comes with emjax, and a file or folder here; expected "
            f"{os.path.join(os.curdir, model)} for yours; to use the one of emjax, run the command "
            "in another folder"
        )
    return BOX / model


def of_package(name: str) -> str | Path:
    """Return the folder of a model that was picked from `for_use`, whatever is in this folder.

    What is none of its names is returned as it is.
    """
    return BOX / name if name in for_use() else name


@functools.cache
def for_use() -> dict[str, str]:
    """Return {name: task} of the models that have one; others are to start a finetuning from."""
    configs = {name: json.loads((BOX / name / "config.json").read_text()) for name in DIGESTS}
    return {name: config["task"] for name, config in configs.items() if config["task"]}


def check(name: str, digest: str) -> None:
    """Raise InputError if a model of the package does not have the digest that it had there."""
    if DIGESTS.get(name) != digest:
        raise InputError(
            f"{BOX / name}: digest {digest[:12]}, expected {DIGESTS.get(name, 'none')[:12]}: the "
            "model was changed or damaged; install emjax again"
        )
