"""The matrix of the golden runs: two tiny pretrainings and two segmentations."""

from functools import partial

from configs import pretrain, segment_au

SMALL = {"data.batch_size": 4, "log_every": 1}
RUNS = {
    "pretrain/pix2pix": (
        pretrain,
        "smoke",
        {"epochs": 3, "eval_every": 4, "discriminator.width": 2, "discriminator.depth": 1},
    ),
    "pretrain/instance": (
        pretrain,
        "smoke,masked",
        {
            "epochs": 4,
            "model.norm": "instance",
            "model.filters": (2, 3, 4),
            "objective.masking.side": 8,
        },
    ),
    "segment/pix2pix": (segment_au, "smoke", {"initialise.workdir": "pretrain/pix2pix"}),
    "segment/random": (segment_au, "smoke", {}),
}
SEGMENT = {"epochs": 6, "passes_per_epoch": 4, "optimizer.lr": 1e-2, "log_every": 6}


def config(name, seed):
    recipe, variants, changes = RUNS[name]
    made = recipe.get_config(variants)
    more = SEGMENT if recipe is segment_au else {}
    for field, value in {**SMALL, **more, **changes, "seed": seed}.items():
        if field == "initialise.workdir":
            value = f"{value}/seed_{seed}"
        made.update_from_flattened_dict({field: value})
    return made


def runs(seeds):
    return {f"{name}/seed_{seed}": partial(config, name, seed)
            for name in RUNS for seed in range(seeds)}  # fmt: skip
