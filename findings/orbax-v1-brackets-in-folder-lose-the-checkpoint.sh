#!/usr/bin/env bash
# expected: a folder may have any name that the file system allows; a state that
# orbax.checkpoint.v1's Checkpointer has saved without an error can be loaded from it.
# Really (orbax-checkpoint 0.12.8 with etils 1.15.0, jax 0.10.2): below a folder named run[1] save()
# returns and wait() raises nothing, only a warning says that a merge is skipped; the checkpoint is
# there, is listed, and loading it fails. etils' Path.glob takes brackets anywhere in the path for a
# pattern, so Orbax does not find the files that it has just written.
# Why it matters: brackets are usual in names of samples and runs. The training ends well, and what
# it has learned is lost.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install -q orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2 etils==1.15.0
cd "$work"
cat > program.py <<'P'
import logging
import sys
from pathlib import Path

import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

logging.disable(logging.CRITICAL)
for name in ("plain", "run[1]"):
    folder = Path(name).absolute() / "checkpoints"
    state = {"weights": jnp.arange(6.0)}
    checkpointer = ocp.training.Checkpointer(str(folder))
    checkpointer.save(1, state)
    checkpointer.close()
    again = ocp.training.Checkpointer(str(folder))
    print(name, "| listed:", [kept.step for kept in again.checkpoints], end=" | ")
    try:
        print("loaded:", again.load(1, state)["weights"].tolist())
    except Exception as error:
        print("not loaded:", type(error).__name__)
P
JAX_PLATFORMS=cpu "$work/env/bin/python" program.py 2>/dev/null | tee "$work/out"
grep -q "^plain | listed: \[1\] | loaded: \[0.0, 1.0, 2.0, 3.0, 4.0, 5.0\]$" "$work/out"
grep -q "^run\[1\] | listed: \[1\] | not loaded: " "$work/out"
echo "as described"
