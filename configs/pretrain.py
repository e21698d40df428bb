"""Pretrain a generator on CEM500K with Pix2Pix (Kazimi et al., arXiv 2402.18286, section 4.1).

    python -m emjax.main --config=configs/pretrain.py                   U-Net 4 424, all of it
    python -m emjax.main --config=configs/pretrain.py:unet_2_44,100k    nine U-Nets, 50k to 200k
    python -m emjax.main --config=configs/pretrain.py:hrnet_w48,200k    the paper's largest network
    python -m emjax.main --config=configs/pretrain.py:reconstruction    without the discriminator
    python -m emjax.main --config=configs/pretrain.py:masked            masked-image modelling
    python -m emjax.main --config=configs/pretrain.py:smoke             simulated data, seconds
    python -m emjax.main --config=configs/pretrain.py:demo              simulated data, minutes

Steps: 23,400 (50k), 46,860 (100k), 93,720 (200k) at batch 128. The paper gives the kinds of
corruption and no amplitudes; those below are this project's choice.
"""

import copy

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import varied
from emjax.models.named import DISCRIMINATORS, GENERATORS, unet


def adam(lr, b1=0.9, b2=0.999):
    return dict(
        name="adam",
        lr=lr,
        b1=b1,
        b2=b2,
        clip=0.0,  # largest norm of a network's gradients; 0: any
        schedule="constant",  # or cosine, linear: down to zero at the last step
        warmup=0,  # steps in which the learning rate rises
    )


NETWORKS = {name: {"model": generator} for name, generator in GENERATORS.items()}
SUBSETS = {
    f"{thousands}k": {"data.train": ("cem500k", f"train[:{thousands}000]")}
    for thousands in (50, 100, 200)
}
# Amplitudes are this project's; the paper gives the kinds.
CORRUPTION = dict(  # blur first, then noise
    blur=(0.1, 2.0),  # sigma in pixels
    blur_probability=0.5,
    noise=(0.02, 0.15),  # sigma as a fraction of the full range
    dose=placeholder(tuple),  # electrons per pixel at full range; unset: not counted
)
# What Pix2Pix is compared with: no discriminator, and another task of the same network.
OBJECTIVES = {
    "reconstruction": {
        "objective": dict(name="reconstruction", corruption=CORRUPTION),
        "discriminator": None,
    },
    "masked": {
        "objective": dict(name="masked", masking=dict(side=16, share=0.6)),
        "discriminator": None,
    },
}
SMOKE = {
    "model": GENERATORS["unet_2_44"],
    "epochs": 1,
    "log_every": 5,
    "data.train": ("simulated/unlabelled", "train"),
    "data.evals.val": ("simulated/unlabelled", "val"),
    "data.batch_size": 8,
    "augment.crop": 32,
    "discriminator.width": 8,
}
DEMO = {
    **SMOKE,
    "model": GENERATORS["unet_3_96"],
    "epochs": 5,
    "log_every": 100,
    "data.dir": "runs/demo/data",
    "data.batch_size": 16,
    "augment.crop": 64,
    "discriminator.width": 16,
    "optimizer.lr": 2e-3,
    "optimizer.schedule": "cosine",
}
VARIANTS = {**NETWORKS, **SUBSETS, **OBJECTIVES, "smoke": SMOKE, "demo": DEMO}


def get_config(variants=""):
    """The paper's run, changed by `variants`, names from VARIANTS joined by commas."""
    config = ConfigDict()
    config.seed = 0
    config.epochs = 60
    config.log_every = 100
    config.eval_every = 0  # 0: once an epoch
    config.save_every = 0  # 0: with the evaluations only
    config.early_stopping = 0  # evaluations without a better val score that end the run; 0: never
    config.data = dict(
        dir="data",
        train=("cem500k", "train"),
        evals=dict(val=("cem500k", "val")),
        batch_size=128,  # over all devices
        resident=placeholder(bool),  # records kept on the devices; unset: where they fit
        accumulate=1,  # parts in which a batch is computed, one after the other
    )
    config.mesh = dict(fsdp=1, space=1)  # the other devices share the rows
    config.objective = dict(
        name="pix2pix",
        l1_weight=100.0,
        corruption=copy.deepcopy(CORRUPTION),
    )
    config.augment = dict(crop=0, turns=True)  # 0: the whole patch
    config.model = unet(blocks=4, receptive_field=424)
    config.discriminator = copy.deepcopy(DISCRIMINATORS["patchgan"])
    config.precision = "float32"  # what the networks compute in; or bfloat16
    config.remat = False  # blocks are computed again for their gradient: less memory, more time
    config.optimizer = adam(lr=2e-4, b1=0.5)
    config.ema = 0.0  # decay a step of the averages that are kept in the generator's place; 0: none

    return varied(config, variants, VARIANTS)
