"""A network that predicts, in one of several runtimes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from emjax.errors import UsageError
from emjax.inference import tiles

if TYPE_CHECKING:  # other runtimes load no JAX
    import jax


class Network(NamedTuple):
    """A network that predicts: image to probabilities, or to the restored image.

    Attributes:
        apply: float32 [1, h, w, 1], sides multiples of `divisor`, to float32 [1, h, w, c]. Several
            threads may call it at once.
        forget: drops the programs that `apply` has compiled for the sizes of images so far.
        config: what the model's config.json says.
        digest: returns the SHA-256 of all that its predictions depend on.
        divisor: of the height and width of images.
        margin: `tiles.margin` of the network.
        bytes_per_pixel: returns the memory that it takes per pixel of an image, roughly.
        folder: or file that it was read from.
        engine: the library that runs it, one of ENGINES.
        forward: what JAX traces, for exports; None where there is only a program.
        module: the nnx.Module; None where there is only a program.
    """

    apply: Callable[[Any], Any]
    forget: Callable[[], None]
    config: dict[str, Any]
    digest: Callable[[], str]
    divisor: int
    margin: int
    bytes_per_pixel: Callable[[], int]
    folder: Path
    engine: str = "jax"
    forward: "Callable[[Any], jax.Array] | None" = None
    module: Any = None


def classes_of(config: Mapping[str, Any]) -> int:
    """Return how many classes the model of a config tells apart; 0 if it restores micrographs."""
    outputs: int = config["model"].get("out_channels") or 1
    return max(outputs, 2) if config["task"] == "segmentation" else 0


def check_predicts(name: object, config: Mapping[str, Any]) -> None:
    """Raise UsageError for a model that is only there to be finetuned."""
    if reason := config.get("only_to_start_from"):
        raise UsageError(
            f"{name}: this model cannot predict, {reason}; finetune it first, from "
            f"initialise.workdir={name}"
        )


def from_folder(folder: str | Path) -> Network:
    """Return the network of a model's folder, or of one that comes with the package, in JAX.

    Raises: InputError, UsageError as `saved.load`; UsageError if it cannot predict yet.
    """
    import jax  # of which other runtimes need nothing

    from emjax.models import cost, saved
    from emjax.tasks import task_of

    module, config = saved.load(folder)
    check_predicts(folder, config)
    task = task_of(config["task"], config["model"]) if config["task"] else None

    def forward(images: jax.Array) -> jax.Array:
        output = module(images, train=False)
        return task.prediction(output) if task else output[..., :1]

    apply: Any = jax.jit(forward)  # the type that JAX declares has no clear_cache
    return Network(
        apply,
        apply.clear_cache,
        config,
        lambda: saved.digest(folder),
        module.divisor,
        tiles.margin(module),
        lambda: cost.bytes_per_pixel(forward, module.divisor),
        saved.inside(folder),
        forward=forward,
        module=module,
    )


def needs_whole_image(model: Mapping[str, Any]) -> str:
    """Return why outputs of a config's `model` depend on the whole image; empty if they do not."""
    if (norm := model.get("norm")) in ("instance", "group"):
        return f"norm={norm} takes statistics over the whole image"
    if model.get("upsampling") == "bilinear_corners":
        return "upsampling=bilinear_corners stretches with the size of the image"
    return ""
