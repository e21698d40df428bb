#!/usr/bin/env bash
# expected: pixel sizes in micrometre, angstrom or metre are converted when HyperSpy writes MRC or MRCZ,
# whose header holds angstrom, or a unit that cannot be is refused, as the writer of blockfiles does.
# Really (RosettaSciIO 0.15.0, mrcz 0.6.0): the unit's name is handed on as it is, and mrcz takes every
# name but its own spellings ("\\AA", "\\mum", "pm") for nm. 0.5 Å a pixel becomes 0.5 nm, 0.5 µm and
# 0.5 1/nm, too. No line warns.
# Why it matters: after a round trip a diffraction pattern has a length per pixel, and a survey image is
# a thousand times too small; both numbers look as before.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install -q rosettasciio==0.15.0 mrcz==0.6.0 numpy==2.4.6
cd "$work"
cat > program.py <<'P'
import numpy as np
from rsciio import mrcz

for unit in ("nm", "Å", "µm", "m", "1/nm", "pm"):
    axes = [{"name": name, "size": size, "scale": 0.5, "offset": 0, "units": unit, "navigate": name == "z"}
            for name, size in zip("zyx", (2, 4, 5))]
    signal = {"data": np.zeros((2, 4, 5), np.int16), "axes": axes, "metadata": {}}
    mrcz.file_writer("image.mrcz", signal)
    axis = mrcz.file_reader("image.mrcz")[0]["axes"][2]
    print(f"written 0.5 {unit} | read {axis['scale']:.3g} {axis['units']}")
P
"$work/env/bin/python" program.py | tee out
diff out - <<'T'
written 0.5 nm | read 0.5 nm
written 0.5 Å | read 0.5 nm
written 0.5 µm | read 0.5 nm
written 0.5 m | read 0.5 nm
written 0.5 1/nm | read 0.5 nm
written 0.5 pm | read 0.0005 nm
T
echo "as described"
