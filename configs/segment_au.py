"""Finetune a segmentation of Au nanoparticles (Kazimi et al., arXiv 2402.18286, section 4.2).

    python -m emjax.main --config=configs/segment_au.py:au5nm_v1 \\
        --config.initialise.workdir=runs/pretrain/unet_4_424,200k
    python -m emjax.main --config=configs/segment_au.py:au5nm_v1        from random weights
    python -m emjax.main --config=configs/segment_au.py:au5nm,sytwu     Sytwu et al.'s own recipe
    python -m emjax.main --config=configs/segment_au.py:hrnet_w18,imagenet \\
        --config.initialise.workdir=imagenet/w18                   docs/how-to/convert-weights.md
    python -m emjax.main --config=configs/segment_au.py:smoke           simulated data, seconds
    python -m emjax.main --config=configs/segment_au.py:demo            16 simulated labels, minutes

Any dataset with masks takes the place of an Au set:
    --config.data.train="('micrographs/mine','train')" and likewise data.evals.val, data.evals.test

Reference level on Au5nmV1: hard Dice 0.72-0.78 for U-Nets of 8k parameters (Sytwu et al. 2022); all
of them and what `sytwu` does otherwise than its authors: docs/how-to/run-the-papers-experiments.md.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import varied
from configs.pretrain import NETWORKS, adam
from emjax.models.named import GENERATORS, unet


def splits(dataset):
    return {
        "data.train": (dataset, "train"),
        "data.evals.val": (dataset, "val"),
        "data.evals.test": (dataset, "test"),
    }


AU_SETS = {
    name: splits(f"au_nanoparticles/{name}")
    for name in ("au2_2nm", "au5nm", "au10nm", "au20nm", "au5nm_v1")
}
SMOKE = {
    "model": GENERATORS["unet_2_44"],
    **splits("simulated/nanoparticles"),
    "epochs": 1,
    "passes_per_epoch": 1,
    "log_every": 5,
    "data.batch_size": 8,
    "augment.crop": 32,
}
DEMO = {
    **SMOKE,
    "model": GENERATORS["unet_3_96"],
    "epochs": 7,
    "passes_per_epoch": 20,
    "log_every": 100,
    "data.dir": "runs/demo/data",
    "data.train": ("simulated/nanoparticles", "train[:16]"),
    "augment": dict(crop=96, turns=True, resize=0.0, foreground_crops=0.0, noise_probability=0.0),
    "optimizer.lr": 5e-3,
    "optimizer.schedule": "cosine",
}
# Sytwu et al. 2022 (arXiv 2204.04250): two channels and their cross-entropy, whole patches in their
# eight turns and flips, no noise, and the network of the last epoch. Name no other network after
# it: their other receptive fields are `pools` of this one.
SYTWU = {
    "model": dict(unet(blocks=2, receptive_field=44), out_channels=2),
    "epochs": 100,
    "select": "last",
    "data.batch_size": 32,
    "augment": dict(crop=0, turns=True, resize=0.0, foreground_crops=0.0, noise_probability=0.0),
    "optimizer": adam(lr=1e-4),
}
# After an HRNet: from weights that timm or its authors trained on ImageNet. They upsample by
# `nearest`, and have a classification head where ours merges the branches.
IMAGENET = {"model.upsampling": "nearest", "initialise.fresh": ("merge/.*", "head/.*")}
VARIANTS = {
    **NETWORKS,
    **AU_SETS,
    "sytwu": SYTWU,
    "imagenet": IMAGENET,
    "smoke": SMOKE,
    "demo": DEMO,
}


def get_config(variants=""):
    """The paper's run, changed by `variants`, names from VARIANTS joined by commas."""
    config = ConfigDict()
    config.seed = 0
    config.epochs = 60
    config.passes_per_epoch = 8  # the paper's files hold each patch eight times
    config.log_every = 50
    config.eval_every = 0  # 0: once an epoch
    config.save_every = 0  # 0: with the evaluations only
    config.early_stopping = 0  # evaluations without a better val score that end the run; 0: never
    config.data = dict(
        dir="data",
        train=("au_nanoparticles/au5nm_v1", "train"),
        evals=dict(
            val=("au_nanoparticles/au5nm_v1", "val"), test=("au_nanoparticles/au5nm_v1", "test")
        ),
        batch_size=16,  # over all devices
        resident=placeholder(bool),  # records kept on the devices; unset: where they fit
        accumulate=1,  # parts in which a batch is computed, one after the other
    )
    config.mesh = dict(fsdp=1, space=1)  # the other devices share the rows
    config.objective = dict(name="supervised")
    config.task = "segmentation"
    config.segmentation = dict(
        classes=2,  # of the masks, with the background; more than two: an output per class
        loss="cross_entropy",  # or dice, cross_entropy+dice
        foreground_weight=1.0,  # of its pixels in the cross-entropy
    )
    config.select = "best"  # which network is the run's: that of the best val score, or "last"
    config.initialise = dict(
        workdir="",  # a pretraining run or a converted model; empty: random weights
        step="best",
        fresh=("head/.*",),
    )
    config.augment = dict(
        crop=448,
        turns=True,
        resize=1.25,
        foreground_crops=0.0,  # share of the crops that are centred on a pixel of the foreground
        noise_probability=0.5,
    )
    config.model = unet(blocks=4, receptive_field=424)
    config.precision = "float32"  # what the networks compute in; or bfloat16
    config.remat = False  # blocks are computed again for their gradient: less memory, more time
    config.optimizer = adam(lr=2e-4)
    config.ema = 0.0  # decay a step of the averages that are kept in the generator's place; 0: none

    return varied(config, variants, VARIANTS)
