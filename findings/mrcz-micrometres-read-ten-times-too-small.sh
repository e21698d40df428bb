#!/usr/bin/env bash
# expected: mrcz writes and reads pixel sizes in the unit that it is told; what is written in micrometre
# is read in micrometre.
# Really (mrcz 0.6.0): writing multiplies by 1e4 to come to angstrom, reading multiplies by 1e-5: the
# number that comes back is a tenth. The other three units are right.
# Why it matters: pixel sizes of low magnification, read in the documented unit, are wrong by ten, also
# those that other programs wrote.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install -q mrcz==0.6.0 numpy==2.4.6
cd "$work"
cat > program.py <<'P'
import mrcz
import numpy as np

for unit in ("\\AA", "nm", "pm", "\\mum"):
    mrcz.writeMRC(np.zeros((2, 4, 5), np.float32), "image.mrc", pixelsize=[0.5, 0.5, 0.5], pixelunits=unit)
    cell = np.fromfile("image.mrc", "<f4", 3, offset=40)[0]  # five pixels, in angstrom
    back = mrcz.readMRC("image.mrc", pixelunits=unit)[1]["pixelsize"]
    print(f"written 0.5 {unit} | {cell / 5:.4g} angstrom in the file | read {back[0]:.3g} {unit}")
P
"$work/env/bin/python" program.py | tee out
diff out - <<'T'
written 0.5 \AA | 0.5 angstrom in the file | read 0.5 \AA
written 0.5 nm | 5 angstrom in the file | read 0.5 nm
written 0.5 pm | 0.005 angstrom in the file | read 0.5 pm
written 0.5 \mum | 5000 angstrom in the file | read 0.05 \mum
T
echo "as described"
