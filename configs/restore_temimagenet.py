"""Finetune a restoration of atomic-resolution STEM (Kazimi et al., arXiv 2402.18286, section 4.3).

    python -m emjax.main --config=configs/restore_temimagenet.py:denoise \\
        --config.initialise.workdir=runs/pretrain/hrnet_w48,200k
    python -m emjax.main --config=configs/restore_temimagenet.py:background,hrnet_w18_small_v1
    python -m emjax.main --config=configs/restore_temimagenet.py:superresolution
    python -m emjax.main --config=configs/restore_temimagenet.py:smoke     simulated data, seconds

The variant `simulated` puts simulated/atoms in place of TEM-ImageNet: the same targets, nothing to
download. The head of the pretraining is kept: it says images already. `imagenet` stands after an
HRNet and starts from weights trained on ImageNet, which have no such head:
docs/how-to/convert-weights.md.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import varied
from configs.pretrain import NETWORKS, adam
from configs.segment_au import IMAGENET, splits
from emjax.models.named import GENERATORS, hrnet

TASKS = {task: {"task": task} for task in ("denoise", "background", "superresolution")}
SIMULATED = splits("simulated/atoms")
SMOKE = {
    **SIMULATED,
    "model": GENERATORS["unet_2_44"],
    "epochs": 1,
    "log_every": 5,
    "data.batch_size": 8,
    "augment.crop": 32,
}
VARIANTS = {
    **NETWORKS,
    **TASKS,
    "simulated": SIMULATED,
    "imagenet": IMAGENET,
    "smoke": SMOKE,
}


def get_config(variants=""):
    """The paper's run, changed by `variants`, names from VARIANTS joined by commas."""
    config = ConfigDict()
    config.seed = 0
    config.epochs = 60
    config.log_every = 50
    config.eval_every = 0  # 0: once an epoch
    config.save_every = 0  # 0: with the evaluations only
    config.early_stopping = 0  # evaluations without a better val score that end the run; 0: never
    config.data = dict(
        dir="data",
        train=("temimagenet", "train"),
        evals=dict(val=("temimagenet", "val"), test=("temimagenet", "test")),
        batch_size=64,  # over all devices
        resident=placeholder(bool),  # records kept on the devices; unset: where they fit
        accumulate=1,  # parts in which a batch is computed, one after the other
    )
    config.mesh = dict(fsdp=1, space=1)  # the other devices share the rows
    config.objective = dict(name="supervised")
    config.task = "denoise"
    config.select = "best"  # which network is the run's: that of the best val score, or "last"
    config.initialise = dict(
        workdir="",  # a pretraining run or a converted model; empty: random weights
        step="best",
        fresh=(),
    )
    config.augment = dict(crop=256, turns=True, resize=1.25, mirror=True, gaussian=0.05)
    config.model = hrnet("w48")
    config.precision = "float32"  # what the networks compute in; or bfloat16
    config.remat = False  # blocks are computed again for their gradient: less memory, more time
    config.optimizer = adam(lr=2e-4)
    config.ema = 0.0  # decay a step of the averages that are kept in the generator's place; 0: none
    return varied(config, variants, VARIANTS)
