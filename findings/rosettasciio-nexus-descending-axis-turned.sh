#!/usr/bin/env bash
# expected: an NXdata group names a vector of positions for each axis of its image, and these may
# descend, as the heights of rows from the top do. HyperSpy's reader should give an axis with a negative
# scale, or turn the image with the axis.
# Really (RosettaSciIO 0.15.0): the scale is the absolute step and the offset the least position, while
# the pixels stay as stored: each row has the position of its mirror image. Two files that differ in
# nothing but the direction of y are read alike, and no line warns.
# Why it matters: what was found at y = 30 nm is looked for at the other end of the sample; two maps of
# one field by two programs do not lie on each other.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install -q rosettasciio==0.15.0 h5py==3.16.0 numpy==2.4.6
cd "$work"
cat > program.py <<'P'
import h5py
import numpy as np
from rsciio import nexus

image = np.zeros((3, 4), np.uint16)
image[0] = 7  # one bright row, the first
for name, heights in {"ascending": [0.0, 0.5, 1.0], "descending": [1.0, 0.5, 0.0]}.items():
    with h5py.File(f"{name}.nxs", "w") as file:
        file.attrs["default"] = "entry"
        file.create_group("entry").attrs.update(NX_class="NXentry", default="map")
        group = file["entry"].create_group("map")
        group.attrs.update(NX_class="NXdata", signal="counts", axes=["y", "x"])
        group["counts"] = image
        for axis, positions in (("y", heights), ("x", [0.0, 0.25, 0.5, 0.75])):
            group.create_dataset(axis, data=positions).attrs["units"] = "nm"
    for read in nexus.file_reader(f"{name}.nxs"):
        if read["data"].ndim == 2:
            y = next(axis for axis in read["axes"] if axis["name"] == "y")
            row = int(np.argmax(read["data"][:, 0]))
            found = float(y["offset"] + row * y["scale"])
            print(f"{name}: the bright row is at {heights[row]} nm, read at {found} nm")
P
"$work/env/bin/python" program.py | tee out
diff out - <<'X'
ascending: the bright row is at 0.0 nm, read at 0.0 nm
descending: the bright row is at 1.0 nm, read at 0.0 nm
X
