"""A model as an ONNX file, written from the modules of its network. Needs the extra `onnx`.

Tensors are NCHW, as runtimes want them; batch, height and width are free. The running statistics of
BatchNorm are folded into the convolutions before them, in float64. Sides that the divisor does not
divide are continued by reflection inside the graph, as predict does it, and cut off again.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import emjax
from emjax.errors import InputError, UsageError, choose, first_line, imported
from emjax.files import cache, write_atomically
from emjax.inference.network import Network, check_predicts, classes_of, from_folder
from emjax.interchange import exports, runtimes
from emjax.interchange.exports import Facts
from emjax.micrographs import intensity
from emjax.models import saved

OPSET, IR = 17, 8  # of 2022: old enough for most runtimes
INPUT, OUTPUT = "image", "prediction"
DIGITS, KEPT = 32, 32  # of a model's digest, in the names of kept graphs; how many of them
RESIZE = {  # the attributes of ONNX's Resize that do what `blocks.UPSAMPLING` do
    "nearest": dict(
        mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    ),
    "bilinear": dict(mode="linear", coordinate_transformation_mode="half_pixel"),
    "bilinear_corners": dict(mode="linear", coordinate_transformation_mode="align_corners"),
}


class Graph:
    """The nodes and weights of a graph in the making; values go by their names."""

    def __init__(self, onnx: ModuleType) -> None:
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """Return the name of a constant."""
        name = f"constant_{len(self.weights)}"
        array = np.ascontiguousarray(value, dtype)
        self.weights.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def whole(self, *numbers: int) -> str:
        """Return the name of a constant of whole numbers."""
        return self.constant(numbers, np.int64)

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; returns the name of its output."""
        name = f"{operator}_{len(self.nodes)}"
        node = self.onnx.helper.make_node(operator, inputs, [name], name=name, **attributes)
        self.nodes.append(node)
        return name

    def conv(self, x: str, conv: Any, norm: Any = None) -> str:
        """Add a `blocks.Conv`, and the norm after it."""
        from emjax.models.norms import BatchNorm, GroupNorm

        kernel = np.asarray(conv.kernel[...], np.float64)
        bias = np.zeros(kernel.shape[-1])
        if conv.bias is not None:
            bias = np.asarray(conv.bias[...], np.float64)
        if isinstance(norm, BatchNorm):
            scale, shift, mean, var = (
                np.asarray(each[...], np.float64)
                for each in (norm.scale, norm.bias, norm.mean, norm.var)
            )
            factor = scale / np.sqrt(var + norm.epsilon)
            kernel, bias = kernel * factor, (bias - mean) * factor + shift
        x = self.add(
            "Conv",
            x,
            self.constant(kernel.transpose(3, 2, 0, 1)),
            self.constant(bias),
            kernel_shape=kernel.shape[:2],
            pads=[conv.padding] * 4,
            dilations=[conv.dilation] * 2,
            strides=[conv.stride] * 2,
        )
        return self.group_norm(x, norm) if isinstance(norm, GroupNorm) else x

    def group_norm(self, x: str, norm: Any) -> str:
        """Add a GroupNorm: InstanceNormalization of groups that count as channels."""
        one, zero = self.constant(np.ones(norm.groups)), self.constant(np.zeros(norm.groups))
        grouped = self.add("Reshape", x, self.whole(0, norm.groups, -1))
        normal = self.add("InstanceNormalization", grouped, one, zero, epsilon=norm.epsilon)
        normal = self.add("Reshape", normal, self.add("Shape", x))
        scale, bias = (
            self.constant(np.reshape(each[...], (1, -1, 1, 1))) for each in (norm.scale, norm.bias)
        )
        return self.add("Add", self.add("Mul", normal, scale), bias)

    def top(self, x: str, count: str, *, largest: int) -> str:
        """Return the `count` largest or smallest values of each row of x, in any order."""
        values, indices = f"TopK_{len(self.nodes)}", f"indices_{len(self.nodes)}"
        self.nodes.append(
            self.onnx.helper.make_node(
                "TopK", [x, count], [values, indices], axis=1, largest=largest, sorted=0
            )
        )
        return values

    def magnified(self, x: str, size: int, upsampling: str) -> str:
        """Add the upsampling of that name."""
        return self.add("Resize", x, "", self.constant([1, 1, size, size]), **RESIZE[upsampling])

    def padded(self, x: str, divisor: int) -> tuple[str, str]:
        """Return (x continued by reflection to multiples of `divisor`, the sides of x)."""
        sides = self.add("Slice", self.add("Shape", x), self.whole(2), self.whole(4))
        d = self.whole(divisor)
        missing = self.add("Mod", self.add("Sub", d, self.add("Mod", sides, d)), d)
        pads = self.add("Concat", self.whole(*[0] * 6), missing, axis=0)
        return self.add("Pad", x, pads, mode="reflect"), sides

    def cut(self, x: str, sides: str) -> str:
        """Return the upper left part of x with these sides."""
        return self.add("Slice", x, self.whole(0, 0), sides, self.whole(2, 3))


def unet(g: Graph, module: Any, x: str) -> str:
    """Add a U-Net; returns the name of its output."""

    def residual(block: Any, x: str) -> str:
        y = g.add("Relu", g.conv(x, block.conv1, block.norm1))
        y = g.conv(y, block.conv2, block.norm2)
        return g.add("Relu", g.add("Add", y, g.conv(x, block.project)))

    if module.input_interval:
        low, high = module.input_interval
        x = g.add("Mul", g.add("Add", x, g.constant(1)), g.constant((high - low) / 2))
        x = g.add("Add", x, g.constant(low))
    skips = []
    for block, size in zip(module.down, module.pools, strict=True):
        skips.append(residual(block, x))
        x = g.add("MaxPool", skips[-1], kernel_shape=[size] * 2, strides=[size] * 2)
    x = residual(module.bottleneck, x)
    levels = list(zip(module.up, module.pools, skips, strict=True))
    for block, size, skip in reversed(levels):
        x = residual(block, g.add("Concat", skip, g.magnified(x, size, "nearest"), axis=1))
    return g.conv(x, module.head)


def hrnet(g: Graph, module: Any, x: str) -> str:
    """Add an HRNet; returns the name of its output."""

    def chain(layers: Sequence[Any], x: str) -> str:
        for layer in layers:
            x = g.conv(x, layer.conv, layer.norm)
            x = g.add("Relu", x) if layer.relu else x
        return x

    def bottleneck(block: Any, x: str) -> str:
        y = chain([block.reduce, block.conv, block.expand], x)
        return g.add("Relu", g.add("Add", y, chain(block.project, x)))

    def fused(paths: Sequence[Any], branches: Sequence[str], i: int) -> str:
        total = ""
        for j, (path, x) in enumerate(zip(paths, branches, strict=True)):
            x = chain(path, x)
            x = g.magnified(x, 2 ** (j - i), module.upsampling) if j > i else x
            total = g.add("Add", total, x) if total else x
        return g.add("Relu", total)

    x = chain(module.stem, x)
    for block in module.stage1:
        x = bottleneck(block, x)
    branches = [x]
    for transition, modules in zip(module.transitions, module.stages, strict=True):
        new = chain(transition.new, branches[-1])
        kept = [chain(layers, x) for layers, x in zip(transition.keep, branches, strict=True)]
        branches = [*kept, new]
        for exchange in modules:
            for i, branch in enumerate(exchange.branches):
                for block in branch.blocks:
                    y = chain(block.convs, branches[i])
                    branches[i] = g.add("Relu", g.add("Add", y, branches[i]))
            paths = enumerate(exchange.fuse.paths)
            branches = [fused(each, branches, i) for i, each in paths]
    finest, *coarser = branches
    magnified = [
        g.magnified(x, 2**level, module.upsampling) for level, x in enumerate(coarser, start=1)
    ]
    x = chain([module.merge], g.add("Concat", finest, *magnified, axis=1))
    return g.magnified(g.conv(x, module.head), 4, module.upsampling)


NETWORKS: dict[str, Callable[[Graph, Any, str], str]] = {"unet": unet, "hrnet": hrnet}


def predicted(g: Graph, x: str, config: Mapping[str, Any]) -> str:
    """Add what makes a prediction of the output of a network, as its task has it."""
    channels = config["model"].get("out_channels") or 1
    if config["task"] != "segmentation":
        first = [g.whole(0), g.whole(1), g.whole(1)]
        return x if channels == 1 else g.add("Slice", x, *first)
    if channels > 2:
        return g.add("Softmax", x, axis=1)
    if channels == 2:  # background and particle: their difference is the logit
        background, particle = (
            g.add("Slice", x, g.whole(k), g.whole(k + 1), g.whole(1)) for k in (0, 1)
        )
        x = g.add("Sub", particle, background)
    return g.add("Sigmoid", x)


def in_range(g: Graph, x: str, config: Mapping[str, Any]) -> str:
    """Add what makes -1 and 1 of the ends of each image's intensity range, see `micrographs`.

    Raises: UsageError for a rule that needs to know the number format.
    """
    rule = config["range_rule"]
    pixels = g.add("Reshape", x, g.whole(0, -1))
    if rule == "percentile":
        count = g.add("Slice", g.add("Shape", pixels), g.whole(1), g.whole(2))
        exact = g.add("Cast", count, to=g.onnx.TensorProto.DOUBLE)

        def rank(share: float) -> str:
            product = g.add("Mul", exact, g.constant([share], np.float64))
            return g.add("Cast", g.add("Ceil", product), to=g.onnx.TensorProto.INT64)

        smallest, largest = map(rank, intensity.ENDS)
        largest = g.add("Add", g.add("Sub", count, largest), g.whole(1))
        low = g.add("ReduceMax", g.top(pixels, smallest, largest=0), axes=[1])
        high = g.add("ReduceMin", g.top(pixels, largest, largest=1), axes=[1])
    elif rule == "sigma":
        wide = g.add("Cast", pixels, to=g.onnx.TensorProto.DOUBLE)
        mean = g.add("ReduceMean", wide, axes=[1])
        away = g.add("Sub", wide, mean)
        deviation = g.add("Sqrt", g.add("ReduceMean", g.add("Mul", away, away), axes=[1]))
        away = g.add("Mul", deviation, g.constant([intensity.SIGMAS], np.float64))
        low, high = (
            g.add("Cast", g.add(operator, mean, away), to=g.onnx.TensorProto.FLOAT)
            for operator in ("Sub", "Add")
        )
    else:
        raise UsageError(
            f"intensity range {rule}: expected percentile or sigma, which need no number format; "
            "export to .onnx or .stablehlo"
        )
    low, high = (g.add("Reshape", end, g.whole(-1, 1, 1, 1)) for end in (low, high))
    width = g.add("Max", g.add("Sub", high, low), g.constant(np.finfo(np.float32).tiny))
    factor = g.add("Div", g.constant(2), width)
    x = g.add("Sub", g.add("Mul", g.add("Sub", x, low), factor), g.constant(1))
    return g.add("Clip", x, g.constant(-1), g.constant(1)) if config.get("clip", True) else x


def serialised(network: Network, facts: Facts, *, grey: bool = False) -> bytes:
    """Return the content of the ONNX file of a network.

    Args:
        grey: its input are grey values; else their intensity range is -1 to 1 already.

    Raises: UsageError if `onnx` is not installed, for a network that is not of NETWORKS, and with
        `grey` as `in_range`.
    """
    onnx = imported("onnx", "onnx")
    name = network.config["model"]["name"]
    draw = choose("ONNX graph of the network", name, NETWORKS)
    g = Graph(onnx)
    x = in_range(g, INPUT, facts.config) if grey else INPUT
    x, sides = g.padded(x, network.divisor)
    x = g.cut(predicted(g, draw(g, network.module, x), network.config), sides)
    g.nodes.append(onnx.helper.make_node("Identity", [x], [OUTPUT], name=OUTPUT))
    classes = classes_of(network.config)
    channels = classes if classes > 2 else 1
    values = [
        onnx.helper.make_tensor_value_info(
            name, onnx.TensorProto.FLOAT, ["batch", count, "height", "width"]
        )
        for name, count in ((INPUT, 1), (OUTPUT, channels))
    ]
    graph = onnx.helper.make_graph(g.nodes, "emjax", values[:1], values[1:], g.weights)
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR
    )
    model.producer_name, model.producer_version = "emjax", facts.config.get("emjax", "")
    model.doc_string = facts.card
    onnx.helper.set_model_props(model, metadata(facts, grey))
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def metadata(facts: Facts, grey: bool) -> dict[str, str]:
    """Return what the file says of the model: for people and other programs, and for emjax."""
    config = facts.config
    sizes = config.get("nm_per_pixel")
    scaled = "-1 and 1 are the ends of the intensity range of a micrograph"
    clipped = ", clipped there" if config.get("clip", True) else ", values beyond them stay"
    return {
        "input": f"one channel, {'grey values' if grey else scaled + clipped}",
        "intensity_range": config["range_rule"],
        "output": facts.output,
        "task": config["task"] or "restoration",
        "nm_per_pixel": f"{sizes[0]:.4g} to {sizes[1]:.4g}" if sizes else "any",
        "tiles": facts.tiling,
        "digest": facts.digest,
        "emjax": facts.dump(),
    }


def write(folder: str | Path, path: Path) -> float:
    """Write the model in `folder` to `path`, whole or not at all, if onnxruntime agrees with it.

    Returns: the largest difference to the model, in standard deviations of its output.

    Raises: as `from_folder`, `serialised` and `exports.compare`.
    """
    network, facts = exports.facts_of(folder)
    content = serialised(network, facts)
    far = exports.compare(str(path), network, runtimes.onnxruntime_session(content))
    write_atomically(path, content)
    return far


def read(path: Path, engine: str) -> Network:
    """Return the network that `write` wrote, in one of `runtimes.SESSIONS`.

    Raises: InputError if there is no such file, or it is damaged, or not by emjax; UsageError if
        the engine is not installed.
    """
    onnx = imported("onnx", "onnx")
    content = exports.content_of(path)
    try:
        model = onnx.load_from_string(content)
        props = {each.key: each.value for each in model.metadata_props}
    except Exception as error:  # of protobuf, in several versions
        raise InputError(
            f"{path}: expected a model that emjax exported, got a damaged or another file: "
            f"{first_line(error)}; export it again"
        ) from error
    facts = Facts.parse(path, props.get("emjax", ""))
    return network_of(content, facts, engine, path)


def in_engine(folder: str | Path, engine: str) -> Network:
    """Return the network in `folder` in another engine.

    Its graph is kept in the cache: a second process need not load JAX, Flax and the library onnx,
    which takes longer than a small micrograph.

    Raises: as `from_folder`; UsageError if the engine is not installed, or cannot run this network.
    """
    _, _, config = saved.read(folder)
    check_predicts(folder, config)
    digest = saved.digest(folder)
    found = kept_graph(digest)
    if found is None:
        from emjax.models.formulation import PLAIN, formulated  # which load JAX

        network = from_folder(folder)
        with formulated(PLAIN):  # in which graphs are, whatever this machine computes on
            facts = Facts.of(network, "")
        found = facts, serialised(network, facts)
        if facts.digest == digest:  # else the model was replaced meanwhile
            keep_graph(*found)
    facts, content = found
    # What predictions do not depend on may have been added since.
    facts = facts._replace(config=config) if facts.digest == digest else facts
    return network_of(content, facts, engine, saved.inside(folder), facts.digest.encode())


def graph_file(digest: str) -> Path:
    """Return where the graph of the model with this digest is kept, written by this emjax.

    Raises: RuntimeError if this user has no home.
    """
    return cache() / "graphs" / f"{digest[:DIGITS]}-{emjax.__version__}-{emjax.code_digest()}"


def kept_graph(digest: str) -> tuple[Facts, bytes] | None:
    """Return the graph of the model with this digest, and its facts, if it is kept and whole."""
    try:
        path = graph_file(digest)
        found = exports.unpacked(path, path.read_bytes())
        os.utime(path)  # it is in use
    except (OSError, RuntimeError, InputError):
        return None
    return found if found[0].digest == digest else None


def keep_graph(facts: Facts, content: bytes) -> None:
    """Keep the graph of a model, if there is a place for it, and the latest KEPT - 1 others."""
    with contextlib.suppress(OSError, RuntimeError):
        path = graph_file(facts.digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, exports.packed(facts, content))
        latest_first = sorted(path.parent.iterdir(), key=lambda p: p.stat().st_mtime, reverse=True)
        for old in latest_first[KEPT:]:
            old.unlink(missing_ok=True)


def network_of(
    content: bytes, facts: Facts, engine: str, path: Path, model: bytes | None = None
) -> Network:
    """Return the Network of an ONNX file's `content`.

    Args:
        model: what its digest is of, beside the engine; by default `content`.
    """
    digest = hashlib.sha256(engine.encode() + b" " + (model or content)).hexdigest()
    try:
        apply = runtimes.SESSIONS[engine](content)
    except (UsageError, InputError):
        raise
    except Exception as error:  # each runtime has its own
        raise InputError(
            f"{path}: {engine} cannot read it: {first_line(error)}; take another engine, or export "
            "it again"
        ) from error
    # One program serves all sizes, so there is nothing to forget.
    return facts.network(path, apply, digest, forget=lambda: None, engine=engine)
