"""A model as a package of bioimage.io, for the programs that read these. Needs that extra.

The weights are an ONNX graph that takes grey values: it finds the intensity range of each image by
itself. The steps that bioimage.io has for that do not give the same range: their percentiles are
interpolated, and each is of the image as it was before the first step.

The package is for whole images, of any height and width from one divisor on: no axis may be
processed in blocks. A network continues an image by zeros at its borders, runners continue it by
itself, so blocks would give other values along the borders, and where a side is no multiple of the
divisor, everywhere.
"""

import contextlib
import io
import logging
import re
import tempfile
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np

from emjax import micrographs
from emjax.errors import EmjaxError, UsageError, first_line, imported
from emjax.files import write_atomically
from emjax.inference import tiles
from emjax.interchange import exports, onnx, runtimes
from emjax.interchange.exports import Facts
from emjax.pictures import png, stretched

PAPER = "Kazimi, Ruzaeva and Sandfeld, Self-supervised learning with generative adversarial "\
    "networks for electron microscopy"  # fmt: skip
DOI = "10.48550/arXiv.2402.18286"
ODD = r"[^A-Za-z0-9_+() -]+"  # letters that the name of a package may not have
LONGEST_NAME = 64
SIDES = (96, 128)  # of the image that tests a package, at least


def write(folder: str | Path, path: Path, *, author: str = "", licence: str = "") -> float:
    """Write the model in `folder` to `path`, whole or not at all.

    Args:
        author: a name; without one the package has no author.
        licence: of the model, as SPDX names it; without one the package states none.

    Returns: the largest difference to the model, in standard deviations of its output.

    Raises: as `onnx.write`; UsageError for a licence that SPDX does not know.
    """
    spec = imported("bioimageio.spec", "bioimageio")
    network, facts = exports.facts_of(folder)
    content = onnx.serialised(network, facts, grey=True)
    session = runtimes.onnxruntime_session(content)

    def seen(image: np.ndarray) -> np.ndarray:
        values = micrographs.intensity_range([image], facts.config["range_rule"])
        scaled = micrographs.from_range(image, values, clip=facts.config.get("clip", True))
        return scaled[None, ..., None]

    far = exports.compare(str(path), network, session, shown=picture, seen=seen)
    d = network.divisor
    raw = picture(*(tiles.round_up(side, d) for side in SIDES))
    answer = np.asarray(network.apply(seen(raw)))
    with tempfile.TemporaryDirectory() as name, quiet():
        parts = Path(name)
        (parts / "weights.onnx").write_bytes(content)
        np.save(parts / "input.npy", raw[None, None].astype(np.float32))
        np.save(parts / "output.npy", np.moveaxis(answer, -1, 1))
        (parts / "README.md").write_text(documentation(facts), encoding="utf-8")
        (parts / "cover.png").write_bytes(png(cover(raw, answer[0, ..., -1])))
        try:
            described = description(parts, facts, author, licence)
            made = parts / "package.zip"
            spec.save_bioimageio_package(described, output_path=made)
        except ValueError as error:
            if licence and "license" in str(error):
                raise UsageError(
                    f"licence={licence}: {first_line(error)}; expected an identifier of SPDX, such "
                    "as CC-BY-4.0"
                ) from error
            reason = " ".join(str(error).split())
            raise EmjaxError(f"{path}: bioimageio.spec refuses the package: {reason}") from error
        write_atomically(path, made.read_bytes())
    return far


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Keep what bioimageio.spec tells while it packs from the terminal; errors are raised."""
    loguru: Any = imported("loguru", "bioimageio")
    loguru.logger.disable("bioimageio")
    logger = logging.getLogger("bioimageio")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        loguru.logger.enable("bioimageio")


def picture(h: int, w: int) -> np.ndarray:
    """Return a field of bright discs in noise, uint16 [h, w], to test a package with."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:h, :w]
    field = np.full((h, w), 1000.0)
    for _ in range(12):
        centre, radius = rng.uniform(0, (h, w)), rng.uniform(4, 12)
        away = np.hypot(y - centre[0], x - centre[1]) - radius
        field += 600 / (1 + np.exp(np.clip(away, -30, 30)))
    return rng.poisson(field).astype(np.uint16)


def cover(image: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """Return uint8 [h, 2 w]: the image beside the model's answer."""
    return np.concatenate([stretched(image), stretched(answer)], axis=1)


def documentation(facts: Facts) -> str:
    """Return the text of the package's README.md: the card, and how the package is used."""
    scores = facts.config.get("held_out") or "see the table of scores above, if there is one"
    return f"""{facts.card}
## How this package is used

- Give it whole micrographs, of any height and width from {facts.divisor} pixels on. Do not process
  them in blocks: its axes are not `concatenable`. Parts of an image would have to overlap as emjax
  lets them: {facts.tiling}.
- Input: grey values as they are. The graph takes the intensity range `{facts.config["range_rule"]}`
  of each image. emjax also leaves hot and dead pixels out of that range, and widens it for a field
  of hardly more than noise; the graph does neither. Where all pixels are the same, emjax refuses
  the image.
- Output: {facts.output}.
- Digest of the model: {facts.digest}

## Validation

Held-out images: {scores}. The file of weights agrees with the model to {exports.TOLERANCE} standard
deviations of its output.
"""


def description(parts: Path, facts: Facts, author: str, licence: str) -> Any:
    """Return the ModelDescr of what lies in the folder `parts`.

    Raises: ValueError, of pydantic, for what bioimage.io does not allow.
    """
    from bioimageio.spec.model import v0_5 as v  # pyright: ignore[reportMissingImports]  # an extra

    answer = np.load(parts / "output.npy")
    image, result = v.TensorId("image"), v.TensorId("prediction")
    files = {
        name: v.FileDescr(source=parts / name)
        for name in ("input.npy", "output.npy", "README.md", "cover.png")
    }
    float32 = v.IntervalOrRatioDataDescr(type="float32")

    def channels(count: int, name: str) -> Any:
        names = [name] if count == 1 else [f"{name}_{k}" for k in range(count)]
        return v.ChannelAxis(channel_names=[v.Identifier(each) for each in names])

    given = v.ParameterizedSize(min=facts.divisor, step=1)
    sides_in = [v.SpaceInputAxis(id=v.AxisId(name), size=given) for name in "yx"]
    same = [v.SizeReference(tensor_id=image, axis_id=axis.id) for axis in sides_in]
    sides_out = [
        v.SpaceOutputAxis(id=axis.id, size=size) for axis, size in zip(sides_in, same, strict=True)
    ]
    is_mask = facts.config["task"] == "segmentation"
    return v.ModelDescr(
        name=re.sub(ODD, "-", f"emjax {facts.config.get('title', 'model')}")[:LONGEST_NAME],
        description=f"{(facts.config['task'] or 'restoration').capitalize()} of micrographs.",
        authors=[v.Author(name=author)] if author else [],
        cite=[v.CiteEntry(text=PAPER, doi=v.Doi(DOI))],
        license=v.LicenseId(licence) if licence else None,
        documentation=files["README.md"],
        covers=[files["cover.png"]],
        tags=["electron-microscopy", "2d", "nanoparticles" if is_mask else "restoration"],
        inputs=[
            v.InputTensorDescr(
                id=image,
                axes=[v.BatchAxis(), channels(1, "intensity"), *sides_in],
                test_tensor=files["input.npy"],
                data=float32,
            )
        ],
        outputs=[
            v.OutputTensorDescr(
                id=result,
                axes=[
                    v.BatchAxis(),
                    channels(answer.shape[1], "probability" if is_mask else "intensity"),
                    *sides_out,
                ],
                test_tensor=files["output.npy"],
                data=float32,
            )
        ],
        weights=v.WeightsDescr(
            onnx=v.OnnxWeightsDescr(source=parts / "weights.onnx", opset_version=onnx.OPSET)
        ),
        config=v.Config(bioimageio=v.BioimageioConfig(), emjax=facts._asdict() | {"card": ""}),
    )
