"""PyTorch weights in and out, as flat dicts of arrays."""

import json
import re

import jax
import numpy as np
from safetensors.numpy import save

from emjax.errors import InputError, UsageError, note
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


def unet_in(path, file, options):
    """(config, naming) of the U-Net in `file`, by its names, shapes and pickled attributes."""
    tensors = file.tensors
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
    model = dict(name="unet", blocks=blocks, filters=filters, out_channels=head)
    for field, default in (("pools", [2] * blocks), ("dilations", [1] * (blocks + 1))):
        said, asked = stated[field], getattr(options, field)
        known = len(said) == len(default) and None not in said
        if known and asked not in (None, said):
            raise UsageError(f"--{field}={asked}, but {path} says {said}; leave the option out")
        model[field] = said if known else asked or default
        if not known and not asked:
            note(path, f"does not say its {field}; {default} is assumed")
    kind = options.input or implied_input(path, tensors, names[0])
    rule, interval = INPUTS[kind].values()
    if interval:
        model["input_interval"] = interval
    return dict(
        title=f"U-Net of {path.name}",
        model=model,
        task=options.task or ("segmentation" if head == 2 else None),
        head="softmax over background and particle" if head == 2 else "linear",
        range_rule=rule,
        clip=interval is None,
    ), "levels" if levels else "lists"


def implied_input(path, tensors, block):
    """The key of INPUTS that fits what the first BatchNorm met in training.

    The convolution before it gives images of mean m a mean of m * (sum of its kernel) + bias in
    each channel, and that is the running mean; m by least squares over the channels.
    """
    if f"{block}.bn1.running_mean" not in tensors:
        raise InputError(f"{path}: no {block}.bn1.running_mean; a U-Net with BatchNorm was due")
    totals = tensors[f"{block}.conv1.weight"].sum((1, 2, 3), dtype=np.float64)
    seen = tensors[f"{block}.bn1.running_mean"] - tensors[f"{block}.conv1.bias"]
    mean = np.sum(seen * totals) / np.sum(totals**2)
    kind = "standardised" if abs(mean) < 0.1 else "unit"
    print(f"input: {kind}, as its first BatchNorm met images of mean {mean:.3f}; else use --input")
    return kind


def hrnet_in(path, file, options):
    """(config, naming) of the HRNet in `file`, by its names and shapes."""
    tensors = file.tensors

    def count(pattern):
        found = (re.match(pattern, name) for name in tensors)
        return 1 + max((int(f[1]) for f in found if f), default=-1)

    def channels(name):
        return tensors[f"{name}.weight"].shape[0] if f"{name}.weight" in tensors else 0

    numbers = Variant(
        width=channels("stage2.0.branches.0.0.conv1"),
        stage1=count(r"layer1\.(\d+)\."),
        planes=channels("layer1.0.conv1"),
        modules=tuple(count(rf"stage{stage}\.(\d+)\.") for stage in (2, 3, 4)),
        blocks=count(r"stage4\.0\.branches\.0\.(\d+)\."),
    )
    known = {variant: name for name, variant in VARIANTS.items()}
    if numbers not in known:
        raise InputError(f"{path}: an HRNet with {numbers}; one of {', '.join(VARIANTS)} was due")
    trained = "last_layer.3.weight" in tensors
    upsampling = options.upsampling or ("bilinear" if trained else "nearest")
    variant = known[numbers]
    config = dict(
        title=f"HRNet {variant} of {path.name}",
        model=dict(
            name="hrnet",
            variant=variant,
            upsampling=upsampling,
            out_channels=channels("last_layer.3") or 1,
        ),
        task=options.task,
        head="linear",
        range_rule="fixed",
    )
    return config, "hrnet"


def fold_rgb_stem(tensors):
    """The stem of a network trained on ImageNet, for a grey image in [-1, 1] in place of colours.

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


def recognise(path, file, options):
    """(config, naming) of the network in `file`.

    Raises: InputError if it is none that is known here.
    """
    tensors = file.tensors
    if "emjax" in file.metadata:
        try:
            config = json.loads(file.metadata["emjax"])
            return config, config["conversion"]["naming"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: the note of emjax in it is damaged: {error!r}") from None
    if "final_conv.weight" in tensors:
        return unet_in(path, file, options)
    if any(name.startswith("stage4.0.branches.") for name in tensors):
        return hrnet_in(path, file, options)
    hint = ", ".join(list(tensors)[:5])
    if all(name.startswith(saved.PREFIXES) for name in tensors):
        hint = "arrays of emjax: it need not be converted, its folder is the model"
    raise InputError(
        f"{path}: no network that is known here; a residual U-Net (final_conv.weight) or an HRNet "
        f"(stage4.0.branches...) was due, it has {hint}"
    )


def import_pytorch(path, options):
    """(params, stats, config, account) of the network in the PyTorch file `path`.

    `account` says of every array of the file, and of every one that it lacks, what became of it.

    Raises: InputError naming what is missing, unknown or of another shape.
    """
    file = unpickle.read(path)
    file = file._replace(tensors=without_prefix(file.tensors))
    print(f"{path}: {file.kind}, {len(file.tensors)} arrays")
    config, naming = recognise(path, file, options)
    model, account, left = config["model"], {}, dict(file.tensors)
    if model["name"] == "hrnet" and left.get("conv1.weight", np.zeros((1, 1))).shape[1] == 3:
        left |= fold_rgb_stem(left)
        account["conv1.weight"] = "folded: three channels into one, with ImageNet's scale"
        account["bn1.running_mean"] = "folded: with ImageNet's mean"

    params, stats = flat_arrays(build_abstract(model))
    like, arrays, fresh = {**params, **stats}, {}, []
    for ours, theirs in names_of(model, naming, like).items():
        if theirs in left:
            arrays[ours] = to_emjax_layout(path, theirs, left.pop(theirs), like[ours].shape)
            account[theirs] = f"{account.get(theirs, 'used')}, as {ours}"
        elif model["name"] == "hrnet" and ours.startswith(("merge/", "head/")):
            fresh.append(ours)
            account[theirs] = f"not in the file: {ours} is at its initial values"
        else:
            raise InputError(f"{path}: no {theirs}; a {model['name']} with {model} has it")
    arrays |= initial(model, fresh)

    counts = {name: int(left.pop(name)) for name in list(left) if name.endswith(COUNTER)}
    account |= dict.fromkeys(counts, "left out: a counter that no network reads")
    for name in left:
        heads = [head for pattern, head in OTHER_HEADS.items() if re.fullmatch(pattern, name)]
        if not heads:
            raise InputError(f"{path}: {name} is not known in a {model['name']} with {model}")
        account[name] = f"left out: of the {heads[0]}, which is not of use here"

    config["conversion"] = dict(naming=naming, counter=max(counts.values(), default=None))
    if fresh:
        config |= dict(only_to_start_from="its last layers were not in the file", untrained=fresh)
    elif model.get("out_channels", 1) > 2:
        config["only_to_start_from"] = f"it tells {model['out_channels']} classes apart"
    return {p: arrays[p] for p in params}, {p: arrays[p] for p in stats}, config, account


def without_prefix(tensors):
    """`tensors` without the `module.` or `model.` that wrappers put before every name."""
    for prefix in ("module.", "model."):
        if tensors and all(name.startswith(prefix) for name in tensors):
            return without_prefix({n.removeprefix(prefix): v for n, v in tensors.items()})
    return tensors


def to_emjax_layout(path, name, array, shape):
    """A PyTorch array as ours of `shape`: float32, kernels [h, w, in, out]."""
    array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    if array.shape != shape:
        raise InputError(f"{path}: {name} has shape {array.shape} (h, w, in, out), {shape} was due")
    array = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(array).all():
        raise InputError(f"{path}: {name} has values that are NaN or infinite")
    return array


def initial(model, paths):
    """The initial values of these parameters and no others."""

    def drawn(key):
        params, stats = flat_arrays(build(model, key=key))
        return {path: {**params, **stats}[path] for path in paths}

    return jax.device_get(jax.jit(drawn)(jax.random.key(0))) if paths else {}


def export_pytorch(folder, path):
    """Write the model in `folder` to `path` for PyTorch, under the original names."""
    params, stats, config = saved.read(folder)
    conversion = config.setdefault("conversion", dict(naming="lists", counter=None))
    arrays = {**params, **stats}
    names = names_of(config["model"], conversion["naming"], arrays)
    tensors = {
        theirs: np.ascontiguousarray(value.transpose(3, 2, 0, 1) if value.ndim == 4 else value)
        for theirs, value in ((names[ours], value) for ours, value in arrays.items())
    }
    if conversion["counter"] is not None:
        count = np.array(conversion["counter"])
        norms = [name for name in tensors if name.endswith(".running_mean")]
        tensors |= {name.replace(".running_mean", COUNTER): count for name in norms}
    write_atomically(path, save(tensors, {"emjax": json.dumps(config)}))
    print(f"{folder} -> {path}: {len(tensors)} arrays")
