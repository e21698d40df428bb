"""Pretrain on unlabelled electron micrographs, finetune on few labels."""

import importlib.metadata

__version__ = "0.1.0"


def versions(libraries):
    """{library: its version, or "missing"}, emjax first, which need not be installed."""

    def of(library):
        try:
            return importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            return "missing"

    return {"emjax": __version__, **{library: of(library) for library in libraries}}
