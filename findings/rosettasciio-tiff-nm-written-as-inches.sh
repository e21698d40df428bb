#!/usr/bin/env bash
# expected: an image of 0.25 nm pixels that HyperSpy saves as TIFF says so in the tags of TIFF, or
# its resolution tags have no unit, as ImageJ writes them beside its own "unit=nm".
# Really (RosettaSciIO 0.15.0): XResolution is 4, pixels per nm, and ResolutionUnit is inch. A reader
# that goes by the tags of TIFF finds 4 pixels an inch: 6.35 mm a pixel, 25 million times too large.
# The unit is in the ImageDescription alone.
# Why it matters: whoever measures in a program that knows TIFF but not ImageJ's text gets lengths,
# with a unit, that are wrong, and no error.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install -q "rosettasciio[tiff]==0.15.0" numpy==2.4.6
cd "$work"
cat > program.py <<'P'
import numpy as np
import tifffile
from rsciio import tiff

image = np.zeros((5, 6), np.uint16)
common = {"offset": 0, "units": "nm", "navigate": False}
axes = [
    {"name": "y", "scale": 0.5, "size": 5, **common},
    {"name": "x", "scale": 0.25, "size": 6, **common},
]
signal = {"data": image, "axes": axes, "metadata": {}, "original_metadata": {}}
tiff.file_writer("image.tif", signal)
with tifffile.TiffFile("image.tif") as file:
    tags = file.pages[0].tags
    print("pixels", tags["XResolution"].value, tags["YResolution"].value, end=" ")
    print("per", tags["ResolutionUnit"].value.name)
    print("description", repr(tags["ImageDescription"].value))
P
"$work/env/bin/python" program.py 2>/dev/null | tee out
grep -q "^pixels (4, 1) (2, 1) per INCH$" out
grep -q "unit=nm" out
echo "as described"
