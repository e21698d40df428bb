#!/usr/bin/env bash
# expected: between two saves of a run of several processes, one of them may open what was saved, with
# orbax.checkpoint.v1.load under a Context whose primary_host and active_processes name it alone, the
# options for loads that not all processes take part in.
# Really (orbax-checkpoint 0.12.8): each process numbers its own saves and loads, and barriers of a save
# have that number in their names. After such a load the processes have come to different numbers, and
# in the next save they wait at two barriers of the same purpose, five minutes by default (20 in a
# training.Checkpointer). The TimeoutError says that one of two tasks reached the barrier.
# Why it matters: reading back what was saved, or scoring it, in the first process alone is what a
# training tends to do; with a single save, as in most tests, nothing goes wrong.
# This takes six minutes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install -q jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 orbax-checkpoint==0.12.8
cat > "$work/program.py" <<'P'
import re
import sys

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

port, process, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)
mesh = jax.sharding.Mesh(jax.devices(), "x")
whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
state = {"w": jax.make_array_from_callback((2,), whole, lambda at: np.arange(2.0)[at])}


def save(step):
    try:
        ocp.save(f"{folder}/{step}", state)
        return "saved"
    except TimeoutError as error:
        return re.search(r"waiting at barrier '(.*?)'", str(error))[1]


def load_alone(step):
    context = ocp.Context()
    context.multiprocessing.primary_host = process
    context.multiprocessing.active_processes = {process}
    context.multiprocessing.barrier_sync_key_prefix = f"process_{process}"
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with context:
        return ocp.load(f"{folder}/{step}", {"w": jax.ShapeDtypeStruct((2,), "float32", sharding=here)})


print(process, "first save:", save(1), flush=True)
print(process, "second save:", save(2), flush=True)
if process == 0:
    print(process, "loads alone:", load_alone(2)["w"], flush=True)
print(process, "third save:", save(3), flush=True)
P
port=$("$work/env/bin/python" -c "import socket; s = socket.socket(); s.bind(('', 0)); print(s.getsockname()[1])")
for process in 0 1; do
    JAX_PLATFORMS=cpu timeout 900 "$work/env/bin/python" "$work/program.py" "$port" $process "$work/run" \
        > "$work/$process.txt" 2> "$work/$process.err" &
done
wait
grep -h "^[01] " "$work"/?.txt | tee "$work/both.txt"
diff - "$work/both.txt" <<'T'
0 first save: saved
0 second save: saved
0 loads alone: [0. 1.]
0 third save: [op=4] next_awaitable_signal_operation_id:sync
1 first save: saved
1 second save: saved
1 third save: [op=3] next_awaitable_signal_operation_id:sync
T
echo "as described"
