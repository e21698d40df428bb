#!/usr/bin/env bash
# expected: a pixel size that is saved in a TIFF is read back, whatever its unit.
# Really (RosettaSciIO 0.15.0): the resolution is written as 100 million over the whole number of
# 1e-8 units in a pixel, cut off. Metres is the unit that RosettaSciIO itself gives to SEM images of FEI
# and Zeiss: 16 nm a pixel is saved as 10 nm, 29 nm as 20 nm, each with the unit m. Below 10 nm the
# saving ends in a ZeroDivisionError. DigitalMicrograph's tags in the same file have the right value,
# which the reader overwrites. No line warns.
# Why it matters: an SEM image opened and saved, without any change, has lengths that are wrong by up to
# a half, in HyperSpy as in ImageJ. Converting the axes to nm before saving avoids it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install -q rosettasciio==0.15.0 tifffile==2026.3.3 numpy==2.4.6
cd "$work"
cat > program.py <<'P'
import numpy as np
import tifffile
from rsciio import tiff

image = np.zeros((5, 6), np.uint8)
for nm in (160, 16, 29, 2.5):
    fei = f"[Scan]\r\nPixelWidth={nm}e-09\r\nPixelHeight={nm}e-09\r\n"  # the tag of an FEI microscope
    tifffile.imwrite("sem.tif", image, extratags=[(34682, "s", 0, fei, False)], metadata=None)
    opened = tiff.file_reader("sem.tif")[0]
    axis = opened["axes"][1]
    try:
        tiff.file_writer("copy.tif", opened)
        copy = tiff.file_reader("copy.tif")[0]["axes"][1]
        again = f"{copy['scale']:.3g} {copy['units']}"
        with tifffile.TiffFile("copy.tif") as file:
            again += f", tag of DigitalMicrograph {file.pages[0].tags[65009].value:.3g}"
    except ZeroDivisionError as error:
        again = repr(error)
    print(f"opened: {axis['scale']:.3g} {axis['units']} | saved, and opened again: {again}")
P
"$work/env/bin/python" program.py | tee out
diff out - <<'T'
opened: 1.6e-07 m | saved, and opened again: 1.6e-07 m, tag of DigitalMicrograph 1.6e-07
opened: 1.6e-08 m | saved, and opened again: 1e-08 m, tag of DigitalMicrograph 1.6e-08
opened: 2.9e-08 m | saved, and opened again: 2e-08 m, tag of DigitalMicrograph 2.9e-08
opened: 2.5e-09 m | saved, and opened again: ZeroDivisionError('Fraction(100000000, 0)')
T
echo "as described"
