"""Train the models that come with the package, each on simulated micrographs alone.

    make models                     data, training and the folders of emjax/models/box
    python -m emjax.main --config=configs/models.py:particles --workdir=runs/models/particles

At most 2.5 hours each on two CPU cores. What they are good for and how good: the cards in
emjax/models/box, docs/background/models.md.
"""

from configs import pretrain, restore_temimagenet, segment_au, varied

WIDE = (8, 16, 32, 64, 128)  # channels, twice those of the paper
COMMON = {
    "data.dir": "runs/models/data",
    "log_every": 100,
    "optimizer.schedule": "cosine",
    "optimizer.lr": 2e-3,
    "data.batch_size": 8,
    "augment.crop": 192,
}
MODELS = {
    "particles": (
        segment_au,
        "",
        {
            **COMMON,
            **segment_au.splits("simulated/particles"),
            "passes_per_epoch": 1,
            "epochs": 16,
            "segmentation.loss": "cross_entropy+dice",
            "model.filters": WIDE,
            "augment.resize": 1.5,
            "augment.noise_probability": 0.2,
        },
    ),
    "denoise": (
        restore_temimagenet,
        "denoise,unet_4_424",
        {**COMMON, **segment_au.splits("simulated/noisy"), "epochs": 12, "augment.gaussian": 0.0},
    ),
    "atoms": (
        restore_temimagenet,
        "superresolution,unet_4_424,simulated",
        {**COMMON, "epochs": 12},
    ),
    "pretrained": (
        pretrain,
        "reconstruction,unet_4_424",
        {
            **COMMON,
            "data.train": (
                ("simulated/unlabelled", "train", 1.0),
                ("simulated/particles", "train", 1.0),
            ),
            "data.evals.val": ("simulated/unlabelled", "val"),
            "epochs": 4,
        },
    ),
}
# What a model's config.json says otherwise once it is in the package. The records of
# simulated/atoms are 8-bit and seen in one range, 0 to 255; micrographs of atoms come in every
# number format.
PACKED = {"atoms": {"range_rule": "percentile", "intensity": None}}


def get_config(name="particles"):
    """The recipe of one of MODELS."""
    recipe, variants, changes = MODELS[name]
    return varied(recipe.get_config(variants), "box", {"box": changes})
