"""Networks with random weights and statistics, as models in folders, for the tests of exports.

    python -m tests.exported_networks

writes the golden StableHLO files of the installed JAX to tests/golden, each with its prediction.
"""

import tempfile
from pathlib import Path

import jax
import numpy as np

import emjax
from emjax.interchange import stablehlo
from emjax.models import saved
from tests.test_tiles import random_module

UNET = dict(name="unet", blocks=2, receptive_field=44)
HRNET = dict(name="hrnet", variant="tiny")
# The config's `model`, and its task. `tiny` is that of the fixture `tiny_hrnet`.
NETWORKS = {
    "unet": (UNET, None),
    "unet_mask": (UNET, "segmentation"),
    "unet_two_channels": (dict(UNET, out_channels=2), "segmentation"),
    "unet_two_restored": (dict(UNET, out_channels=2), None),
    "unet_classes": (dict(UNET, out_channels=3), "segmentation"),
    "unet_instance": (dict(UNET, norm="instance"), "segmentation"),
    "unet_group": (dict(UNET, norm="group", filters=(8, 12, 16)), "segmentation"),
    "unet_no_norm": (dict(UNET, norm="none"), "denoise"),
    "unet_pools": (
        dict(name="unet", blocks=2, pools=(4, 3), dilations=(1, 3, 2), input_interval=(-4.0, 4.0)),
        "segmentation",
    ),
    "hrnet": (HRNET, "segmentation"),
    "hrnet_corners": (dict(HRNET, upsampling="bilinear_corners"), "denoise"),
    "hrnet_nearest": (dict(HRNET, upsampling="nearest", norm="group"), "segmentation"),
    "hrnet_no_norm": (dict(HRNET, norm="none"), "segmentation"),
}


def written(folder, name, **config):
    """Write the model called `name` to `folder`; returns the folder."""
    model, task = NETWORKS[name]
    facts = dict(range_rule="percentile", title=name, model=model, task=task)
    network, _ = random_module(model)
    # Small outputs, so that probabilities are not all 0 or 1.
    head = {
        path: 0.1 * value if "head" in path else value for path, value in network.params.items()
    }
    saved.write(folder, network.replace(params=head), facts | config)
    return folder


def field(h, w, dtype=np.uint16, seed=0):
    """Return [h, w] of smooth blobs in noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:h, :w]
    waves = np.sin(y / 7) * np.sin(x / 9) + np.sin((x + y) / 23)
    return (1000 + 100 * waves + rng.normal(0, 30, (h, w))).astype(dtype)


def agrees(found, expected):
    """Return whether two predictions are equal, up to rounding."""
    far = np.abs(found - expected).max()
    return far <= 1e-4 * expected.std(dtype=np.float64) + 1e-6 * np.abs(expected).max()


def write_golden(folder):
    """Write a U-Net and its prediction, as `test_stablehlo` reads them."""
    path = folder / f"unet_of_jax_{jax.__version__}.stablehlo"
    with tempfile.TemporaryDirectory() as name:
        stablehlo.write(written(Path(name), "unet_mask"), path)
        expected = emjax.load_model(name, engine="jax").predict(field(75, 90))
        np.save(path.with_suffix(".npy"), expected)


if __name__ == "__main__":
    write_golden(Path(__file__).parent / "golden")
