"""What the fields of a config mean. Imports nothing heavy."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from emjax.errors import UsageError

RECIPES = Path(__file__).parents[1] / "configs"  # installed beside emjax, and so in a checkout

Config = Any  # an ml_collections.ConfigDict: its fields are not known to a type checker


# Every field of the recipes and what it means: docs/reference/configs.md is made from this.
FIELDS = {
    "seed": "seed of initial weights, order of the records, augmentation and corruption",
    "epochs": "passes over the records (or `passes_per_epoch` of them)",
    "passes_per_epoch": "passes over the records that count as one epoch",
    "log_every": "steps between reports of losses and pace",
    "eval_every": "steps between evaluations; 0: once per epoch",
    "save_every": "steps between checkpoints; 0: with the evaluations only",
    "data.dir": "folder of the datasets",
    "data.train": "(dataset, split) to train on, or several (dataset, split, weight)",
    "data.evals.val": "(dataset, split) that chooses the best checkpoint",
    "data.evals.test": "(dataset, split) scored at each new best and at the last step",
    "data.batch_size": "images per update, over all devices",
    "data.resident": "keep all records on the devices; unset: where they fit",
    "data.accumulate": "microbatches that a batch is computed in, one after the other",
    "mesh.fsdp": "devices that share each network's parameters",
    "mesh.space": "devices that share the height of each image",
    "objective.name": "how weights change: pix2pix, reconstruction, masked or supervised",
    "objective.l1_weight": "weight of L1 against the adversarial loss",
    "objective.corruption.blur": "(smallest, largest) sigma of the Gaussian blur, in pixels",
    "objective.corruption.blur_probability": "share of the images that are blurred",
    "objective.corruption.noise": "(smallest, largest) sigma of the Gaussian noise, as a fraction "
    "of the full range",
    "objective.corruption.dose": "(smallest, largest) electrons per pixel at full range of the "
    "Poisson noise; unset: none",
    "objective.masking.side": "side of a hidden block, in pixels",
    "objective.masking.share": "share of the pixels that is hidden",
    "task": "what is learned: segmentation, denoise, background or superresolution",
    "select": "which network the run keeps: `best`, of the best val score, or `last`",
    "initialise.workdir": "a pretraining run or a converted model; empty: random weights",
    "initialise.step": "which checkpoint of that run: `best`, `last` or a step",
    "initialise.fresh": "regular expressions of layers that keep random initial values",
    "augment.crop": "side of the random crop in pixels; 0: the whole patch",
    "augment.turns": "random flips and rotations by 90 degrees",
    "augment.resize": "largest random magnification; 0: none",
    "augment.mirror": "magnify below 1 beyond the patch's border, which is mirrored",
    "augment.noise_probability": "share of the images that get Gaussian, Poisson or speckle noise",
    "augment.gaussian": "largest sigma of Gaussian noise on every image, as a fraction of the full "
    "range",
    "model.name": "the generator: unet or hrnet",
    "model.blocks": "levels of the U-Net",
    "model.receptive_field": "receptive field of the U-Net, in pixels",
    "model.filters": "channels, one per level and one for the bottleneck; unset: the paper's",
    "model.pools": "pooling factor, one per level; unset: 2",
    "model.dilations": "dilations, instead of those that give the receptive field",
    "model.out_channels": "channels of the output",
    "model.variant": "HRNet variant: w18_small_v1, w18_small_v2, w18, w32, w44 or w48",
    "model.upsampling": "bilinear, bilinear_corners or nearest",
    "model.norm": "batch, instance, group or none",
    "model.input_interval": "for converted weights: the interval they were trained on instead of "
    "[-1, 1]",
    "discriminator.name": "patchgan",
    "discriminator.width": "channels of the discriminator's first layer",
    "discriminator.depth": "layers of stride 2; 3 see 70 x 70 pixels",
    "discriminator.norm": "batch, instance, group or none",
    "precision": "what the networks compute in: float32 or bfloat16",
    "remat": "compute blocks again for their gradient: less memory, more time",
    "optimizer.name": "adam",
    "optimizer.lr": "learning rate",
    "optimizer.b1": "decay of the first moment",
    "optimizer.b2": "decay of the second moment",
    "optimizer.clip": "largest norm of a network's gradients; 0: any",
    "optimizer.schedule": "learning rate over the run: constant, or cosine or linear down to zero",
    "optimizer.warmup": "steps in which the learning rate rises",
    "ema": "decay per step of the averaged weights that are evaluated and kept; 0: no averages",
}


def plain(config: Config) -> dict[str, Any]:
    """Return a config as it reads back from JSON."""
    return json.loads(config.to_json())


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of every field of a nested dict."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def parts_of(train: Sequence) -> list[tuple[str, str, float]]:
    """Return a config's `data.train` as [(name, split, weight)]."""
    return [(*train, 1.0)] if isinstance(train[0], str) else list(train)


def recipes() -> dict[str, Path]:
    """Return {name: file} of the recipes that come with emjax."""
    return {path.stem: path for path in sorted(RECIPES.glob("[!_]*.py"))}


def find_recipe(name: str) -> Path:
    """Return the file of the recipe `name`: an existing file, or the name of one of `recipes()`.

    Raises: UsageError that lists the known names.
    """
    known = recipes()
    if Path(name).is_file():
        return Path(name)
    if name in known:
        return known[name]
    stem = Path(name).stem
    advice = f"use --config={stem}" if stem in known else "give one of them, or a Python file"
    raise UsageError(f"--config={name}: no such file; recipes are {', '.join(known)}; {advice}")
