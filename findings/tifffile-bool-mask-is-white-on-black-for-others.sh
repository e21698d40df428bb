#!/usr/bin/env bash
# expected: a bool mask saved by tifffile.imwrite(path, mask) is the same mask for other readers: True
# is the particle, as when 0 and 255 of uint8 are saved.
# Really (tifffile 2026.3.3): a bool array gets PhotometricInterpretation 0 (zero is white) while its
# bits stay as they are; uint8 gets 1. tifffile reads back what it wrote, since it does not apply the
# tag. Pillow 13.0.0, OpenCV 5.0.0 and imageio 2.38.1 apply it: particles are background, and the
# reverse. photometric="minisblack" avoids it. No line warns on either side.
# Why it matters: masks of a Python pipeline are inverted for the next program, and with a particle in
# half of the image no number looks odd. To a reader they cannot be told from those of a scanner by the
# tag alone; the tag Software says tifffile.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install -q tifffile==2026.3.3 pillow==13.0.0 imageio==2.38.1 \
    opencv-python-headless==5.0.0.93 numpy==2.4.6
cd "$work"
cat > program.py <<'P'
import cv2
import imageio.v3 as imageio
import numpy as np
import tifffile
from PIL import Image

mask = np.zeros((16, 24), bool)
mask[4:8, 6:15] = True  # 36 of 384 pixels
for name, array, options in (
    ("bool", mask, {}),
    ("bool, minisblack", mask, {"photometric": "minisblack"}),
    ("uint8", mask.astype(np.uint8) * 255, {}),
):
    tifffile.imwrite("m.tif", array, **options)
    with tifffile.TiffFile("m.tif") as file:
        tag = int(file.pages[0].tags["PhotometricInterpretation"].value)
    with Image.open("m.tif") as image:
        readers = {"tifffile": tifffile.imread("m.tif"), "Pillow": np.asarray(image)}
    readers["OpenCV"] = cv2.imread("m.tif", cv2.IMREAD_UNCHANGED)
    readers["imageio"] = imageio.imread("m.tif", plugin="pillow")
    counts = ", ".join(f"{reader} {int((found > 0).sum())}" for reader, found in readers.items())
    print(f"{name}: photometric {tag}; true pixels: {counts}")
P
"$work/env/bin/python" program.py | tee out
diff out - <<'X'
bool: photometric 0; true pixels: tifffile 36, Pillow 348, OpenCV 348, imageio 348
bool, minisblack: photometric 1; true pixels: tifffile 36, Pillow 36, OpenCV 36, imageio 36
uint8: photometric 1; true pixels: tifffile 36, Pillow 36, OpenCV 36, imageio 36
X
