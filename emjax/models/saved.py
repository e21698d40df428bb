"""A trained network as people keep it: model.safetensors, config.json and a README card."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

import emjax
from emjax.errors import InputError, UsageError
from emjax.files import write_atomically
from emjax.models import pretrained

if TYPE_CHECKING:  # reading a model loads no JAX
    from emjax.models.network import Network

FORMAT = 1
PREFIXES = ("params/", "stats/")

Arrays = dict[str, np.ndarray]  # by path: {"down/0/conv1/kernel": array}


def write(folder: str | Path, network: "Network", config: Mapping[str, Any]) -> None:
    """Write `network` and its `config` to `folder`, each file whole or not at all.

    Args:
        config: `model` (the config's field), `task` or None, `range_rule`, `clip` (whether values
            beyond the range are clipped; default yes) and what else a reader should know; JSON
            values.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        prefix + path: np.asarray(value)
        for prefix, part in zip(PREFIXES, (network.params, network.stats), strict=True)
        for path, value in part.items()
    }
    config = {"format": FORMAT, "emjax": emjax.__version__, **config}
    write_atomically(folder / "model.safetensors", save(arrays))
    write_atomically(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    write_atomically(folder / "README.md", card(config, parameters(arrays)).encode())


def annotate(folder: Path, facts: Mapping[str, Any]) -> None:
    """Add `facts`, which predictions do not depend on, to a model's config.json and its card.

    Args:
        facts: JSON values, such as `held_out`, the score on held-out images in words.
    """
    config = {**json.loads((folder / "config.json").read_text()), **facts}
    arrays = load_file(folder / "model.safetensors")
    write_atomically(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    write_atomically(folder / "README.md", card(config, parameters(arrays)).encode())


def parameters(arrays: Arrays) -> int:
    """Return how many trained numbers a model has."""
    return sum(value.size for path, value in arrays.items() if path.startswith(PREFIXES[0]))


def check_replaceable(folder: Path, advice: str) -> None:
    """Raise UsageError, with `advice`, if a model in `folder` would replace files that are none."""
    files = [folder / name for name in ("model.safetensors", "config.json", "README.md")]
    there = [file for file in files if os.path.lexists(file)]
    try:
        is_model = "emjax" in json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        is_model = False
    if there and not is_model:
        raise UsageError(
            f"{there[0]} would be overwritten: expected a new folder or a model of emjax, got "
            f"another file; {advice}"
        )


def read(folder: str | Path) -> tuple[Arrays, Arrays, dict[str, Any]]:
    """Return (params, stats, config) of a folder that `write` made, or of a workdir with a model/.

    The arrays are on the host.

    Args:
        folder: or the name of a model that comes with the package.

    Raises: InputError if a file is missing or damaged; UsageError as `pretrained.find`.
    """
    folder = inside(folder)
    try:
        config = json.loads((folder / "config.json").read_text())
        arrays = load_file(folder / "model.safetensors")
    except FileNotFoundError as error:
        raise InputError(
            f"{error.filename or folder}: no such file; expected {folder} to be the workdir of a "
            "run that has saved a model, its model/ folder, or one of the models that come with "
            f"emjax: {', '.join(pretrained.DIGESTS)}"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError, OSError) as error:
        raise InputError(f"{folder}: not a readable model: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else "unknown"
        raise InputError(
            f"{folder}: expected a model of format {FORMAT}, got format {found}; "
            "a newer emjax may read it"
        )
    if folder.parent == pretrained.BOX:
        pretrained.check(folder.name, digest(folder))
    params, stats = (
        {
            path.removeprefix(prefix): value
            for path, value in arrays.items()
            if path.startswith(prefix)
        }
        for prefix in PREFIXES
    )
    return params, stats, config


def digest(folder: str | Path) -> str:
    """Return the SHA-256, in hexadecimal digits, of all that predictions of a model depend on.

    That is the weights, and of its config.json what is not about their making.
    """
    folder = inside(folder)
    config = json.loads((folder / "config.json").read_text())
    used = {name: config.get(name) for name in ("model", "task", "range_rule", "clip", "intensity")}
    # Of models from before they were used, the digest stays.
    later = ("nm_per_pixel", "only_to_start_from")
    used |= {name: config[name] for name in later if config.get(name)}
    total = hashlib.sha256(json.dumps(used, sort_keys=True).encode())
    total.update((folder / "model.safetensors").read_bytes())
    return total.hexdigest()


def inside(folder: str | Path) -> Path:
    """Return the folder of a model: of the package, by its name; `folder`; or model/ in a workdir.

    Raises: UsageError as `pretrained.find`.
    """
    found = pretrained.find(folder)
    inner = found / "model"
    return inner if inner.is_dir() else found


def load(folder: str | Path) -> tuple[Any, dict[str, Any]]:
    """Return (module, config) of what `read` reads.

    The module is one of `emjax.models.MODELS`, to be called as `module(images, train=False)`.
    """
    from emjax.models.build import assemble

    params, stats, config = read(folder)
    return assemble(config["model"], params, stats), config


def between(values: Sequence[float] | None) -> str | None:
    """Return the smallest and the largest of something in words; None without them."""
    return " to ".join(f"{value:.4g}" for value in dict.fromkeys(values)) if values else None


def card(config: Mapping[str, Any], count: int) -> str:
    """Return the text of the README.md of a model with `count` parameters."""
    model = {name: value for name, value in config["model"].items() if value is not None}
    facts = {
        "network": f"{json.dumps(model)}, {count} parameters",
        "task": config["task"] or "restoration",
        "trained on": config.get("trained_on"),
        "nm per pixel": between(config.get("nm_per_pixel")),
        "diameter of most particles, pixels": between(config.get("diameters")),
        "updates": config.get("step"),
        "intensity rule": config["range_rule"],
        "held-out images": config.get("held_out"),
        **{name: f"{value:.4f}" for name, value in config.get("scores", {}).items()},
    }
    lines = "\n".join(f"- {name}: {value}" for name, value in facts.items() if value is not None)
    return f"""# {config.get("title", "emjax model")}

{lines}

Use it: `python -m emjax.predict --model=DIR --out=DIR FILE_OR_FOLDER...`
"""
