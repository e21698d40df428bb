"""timm's HRNet as a second oracle, written by others. Its classification head is left out.

timm imports torchvision, for image files and for models that are not used here. If torchvision is
not installed, an empty module replaces it while timm is imported.
"""

import enum
import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

from torch import nn

from tests.torch_twin import torch_name, torch_state

# timm's name of emjax's variant
NAMES = {
    "w18_small_v1": "hrnet_w18_small",
    "w18_small_v2": "hrnet_w18_small_v2",
    "w18": "hrnet_w18",
    "w32": "hrnet_w32",
    "w44": "hrnet_w44",
    "w48": "hrnet_w48",
}


class InterpolationMode(enum.Enum):
    NEAREST, BILINEAR, BICUBIC, BOX, HAMMING, LANCZOS = range(6)


class Empty(ModuleType):
    """A module in which every public name is a layer that does nothing."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return InterpolationMode if name == "InterpolationMode" else type(name, (nn.Module,), {})


class StandIn:
    """Finds Empty modules for torchvision and everything below it."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torchvision":
            return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return Empty(spec.name)

    def exec_module(self, module):
        pass


def build(variant):
    """Return timm's network of 3 input channels, at random initial values."""
    finders = [] if find_spec("torchvision") else [StandIn()]
    sys.meta_path[:0] = finders
    try:
        return getattr(import_module("timm.models.hrnet"), NAMES[variant])()
    finally:
        for finder in finders:
            sys.meta_path.remove(finder)
        if finders:
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[name]


def trunk(network):
    """Return `network` without its head: when called, it returns the four branches."""
    network.incre_modules = None
    network.forward = network.forward_features
    return network


def load(network, params, stats):
    """Copy the trunk in emjax's flat dicts into `network`; all arrays of the trunk are required."""
    state = {timm_name(path): array for path, array in torch_state({**params, **stats}).items()}
    head = ("incre_modules", "downsamp_modules", "final_layer", "classifier")
    own = {name for name in network.state_dict() if not name.startswith(head)}
    own = {name for name in own if not name.endswith("num_batches_tracked")}
    assert own == set(state), own ^ set(state)
    network.load_state_dict(state, strict=False)
    return network


def timm_name(path):
    """Return timm's name of the array that emjax keeps at `path` in the trunk."""
    *module, kind, leaf = torch_name(path).split(".")
    index = ("conv", "norm").index(kind)  # in a torch.nn.Sequential
    letters = ("conv", "bn")[index]

    def after(number, first):
        return int(number) + first

    match module:
        case ["stem", i]:
            layer = f"{letters}{after(i, 1)}"
        case ["stage1", block, "project", _]:
            layer = f"layer1.{block}.downsample.{index}"
        case ["stage1", block, part]:
            layer = f"layer1.{block}.{letters}{1 + ('reduce', 'conv', 'expand').index(part)}"
        case ["transitions", i, "keep", branch, _]:
            layer = f"transition{after(i, 1)}.{branch}.{index}"
        case ["transitions", i, "new", _]:
            layer = f"transition{after(i, 1)}.{after(i, 1)}.0.{index}"
        case ["stages", i, m, "branches", branch, "blocks", block, "convs", conv]:
            prefix = f"stage{after(i, 2)}.{m}.branches.{branch}.{block}"
            layer = f"{prefix}.{letters}{after(conv, 1)}"
        case ["stages", i, m, "fuse", "paths", target, source, step]:
            prefix = f"stage{after(i, 2)}.{m}.fuse_layers.{target}.{source}"
            layer = f"{prefix}.{index}" if source > target else f"{prefix}.{step}.{index}"
    return f"{layer}.{leaf}"
