"""PyTorch's names of the arrays of U-Nets and HRNets."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from emjax.errors import UsageError

LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
UNET_LAYERS = {"norm1": "bn1", "norm2": "bn2", "project": "conv_add"}


def names_of(model: Mapping[str, Any], naming: str, paths: Iterable[str]) -> dict[str, str]:
    """Return {path: PyTorch name} of all `paths` of `model`.

    Args:
        model: the config's field.
        naming: `levels` or `lists` for a U-Net, as a converted model's config has it.

    Raises: UsageError for a model that exists here alone.
    """
    if model["name"] == "unet":
        return unet_names(paths, levels=naming == "levels")
    if model["name"] == "hrnet":
        return hrnet_names(paths)
    raise UsageError(f"a {model['name']} has no PyTorch names, expected a unet or hrnet")


def unet_names(paths: Iterable[str], *, levels: bool) -> dict[str, str]:
    """Return {path: PyTorch name} for the U-Net of Sytwu et al.

    Args:
        levels: down1, up1, ... as in their files of 2021; else downs.0, ups.0 (the deepest).
    """
    paths = list(paths)
    blocks = 1 + max(int(path.split("/")[1]) for path in paths if path.startswith("down/"))

    def name(path: str) -> str:
        *block, layer, leaf = path.split("/")
        if not block:
            return f"final_conv.{LEAVES[leaf]}"
        if len(block) == 2:
            side, level = block[0], int(block[1])
            if levels:
                block = [f"{side}{level + 1}"]
            else:
                block = [f"{side}s", str(level if side == "down" else blocks - 1 - level)]
        return ".".join([*block, UNET_LAYERS.get(layer, layer), LEAVES[leaf]])

    return {path: name(path) for path in paths}


def numbered(stem: str, number: int) -> tuple[str, str]:
    """Return the names of a convolution and its norm that are attributes: conv1, bn1."""
    return f"{stem}conv{number}", f"{stem}bn{number}"


def in_sequence(stem: str) -> tuple[str, str]:
    """Return the names of a convolution and its norm that begin an nn.Sequential."""
    return f"{stem}.0", f"{stem}.1"


# Path of a ConvNorm of our HRNet: the names of its convolution and norm in the authors' network.
HRNET = {
    r"stem/(\d+)": lambda i: numbered("", i + 1),
    r"stage1/(\d+)/reduce": lambda k: numbered(f"layer1.{k}.", 1),
    r"stage1/(\d+)/conv": lambda k: numbered(f"layer1.{k}.", 2),
    r"stage1/(\d+)/expand": lambda k: numbered(f"layer1.{k}.", 3),
    r"stage1/(\d+)/project/0": lambda k: in_sequence(f"layer1.{k}.downsample"),
    r"transitions/(\d+)/keep/(\d+)/0": lambda t, i: in_sequence(f"transition{t + 1}.{i}"),
    r"transitions/(\d+)/new/(\d+)": lambda t, k: in_sequence(f"transition{t + 1}.{t + 1}.{k}"),
    r"stages/(\d+)/(\d+)/branches/(\d+)/blocks/(\d+)/convs/(\d+)": lambda s, m, b, k, c: numbered(
        f"stage{s + 2}.{m}.branches.{b}.{k}.", c + 1
    ),
    r"stages/(\d+)/(\d+)/fuse/paths/(\d+)/(\d+)/(\d+)": lambda s, m, i, j, k: in_sequence(
        f"stage{s + 2}.{m}.fuse_layers.{i}.{j}" + ("" if j > i else f".{k}")
    ),
    r"merge": lambda: in_sequence("last_layer"),
}


def hrnet_names(paths: Iterable[str]) -> dict[str, str]:
    """Return {path: PyTorch name} for an HRNet, in the naming of its authors, which timm shares."""

    def name(path: str) -> str:
        *module, leaf = path.split("/")
        if module == ["head"]:
            return f"last_layer.3.{LEAVES[leaf]}"
        *module, layer = module
        for pattern, names in HRNET.items():
            if found := re.fullmatch(pattern, "/".join(module)):
                conv, norm = names(*map(int, found.groups()))
                return f"{conv if layer == 'conv' else norm}.{LEAVES[leaf]}"
        raise AssertionError(path)

    return {path: name(path) for path in paths}
