"""How weights change. An objective is a frozen dataclass of plain values with pure methods

    init(seed) -> state                        at its initial values
    train_step(state, batch) -> state, terms   terms: a flat dict of scalars
    eval_step(state, batch) -> {metric: (value [b], counts bool [b])}   an entry an image
    views(generator, batch) -> {name: images [b, h, w, 1]}       to look at, in the order of names

and `compiler_options`, {backend: {option of XLA: value}}, for the program of its train_step.

An objective without a task also names `best`, the metric that chooses the best checkpoint, and
`higher_is_better`, as a Task does. In every state, `step` counts the updates, `generator` is the
network that is kept, and `skips` tells the batches that were not applied.
"""

from emjax.objectives.masked import Masked
from emjax.objectives.pix2pix import Pix2Pix
from emjax.objectives.reconstruction import Reconstruction
from emjax.objectives.supervised import Supervised

OBJECTIVES = {
    "pix2pix": Pix2Pix,
    "reconstruction": Reconstruction,
    "masked": Masked,
    "supervised": Supervised,
}
