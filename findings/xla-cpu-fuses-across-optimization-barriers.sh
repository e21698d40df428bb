#!/usr/bin/env bash
# expected: jax.lax.optimization_barrier keeps XLA from moving or merging operations across it, so an
# array that goes through one is computed once and read from memory by what comes after.
# Really (JAX 0.10.2 on CPUs, the newest for Python 3.11): the barrier is gone before XLA fuses, and
# both sides of it end in one fused loop; where two things follow, each computes what was before the
# barrier again. What stays is a call of a jitted function under set_xla_metadata(inlineable="false").
# In JAX 0.11.2 the barrier holds in this program.
# Why it matters: the gradient of a convolution's kernel needs its images transposed. XLA fuses that
# with the norms and sums that made them, and computes those again in the order of the transposed
# array: 43 % of an update of an HRNet W18-small. A barrier, the documented way, changes nothing there.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install -q jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > "$work/program.py" <<'P'
import re

import jax
from jax.experimental.xla_metadata import set_xla_metadata


@jax.jit
def as_it_is(x):
    return x


def call(x):
    with set_xla_metadata(inlineable="false"):
        return as_it_is(x)


def loops_with_maximum(between):
    """How many compiled loops compute the maximum."""

    def function(x):
        y = between(jax.numpy.maximum(3 * x - 1, 0))
        return y.transpose(2, 0, 1) * 2, jax.numpy.sin(y)

    image = jax.ShapeDtypeStruct((32, 32, 16), "float32")
    text = jax.jit(function).lower(image).compile().as_text()
    computations = re.split(r"\n\n", text)
    return sum(" maximum(" in each for each in computations)


found = {
    "nothing between": loops_with_maximum(lambda x: x),
    "optimization_barrier": loops_with_maximum(jax.lax.optimization_barrier),
    "call that is not inlined": loops_with_maximum(call),
}
for name, count in found.items():
    print(f"{name}: the maximum is computed in {count} loop{'s' * (count > 1)}")
assert [*found.values()] == [2, 2, 1]
P
JAX_PLATFORMS=cpu "$work/env/bin/python" "$work/program.py"
echo "as described"
