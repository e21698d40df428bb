"""Training objectives by name. `emjax.objectives.objective` has their interface.

In every state, `step` counts the updates, `generator` is the network that is kept, and `skips`
lists the batches that were not applied.
"""

from collections.abc import Callable

from emjax.objectives.masked import Masked
from emjax.objectives.objective import Objective
from emjax.objectives.pix2pix import Pix2Pix
from emjax.objectives.reconstruction import Reconstruction
from emjax.objectives.supervised import Supervised

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "pix2pix": Pix2Pix,
    "reconstruction": Reconstruction,
    "masked": Masked,
    "supervised": Supervised,
}

__all__ = ["OBJECTIVES", "Masked", "Objective", "Pix2Pix", "Reconstruction", "Supervised"]
