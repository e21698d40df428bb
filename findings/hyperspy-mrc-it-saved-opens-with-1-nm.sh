#!/usr/bin/env bash
# expected: signal.save("data.mrc"), which the documentation gives as the way to write MRC files, keeps
# the pixel size: hs.load("data.mrc") has it again, and other programs find it.
# Really (HyperSpy 2.5.0, RosettaSciIO 0.15.0, mrcz 0.6.0): the file is written by mrcz, which leaves
# MX, MY and MZ of the header, the numbers of intervals that the cell is divided by, at zero. hs.load()
# takes the other reader, for which that means 1: 0.25 nm a pixel comes back as 1 nm, with the unit nm.
# mrcfile divides by zero. Only hs.load(..., file_format="mrcz") has 0.25 nm.
# Why it matters: the unit is there and the number is believable, so that every length measured after
# one saving and loading is wrong, silently.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install -q hyperspy==2.5.0 rosettasciio==0.15.0 mrcz==0.6.0 \
    mrcfile==1.5.4 numpy==2.4.6
cd "$work"
cat > program.py <<'P'
import hyperspy.api as hs
import mrcfile
import numpy as np

signal = hs.signals.Signal2D(np.arange(60, dtype=np.int16).reshape(3, 4, 5))
for axis in signal.axes_manager.signal_axes:
    axis.scale, axis.units = 0.25, "nm"


def say(title, signal):
    axis = signal.axes_manager.signal_axes[0]
    print(f"{title}: {axis.scale:.3g} {axis.units}")


say("saved", signal)
signal.save("data.mrc")
say("hs.load", hs.load("data.mrc"))
say("hs.load as mrcz", hs.load("data.mrc", file_format="mrcz"))
with mrcfile.open("data.mrc", permissive=True) as file:
    header = file.header
    print("header: cell", header.cella, "MX, MY, MZ", header.mx, header.my, header.mz)
    print("mrcfile:", file.voxel_size.x, "angstrom")
P
"$work/env/bin/python" program.py | tee out
diff out - <<'T'
saved: 0.25 nm
hs.load: 1 nm
hs.load as mrcz: 0.25 nm
header: cell (12.5, 10.0, 30.0) MX, MY, MZ 0 0 0
mrcfile: inf angstrom
T
echo "as described"
