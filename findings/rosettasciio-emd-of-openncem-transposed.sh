#!/usr/bin/env bash
# expected: an EMD file that openNCEM writes shows the same image in HyperSpy: dim1 belongs to the
# first axis of the array, y here, and dim2 to the second, as the EMD 0.2 specification numbers them.
# Really (RosettaSciIO 0.15.0, ncempy 1.16.0): RosettaSciIO reverses the axes of every such array.
# A field of 5 x 6 pixels arrives as 6 x 5, rows and columns exchanged, without a word; the axes keep
# their names and sizes, so nothing looks wrong. What RosettaSciIO writes itself is reversed on the
# disk and arrives transposed in ncempy.
# Why it matters: angles, scan directions and masks drawn in the one do not fit in the other, and a
# square image shows no sign of it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install -q "rosettasciio[hdf5]==0.15.0" ncempy==1.16.0 numpy==2.4.6
cd "$work"
cat > program.py <<'P'
import numpy as np
from ncempy.io import emd as ncempy
from rsciio import emd as rsciio

field = np.arange(30, dtype=np.uint16).reshape(5, 6)
dims = ((np.arange(5) * 0.5, "y", "[n_m]"), (np.arange(6) * 0.25, "x", "[n_m]"))
with ncempy.fileEMD("field.emd", readonly=False) as file:
    file.put_emdgroup("field", field, dims)
print("ncempy reads", ncempy.emdReader("field.emd")["data"].shape)
read = rsciio.file_reader("field.emd")[0]
axes = [(axis["name"], axis["size"], float(axis["scale"])) for axis in read["axes"]]
print("RosettaSciIO reads", read["data"].shape, axes)
print("transposed:", np.array_equal(read["data"], field.T))
P
"$work/env/bin/python" program.py 2>/dev/null | tee out
grep -q "^ncempy reads (5, 6)$" out
grep -q "^RosettaSciIO reads (6, 5) \[('x', 6, 0.25), ('y', 5, 0.5)\]$" out
grep -q "^transposed: True$" out
echo "as described"
