#!/usr/bin/env bash
# expected: beside a 4D-STEM movie Direct Electron's software writes NAME_info.txt with the pixel sizes
# of the scan and of the patterns; RosettaSciIO's documentation says that its MRC reader takes the
# metadata from there.
# Really (RosettaSciIO 0.15.0): the reader parses these sizes and then sets each that is given to 1 (a
# comparison is the wrong way round; it was to replace -1, "unknown"). Any scan has 1 nm a position and
# 1 nm^-1 a pixel, with these units. The values are in original_metadata alone. No line warns.
# Why it matters: the axes look calibrated. Strain maps and particle sizes from them are off by the
# pixel size, a factor that differs from one scan to the next.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install -q rosettasciio==0.15.0 mrcfile==1.5.4 numpy==2.4.6
cd "$work"
cat > program.py <<'P'
import mrcfile
import numpy as np
from rsciio import mrc

INFO = """Scan - Enable = Enable
Scan - Type = Raster
Scan - Size X = 3
Scan - Size Y = 2
Image Size X (pixels) = 5
Image Size Y (pixels) = 4
Instrument Project TEMorSTEM Mode = 1
Specimen Pixel Size X (nanometers) = 0.25
Specimen Pixel Size Y (nanometers) = 0.25
Diffraction Pixel Size X = 0.03
Diffraction Pixel Size Y = 0.03
"""
patterns = np.arange(120, dtype=np.uint16).reshape(6, 4, 5)
with mrcfile.new("20261201_00001_movie.mrc", patterns) as file:
    file.set_image_stack()
with open("20261201_00001_info.txt", "w") as file:
    file.write(INFO)
signal = mrc.file_reader("20261201_00001_movie.mrc")[0]
print(signal["data"].shape)
for axis in signal["axes"]:
    print(axis["name"], float(axis["scale"]), axis["units"])
given = signal["original_metadata"]["de_metadata"]
print({key: value for key, value in given.items() if "Pixel Size X" in key})
P
"$work/env/bin/python" program.py | tee out
diff out - <<'T'
(2, 3, 4, 5)
y 1.0 nm
x 1.0 nm
ky 1.0 nm^-1
kx 1.0 nm^-1
{'Specimen Pixel Size X (nanometers)': '0.25', 'Diffraction Pixel Size X': '0.03'}
T
echo "as described"
