#!/usr/bin/env bash
# expected: preprocessing steps of a bioimage.io model follow each other. After `clip` to the 2nd and
# 98th percentile, `scale_range` with its defaults makes 0 and 1 of the smallest and largest value that
# are left, so hot pixels no longer count.
# Really (bioimageio.core 0.11.0 with bioimageio.spec 0.5.12.0): percentiles, means and deviations of
# every step are taken once, of the input as it came. scale_range divides by the hot pixel's value, and
# what should fill 0 to 1 fills a part of it.
# Why it matters: such a chain is how one keeps hot pixels of a camera out of a network's range. The
# network then gets an image with nearly no contrast, and finds nothing.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install -q bioimageio.core==0.11.0 bioimageio.spec==0.5.12.0 \
    pydantic==2.13.5 onnx==1.23.2 onnxruntime==1.32.0
cd "$work"
cat > program.py <<'P'
import numpy as np
import onnx
from bioimageio.core import predict
from bioimageio.spec.model import v0_5 as v
from onnx import TensorProto, helper

same = helper.make_node("Identity", ["image"], ["answer"])
values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 1, "h", "w"])
          for name in ("image", "answer")]
graph = helper.make_graph([same], "same", values[:1], values[1:])
opset = helper.make_opsetid("", 17)
onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), "weights.onnx")
image = np.random.default_rng(0).normal(1000, 10, (1, 1, 64, 64)).astype(np.float32)
image[0, 0, 5, 5] = 60000  # a hot pixel
np.save("input.npy", image)
np.save("output.npy", image)
open("README.md", "w").write("# Identity\n\n## Validation\n\nNone.\n")
channel = v.ChannelAxis(channel_names=[v.Identifier("grey")])
axes = [v.AxisId(name) for name in ("channel", "y", "x")]
size = v.ParameterizedSize(min=16, step=1)
given = [v.SpaceInputAxis(id=v.AxisId(side), size=size) for side in "yx"]
back = [v.SpaceOutputAxis(id=axis.id, size=v.SizeReference(tensor_id=v.TensorId("image"),
        axis_id=axis.id)) for axis in given]
data = v.IntervalOrRatioDataDescr(type="float32")
file = lambda name: v.FileDescr(source=name)
clip = v.ClipDescr(kwargs=v.ClipKwargs(axes=axes, min_percentile=2, max_percentile=98))
scale = v.ScaleRangeDescr(kwargs=v.ScaleRangeKwargs(axes=axes))
for name, steps in {"clip": [clip], "clip, then scale_range": [clip, scale]}.items():
    model = v.ModelDescr(
        name="Identity", description="As it came.", authors=[v.Author(name="Somebody")],
        cite=[v.CiteEntry(text="None", url=v.HttpUrl("https://example.org"))],
        license=v.LicenseId("MIT"), documentation=file("README.md"),
        inputs=[v.InputTensorDescr(id=v.TensorId("image"), axes=[v.BatchAxis(), channel, *given],
                test_tensor=file("input.npy"), data=data, preprocessing=steps)],
        outputs=[v.OutputTensorDescr(id=v.TensorId("answer"), axes=[v.BatchAxis(), channel, *back],
                 test_tensor=file("output.npy"), data=data)],
        weights=v.WeightsDescr(onnx=v.OnnxWeightsDescr(source="weights.onnx", opset_version=17)))
    found = predict(model=model, inputs={"image": image}).members["answer"].data.values
    print(f"{name}: {float(found.min()):.4g} to {float(found.max()):.4g}")
P
"$work/env/bin/python" program.py 2>/dev/null | tee "$work/out"
grep -q "^clip: 97[0-9].* to 102[0-9]" "$work/out"
grep -q "^clip, then scale_range: 0.000[0-9]* to 0.00[0-9]*$" "$work/out"
echo "as described"
