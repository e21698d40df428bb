#!/usr/bin/env bash
# expected: TIA keeps the images of one acquisition in NAME_1.ser, NAME_2.ser, ... and says in NAME.emi,
# in one <ObjectInfo> each, how they were taken. HyperSpy's reader should go by an image's own object:
# it puts that object into the image's metadata.
# Really (RosettaSciIO 0.15.0): units, date and time of all images are those of the first object. A
# diffraction pattern that a camera took beside a STEM image has axes in nm; in the other order the
# STEM image has axes in 1/nm. Each image's own metadata say what it is, and no line warns.
# Why it matters: a pattern with nm on its axes is measured as a micrograph, 0.01 per nm as 1e16 nm.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install -q rosettasciio==0.15.0 numpy==2.4.6
cd "$work"
cat > program.py <<'P'
import struct
import numpy as np
from rsciio import tia

def ser(path, pixels, per_pixel):  # an image of 16 bits, as TIA writes it
    h, w = pixels.shape
    head = struct.pack("<HHHiiii", 0x4949, 0x0197, 0x0220, 0x4122, 0x4152, 1, 1)
    dimension = struct.pack("<iddiii", 1, 0.0, 1.0, 0, 0, 0)
    table = len(head) + 12 + len(dimension)
    image = struct.pack("<ddiddihii", 0, per_pixel, 0, 0, per_pixel, 0, 2, w, h) + pixels.tobytes()
    tag = struct.pack("<HHi", 0x4152, 0, 0)
    content = head + struct.pack("<qi", table, 1) + dimension
    content += struct.pack("<qq", table + 16, table + 16 + len(image)) + image + tag
    open(path, "wb").write(content)

def said(mode, camera, date):
    acquired = f"<CameraNamePath>{camera}</CameraNamePath>" if camera else ""
    return (f"<ObjectInfo><AcquireDate>{date}</AcquireDate><AcquireInfo><CCDNumber>1</CCDNumber>"
            f"{acquired}</AcquireInfo><ExperimentalDescription><Root><Data><Label>Mode</Label>"
            f"<Value>{mode}</Value><Unit></Unit></Data></Root></ExperimentalDescription></ObjectInfo>")

stem = said("STEM nP SA Zoom Diffraction", "", "Mon Mar 02 10:00:00 2026"), 1e-9  # metres per pixel
pattern = said("STEM nP SA Zoom Diffraction", "BM-UltraScan", "Mon Mar 02 11:30:00 2026"), 1e7
pixels = np.arange(20, dtype=np.uint16).reshape(4, 5)
for order, objects in {"image first": (stem, pattern), "pattern first": (pattern, stem)}.items():
    name = order.replace(" ", "_")
    open(f"{name}.emi", "wb").write(b"JL" + bytes(62) + "".join(o[0] for o in objects).encode())
    for number, (_, per_pixel) in enumerate(objects, start=1):
        ser(f"{name}_{number}.ser", pixels, per_pixel)
    for number, read in enumerate(tia.file_reader(f"{name}.emi"), start=1):
        own = read["original_metadata"]["ObjectInfo"]["AcquireInfo"]
        kind = "camera" if "CameraNamePath" in own else "STEM detector"
        axis = read["axes"][-1]
        print(f"{order}: {number} {kind}: {axis['scale']:.3g} {axis['units']},",
              read["metadata"]["General"].get("time"))
P
"$work/env/bin/python" program.py 2>&1 | tee out
grep -q "^image first: 1 STEM detector: 1 nm, 10:00:00$" out
grep -q "^image first: 2 camera: 1e+16 nm, 10:00:00$" out
grep -q "^pattern first: 1 camera: 0.01 1 / nm, 11:30:00$" out
grep -q "^pattern first: 2 STEM detector: 1e-18 1 / nm, 11:30:00$" out
echo "as described"
