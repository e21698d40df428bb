#!/usr/bin/env bash
# expected: bioimage.io's description says that only an axis that is `concatenable` can be processed in
# blocks; space axes are not by default, and a runner asked for blocks of them refuses.
# Really (bioimageio.core 0.11.0 with bioimageio.spec 0.5.12.0): the field is not looked at. A network
# that needs the whole image is run block by block, without an error or a warning, and every block has
# other values near its borders.
# Why it matters: a package cannot forbid blocks. A micrograph predicted so has seams wherever blocks
# meet, and says nothing.
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
import onnxruntime
from bioimageio.core import predict
from bioimageio.spec.model import v0_5 as v
from onnx import TensorProto, helper

rng = np.random.default_rng(0)
blur = helper.make_node("Conv", ["image", "kernel"], ["answer"], pads=[4] * 4)
values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 1, "h", "w"])
          for name in ("image", "answer")]
kernel = onnx.numpy_helper.from_array(np.full((1, 1, 9, 9), 1 / 81, np.float32), "kernel")
graph = helper.make_graph([blur], "blur", values[:1], values[1:], [kernel])
opset = helper.make_opsetid("", 17)
onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), "weights.onnx")
run = onnxruntime.InferenceSession("weights.onnx").run
image = rng.uniform(1, 2, (1, 1, 64, 64)).astype(np.float32)
whole = run(None, {"image": image})[0]
np.save("input.npy", image)
np.save("output.npy", whole)
open("README.md", "w").write("# Blur\n\n## Validation\n\nNone.\n")
channel = v.ChannelAxis(channel_names=[v.Identifier("grey")])
size = v.ParameterizedSize(min=16, step=1)
given = [v.SpaceInputAxis(id=v.AxisId(side), size=size) for side in "yx"]
print("concatenable:", *(axis.concatenable for axis in given))
back = [v.SpaceOutputAxis(id=axis.id, size=v.SizeReference(tensor_id=v.TensorId("image"),
        axis_id=axis.id)) for axis in given]
data = v.IntervalOrRatioDataDescr(type="float32")
file = lambda name: v.FileDescr(source=name)
model = v.ModelDescr(
    name="A blur", description="Nine by nine pixels.", authors=[v.Author(name="Somebody")],
    cite=[v.CiteEntry(text="None", url=v.HttpUrl("https://example.org"))],
    license=v.LicenseId("MIT"), documentation=file("README.md"),
    inputs=[v.InputTensorDescr(id=v.TensorId("image"), axes=[v.BatchAxis(), channel, *given],
            test_tensor=file("input.npy"), data=data)],
    outputs=[v.OutputTensorDescr(id=v.TensorId("answer"), axes=[v.BatchAxis(), channel, *back],
             test_tensor=file("output.npy"), data=data)],
    weights=v.WeightsDescr(onnx=v.OnnxWeightsDescr(source="weights.onnx", opset_version=17)))
block = {"image": {"batch": 1, "channel": 1, "y": 32, "x": 32}}
for name, options in {"whole": {}, "in blocks": {"input_block_shape": block}}.items():
    found = predict(model=model, inputs={"image": image}, **options).members["answer"].data.values
    print(name, "| off by at most", round(float(np.abs(found - whole).max()), 2))
P
"$work/env/bin/python" program.py 2>/dev/null | tee "$work/out"
grep -q "^concatenable: False False$" "$work/out"
grep -q "^whole | off by at most 0.0$" "$work/out"
grep -q "^in blocks | off by at most 1.0" "$work/out"
echo "as described"
