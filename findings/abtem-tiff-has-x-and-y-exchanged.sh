#!/usr/bin/env bash
# expected: a simulated image that abTEM saves as TIFF is the image that it shows and that its
# to_hyperspy() gives: x along the rows, y down the columns.
# Really (abTEM 1.0.9): abTEM's arrays have x first. show() and, by default, to_hyperspy() exchange the
# axes; to_tiff() writes the array as it lies, so that x runs down the columns. Width and height are
# exchanged, and against to_hyperspy() the image is mirrored. Only a JSON of abTEM's own in the
# ImageDescription tells which axis is x and how large a pixel is; the tags say a resolution of 1
# without a unit, and no line warns.
# Why it matters: simulated micrographs are compared with measured ones and train networks. Scan
# directions and shears are mirrored, and in a rectangular cell the lattice constants change places.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install -q abtem==1.0.9 hyperspy==2.5.0 tifffile==2026.3.3 numpy==2.4.6
cd "$work"
cat > program.py <<'P'
import abtem
import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import tifffile

array = np.zeros((6, 4), np.float32)  # six pixels along x, four along y
array[:, 0] = 1  # a line along x
image = abtem.Images(array, sampling=(0.1, 0.2))  # 0.1 angstrom along x, 0.2 along y
print("abTEM: extent along x, y:", *(round(side, 3) for side in image.extent))
image.show()
height, width = plt.gcf().axes[0].get_images()[0].get_array().shape
print("show(): width", width, "height", height)
signal = image.to_hyperspy()
print("to_hyperspy(): width", signal.data.shape[1], "height", signal.data.shape[0],
      "| line in rows", np.flatnonzero(signal.data.all(axis=1)))
image.to_tiff("image.tif")
with tifffile.TiffFile("image.tif") as file:
    tags, data = file.pages[0].tags, file.asarray()
    print("to_tiff(): width", tags["ImageWidth"].value, "height", tags["ImageLength"].value,
          "| line in columns", np.flatnonzero(data.all(axis=0)))
    print("resolution", tags["XResolution"].value, tags["YResolution"].value, tags["ResolutionUnit"].value.name)
P
"$work/env/bin/python" program.py | tee out
diff out - <<'T'
abTEM: extent along x, y: 0.6 0.8
show(): width 6 height 4
to_hyperspy(): width 6 height 4 | line in rows [0]
to_tiff(): width 4 height 6 | line in columns [0]
resolution (1, 1) (1, 1) NONE
T
echo "as described"
