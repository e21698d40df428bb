"""Pretrain on unlabelled electron micrographs, finetune on few labels.

    import emjax

    micrograph = emjax.read("image.tif")
    model = emjax.load_model("runs/segment")
    mask = model.mask(micrograph.image)
    emjax.write("mask.tif", mask, micrograph.nm_per_pixel)

Importing emjax loads nothing else; each name below is loaded when it is first used.
"""

import importlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emjax.apps.model import Model, load_model
    from emjax.inference.predictor import Predictor
    from emjax.micrographs import Micrograph, read, read_stack, write

__version__ = "0.1.0"

__all__ = [
    "Micrograph",
    "Model",
    "Predictor",
    "load_model",
    "read",
    "read_stack",
    "versions",
    "write",
]

MODULES = {  # where each name is that is loaded when it is first used (PEP 562)
    "Micrograph": "emjax.micrographs",
    "read": "emjax.micrographs",
    "read_stack": "emjax.micrographs",
    "write": "emjax.micrographs",
    "Model": "emjax.apps.model",
    "Predictor": "emjax.inference.predictor",
    "load_model": "emjax.apps.model",
}


def __getattr__(name: str) -> Any:
    """Return the public name `name`, loading its module."""
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *MODULES})


def versions(libraries: Iterable[str]) -> dict[str, str]:
    """Return {library: its version, or "missing"}, emjax first, which need not be installed."""
    from importlib import metadata  # slow to load

    def version(library: str) -> str:
        try:
            return metadata.version(library)
        except metadata.PackageNotFoundError:
            return "missing"

    return {"emjax": __version__, **{library: version(library) for library in libraries}}


def code_digest() -> str:
    """Return twelve hexadecimal digits of the SHA-256 of the source files of emjax."""
    import hashlib
    from pathlib import Path

    package = Path(__file__).parent
    digest, start = hashlib.sha256(), len(package.parts)
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{'/'.join(path.parts[start:])}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]
