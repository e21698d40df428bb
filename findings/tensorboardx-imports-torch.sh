#!/usr/bin/env bash
# expected: tensorboardX, which writes TensorBoard's files without a deep-learning framework, loads
# none: its requirements are numpy, packaging and protobuf.
# Really (tensorboardX 2.6.5): `import tensorboardX` tries `import torch`, and so does the import of
# any of its modules, because the package's __init__ runs first. Where PyTorch happens to be
# installed, a program of JAX or NumPy that writes one scalar loads all of it: with PyTorch 2.13.0
# 2.8 s and 208 MB on a 2-core x86 CPU, 2026-11-29.
# Why it matters: the process pays for a second framework, and its threads and memory, at each start.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install -q tensorboardX==2.6.5 numpy==2.4.6
cd "$work"
cat > program.py <<'P'
import importlib
import sys


class Recorder:
    """Says which modules are looked for, and finds none."""

    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("looks for torch")


sys.meta_path.insert(0, Recorder())
importlib.import_module(sys.argv[1])
P
for module in tensorboardX tensorboardX.event_file_writer tensorboardX.proto.event_pb2; do
    "$work/env/bin/python" program.py "$module" | sort -u | sed "s/^/$module: /"
done | tee out
[ "$(grep -c "looks for torch" out)" = 3 ]
echo "as described"
