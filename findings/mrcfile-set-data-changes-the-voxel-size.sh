#!/usr/bin/env bash
# expected: a volume opened with mode "r+" and replaced by a part of itself keeps its voxel size; of
# set_data() the documentation says that it keeps the header up to date, and of voxel_size that it is
# the size of a voxel.
# Really (mrcfile 1.5.4): the length of the cell is kept and divided by the new number of voxels. A crop
# to half of each side has voxels twice as large, an uneven one different voxels along x, y and z. A
# voxel size that is set before the data is lost: 0. No line warns, and mrcfile.validate() is content.
# Why it matters: cut-outs of tomograms are made so, and have a wrong scale in the next program. For a
# binned volume the rule is right, for a crop it is not; set voxel_size after set_data().
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install -q mrcfile==1.5.4 numpy==2.4.6
cd "$work"
cat > program.py <<'P'
import io

import mrcfile
import numpy as np

volume = np.random.default_rng(0).normal(size=(40, 64, 64)).astype(np.float32)


def sizes(path):
    with mrcfile.open(path) as file:
        size = file.voxel_size
        return f"x {size.x:.3g}, y {size.y:.3g}, z {size.z:.3g} angstrom"


for title, part in {
    "as it was": np.s_[:, :, :],
    "half of each side": np.s_[:20, :32, :32],
    "a slab of 10": np.s_[:10],
}.items():
    mrcfile.write("tomogram.mrc", volume, voxel_size=2.0, overwrite=True)
    with mrcfile.open("tomogram.mrc", mode="r+") as file:
        file.set_data(file.data[part].copy())
    valid = mrcfile.validate("tomogram.mrc", print_file=io.StringIO())
    print(f"{title}: {sizes('tomogram.mrc')}, valid {valid}")
with mrcfile.new("new.mrc") as file:
    file.voxel_size = 2.0
    file.set_data(volume)
print("set before the data:", sizes("new.mrc"))
P
"$work/env/bin/python" program.py | tee out
diff out - <<'T'
as it was: x 2, y 2, z 2 angstrom, valid True
half of each side: x 4, y 4, z 4 angstrom, valid True
a slab of 10: x 2, y 2, z 8 angstrom, valid True
set before the data: x 0, y 0, z 0 angstrom
T
echo "as described"
