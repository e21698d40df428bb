"""What the fields of a config mean. Imports nothing heavy."""

import contextlib
import functools
import json
import numbers
import re
import runpy
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from emjax.errors import EmjaxError, UsageError, choose, first_line

SPLITS = ("train", "val", "test")  # that every dataset is divided into
RECIPES = Path(__file__).parents[1] / "configs"  # installed beside emjax, and so in a checkout

Config = Any  # an ml_collections.ConfigDict: its fields are not known to a type checker


# Every field of the recipes and what it means: docs/reference/configs.md is made from this.
FIELDS = {
    "seed": "seed of initial weights, order of the records, augmentation and corruption",
    "epochs": "passes over the records (or `passes_per_epoch` of them)",
    "passes_per_epoch": "passes over the records that count as one epoch",
    "log_every": "steps between reports of losses and pace",
    "eval_every": "steps between evaluations; 0: once per epoch",
    "save_every": "steps between checkpoints; 0: with the evaluations only",
    "early_stopping": "end the run after so many evaluations without a better val score; 0: never",
    "data.dir": "folder of the datasets",
    "data.train": "(dataset, split) to train on, or several (dataset, split, weight)",
    "data.evals.val": "(dataset, split) that chooses the best checkpoint",
    "data.evals.test": "(dataset, split) scored at each new best and at the last step",
    "data.batch_size": "images per update, over all devices",
    "data.resident": "keep all records on the devices; unset: where they fit",
    "data.accumulate": "microbatches that a batch is computed in, one after the other",
    "mesh.fsdp": "devices that share each network's parameters",
    "mesh.space": "devices that share the height of each image",
    "objective.name": "how weights change: pix2pix, reconstruction, masked or supervised",
    "objective.l1_weight": "weight of L1 against the adversarial loss",
    "objective.corruption.blur": "(smallest, largest) sigma of the Gaussian blur, in pixels",
    "objective.corruption.blur_probability": "share of the images that are blurred",
    "objective.corruption.noise": "(smallest, largest) sigma of the Gaussian noise, as a fraction "
    "of the full range",
    "objective.corruption.dose": "(smallest, largest) electrons per pixel at full range of the "
    "Poisson noise; unset: none",
    "objective.masking.side": "side of a hidden block, in pixels",
    "objective.masking.share": "share of the pixels that is hidden",
    "task": "what is learned: segmentation, denoise, background or superresolution",
    "segmentation.classes": "of the masks, with the background; above 2: an output per class",
    "segmentation.loss": "cross_entropy, dice, or cross_entropy+dice for their sum",
    "segmentation.foreground_weight": "how often a pixel of the foreground counts in the "
    "cross-entropy",
    "select": "which network the run keeps: `best`, of the best val score, or `last`; it is "
    "the last if no mask of val has foreground",
    "initialise.workdir": "a pretraining run or a converted model; empty: random weights",
    "initialise.step": "which checkpoint of that run: `best` (what it keeps: see `select`), "
    "`last` or a step",
    "initialise.fresh": "regular expressions of layers that keep random initial values",
    "augment.crop": "side of the random crop in pixels; 0: the whole patch",
    "augment.turns": "random flips and rotations by 90 degrees",
    "augment.resize": "largest random magnification; 0: none",
    "augment.mirror": "magnify below 1 beyond the patch's border, which is mirrored",
    "augment.foreground_crops": "share of the crops that are centred on a pixel of the foreground",
    "augment.noise_probability": "share of the images that get Gaussian, Poisson or speckle noise",
    "augment.gaussian": "largest sigma of Gaussian noise on every image, as a fraction of the full "
    "range",
    "model.name": "the generator: unet or hrnet",
    "model.blocks": "levels of the U-Net",
    "model.receptive_field": "receptive field of the U-Net, in pixels",
    "model.filters": "channels, one per level and one for the bottleneck; unset: the paper's",
    "model.pools": "pooling factor, one per level; unset: 2",
    "model.dilations": "dilations, instead of those that give the receptive field",
    "model.out_channels": "channels of the output",
    "model.variant": "HRNet variant: w18_small_v1, w18_small_v2, w18, w32, w44 or w48",
    "model.upsampling": "bilinear, bilinear_corners or nearest",
    "model.norm": "batch, instance, group or none",
    "model.input_interval": "for converted weights: the interval they were trained on instead of "
    "[-1, 1]",
    "discriminator.name": "patchgan",
    "discriminator.width": "channels of the discriminator's first layer",
    "discriminator.depth": "layers of stride 2; 3 see 70 x 70 pixels",
    "discriminator.norm": "batch, instance, group or none",
    "precision": "what the networks compute in: float32 (on accelerators with JAX's default "
    "of fewer bits, see networks.md) or bfloat16",
    "remat": "compute blocks again for their gradient: less memory, more time",
    "optimizer.name": "adam",
    "optimizer.lr": "learning rate",
    "optimizer.b1": "decay of the first moment",
    "optimizer.b2": "decay of the second moment",
    "optimizer.clip": "largest norm of a network's gradients; 0: any",
    "optimizer.schedule": "learning rate over the run: constant, or cosine or linear down to "
    "zero; it counts the updates that were applied",
    "optimizer.warmup": "steps in which the learning rate rises",
    "ema": "decay per step of the averaged weights that are evaluated and kept; 0: no averages",
}


class Range(NamedTuple):
    """The values that a field may have."""

    expected: str  # in words
    holds: Callable[[Any], bool]  # whether a value is one of them
    example: str = ""  # of a value that is hard to type


def is_whole(value: Any) -> bool:
    """Return whether `value` is a whole number; True and False are none."""
    return not isinstance(value, bool) and isinstance(value, numbers.Integral)


def is_number(value: Any) -> bool:
    """Return whether `value` is a number that float32 can hold."""
    bound: Any = 2.0**127
    return not isinstance(value, bool) and isinstance(value, numbers.Real) and abs(value) < bound


def whole(low: int, high: int = 2**31 - 1, *, unset: bool = False) -> Range:
    """Return the Range of whole numbers from `low` to `high`, and of None if it may be `unset`."""
    text = f"at least {low}" if high == 2**31 - 1 else f"from {low} to {high}"
    return Range(
        f"a whole number, {text}" + ", or None" * unset,
        lambda value: (unset and value is None) or (is_whole(value) and low <= value <= high),
    )


def number(expected: str, fits: Callable[[float], bool]) -> Range:
    """Return the Range of the numbers that `fits`."""
    return Range(expected, lambda value: is_number(value) and fits(value))


def sequence(
    expected: str, fits: Callable[[Sequence[Any]], bool], example: str, *, unset: bool = False
) -> Range:
    """Return the Range of tuples that `fits`, and of None if it may be `unset`."""
    return Range(
        f"{expected}, or None" if unset else expected,
        lambda value: (
            unset if value is None else isinstance(value, tuple | list) and bool(fits(value))
        ),
        example,
    )


def interval(
    expected: str, fits: Callable[[float], bool], example: str, *, unset: bool = False
) -> Range:
    """Return the Range of pairs of numbers, the smaller one first, that both `fits`."""

    def are_bounds(value: Sequence[Any]) -> bool:
        return (
            len(value) == 2
            and all(is_number(each) and fits(each) for each in value)
            and value[0] <= value[1]
        )

    return sequence(f"(smallest, largest) {expected}", are_bounds, example, unset=unset)


def are_patterns(values: Sequence[Any]) -> bool:
    """Return whether all `values` are regular expressions."""
    try:
        return all(isinstance(value, str) and re.compile(value) for value in values)
    except re.error:
        return False


SHARE = number("a share from 0 to 1", lambda value: 0 <= value <= 1)
DECAY = number("a number from 0 to below 1", lambda value: 0 <= value < 1)
AVERAGES = number("0 for no averages or a number below 1", DECAY.holds)
NOT_NEGATIVE = number("a number of at least 0", lambda value: value >= 0)
POSITIVE = number("a number above 0", lambda value: value > 0)
YES_OR_NO = Range("True or False", lambda value: isinstance(value, bool))
NAME = Range("a name", lambda value: isinstance(value, str) and bool(value))
FOLDER = Range("a folder", lambda value: isinstance(value, str))
LOSSES = ("cross_entropy", "dice", "cross_entropy+dice")
PER_LEVEL = sequence(
    "whole numbers from 1 to 65536, one per level",
    lambda value: len(value) > 0 and all(map(whole(1, 2**16).holds, value)),
    "2,2",
    unset=True,
)
PAIR = Range(
    "(dataset, split)",
    lambda value: (
        isinstance(value, tuple | list)
        and len(value) == 2
        and all(isinstance(each, str) and each for each in value)
    ),
    "\"('micrographs/mine','val')\"",
)
PARTS = Range(
    "(dataset, split), or several (dataset, split, weight)",
    lambda value: isinstance(value, tuple | list) and bool(value) and all(map(is_part, value)),
    "\"('micrographs/mine','train')\"",
)

# Every field of the recipes and what it may be.
RANGES: dict[str, Range] = {
    "seed": whole(0, 2**32 - 1),
    "epochs": whole(1, 10**6),
    "passes_per_epoch": whole(1, 10**6),
    "log_every": whole(1),
    "eval_every": whole(0),
    "save_every": whole(0),
    "early_stopping": whole(0),
    "data.dir": FOLDER,
    "data.train": PARTS,
    "data.evals.val": PAIR,
    "data.evals.test": PAIR,
    "data.batch_size": whole(1),
    "data.resident": Range("True, False or None", lambda value: value in (True, False, None)),
    "data.accumulate": whole(1),
    "mesh.fsdp": whole(1),
    "mesh.space": whole(1),
    "objective.name": NAME,
    "objective.l1_weight": NOT_NEGATIVE,
    "objective.corruption.blur": interval("sigma, above 0", lambda value: value > 0, "0.1,2.0"),
    "objective.corruption.blur_probability": SHARE,
    "objective.corruption.noise": interval(
        "sigma, from 0 up", lambda value: value >= 0, "0.02,0.15"
    ),
    "objective.corruption.dose": interval(
        "electrons per pixel, above 0", lambda value: value > 0, "20.0,200.0", unset=True
    ),
    "objective.masking.side": whole(1, 2**16),
    "objective.masking.share": number("a share above 0, up to 1", lambda value: 0 < value <= 1),
    "task": NAME,
    "segmentation.classes": whole(2, 255),
    "segmentation.loss": Range(f"one of {', '.join(LOSSES)}", lambda value: value in LOSSES),
    "segmentation.foreground_weight": POSITIVE,
    "select": NAME,
    "initialise.workdir": FOLDER,
    "initialise.step": Range(
        "best, last or a step",
        lambda value: str(value) in ("best", "last") or str(value).isdecimal(),
    ),
    "initialise.fresh": sequence("regular expressions", are_patterns, "\"('head/.*',)\""),
    "augment.crop": whole(0, 2**16),
    "augment.turns": YES_OR_NO,
    "augment.resize": number(
        "0 or a magnification from 1 up", lambda value: value == 0 or value >= 1
    ),
    "augment.mirror": YES_OR_NO,
    "augment.foreground_crops": SHARE,
    "augment.noise_probability": SHARE,
    "augment.gaussian": NOT_NEGATIVE,
    "model.name": NAME,
    "model.blocks": whole(1, 10),
    "model.receptive_field": whole(1, 2**16, unset=True),
    "model.filters": PER_LEVEL,
    "model.pools": PER_LEVEL,
    "model.dilations": PER_LEVEL,
    "model.out_channels": whole(1, 255),
    "model.variant": NAME,
    "model.upsampling": NAME,
    "model.norm": NAME,
    "model.input_interval": sequence(
        "(lowest, highest) value of the input",
        lambda value: len(value) == 2 and all(map(is_number, value)) and value[0] < value[1],
        "0.0,1.0",
        unset=True,
    ),
    "discriminator.name": NAME,
    "discriminator.width": whole(1, 2**16),
    "discriminator.depth": whole(1, 10),
    "discriminator.norm": NAME,
    "precision": NAME,
    "remat": YES_OR_NO,
    "optimizer.name": NAME,
    "optimizer.lr": NOT_NEGATIVE,
    "optimizer.b1": DECAY,
    "optimizer.b2": DECAY,
    "optimizer.clip": NOT_NEGATIVE,
    "optimizer.schedule": NAME,
    "optimizer.warmup": whole(0),
    "ema": AVERAGES,
}


UNSET_TYPES = {"data.resident": bool, "model.receptive_field": int}  # of None; others are tuples


def is_part(value: Any) -> bool:
    """Return whether `value` is a (dataset, split, weight) of a mixture."""
    return (
        isinstance(value, tuple | list)
        and len(value) == 3
        and PAIR.holds(value[:2])
        and POSITIVE.holds(value[2])
    )


def check_ranges(config: Config) -> None:
    """Raise UsageError for the first field of `config` with a value outside its Range."""
    for field, value in flat(config.to_dict()):
        allowed = RANGES.get(field) or (PAIR if field.startswith("data.evals.") else None)
        if field == "data.train" and PAIR.holds(value):
            continue
        if allowed and not allowed.holds(value):
            raise UsageError(f"{field}={shortened(repr(value))}, {advice(field)}")


def shortened(text: str, longest: int = 300) -> str:
    """Return `text`, or its beginning if it is very long."""
    return text if len(text) <= longest else f"{text[:longest]} ..."


def advice(field: str) -> str:
    """Return what is expected of a `field`, with an example of one that is hard to type."""
    allowed = RANGES.get(field, PAIR)
    example = f"; for instance --config.{field}={allowed.example}" if allowed.example else ""
    return f"expected {allowed.expected}{example}"


def settle(config: Config) -> None:
    """Bring the tuples of a config into their one form.

    `data.train` and `data.evals` may be written as people write them: "name,split", a list, parts
    of a mixture without a weight, None for a split that is not scored. None unsets other tuples.
    Whatever else there is, stays as it is.

    Raises: UsageError as `check_ranges`.
    """
    with config.unlocked():
        config.data.train = settled_parts(config.data.train)
        for split, where in list(config.data.evals.items()):
            if where in (None, (), (None,), ("None",), ("",), ""):
                del config.data.evals[split]
            else:
                config.data.evals[split] = settled_pair(where)
        if "initialise" in config:
            config.initialise.fresh = settled_patterns(config.initialise.fresh)
        for field, value in flat(config.to_dict()):
            if value == (None,) and field in RANGES and RANGES[field].holds(None):
                config.update_from_flattened_dict({field: None})
    check_ranges(config)


def settled_pair(value: Any) -> Any:
    """Return ("name", "split") of "name,split", of ("name,split",) or of a list; else `value`."""
    pair = value[0] if isinstance(value, list | tuple) and len(value) == 1 else value
    if isinstance(pair, str):
        inner = pair.strip()
        if inner[:1] + inner[-1:] in ("()", "[]"):
            inner = inner[1:-1]
        pair = [part.strip(" '\"") for part in inner.split(",")]
    return tuple(pair) if PAIR.holds(pair) else value


def settled_patterns(value: Any) -> Any:
    """Return the patterns of ("a,b",), typed without quotes, one by one; else `value`."""
    if isinstance(value, tuple) and len(value) == 1 and isinstance(value[0], str):
        return value if "{" in value[0] else tuple(part.strip() for part in value[0].split(","))
    return value


def settled_parts(value: Any) -> Any:
    """Return `data.train` as a pair, or as (dataset, split, weight) of each part; else `value`."""
    pair = settled_pair(value)
    if PAIR.holds(pair) or not isinstance(value, tuple | list):
        return pair
    parts = [value] if is_part(value) else [settled_pair(part) for part in value]
    parts = [(*part, 1.0) if PAIR.holds(part) else part for part in parts]
    return tuple(map(tuple, parts)) if all(map(is_part, parts)) and parts else value


def plain(config: Config) -> dict[str, Any]:
    """Return a config as it reads back from JSON."""
    return json.loads(config.to_json())


def generator_of(config: Config) -> dict[str, Any]:
    """Return the field `model` of a run's config, with an output per class if there are several."""
    model, classes = dict(config["model"]), (config.get("segmentation") or {}).get("classes", 2)
    return {**model, "out_channels": classes} if classes > 2 else model


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of every field of a nested dict."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def parts_of(train: Sequence) -> list[tuple[str, str, float]]:
    """Return a config's `data.train` as [(name, split, weight)]."""
    return [(*train, 1.0)] if isinstance(train[0], str) else [*map(tuple, train)]


def load_file(path: str | Path) -> dict[str, Any]:
    """Return what a recipe's file defines, by name.

    Raises: UsageError naming the line that fails.
    """
    with recipe_errors(path):
        return runpy.run_path(str(path))


@contextlib.contextmanager
def recipe_errors(path: str | Path) -> Generator[None]:
    """Turn exceptions of the code in the recipe's file `path` into UsageErrors naming the line."""
    try:
        yield
    except EmjaxError:
        raise
    except Exception as error:  # whatever the code of a recipe may raise
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        raise UsageError(
            f"--config={where}: {type(error).__name__}: {first_line(error)}; correct the file"
        ) from error


def read_recipe(path: str | Path, variant: str | None) -> Config:
    """Return the config of a recipe's file, or of the config.json of a run.

    Args:
        variant: what stands after the colon; None without one.

    Raises: UsageError if the file is not a recipe, or fails.
    """
    if Path(path).suffix == ".json":
        return read_config(path, variant)
    found = load_file(path)
    get_config: Any = found.get("get_config")
    if callable(found.get("runs")):
        if variant is None:
            raise UsageError(
                f"--config={path}: it is a matrix of runs; name one, --config={path}:RUN, or use "
                "emjax sweep"
            )
        get_config = functools.partial(run_of, found["runs"])
    if not callable(get_config):
        raise UsageError(f"--config={path}: it has no get_config(); expected a recipe")
    with recipe_errors(path):
        config: Any = get_config() if variant is None else get_config(variant)
    if not hasattr(config, "update_from_flattened_dict"):
        kind = type(config).__name__
        raise UsageError(f"--config={path}: get_config() returns {kind}, expected a ConfigDict")
    return config


def run_of(runs: Callable[[int], Mapping[str, Callable[[], Config]]], name: str) -> Config:
    """Return the config of one run of a matrix.

    Args:
        runs: number of seeds to {name: a function that makes the config}.

    Raises: UsageError for an unknown name.
    """
    seed = name.rpartition("seed_")[2]
    return choose("run", name, runs(int(seed) + 1 if seed.isdigit() else 1))()


def read_config(path: str | Path, variant: str | None) -> Config:
    """Return the config in the config.json of a run.

    Raises: UsageError if it is none, or for a variant, which it has not.
    """
    from ml_collections import ConfigDict, config_dict  # heavy

    def settled(value: Any, field: str = "") -> Any:
        if isinstance(value, dict):
            return {name: settled(each, f"{field}.{name}") for name, each in value.items()}
        if value is None:  # so that a command line can set it
            return config_dict.placeholder(UNSET_TYPES.get(field[1:], tuple))
        return tuple(map(settled, value)) if isinstance(value, list) else value

    try:
        values = json.loads(Path(path).read_text())
    except ValueError as error:
        raise UsageError(f"--config={path}: {first_line(error)}; expected a config.json") from None
    if variant is not None or not isinstance(values, dict) or "data" not in values:
        raise UsageError(
            f"--config={path}: expected the config.json of a run, without :VARIANT, or a recipe"
        )
    return ConfigDict(settled(values))


def recipes() -> dict[str, Path]:
    """Return {name: file} of the recipes that come with emjax."""
    return {path.stem: path for path in sorted(RECIPES.glob("[!_]*.py"))}


def find_recipe(name: str) -> Path:
    """Return the file of the recipe `name`: an existing file, or the name of one of `recipes()`.

    Raises: UsageError that lists the known names.
    """
    known = recipes()
    if Path(name).is_file():
        return Path(name)
    if name in known:
        return known[name]
    stem = Path(name).stem
    advice = f"use --config={stem}" if stem in known else "give one of them, or a Python file"
    raise UsageError(f"--config={name}: no such file; recipes are {', '.join(known)}; {advice}")
