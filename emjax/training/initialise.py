"""The weights a run starts from."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from emjax.config import Config
from emjax.errors import InputError, note
from emjax.inference.training_data import pixel_size_remark
from emjax.models import pretrained, transfer
from emjax.models.build import build_abstract
from emjax.models.model import Model
from emjax.models.network import Network
from emjax.models.saved import inside, read
from emjax.parallel import processes
from emjax.runs.checkpoints import load_generator
from emjax.runs.provenance import ranking, selection, versions_of

Arrays = dict[str, np.ndarray]


def transfer_weights(generator: Network, module: Model, initialise: Config) -> Network:
    """Return `generator`, a Network of `module`, with the weights that `initialise` names.

    Raises: InputError, UsageError as `load_old_weights`, `transfer.check_same_wiring` and
        `transfer.fill`.
    """
    params, stats, model = load_old_weights(initialise)
    transfer.check_same_wiring(build_abstract(model), module)
    generator, account = transfer.fill(generator, params, stats, fresh=initialise.fresh)
    processes.print_once(f"from {initialise.workdir}: {account}")
    return generator


def note_pixel_size(workdir: str, sizes: Sequence[float] | None) -> None:
    """Note if the model in `workdir` was trained at a pixel size that is far from `sizes`.

    Args:
        sizes: the smallest and the largest nm per pixel of the records; None: unknown.
    """
    path = inside(workdir) / "config.json"
    trained = json.loads(path.read_text()).get("nm_per_pixel") if path.exists() else None
    if not trained or not sizes:
        return
    theirs, ours = (math.sqrt(smallest * largest) for smallest, largest in (trained, sizes))
    if pixel_size_remark(sizes, (theirs, theirs)) and pixel_size_remark(trained, (ours, ours)):
        note(
            workdir,
            f"its training images had {theirs:.3g} nm per pixel, {theirs / ours:.3g} times the "
            f"{ours:.3g} of these records; at one pixel size, the same things have the same size",
        )


def load_old_weights(initialise: Config) -> tuple[Arrays, Arrays, dict[str, Any]]:
    """Return (params, stats, model field) of the run or the model in `initialise.workdir`.

    Arrays that a converted file lacked are left out: their initial values are up to each run.

    Raises: InputError if the folder is neither, or has no such step.
    """
    folder = pretrained.find(initialise.workdir)
    if (folder / "model.safetensors").exists():
        *parts, config = read(folder)
        untrained = config.get("untrained", ())
        params, stats = (
            {path: value for path, value in part.items() if path not in untrained} for part in parts
        )
        return params, stats, config["model"]
    if not (folder / "config.json").exists():
        raise InputError(f"{folder}: neither a run (config.json) nor a model (model.safetensors)")
    config = json.loads((folder / "config.json").read_text())
    score, higher_is_better = ranking(config)
    step = initialise.step
    if step == "best":  # as in its model/
        step = selection(versions_of(folder), config)
    params, stats = load_generator(
        folder / "checkpoints", step, score=score, higher_is_better=higher_is_better
    )
    return params, stats, config["model"]
