"""What pretraining brings on little real data, within hours of two CPU cores: a matrix of runs.

    python -m emjax.sweep --config=configs/real_small.py --runs=runs/real_small [--only=...]
    python -m emjax.main --config=configs/real_small.py:pretrain/unet_2_44/pix2pix/seed_0 \\
        --workdir=DIR                                               one of its runs

Needs micrographs/cem, micrographs/np_sintering and micrographs/atomagined, built with
`python -m data_builders.build micrographs` from the tables of these names (docs/results).

Smaller than the paper: crops of 96 and 128 pixels, a discriminator of width 16, a tenth of the
steps and, for that, five times its learning rate.
"""

from functools import partial

from configs import pretrain, restore_temimagenet, segment_au, single

MODELS = ("unet_2_44",)
OBJECTIVES = ("pix2pix", "reconstruction")
LR = 1e-3
LABELLED = {"2": 2, "5": 5, "all": 12}  # images of np_sintering to train on


def pretraining(model, objective, seed):
    config = pretrain.get_config(f"{model}" + f",{objective}" * (objective != "pix2pix"))
    config.seed = seed
    config.epochs = 12
    config.data.train = ("micrographs/cem", "train")
    config.data.evals.val = ("micrographs/cem", "val")
    config.data.batch_size = 32
    config.augment.crop = 96
    config.optimizer.lr = LR
    if objective == "pix2pix":
        config.discriminator.width = 16
    return config


def small(config, dataset, first, seed, initialise):
    """The fields in which finetuning differs from the paper's."""
    config.update_from_flattened_dict(segment_au.splits(f"micrographs/{dataset}"))
    config.data.train = (f"micrographs/{dataset}", first)
    config.seed = seed
    config.initialise.workdir = initialise
    config.data.batch_size = 8
    config.augment.crop = 128
    config.optimizer.lr = LR
    return config


def segmentation(model, labelled, initialise, seed):
    """20 epochs of 30 updates, however many images are labelled."""
    config = segment_au.get_config(model)
    first = "train" if labelled == "all" else f"train[:{labelled}]"
    config = small(config, "np_sintering", first, seed, initialise)
    config.passes_per_epoch = 240 // LABELLED[labelled]
    config.epochs = 20
    return config


def denoising(model, initialise, seed):
    config = restore_temimagenet.get_config(f"denoise,{model}")
    config = small(config, "atomagined", "train", seed, initialise)
    config.passes_per_epoch = 4
    config.epochs = 20
    return config


def runs(seeds):
    """{name: a function that makes its config}, the names of pretraining runs in `initialise`."""
    matrix = {}
    for seed in range(seeds):
        for model in MODELS:
            starts = {"random": ""}
            for objective in OBJECTIVES:
                name = starts[objective] = f"pretrain/{model}/{objective}/seed_{seed}"
                matrix[name] = partial(pretraining, model, objective, seed)
            for arm, start in starts.items():
                for n in LABELLED:
                    name = f"np_sintering_{n}/{model}/{arm}/seed_{seed}"
                    matrix[name] = partial(segmentation, model, n, start, seed)
                name = f"atomagined_denoise/{model}/{arm}/seed_{seed}"
                matrix[name] = partial(denoising, model, start, seed)
    return matrix


get_config = partial(single, runs)
