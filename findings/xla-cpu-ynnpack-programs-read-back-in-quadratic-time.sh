#!/usr/bin/env bash
# expected: JAX's compile cache saves the compilation: a program four times as large takes about four
# times as long to read back.
# Really (JAX 0.10.2 and 0.11.2 on CPUs, which compute sums, products and convolutions with YNNPACK by
# default): when a program is read back, the instruction of each of YNNPACK's operations is looked
# for among all instructions of the program, so the time grows with the square of the size. A
# thousand layers that each subtract a mean: 3.5 s of the processor instead of 0.9 without YNNPACK
# (xla_cpu_experimental_ynn_fusion_type set to nothing); the update of an HRNet W18: 38 s instead of 8
# (2-core x86 CPU, 2026-11-30).
# Why it matters: a network of hundreds of norms starts slowly however full the cache is, and the
# option that decides it sounds as if it were about speed alone.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install -q jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > "$work/program.py" <<'P'
import time

import jax
from jax.experimental import serialize_executable

OPTIONS = {
    "with YNNPACK": {},
    "without": {"xla_cpu_experimental_ynn_fusion_type": ""},
}


def seconds_to_read(layers, options):
    def network(x):
        for _ in range(layers):
            x = jax.numpy.tanh(x) - x.mean((0, 1, 2), keepdims=True)
        return x

    image = jax.ShapeDtypeStruct((2, 16, 16, 8), "float32")
    program = jax.jit(network).lower(image).compile(compiler_options=options)
    saved = serialize_executable.serialize(program)
    start = time.process_time()
    serialize_executable.deserialize_and_load(*saved)
    return time.process_time() - start


taken = {}
for name, options in OPTIONS.items():
    taken[name] = [min(seconds_to_read(n, options) for _ in range(2)) for n in (250, 1000)]
    print(f"{name}: 250 layers {taken[name][0]:.2f} s, 1000 layers {taken[name][1]:.2f} s")
assert taken["with YNNPACK"][1] > 10 * taken["with YNNPACK"][0]
assert taken["with YNNPACK"][1] > 2 * taken["without"][1]
P
JAX_PLATFORMS=cpu "$work/env/bin/python" "$work/program.py"
echo "as described"
