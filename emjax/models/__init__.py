"""All networks by name. A model is an nnx.Module with plain keyword arguments.

Importing this package loads no JAX: MODELS and Model are loaded when they are first used, since
the names of the pretrained models are needed without a network.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emjax.models.model import Model

    MODELS: dict[str, Callable[..., Any]]

__all__ = ["MODELS", "Model"]


def __getattr__(name: str) -> Any:
    """Return MODELS or Model (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from emjax.models.hrnet import HRNet
    from emjax.models.model import Model
    from emjax.models.patchgan import PatchGAN
    from emjax.models.unet import UNet

    models: dict[str, Callable[..., Any]] = {"unet": UNet, "hrnet": HRNet, "patchgan": PatchGAN}
    globals().update(MODELS=models, Model=Model)
    return globals()[name]
