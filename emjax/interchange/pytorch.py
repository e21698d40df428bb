"""PyTorch weights in and out, as flat dicts of arrays."""

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from emjax.errors import Adjustable, InputError, UsageError, choose, note
from emjax.files import write_atomically
from emjax.interchange import unpickle
from emjax.interchange.pytorch_names import names_of
from emjax.models import saved
from emjax.models.build import build, build_abstract
from emjax.models.hrnet import VARIANTS, Variant
from emjax.models.network import flat_arrays

COUNTER = ".num_batches_tracked"
# What the values of a micrograph become for a network that was not trained on [-1, 1].
INPUTS = {
    "symmetric": dict(rule="percentile", interval=None),
    "standardised": dict(rule="sigma", interval=(-4.0, 4.0)),  # mean 0, deviation 1
    "unit": dict(rule="fixed", interval=(0.0, 1.0)),
}
# Of red, green, blue in [0, 1]; what networks trained on ImageNet subtract and divide by.
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OTHER_HEADS = {
    r"(incre_modules|downsamp_modules|final_layer|classifier|fc|head)\..*": "classification head",
    r"(aux_head|cls_head|conv3x3_ocr|ocr_\w+)\..*": "object-contextual head",
}

Arrays = dict[str, np.ndarray]  # by name


@dataclasses.dataclass(frozen=True)
class ImportOptions:
    """What a file of weights may not state; None: as the file states it, else as it is inferred.

    Attributes:
        input: what a U-Net was trained on, a key of INPUTS; inferred from its first BatchNorm.
        pools: what each level of a U-Net is reduced by; 2 throughout.
        dilations: of each level of a U-Net and the bottleneck; 1 throughout.
        task: a key of emjax.tasks.TASKS; segmentation for two channels, else None for restoration.
        upsampling: of an HRNet; bilinear if it has a segmentation head, else nearest.
        entry: of a checkpoint that holds several networks: "state_dict_ema", ...
        prefix: of the names of the network's arrays, where several networks are in one entry.
    """

    input: str | None = None
    pools: list[int] | None = None
    dilations: list[int] | None = None
    task: str | None = None
    upsampling: str | None = None
    entry: str | None = None
    prefix: str | None = None


class Recognised(NamedTuple):
    """What network a file holds."""

    config: dict[str, Any]  # of the model folder
    naming: str  # of the arrays, for `names_of`
    assumed: tuple[str, ...] = ()  # fields of ImportOptions that were inferred or assumed


class Imported(NamedTuple):
    """A network out of a PyTorch file.

    Attributes:
        description: what the file is, and how many arrays it has.
        assumed: fields of ImportOptions that were inferred or assumed; each was noted.
        report: {PyTorch name: what became of the array}, missing ones included.
    """

    params: Arrays
    stats: Arrays
    config: dict[str, Any]
    description: str
    assumed: tuple[str, ...]
    report: dict[str, str]


def import_pytorch(path: Path, options: ImportOptions = ImportOptions()) -> Imported:
    """Return the network in the PyTorch file `path`.

    Raises: InputError naming what is missing, unknown or of another shape; UsageError for unknown
        options, and for those that contradict the file.
    """
    file = unpickle.read(path, options.entry, lambda names: bool(prefixes(map(unwrapped, names))))
    file, outside = without_prefix(path, file, options.prefix)
    tensors = file.tensors
    config, naming, assumed = recognise(path, file, options)
    model, report, left = config["model"], {}, dict(tensors)
    if model["name"] == "hrnet" and left.get("conv1.weight", np.zeros((1, 1))).shape[1] == 3:
        left |= fold_rgb_stem(left)
        report["conv1.weight"] = "folded: three channels into one, with ImageNet's scale"
        report["bn1.running_mean"] = "folded: with ImageNet's mean"

    params, stats = flat_arrays(build_abstract(model))
    like, arrays, untrained = {**params, **stats}, {}, []
    for ours, theirs in names_of(model, naming, like).items():
        if theirs in left:
            arrays[ours] = to_emjax_layout(path, theirs, left.pop(theirs), like[ours].shape)
            report[theirs] = f"{report.get(theirs, 'used')}, as {ours}"
        elif model["name"] == "hrnet" and ours.startswith(("merge/", "head/")):
            untrained.append(ours)
            report[theirs] = f"not in the file: {ours} is at its initial values"
        else:
            raise InputError(f"{path}: no {theirs}; a {model['name']} with {model} has it")
    arrays |= initial_values(model, untrained)

    counts = {name: int(left.pop(name)) for name in list(left) if name.endswith(COUNTER)}
    report |= dict.fromkeys(counts, "left out: a counter that no network reads")
    for name in left:
        heads = [head for pattern, head in OTHER_HEADS.items() if re.fullmatch(pattern, name)]
        if not heads:
            raise InputError(f"{path}: {name} is not known in a {model['name']} with {model}")
        report[name] = f"left out: of the {heads[0]}, which is not used here"
    report |= dict.fromkeys(outside, "left out: it is outside of the network")
    if outside:
        more = f" and {len(outside) - 10} more, see conversion.json" if len(outside) > 10 else ""
        listed = ", ".join(outside[:10])
        note(path, f"{len(outside)} arrays are not of the network: {listed}{more}")

    config["conversion"] = dict(naming=naming, counter=max(counts.values(), default=None))
    if untrained:
        config["only_to_start_from"] = "its last layers were not in the file"
        config["untrained"] = untrained
    elif model.get("out_channels", 1) > 2 and config["task"] != "segmentation":
        config["only_to_start_from"] = f"it distinguishes {model['out_channels']} classes"
    return Imported(
        params={path: arrays[path] for path in params},
        stats={path: arrays[path] for path in stats},
        config=config,
        description=f"{file.kind}, {len(tensors)} arrays",
        assumed=assumed,
        report=report,
    )


def export_pytorch(folder: Path, path: Path) -> int:
    """Write the model in `folder` to `path`, a safetensors file with PyTorch's names and layout.

    Returns: the number of arrays.

    Raises: InputError as `saved.read`; UsageError as `names_of`.
    """
    params, stats, config = saved.read(folder)
    conversion = config.setdefault("conversion", dict(naming="lists", counter=None))
    arrays = {**params, **stats}
    names = names_of(config["model"], conversion["naming"], arrays)
    tensors = {
        names[ours]: np.ascontiguousarray(value.transpose(3, 2, 0, 1) if value.ndim == 4 else value)
        for ours, value in arrays.items()
    }
    if conversion["counter"] is not None:
        count = np.array(conversion["counter"])
        norms = [name for name in tensors if name.endswith(".running_mean")]
        tensors |= {name.replace(".running_mean", COUNTER): count for name in norms}
    write_atomically(path, save(tensors, {"emjax": json.dumps(config)}))
    return len(tensors)


def check_exported(path: Path) -> None:
    """Raise UsageError if a file is there that `export_pytorch` has not written."""
    if not os.path.lexists(path):
        return
    try:
        with safe_open(path, "numpy") as file:
            is_ours = "emjax" in (file.metadata() or {})
    except (OSError, SafetensorError):
        is_ours = False
    if not is_ours:
        raise UsageError(
            f"{path} would be overwritten: expected nothing or weights that emjax exported, got "
            "another file; choose another --to, or --overwrite"
        )


# Which network a file holds.


def recognise(path: Path, file: unpickle.File, options: ImportOptions) -> Recognised:
    """Return what network is in `file`, by the names of its arrays.

    Raises: InputError if it is none that is known here.
    """
    tensors = file.tensors
    if "emjax" in file.metadata:
        refuse(path, options, "input", "pools", "dilations", "task", "upsampling")
        try:
            config = json.loads(file.metadata["emjax"])
            return Recognised(config, config["conversion"]["naming"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: emjax's metadata in it are damaged: {error!r}") from None
    if "final_conv.weight" in tensors:
        return recognise_unet(path, file, options)
    if any(name.startswith("stage4.0.branches.") for name in tensors):
        return recognise_hrnet(path, file, options)
    found = ", ".join(list(tensors)[:5])
    if all(name.startswith(saved.PREFIXES) for name in tensors):
        found = "arrays of emjax: it need not be converted, its folder is the model"
    raise InputError(
        f"{path}: no known network; expected a residual U-Net (final_conv.weight) or an HRNet "
        f"(stage4.0.branches...), got {found}"
    )


def refuse(path: Path, options: ImportOptions, *fields: str) -> None:
    """Raise UsageError if one of these options was given; the file is not read by them."""
    for field in fields:
        if getattr(options, field) is not None:
            raise UsageError(
                f"{field}={getattr(options, field)} does not apply to {path}; leave {field} out"
            )


def recognise_unet(path: Path, file: unpickle.File, options: ImportOptions) -> Recognised:
    """Return which U-Net is in `file`, by its names, shapes and pickled attributes.

    Raises: InputError if an array is missing; UsageError for unknown options, and for those that
        contradict the file.
    """
    refuse(path, options, "upsampling")
    tensors, assumed = file.tensors, []
    levels = "down1.conv1.weight" in tensors
    downs = [name for name in tensors if re.fullmatch(r"down(s\.)?\d+\.conv1\.weight", name)]
    blocks = len(downs)
    names = [f"down{i + 1}" if levels else f"downs.{i}" for i in range(blocks)] + ["bottleneck"]
    try:
        filters = [tensors[f"{name}.conv1.weight"].shape[0] for name in names]
        head = tensors["final_conv.weight"].shape[0]
    except KeyError as error:
        raise InputError(f"{path}: a U-Net without {error.args[0]}") from None
    pools = [m["kernel_size"] for m in file.modules.values() if m["class"].endswith("MaxPool2d")]
    dilations = [file.modules.get(f"{name}.conv1", {}).get("dilation") for name in names]
    stated = {"pools": pools, "dilations": [d[0] if d else None for d in dilations]}
    model: dict[str, Any] = dict(name="unet", blocks=blocks, filters=filters, out_channels=head)
    for field, default in (("pools", [2] * blocks), ("dilations", [1] * (blocks + 1))):
        in_file, given = stated[field], getattr(options, field)
        known = len(in_file) == len(default) and None not in in_file
        if known and given not in (None, in_file):
            raise UsageError(f"{field}={given}, but {path} states {in_file}; leave {field} out")
        model[field] = in_file if known else given or default
        if not known and not given:
            note(path, f"does not state its {field}; {default} is assumed")
            assumed.append(field)
    kind = options.input
    if not kind:
        kind = infer_input(path, tensors, names[0])
        assumed.append("input")
    rule, interval = choose("input", kind, INPUTS).values()
    if interval:
        model["input_interval"] = interval
    config = dict(
        title=f"U-Net of {path.name}",
        model=model,
        task=options.task or ("segmentation" if head == 2 else None),
        head="softmax over background and particle" if head == 2 else "linear",
        range_rule=rule,
        clip=interval is None,
    )
    return Recognised(config, "levels" if levels else "lists", tuple(assumed))


def infer_input(path: Path, tensors: Mapping[str, np.ndarray], block: str) -> str:
    """Return the key of INPUTS that fits what the first BatchNorm saw in training.

    The convolution before it gives images of mean m a mean of m * (sum of its kernel) + bias in
    each channel, and that is the running mean; m by least squares over the channels.

    Raises: InputError if there is no BatchNorm, or no bias before it.
    """
    for name in (f"{block}.bn1.running_mean", f"{block}.conv1.bias"):
        if name not in tensors:
            raise InputError(f"{path}: no {name}, expected a U-Net with BatchNorm and biases")
    totals = tensors[f"{block}.conv1.weight"].sum((1, 2, 3), dtype=np.float64)
    seen = tensors[f"{block}.bn1.running_mean"] - tensors[f"{block}.conv1.bias"]
    mean = np.sum(seen * totals) / np.sum(totals**2)
    kind = "standardised" if abs(mean) < 0.1 else "unit"
    note(path, f"its input is taken as {kind}: its first BatchNorm saw images of mean {mean:.3f}")
    return kind


def recognise_hrnet(path: Path, file: unpickle.File, options: ImportOptions) -> Recognised:
    """Return which HRNet is in `file`, by its names and shapes.

    Raises: InputError if it is none of VARIANTS; UsageError for options of U-Nets.
    """
    refuse(path, options, "input", "pools", "dilations")
    tensors = file.tensors

    def count(pattern: str) -> int:
        found = (re.match(pattern, name) for name in tensors)
        return 1 + max((int(f[1]) for f in found if f), default=-1)

    def channels(name: str) -> int:
        return tensors[f"{name}.weight"].shape[0] if f"{name}.weight" in tensors else 0

    numbers = Variant(
        width=channels("stage2.0.branches.0.0.conv1"),
        stage1=count(r"layer1\.(\d+)\."),
        planes=channels("layer1.0.conv1"),
        modules=(count(r"stage2\.(\d+)\."), count(r"stage3\.(\d+)\."), count(r"stage4\.(\d+)\.")),
        blocks=count(r"stage4\.0\.branches\.0\.(\d+)\."),
    )
    known = {variant: name for name, variant in VARIANTS.items()}
    if numbers not in known:
        raise InputError(f"{path}: an HRNet with {numbers}, expected one of {', '.join(VARIANTS)}")
    trained = "last_layer.3.weight" in tensors
    head = channels("last_layer.3")
    variant = known[numbers]
    assumed: tuple[str, ...] = ()
    if trained and not options.upsampling:
        note(path, "does not state how it upsamples; bilinear between pixel centres is assumed")
        assumed = ("upsampling",)
    stem = tensors.get("conv1.weight")
    if stem is not None and stem.shape[1] == 1:  # of its own training, not of ImageNet
        note(path, "does not state its input; grey values from -1 to 1 are assumed")
    config = dict(
        title=f"HRNet {variant} of {path.name}",
        model=dict(
            name="hrnet",
            variant=variant,
            upsampling=options.upsampling or ("bilinear" if trained else "nearest"),
            out_channels=head or 1,
        ),
        task=options.task or ("segmentation" if head == 2 else None),
        head="softmax over background and particle" if head == 2 else "linear",
        range_rule="fixed",
    )
    return Recognised(config, "hrnet", assumed)


# Arrays.


def unwrapped(name: str) -> str:
    """Return the name of an array without the parts that torch.compile puts in."""
    return name.replace("_orig_mod.", "")


def prefixes(names: Iterable[str]) -> list[str]:
    """Return what stands before the names of each known network that is among `names`."""
    found = (re.match(r"(|.*?\.)(final_conv\.weight$|stage4\.0\.branches\.)", n) for n in names)
    return list(dict.fromkeys(match[1] for match in found if match))


def without_prefix(
    path: Path, file: unpickle.File, prefix: str | None
) -> tuple[unpickle.File, list[str]]:
    """Return (`file` without what wrappers put before or into names, the names outside of it).

    Wrappers are DataParallel (module.), torch.compile (_orig_mod.), and any module that has the
    network as an attribute (model., net., ...).

    Args:
        prefix: of the network; None: the only one that there is.

    Raises: InputError if there are several networks, no name with `prefix`, or names that wrappers
        made of one.
    """
    tensors = {unwrapped(name): value for name, value in file.tensors.items()}
    found = prefixes(tensors)
    if prefix is None and len(found) > 1:
        listed = ", ".join(repr(each) for each in found)
        raise Adjustable(
            f"{path}: it holds {len(found)} networks, with {listed} before their names",
            f"choose one, such as prefix={found[-1]}",
        )
    if prefix is not None:
        prefix = f"{unwrapped(prefix).strip('.')}.".removeprefix(".")
        if not any(name.startswith(prefix) for name in tensors):
            listed = ", ".join(repr(each) for each in found) or "none of a known network"
            raise InputError(f"{path}: no name begins with {prefix!r}; prefixes in it: {listed}")
    start = found[0] if prefix is None and found else prefix or ""

    def inner(name: str) -> str:
        parts = unwrapped(f"{name}.").removesuffix(".").removeprefix(start).split(".")
        return ".".join(part for part in parts if part != "module")

    arrays = {inner(n): v for n, v in file.tensors.items() if unwrapped(n).startswith(start)}
    outside = [name for name in file.tensors if not unwrapped(name).startswith(start)]
    if len(arrays) + len(outside) < len(file.tensors):
        raise InputError(
            f"{path}: names that differ only in module. or _orig_mod.; expected one network"
        )
    modules = {inner(n): v for n, v in file.modules.items() if unwrapped(f"{n}.").startswith(start)}
    return file._replace(tensors=arrays, modules=modules), outside


def fold_rgb_stem(tensors: Mapping[str, np.ndarray]) -> Arrays:
    """Return the stem of a network trained on ImageNet, for a grey image in [-1, 1].

    Red, green and blue of a grey image g are ((g + 1) / 2 - mean) / deviation: the scale goes into
    the kernel, the constant, summed over the kernel, into the first BatchNorm's mean. Equal away
    from the border, where padding with zeros means black in one and mid-grey in the other.
    """
    kernel = tensors["conv1.weight"].astype(np.float64)  # [out, 3, h, w]
    mean, deviation = (np.reshape(v, (1, 3, 1, 1)) for v in (IMAGENET_MEAN, IMAGENET_DEVIATION))
    grey = (kernel / (2 * deviation)).sum(1, keepdims=True)
    constant = (kernel * (0.5 - mean) / deviation).sum((1, 2, 3))
    shifted = tensors["bn1.running_mean"] - constant
    return {"conv1.weight": grey.astype("f4"), "bn1.running_mean": shifted.astype("f4")}


def to_emjax_layout(path: Path, name: str, array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return a PyTorch array as float32 of `shape`, kernels as [h, w, in, out].

    Raises: InputError for another shape, and for values that are not finite.
    """
    array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    if array.shape != shape:
        raise InputError(
            f"{path}: {name} has shape {array.shape} (h, w, in, out), expected {shape}"
        )
    array = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(array).all():
        raise InputError(f"{path}: {name} has values that are NaN or infinite")
    return array


def initial_values(model: Mapping[str, Any], paths: Iterable[str]) -> Arrays:
    """Return the initial values of these parameters and no others."""

    def draw(key: jax.Array) -> dict[str, jax.Array]:
        params, stats = flat_arrays(build(model, key=key))
        return {path: {**params, **stats}[path] for path in paths}

    return jax.device_get(jax.jit(draw)(jax.random.key(0))) if paths else {}
