#!/usr/bin/env bash
# expected: a compiled training step that is called again and again works in memory that the process
# has already; after the first calls the kernel has no pages to give it.
# Really (jax 0.10.2 on Linux, glibc): XLA's CPU client takes the buffers of each call from malloc and
# frees them after it. glibc maps blocks of that size and gives them back to the kernel at once, so that
# every call faults in and clears all its pages anew. With glibc told to keep memory (MALLOC_MMAP_MAX_=0,
# MALLOC_TRIM_THRESHOLD_ above the need, MALLOC_ARENA_MAX=1) hardly a page is asked for.
# Why it matters: a step of a small U-Net works in some hundred MB; faults were a fifth of its time.
# Allocators put in the place of glibc's help for the same reason.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install -q jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > "$work/program.py" <<'P'
import resource

import jax
import jax.numpy as jnp


def loss(kernels, x):
    for kernel in kernels:
        x = jnp.tanh(jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))
    return (x**2).mean()


@jax.jit
def update(kernels, x):
    return jax.tree.map(lambda k, g: k - 0.01 * g, kernels, jax.grad(loss)(kernels, x))


kernels = [jnp.full((3, 3, 8, 8), 0.01)] * 6
x = jnp.ones((4, 256, 256, 8))
for _ in range(40):
    kernels = jax.block_until_ready(update(kernels, x))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    kernels = jax.block_until_ready(update(kernels, x))
pages = (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20
print("more than 4000 pages a step" if pages > 4000 else "fewer than 200 pages a step" if pages < 200 else f"{pages:.0f} pages a step")
P
export JAX_PLATFORMS=cpu
{
    echo "default: $("$work/env/bin/python" "$work/program.py" 2> /dev/null)"
    echo "kept: $(MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 "$work/env/bin/python" "$work/program.py" 2> /dev/null)"
} | tee "$work/found.txt"
diff - "$work/found.txt" <<'T'
default: more than 4000 pages a step
kept: fewer than 200 pages a step
T
echo "as described"
