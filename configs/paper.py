"""Every experiment of the paper (Kazimi et al., arXiv 2402.18286): a matrix of runs.

    python -m emjax.sweep --config=configs/paper.py --runs=runs/paper [--only=...] --dry_run

30 pretrainings: nine U-Nets and HRNet, each on 50, 100 and 200 thousand micrographs of CEM500K.
200 segmentations: these ten networks on the five Au sets, from random weights and from each
    pretraining. 12 restorations of TEM-ImageNet: HRNet, three tasks, the same four starts.
Beyond the paper: 5 segmentations by the recipe of Sytwu et al., to compare with.
Each with as many seeds as asked for; a finetuning run starts from the pretraining of its own seed.

    --only='pretrain/unet_2_44/*'          --only='au5nm_v1/*/seed_0,denoise/*'
"""

from functools import partial

from configs import pretrain, restore_temimagenet, segment_au

MODELS = (
    "unet_2_44", "unet_2_84", "unet_2_116",
    "unet_3_96", "unet_3_176", "unet_3_240",
    "unet_4_200", "unet_4_360", "unet_4_424",
    "hrnet_w48",
)  # fmt: skip
# What the datasets hold once they are built: the plan's steps where they are not.
RECORDS = {
    ("cem500k", "train[:50000]"): 50_000,
    ("cem500k", "train[:100000]"): 100_000,
    ("cem500k", "train[:200000]"): 200_000,
    ("au_nanoparticles/au2_2nm", "train"): 248,
    ("au_nanoparticles/au5nm", "train"): 147,
    ("au_nanoparticles/au10nm", "train"): 89,
    ("au_nanoparticles/au20nm", "train"): 92,
    ("au_nanoparticles/au5nm_v1", "train"): 151,
    ("temimagenet", "train"): 10_054,
}


def seeded(make, variants, seed, start=None):
    """The recipe's config with this seed, and started from the run `start`."""
    config = make(variants)
    config.seed = seed
    if start is not None:
        config.initialise.workdir = start
    return config


def runs(seeds):
    """{name: a function that makes its config}, the names of pretraining runs in `initialise`."""
    matrix = {}
    for seed in range(seeds):
        for model in MODELS:
            starts = {"random": ""}
            for subset in pretrain.SUBSETS:
                arm = f"pix2pix_{subset}"
                name = starts[arm] = f"pretrain/{model}/{arm}/seed_{seed}"
                matrix[name] = partial(seeded, pretrain.get_config, f"{model},{subset}", seed)
            tasks = dict.fromkeys(segment_au.AU_SETS, segment_au.get_config)
            if model == "hrnet_w48":
                tasks |= dict.fromkeys(restore_temimagenet.TASKS, restore_temimagenet.get_config)
            for task, make in tasks.items():
                for arm, start in starts.items():
                    name = f"{task}/{model}/{arm}/seed_{seed}"
                    matrix[name] = partial(seeded, make, f"{task},{model}", seed, start)
        for task in segment_au.AU_SETS:
            make = partial(seeded, segment_au.get_config, f"{task},sytwu", seed)
            matrix[f"{task}/sytwu/random/seed_{seed}"] = make
    return matrix
