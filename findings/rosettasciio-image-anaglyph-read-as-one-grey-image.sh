#!/usr/bin/env bash
# expected: a PNG in RGB whose channels differ is read as colours. A red-cyan stereo anaglyph, the usual
# way to show a tilted pair of SEM images, has its left image in red and its right one in green and blue.
# Really (RosettaSciIO 0.15.0): whether an image in RGB is grey is asked by comparing green with blue,
# twice, and never with red. An anaglyph counts as grey and only its red channel is returned: the right
# image is gone. Marks in cyan on a grey micrograph are black, and what is drawn in cyan on black is an
# image of zeros. A mark in red comes as white. No line warns.
# Why it matters: one of two images, or what somebody marked, is lost on loading, and the array looks
# like any micrograph. HyperSpy's hs.load() is this reader.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install -q rosettasciio==0.15.0 imageio==2.38.1 pillow==13.0.0 numpy==2.4.6
cd "$work"
cat > program.py <<'P'
import imageio.v3 as imageio
import numpy as np
from rsciio import image

left = np.zeros((3, 4), np.uint8)
left[0] = 200  # the left image has its bright row at the top
right = np.zeros((3, 4), np.uint8)
right[2] = 90  # and the right one at the bottom
black = np.zeros((3, 4), np.uint8)
for name, channels in {
    "anaglyph": (left, right, right),
    "cyan on black": (black, left, left),
    "yellow on black": (left, left, black),
}.items():
    pixels = np.stack(channels, axis=-1)
    imageio.imwrite("image.png", pixels)
    assert (imageio.imread("image.png") == pixels).all()
    data = image.file_reader("image.png")[0]["data"]
    rows = [tuple(int(v) for v in px) if data.dtype.names else int(px) for px in data[:, 0]]
    print(f"{name}: {'colours' if data.dtype.names else data.dtype}, rows {rows}")
P
"$work/env/bin/python" program.py | tee out
diff out - <<'T'
anaglyph: uint8, rows [200, 0, 0]
cyan on black: uint8, rows [0, 0, 0]
yellow on black: colours, rows [(200, 200, 0), (0, 0, 0), (0, 0, 0)]
T
echo "as described"
