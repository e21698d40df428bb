"""All networks by name. A model is an nnx.Module with plain keyword arguments."""

from emjax.models.hrnet import HRNet
from emjax.models.patchgan import PatchGAN
from emjax.models.unet import UNet

MODELS = {"unet": UNet, "hrnet": HRNet, "patchgan": PatchGAN}
