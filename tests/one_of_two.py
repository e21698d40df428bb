"""One of two processes with two devices each: python -m tests.one_of_two INDEX PORT FOLDER DATA

Restores what is in FOLDER, prints a digest of it and the first examples, and saves the next step.
"""

import os
import sys

os.environ["JAX_NUM_CPU_DEVICES"] = "2"

import jax
import numpy as np
from jax.experimental import multihost_utils

from emjax.data.batches import TrainBatches
from emjax.data.records import open_records
from emjax.parallel import sharding
from tests.test_checkpoints import digest, make_state, open_folder


def main(index, port, folder, data):
    jax.distributed.initialize(f"localhost:{port}", 2, int(index))
    assert jax.device_count() == 4 and jax.process_count() == 2
    mesh = sharding.data_mesh()
    checkpoints = open_folder(folder)
    host = make_state()
    host = host.replace(generator=jax.tree.map(np.zeros_like, host.generator))
    key = jax.device_put(np.zeros(2, np.uint32), sharding.replicated(mesh))
    state = jax.device_put(host.replace(key=None), sharding.replicated(mesh))
    state = checkpoints.restore(state.replace(key=jax.jit(jax.random.wrap_key_data)(key)))
    records = open_records(data, "simulated/unlabelled", "train")
    reader = TrainBatches([records], batch_size=8, seed=5, mesh=mesh).starting_at(3)
    rows = [multihost_utils.process_allgather(next(reader)["index"], tiled=True) for _ in range(3)]
    print("state", int(state.step), digest(state), np.concatenate(rows).tolist(), flush=True)
    checkpoints.save(int(state.step) + 1, state.replace(step=state.step + 1), {"val/l1": 0.5})
    checkpoints.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
