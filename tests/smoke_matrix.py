"""A tiny model, two initialisations, one task, on simulated data in $SMOKE_DATA."""

import os
from functools import partial

from configs import pretrain, segment_au

MODELS = ("unet",)


def small(make, seed, start=None):
    config = make("smoke")
    config.model = dict(name="unet", blocks=1)
    if start is None:
        config.discriminator.depth = 1
    config.data.dir = os.environ["SMOKE_DATA"]
    config.seed = seed
    if start is not None:
        config.initialise.workdir = start
        config.epochs = 2
    return config


def runs(seeds):
    matrix = {}
    for seed in range(seeds):
        for model in MODELS:
            starts = {"random": "", "pix2pix": f"pretrain/{model}/pix2pix/seed_{seed}"}
            matrix[starts["pix2pix"]] = partial(small, pretrain.get_config, seed)
            for arm, start in starts.items():
                name = f"nanoparticles/{model}/{arm}/seed_{seed}"
                matrix[name] = partial(small, segment_au.get_config, seed, start)
    return matrix
