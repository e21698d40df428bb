"""The weights a run starts from."""

import json
from pathlib import Path

from emjax.errors import InputError
from emjax.models import transfer
from emjax.models.build import build_abstract
from emjax.models.saved import read
from emjax.parallel import processes
from emjax.runs.checkpoints import load_generator
from emjax.runs.provenance import ranking


def transfer_weights(generator, module, initialise):
    """`generator`, a Network of `module`, with the weights that `initialise` names."""
    params, stats, model = load_old_weights(initialise)
    transfer.check_same_wiring(build_abstract(model), module)
    generator, account = transfer.fill(generator, params, stats, fresh=initialise.fresh)
    processes.print_once(f"from {initialise.workdir}: {account}")
    return generator


def load_old_weights(initialise):
    """(params, stats, model) of the run or the converted model that `initialise.workdir` names.

    Without what a converted file lacked: that has initial values, which are each run's own.
    """
    folder = Path(initialise.workdir)
    if (folder / "model.safetensors").exists():
        *parts, config = read(folder)
        lacking = config.get("untrained", ())
        params, stats = (
            {path: value for path, value in part.items() if path not in lacking} for part in parts
        )
        return params, stats, config["model"]
    if not (folder / "config.json").exists():
        raise InputError(f"{folder}: neither a run (config.json) nor a model (model.safetensors)")
    config = json.loads((folder / "config.json").read_text())
    score, higher = ranking(config)
    params, stats = load_generator(
        folder / "checkpoints", initialise.step, score=score, higher_is_better=higher
    )
    return params, stats, config["model"]
