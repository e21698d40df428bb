"""All networks by name. A model is an nnx.Module with plain keyword arguments."""

from collections.abc import Callable
from typing import Any

from emjax.models.hrnet import HRNet
from emjax.models.model import Model
from emjax.models.patchgan import PatchGAN
from emjax.models.unet import UNet

MODELS: dict[str, Callable[..., Any]] = {"unet": UNet, "hrnet": HRNet, "patchgan": PatchGAN}

__all__ = ["MODELS", "Model"]
