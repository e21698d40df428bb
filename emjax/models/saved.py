"""A trained network as people keep it: model.safetensors, config.json and a README card."""

import json
from pathlib import Path

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

import emjax
from emjax.errors import InputError
from emjax.files import write_atomically
from emjax.models.build import assemble

FORMAT = 1
PREFIXES = ("params/", "stats/")


def write(folder, network, config):
    """Put `network` and its `config` under `folder`, each file whole or not at all.

    Args:
        config: `model` (the config's field), `task` or None, `range_rule`, `clip` (whether values
            beyond the range are cut off; default yes) and what else a reader should know; JSON
            values.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        prefix + path: np.asarray(value)
        for prefix, part in zip(PREFIXES, (network.params, network.stats), strict=True)
        for path, value in jax.device_get(part).items()
    }
    config = {"format": FORMAT, "emjax": emjax.__version__, **config}
    write_atomically(folder / "model.safetensors", save(arrays))
    write_atomically(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    write_atomically(folder / "README.md", card(config, network).encode())


def read(folder):
    """(params, stats, config) of a folder that `write` made, or of a workdir that has it as model/.

    The arrays are on the host.

    Raises: InputError if a file is missing or damaged.
    """
    folder = Path(folder)
    inner = folder / "model"
    folder = inner if inner.is_dir() else folder
    try:
        config = json.loads((folder / "config.json").read_text())
        arrays = load_file(folder / "model.safetensors")
    except FileNotFoundError as error:
        raise InputError(
            f"{error.filename or folder}: no such file; {folder} should be a run's workdir that "
            "has a best model, or its model/ folder"
        ) from error
    except (json.JSONDecodeError, SafetensorError, OSError) as error:
        raise InputError(f"{folder}: not a readable model: {error}") from error
    if config.get("format") != FORMAT:
        raise InputError(f"{folder}: model of format {config.get('format')}; {FORMAT} was due")
    params, stats = (
        {path.removeprefix(prefix): value for path, value in arrays.items()
         if path.startswith(prefix)}
        for prefix in PREFIXES
    )  # fmt: skip
    return params, stats, config


def load(folder):
    """(module, config) ready for `module(x, train=False)`, of what `read` reads."""
    params, stats, config = read(folder)
    return assemble(config["model"], params, stats), config


def card(config, network):
    model = {name: value for name, value in config["model"].items() if value is not None}
    parameters = sum(np.size(value) for value in network.params.values())
    facts = {
        "network": f"{json.dumps(model)}, {parameters} parameters",
        "task": config["task"] or "restoration",
        "trained on": config.get("trained_on"),
        "updates": config.get("step"),
        "intensity rule": config["range_rule"],
        **{name: f"{value:.4f}" for name, value in config.get("scores", {}).items()},
    }
    told = "\n".join(f"- {name}: {value}" for name, value in facts.items() if value is not None)
    return f"""# {config.get("title", "emjax model")}

{told}

Use it: `python -m emjax.predict --model=DIR --out=DIR FILE_OR_FOLDER...`
"""
