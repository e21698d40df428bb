"""Bytes that the devices exchange in a training step: python -m benchmarks.collectives [VARIANT...]

Of the paper's pretraining with each generator, as compiled for 8 virtual CPU devices: the sizes of
what goes into the collectives of the HLO. Those of gradients and statistics do not depend on the
batch or the number of devices; what does would show as a difference between two --batch sizes.
Also the bytes of a checkpoint: all arrays of the state. --fsdp and --space lay the devices out as
`config.mesh` does; the compiled step's temporary memory is that of one device.
"""

import argparse
import collections
import re

import jax
import numpy as np

from emjax.data.records import Records
from emjax.main import parse
from emjax.models.build import build_abstract
from emjax.models.network import replace_in_networks
from emjax.parallel import sharding
from emjax.training.assemble import build_objective

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
SIZES = {"f64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "u8": 1, "pred": 1}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variants", nargs="*", default=["unet_4_424", "hrnet_w18_small_v1"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--side", type=int, default=64, help="of the patches, in pixels")
    parser.add_argument("--fsdp", type=int, default=1)
    parser.add_argument("--space", type=int, default=1)
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 8)
    for variant in options.variants:
        mesh = sharding.data_mesh(fsdp=options.fsdp, space=options.space)
        step, state = compiled(variant, options.batch, options.side, mesh)
        told = "; ".join(
            f"{count} {kind} of {size:,} bytes in all"
            for kind, (count, size) in exchanged(step.as_text()).items()
        )
        saved = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        held = step.memory_analysis()
        print(
            f"{variant}: {told}; the state has {saved:,} bytes, {held.argument_size_in_bytes:,} "
            f"of it and of the batch on a device, beside {held.temp_size_in_bytes:,} temporary",
            flush=True,
        )


def compiled(variant, batch_size, side, mesh):
    """(the compiled step, the state as shapes) of a pretraining."""
    config, _ = parse([f"--config=configs/pretrain.py:{variant}", f"--config.augment.crop={side}",
                       f"--config.mesh.space={mesh.shape['space']}"])  # fmt: skip
    image = np.zeros((side, side, 1), np.uint8)
    records = Records([{"image": image}], {"targets": ()})
    divisor = build_abstract(config.model.to_dict()).divisor
    objective = build_objective(config, [records], divisor)
    state = replace_in_networks(objective.init(0), mesh=mesh)

    def shape_of(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.batch_sharding(shape, mesh))

    batch = {
        name: shape_of((batch_size, *shape), dtype)
        for name, shape, dtype in (
            ("image", image.shape, np.uint8),
            ("intensity_range", (2,), np.float32),
            ("index", (), np.int32),
        )
    }
    places = jax.tree.map(lambda leaf: sharding.kernel_sharding(leaf.shape, mesh), state)
    state = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        state, places,
    )  # fmt: skip
    step = jax.jit(objective.train_step, donate_argnums=0,
                   out_shardings=(places, sharding.replicated(mesh)))  # fmt: skip
    quick = {"xla_backend_optimization_level": 0}
    return step.lower(state, batch).compile(compiler_options=quick), state


def exchanged(text):
    """{kind of collective: (how many, bytes of their results)} of an HLO text."""
    found = collections.defaultdict(lambda: (0, 0))
    for line in text.splitlines():
        match = re.search(rf"= (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(", line)
        if match:
            count, size = found[match[2]]
            for kind, sides in re.findall(r"(\w+)\[([\d,]*)\]", match[1]):
                size += SIZES[kind] * int(np.prod([int(n) for n in sides.split(",") if n]))
            found[match[2]] = (count + 1, size)
    return dict(found)


if __name__ == "__main__":
    main()
