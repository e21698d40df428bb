"""What is measured: the cases, their sizes on a CPU and on a GPU, and the goals."""

import dataclasses
import fnmatch
import resource
from collections.abc import Callable
from typing import NamedTuple

from emjax.errors import UsageError

SIZES = {  # images of a batch, their sides in pixels: the paper's on a GPU
    "cpu": {"pix2pix": (16, 128), "segmentation": (16, 128), "denoise": (16, 128)},
    "gpu": {"pix2pix": (128, 224), "segmentation": (16, 448), "denoise": (64, 256)},
}
NETWORKS = ("unet_2_44", "unet_4_424", "hrnet_w18_small_v1", "hrnet_w18", "hrnet_w48")
TOO_LARGE = {"cpu": NETWORKS[3:], "gpu": ()}  # measured only when --only names them
GROWTH = {  # what grows, to what
    "cpu": {"batch": (1, 2, 4, 8, 16, 32), "side": (32, 64, 128, 256), "channels": (1, 2, 4, 8),
            "seeds": (1, 2, 4)},
    "gpu": {"batch": (1, 4, 16, 32, 64, 128, 256), "side": (64, 128, 224, 448, 896),
            "channels": (1, 2, 4, 8, 16), "seeds": (1, 2, 4, 8)},
}  # fmt: skip
PIXELS = (256, 512, 1024, 2048, 4096, 8192, 16384)  # side of an image to predict
DEVICES = (1, 2, 4, 8)
FILTERS = (4, 8, 16, 32, 64)  # of the U-Net 4 424
EARLIER = "earlier build"  # the variant of an earlier checkout


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing that all sides do; `kind` names the functions of ours.py and theirs.py for it.

    Or that of commands.py. An earlier build is sent these fields by name.
    """

    name: str
    kind: str
    device: str = "cpu"  # or gpu
    objective: str = "pix2pix"  # or segmentation, denoise
    network: str = "unet_4_424"
    batch: int = 1
    side: int = 0  # of an image, in pixels; of the matrix, or MiB of the array, for the limits
    precision: str = "float32"  # or bfloat16
    channels: int = 1  # the U-Net's, times this
    seeds: int = 1  # trained at once
    devices: int = 1  # virtual CPUs
    by_default: bool = True  # measured without --only


class Prepared(NamedTuple):
    """A case that is ready to be run again and again."""

    run: Callable  # run(steps) returns when they are done on the device
    images: int = 1  # of a step
    lead: int = 0  # steps whose input may lie ready when a round begins: they are not timed
    steps: int = 0  # of a round; 0: as many as fill the time, after a warm-up
    facts: Callable = dict  # facts() after the warm-up: loss, flops, bytes (of a step), versions


def most_memory():
    """{"memory"}: the most bytes that this process has had in memory."""
    return {"memory": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


class Goal(NamedTuple):
    """The least ratio (their time / ours) of the cases that match."""

    device: str
    cases: str
    against: str  # the variant: a pattern, or "fastest" of PyTorch's
    ratio: float
    cores: int = 0  # of the host; 0: any number


GOALS = (
    Goal("cpu", "end_to_end/pix2pix/unet*", "fastest", 0.85),
    Goal("cpu", "step/pix2pix/unet*", "fastest", 0.85),
    Goal("cpu", "step/segmentation/unet*", "fastest", 1.0),
    Goal("cpu", "step/*/hrnet_w18_small_v1", "fastest", 0.8),
    Goal("cpu", "end_to_end/*/hrnet_w18_small_v1", "fastest", 0.8),
    Goal("?pu", "read/alone", "fastest", 2),
    Goal("gpu", "read/augmented", "fastest", 6),
    Goal("?pu", "startup/hrnet_w18", "emjax, cold", 2.5),
    Goal("gpu", "end_to_end/pix2pix/unet*", "fastest", 2, cores=4),
    Goal("gpu", "end_to_end/pix2pix/unet*", "fastest", 1.2),
    Goal("gpu", "end_to_end/pix2pix/hrnet_w48", "fastest", 1.1),
    Goal("gpu", "step/segmentation/unet*", "PyTorch, eager", 1.5),
    Goal("gpu", "step/segmentation/unet*", "PyTorch, compiled*", 1.1),
    Goal("gpu", "step/pix2pix/*", "PyTorch, compiled*", 1.0),
    Goal("?pu", "end_to_end/*", "emjax, one fixed batch", 0.98),
    Goal("gpu", "predict/*", "fastest", 2),
)


def goal(case, against, *, fastest, cores):
    """The least ratio due for a Case against a variant; None if there is none.

    Args:
        fastest: whether `against` is the fastest of PyTorch's variants.
        cores: of the host.
    """
    for due in GOALS:
        if (
            fnmatch.fnmatch(case.device, due.device)
            and fnmatch.fnmatch(case.name, due.cases)
            and (fastest if due.against == "fastest" else fnmatch.fnmatch(against, due.against))
            and due.cores in (0, cores)
        ):
            return due.ratio
    return None


def limits(device):
    """The two cases that tell what the device can do: a large product and a large copy."""
    product = (2048, "float32") if device == "cpu" else (16384, "bfloat16")
    copied = 256 if device == "cpu" else 4096
    return [
        Case("limits/product", "product", device, side=product[0], precision=product[1]),
        Case("limits/copy", "copy", device, side=copied),
    ]


def everything(device):
    """All cases for "cpu" or "gpu", but the limits."""
    precision = "float32" if device == "cpu" else "bfloat16"

    def case(name, kind, objective="pix2pix", network="unet_4_424", **fields):
        batch, side = SIZES[device][objective]
        fields = {"batch": batch, "side": side, "precision": precision, **fields}
        fields.setdefault("by_default", network not in TOO_LARGE[device])
        return Case(name, kind, device, objective, network, **fields)

    cases = [
        case(f"{kind}/{objective}/{network}", kind, objective, network)
        for kind, objectives in {
            "step": SIZES[device],
            "generator": ("pix2pix", "segmentation"),
            "forward": ("segmentation",),
        }.items()
        for objective in objectives
        for network in NETWORKS
    ]
    cases += [
        case("discriminator/pix2pix", "discriminator"),
        *(case(f"predict/{network}", "predict", "segmentation", network, batch=1, side=4096,
               precision="float32") for network in NETWORKS[:3]),
        case("read/alone", "read"),
        case("read/augmented", "read_augmented"),
        *(case(f"end_to_end/pix2pix/{network}", "end_to_end", network=network)
          for network in NETWORKS),
        *(case(f"startup/{network}", "startup", network=network, batch=4, side=128,
               by_default=network in ("unet_4_424", "hrnet_w18")) for network in NETWORKS),
        case("start/predict", "start_predict", network="unet_2_44", batch=1, side=224,
             precision="float32"),
    ]  # fmt: skip
    for axis, values in GROWTH[device].items():
        smaller = {"batch": SIZES[device]["pix2pix"][0] // 4} if axis != "batch" else {}
        cases += [
            case(f"growth/{axis}/{value}", "step", **{**smaller, axis: value}) for value in values
        ]
    cases += [
        case(f"growth/pixels/{side}", "predict", "segmentation", batch=1, side=side,
             precision="float32", by_default=side <= 4096) for side in PIXELS
    ] + [
        case(f"growth/devices/{count}", "devices", batch=16, side=64, devices=count,
             precision="float32") for count in DEVICES
    ]  # fmt: skip
    return cases


def chosen(cases, only):
    """The cases whose names match `only`, patterns joined by commas; by default those of `cases`
    that the device does in reasonable time.

    Raises: UsageError naming a pattern that matches nothing.
    """
    if not only:
        return [case for case in cases if case.by_default]
    names = [case.name for case in cases]
    found = set()
    for pattern in only.split(","):
        matching = fnmatch.filter(names, pattern)
        if not matching:
            raise UsageError(f"--only={pattern} matches no case; there are {', '.join(names)}")
        found.update(matching)
    return [case for case in cases if case.name in found]
