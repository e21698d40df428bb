"""What every export of a model says about it, and how an export is compared with the model."""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from jaxtyping import Float32, Shaped

import emjax
from emjax.errors import EmjaxError, InputError, first_line
from emjax.inference import tiles
from emjax.inference.network import Network, classes_of, from_folder, needs_whole_image

FORMAT = 1
TOLERANCE = 1e-4  # of the standard deviation of a model's output: an export is as near to it
ROUNDING = 1e-6  # of its largest value, where it hardly varies

ENTRIES = ("facts.json", "program", "README.md")  # of an archive
WRITTEN = (1980, 1, 1, 0, 0, 0)  # the time that the entries have, so that equal models are equal

ROOM = 160  # pixels: exports of networks that see more are compared without a whole margin

Image = Shaped[np.ndarray, "h w"]
Images = Float32[np.ndarray, "b h w c"]


class Facts(NamedTuple):
    """What predictions with an export need to know, and what its digest was.

    Attributes:
        config: what the model's config.json says.
        digest: `saved.digest` of the model.
        divisor, margin, bytes_per_pixel: as a Network has them.
        card: the model's README.md.
        written_by: versions of the libraries.
    """

    config: dict[str, Any]
    digest: str
    divisor: int
    margin: int
    bytes_per_pixel: int
    card: str
    written_by: dict[str, str]

    @classmethod
    def of(cls, network: Network, card: str) -> Self:
        """Return the Facts of a network that was read from a folder, with its card."""
        return cls(
            dict(network.config),
            network.digest(),
            network.divisor,
            network.margin,
            network.bytes_per_pixel(),
            card,
            emjax.versions(["jax", "numpy"]),
        )

    @classmethod
    def parse(cls, path: Path, text: str | bytes) -> Self:
        """Return the Facts that `dump` wrote.

        Raises: InputError, with the file's `path`, if they are not.
        """
        try:
            found = json.loads(text)
            written = found.pop("export")
            facts = cls(**found)
            if not all(isinstance(each, dict) for each in (facts.config, facts.written_by)):
                raise TypeError("expected two tables")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"{path}: expected an export of emjax, got a file without readable facts about "
                "the model; export it again"
            ) from error
        if written != FORMAT:
            raise InputError(
                f"{path}: expected an export of format {FORMAT}, got {written}; a newer emjax may "
                "read it"
            )
        return facts

    def network(
        self,
        path: Path,
        apply: Any,
        digest: str,
        *,
        forget: Callable[[], None],
        engine: str = "jax",
    ) -> Network:
        """Return the Network of an export that was read from `path`; arguments are Network's."""
        return Network(
            apply,
            forget,
            self.config,
            lambda: digest,
            self.divisor,
            self.margin,
            lambda: self.bytes_per_pixel,
            path,
            engine=engine,
        )

    def dump(self) -> str:
        """Return them as JSON."""
        return json.dumps({"export": FORMAT, **self._asdict()}, sort_keys=True)

    @property
    def output(self) -> str:
        """What the output is, in words."""
        classes = classes_of(self.config)
        if classes == 0:
            return "the restored image, -1 to 1 as the input"
        if classes > 2:
            return "the probability of each class, 0 is the background"
        return "the probability of a particle"

    @property
    def tiling(self) -> str:
        """How parts of an image have to overlap to give the values of the whole one, in words."""
        if reason := needs_whole_image(self.config["model"]):
            return f"the whole image is needed: {reason}"
        return (
            f"in tiles that start at multiples of {self.divisor} pixels and lose {self.margin} "
            "pixels on each side that is not a border of the image"
        )


def facts_of(folder: str | Path) -> tuple[Network, Facts]:
    """Return the network in `folder`, as `saved.inside` finds it, and its Facts.

    It computes in float32 also where a device has something faster.
    """
    import jax  # which other runtimes do without

    network = from_folder(folder)

    def precise(images: Images) -> jax.Array:
        with jax.default_matmul_precision("highest"):  # GPUs and TPUs round float32 otherwise
            return network.apply(images)

    card = network.folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    return network._replace(apply=precise), Facts.of(network, text)


def packed(facts: Facts, program: bytes) -> bytes:
    """Return the content of an archive: a zip file, not compressed, of ENTRIES."""
    digest = hashlib.sha256(program).hexdigest()
    facts = facts._replace(written_by={**facts.written_by, "program": digest})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in zip(ENTRIES, (facts.dump(), program, facts.card), strict=True):
            archive.writestr(zipfile.ZipInfo(name, WRITTEN), content)
    return buffer.getvalue()


def unpacked(path: Path, content: bytes) -> tuple[Facts, bytes]:
    """Return the facts and the program of an archive's `content`.

    Raises: InputError, with the file's `path`, if it is damaged or another file.
    """
    damaged = f"{path}: expected a model that emjax exported, got a damaged or another file"
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
        stored = {info.filename: info.compress_type for info in archive.infolist()}
        if stored != dict.fromkeys(ENTRIES, zipfile.ZIP_STORED):
            raise zipfile.BadZipFile(f"it holds {', '.join(stored) or 'nothing'}")
        text, program = archive.read("facts.json"), archive.read("program")
    except (zipfile.BadZipFile, EOFError, ValueError, RuntimeError, OSError) as error:
        raise InputError(f"{damaged}: {first_line(error)}; export it again") from error
    facts = Facts.parse(path, text)
    if hashlib.sha256(program).hexdigest() != facts.written_by.get("program"):
        raise InputError(f"{damaged}: its program does not have its digest; export it again")
    return facts, program


def content_of(path: Path) -> bytes:
    """Return the content of an export.

    Raises: InputError if there is no such file.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; expected a model that emjax exported") from error


def of_any_sides(network: Network) -> Callable[[Images], Images]:
    """Return what a network does to images whose sides its divisor need not divide."""

    def apply(images: Images) -> Images:
        h, w = images.shape[1:3]
        padding = [(0, 0), *((0, -side % network.divisor) for side in (h, w)), (0, 0)]
        return np.asarray(network.apply(np.pad(images, padding, mode="reflect")))[:, :h, :w]

    return apply


def noise(h: int, w: int) -> Image:
    """Return float32 [h, w] of noise that fills [-1, 1]."""
    return np.random.default_rng(h * w).uniform(-1, 1, (h, w)).astype(np.float32)


def as_batch(image: Image) -> Images:
    """Return float32 [1, h, w, 1] of an image."""
    return np.asarray(image, np.float32)[None, ..., None]


def compare(
    what: str,
    network: Network,
    theirs: Callable[[Images], Images],
    *,
    shown: Callable[[int, int], Image] = noise,
    seen: Callable[[Image], Images] = as_batch,
) -> float:
    """Return the largest difference of an export to `network`, in deviations of its output.

    It is looked for at the smallest size, with odd sides, and with room for a margin.

    Args:
        what: the export, for messages.
        theirs: what the export does, of any height and width.
        shown: returns the image [h, w] of a size that the export gets.
        seen: returns what the network gets of that image.

    Raises: EmjaxError for a difference above TOLERANCE.
    """
    d, largest = network.divisor, 0.0
    room = tiles.round_up(min(network.margin, ROOM) + d, d)
    for h, w in ((2 * d, 3 * d), (3 * d + 1, 2 * d + d // 2 + 1), (2 * room, room)):
        image = shown(h, w)
        ours = of_any_sides(network)(seen(image))
        found = theirs(as_batch(image))
        spread = float(ours.std(dtype=np.float64))
        far = float(np.abs(ours - found).max()) if found.shape == ours.shape else np.inf
        if not far <= TOLERANCE * spread + ROUNDING * float(np.abs(ours).max()):
            raise EmjaxError(
                f"{what}: at {h} x {w} pixels it differs from the model by up to {far:.3g}, "
                f"expected at most {TOLERANCE} of the output's standard deviation, {spread:.3g}; "
                "nothing was written"
            )
        largest = max(largest, far / spread if spread else 0.0)
    return largest
