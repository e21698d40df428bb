"""What pretraining brings on little real data, within hours of two CPU cores: a matrix of runs.

    python -m emjax.sweep --config=configs/real_small.py --runs=runs/real_small --only=...
    python -m emjax.main --config=configs/real_small.py:pretrain/unet_2_44/pix2pix/seed_0 \\
        --workdir=DIR                                               one of its runs

In this order, each a whole result:
    a   --only='np_sintering_*/unet_2_44/*,atomagined_denoise/unet_2_44/*'
        random weights, pix2pix, reconstruction; 2, 5 and all 12 labelled images; denoising
    b   --only='b/*'    learning rates, a fresh last block, masked-image modelling, smaller
        pretraining sets; on 2 and all 12 labelled images, and denoising
    c   --only='c/*'    the other nanoparticles, and background removal, at the rate that b found
        best; random weights, pix2pix, reconstruction
    d   --only='*/unet_4_424/*,*/hrnet_w18_small_v1/*'    larger networks,
        pretrained on 1,000 patches, as many as b found enough
    e   --only='e/*,b/*/random_lr_4x/*'    what pretraining may owe to its choices: weaker,
        stronger and counted noise, another norm, running statistics, more of the discriminator;
        1,000 patches, at the rate that b found best

Needs micrographs/cem, micrographs/np_sintering, ..., each built from the table of that name
(docs/background/evidence/real_small_tables.md). Smaller than the paper: crops of 96 and 128
pixels, a discriminator of width 16, far fewer steps and, for that, five times its learning rate.
Epochs of finetuning are ten updates short, because the arms differ there if anywhere.
"""

from functools import partial

from configs import pretrain, restore_temimagenet, segment_au

LR = 1e-3
CEM = "micrographs/cem"
LABELLED = {"2": 2, "5": 5, "all": 12}  # images of np_sintering to train on
LAST = ("up/0/.*", "head/.*")  # specialised on restoring: docs/background/evidence/real_small.md
STATISTICS = (".*/mean", ".*/var")
RATES = {"lr_quarter": LR / 4, "lr_4x": 4 * LR}
SUBSETS = {"1k": 1000, "2500": 2500}
NORM = {"model.norm": "instance"}
CHOICES = {  # restoration of 1,000 patches, and what is changed of it
    "reconstruction": ("reconstruction", {}),
    "weak": (
        "reconstruction",
        {"objective.corruption.blur": (0.1, 1.0), "objective.corruption.noise": (0.01, 0.075)},
    ),
    "strong": (
        "reconstruction",
        {"objective.corruption.blur": (0.1, 4.0), "objective.corruption.noise": (0.04, 0.3)},
    ),
    "counted": (
        "reconstruction",
        {"objective.corruption.noise": (0.0, 0.0), "objective.corruption.dose": (20, 120)},
    ),
    "instance": ("reconstruction", NORM),
    "pix2pix": ("pix2pix", {}),
    "adversarial": ("pix2pix", {"objective.l1_weight": 10.0}),  # in place of 100
}
OTHERS = {  # passes an epoch over 8, 4, 4, 135 and 31 records
    "au_tetrahedra": 10,
    "au_patchy_nanoprism": 20,
    "au_hrtem_750C": 20,
    "emps": 1,
    "pt_alumina": 3,
}


def pretraining(model, objective, seed, first=None, epochs=12, changes=()):
    config = pretrain.get_config(f"{model}" + f",{objective}" * (objective != "pix2pix"))
    config.seed = seed
    config.epochs = epochs
    config.data.train = (CEM, f"train[:{first}]" if first else "train")
    config.data.evals.val = (CEM, "val")
    config.data.batch_size = 32
    config.augment.crop = 96
    config.optimizer.lr = LR
    if objective == "pix2pix":
        config.discriminator.width = 16
    config.update_from_flattened_dict(dict(changes))
    return config


def finetuning(
    model, start, seed, *, task, dataset, first="train", passes, lr=LR, fresh=(), changes=()
):
    """24 epochs, of about ten updates."""
    if task == "segmentation":
        config = segment_au.get_config(model)
    else:
        config = restore_temimagenet.get_config(f"{task},{model}")
    config.update_from_flattened_dict(segment_au.splits(f"micrographs/{dataset}"))
    config.data.train = (f"micrographs/{dataset}", first)
    config.data.resident = False  # as their number is a shape: one program for 2, 5 and 12 images
    config.seed = seed
    config.epochs = 24
    config.passes_per_epoch = passes
    config.initialise.workdir = start
    config.initialise.fresh += fresh
    config.data.batch_size = 8
    config.augment.crop = 128
    config.optimizer.lr = lr
    config.update_from_flattened_dict(dict(changes))
    return config


def sintering(labelled):
    """The task of np_sintering with some of its images labelled: always as many updates."""
    first = "train" if labelled == "all" else f"train[:{labelled}]"
    passes = -(-80 // LABELLED[labelled])
    return dict(task="segmentation", dataset="np_sintering", first=first, passes=passes)


FIRST = {f"np_sintering_{n}": sintering(n) for n in LABELLED} | {
    "atomagined_denoise": dict(task="denoise", dataset="atomagined", passes=2),
}
SECOND = ("np_sintering_2", "np_sintering_all", "atomagined_denoise")
OTHER = {
    name: dict(task="segmentation", dataset=name, passes=passes) for name, passes in OTHERS.items()
} | {  # its targets of superresolution are the same images
    "atomagined_background": dict(task="background", dataset="atomagined", passes=2)
}


def runs(seeds):
    """{name: a function that makes its config}, the names of pretraining runs in `initialise`."""
    matrix = {}

    def add(tasks, model, arm, start, seed, **changes):
        for task, fields in tasks.items():
            matrix[f"{task}/{model}/{arm}/seed_{seed}"] = partial(
                finetuning, model, start, seed, **fields, **changes
            )

    for seed in range(seeds):
        for model in ("unet_2_44", "unet_4_424", "hrnet_w18_small_v1"):
            starts, first = {"random": ""}, None if model == "unet_2_44" else SUBSETS["1k"]
            for objective in ("pix2pix", "reconstruction"):
                name = starts[objective] = f"pretrain/{model}/{objective}/seed_{seed}"
                matrix[name] = partial(pretraining, model, objective, seed, first)
            for arm, start in starts.items():
                add(FIRST, model, arm, start, seed)
        model, pix2pix = "unet_2_44", f"pretrain/unet_2_44/pix2pix/seed_{seed}"
        second = {f"b/{task}": FIRST[task] for task in SECOND}
        third = {f"c/{task}": fields for task, fields in OTHER.items()}
        for name, lr in RATES.items():
            add(second, model, f"random_{name}", "", seed, lr=lr)
            add(second, model, f"pix2pix_{name}", pix2pix, seed, lr=lr)
        for objective in ("pix2pix", "reconstruction"):
            start = f"pretrain/{model}/{objective}/seed_{seed}"
            add(second, model, f"{objective}_fresh_last", start, seed, fresh=LAST)
        smaller = {"masked": partial(pretraining, model, "masked", seed)}
        for name, count in SUBSETS.items():  # of 4,125: at equal epochs, and at equal steps
            make = smaller[f"pix2pix_{name}"] = partial(pretraining, model, "pix2pix", seed, count)
            smaller[f"pix2pix_{name}_steps"] = partial(make, 12 * (4125 // 32) // (count // 32))
        for arm, make in smaller.items():
            start = f"b/pretrain/{model}/{arm}/seed_{seed}"
            matrix[start] = make
            add(second, model, arm, start, seed)
        for arm in ("random", "pix2pix", "reconstruction"):
            start = "" if arm == "random" else f"pretrain/{model}/{arm}/seed_{seed}"
            add(third, model, arm, start, seed, lr=RATES["lr_4x"])
        fifth, best = {f"e/{task}": FIRST[task] for task in SECOND}, RATES["lr_4x"]
        for name, (objective, changes) in CHOICES.items():
            start = f"e/pretrain/{model}/{name}/seed_{seed}"
            matrix[start] = partial(
                pretraining, model, objective, seed, SUBSETS["1k"], changes=changes
            )
            network = {field: changes[field] for field in changes if field.startswith("model.")}
            add(fifth, model, name, start, seed, lr=best, changes=network)
        start = f"e/pretrain/{model}/reconstruction/seed_{seed}"
        add(fifth, model, "fresh_statistics", start, seed, lr=best, fresh=STATISTICS)
        add(fifth, model, "random_instance", "", seed, lr=best, changes=NORM)
    return matrix
