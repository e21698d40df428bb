"""What a finetuning on few images should start from: a matrix of short runs, for emjax finetune.

    python -m emjax.sweep --config=configs/few_images.py --runs=runs/few_images --at_once=2 \\
        --only='np_sintering_2/*'
    python -m emjax.report --runs=runs/few_images --out=runs/few_images

Segmentation: the network of the model `particles` from its weights and from random ones, and
`pretrained` with a fresh last layer; as `released`, the network of Sytwu et al. (MIT licence),
converted into the folder few_images/released. Restoration: `pretrained`, with its last layer, and
the same network from random weights. Settings are those that `emjax finetune` chooses on a CPU, but
for the end: no run stops early, and each has about as many updates as its network makes in three
minutes of one core.

Needs micrographs/np_sintering, ... in few_images/percentile and, for `released`, which sees
standardised images, in few_images/sigma, built with --range=sigma. How it was run, and what came of
it: docs/background/evidence/few_images.md.
"""

import json
from functools import partial

from configs import restore_temimagenet, segment_au
from emjax.models import pretrained
from emjax.training import choices

HERE = "few_images"
RELEASED = f"{HERE}/released"
UPDATES = {"particles": 120, "pretrained": 210, "released": 260}  # in three minutes of a core
SETS = {  # images to train on, their sides, the share of their foreground
    "np_sintering": ((2, 5, 12), 512, 0.17),
    "au_hrtem_750C": ((2, 4), 369, 0.17),
    "au_tetrahedra": ((2, 5, 8), 512, 0.66),
    "au_patchy_nanoprism": ((2, 4), 512, 0.19),
    "pt_alumina": ((5, 10, 20), 512, 0.003),  # the first two have next to no particle
}
RESTORED = {"denoise": (2, 5, 10, 20), "background": (2, 5, 10, 20)}  # of atomagined
ARMS = {  # of segmentation: the network, what it starts from, what of it is fresh, range of images
    "particles": ("particles", "particles", (), "percentile"),
    "random": ("particles", "", (), "percentile"),
    "pretrained": ("pretrained", "pretrained", ("head/.*",), "percentile"),
    "released": ("released", RELEASED, (), "sigma"),
}
SIDE = 250  # of atomagined


def network(name):
    folder = pretrained.find(RELEASED if name == "released" else name)
    return json.loads((folder / "config.json").read_text())["model"]


def config_of(config, dataset, images, model, start, fresh, rule, seed, side, share):
    """`config` with the settings of emjax.training.choices."""
    with config.ignore_type():
        config.model = network(model)
    config.seed = seed
    config.update_from_flattened_dict(segment_au.splits(f"micrographs/{dataset}"))
    config.data.train = (f"micrographs/{dataset}", f"train[:{images}]")
    config.data.dir = f"{HERE}/{rule}"
    config.data.resident = False  # as their number is a shape: one program for all numbers
    config.initialise.workdir, config.initialise.fresh = start, fresh
    rules = choices.choose(
        choices.Data([(side, side)], share),
        platform="cpu",
        has_base=bool(start) and not fresh and share is not None,
        steps=UPDATES[model],
        divisor=16,
        selects=True,
    )
    choices.apply(config, rules, images)
    config.early_stopping = 0  # all runs of a network are as long
    return config


def segmentation(dataset, images, arm, seed):
    _, side, share = SETS[dataset]
    config = segment_au.get_config()
    return config_of(config, dataset, images, *ARMS[arm], seed, side, share)


def restoration(task, images, start, seed):
    config = restore_temimagenet.get_config(task)
    return config_of(
        config, "atomagined", images, "pretrained", start, (), "percentile", seed, SIDE, None
    )


def runs(seeds):
    """{name: a function that makes its config}."""
    matrix = {}
    for seed in range(seeds):
        for dataset, (counts, *_) in SETS.items():
            for images in counts:
                for arm in ARMS:
                    name = f"{dataset}_{images}/{arm}/seed_{seed}"
                    matrix[name] = partial(segmentation, dataset, images, arm, seed)
        for task, counts in RESTORED.items():
            for images in counts:
                for arm, start in {"random": "", "pretrained": "pretrained"}.items():
                    name = f"{task}_{images}/{arm}/seed_{seed}"
                    matrix[name] = partial(restoration, task, images, start, seed)
    return matrix
