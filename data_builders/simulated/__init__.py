"""Simulated records for the demo and the tests.

Record i is a function of (--seed, kind, i) alone, so a larger set contains the smaller one.
"""

import argparse
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float32, UInt8, UInt16

from data_builders.common import ALL, SPLITS, About, Contents, split_by_source, within
from data_builders.simulated import atoms, particles, scenes
from data_builders.writer import Record
from emjax import micrographs
from emjax.errors import UsageError

NM_PER_PIXEL = 0.06  # of the nanoparticles

Images = dict[str, UInt8[np.ndarray, "h w"] | UInt16[np.ndarray, "h w"]]  # image and targets


class Simulated:
    """Options, splits and records of all simulated datasets; each micrograph is its own source.

    A subclass sets `kind`, `dtype`, `targets` and `draw`.
    """

    kind: str
    dtype: str
    targets: tuple[str, ...]

    about = About(
        title="simulated by emjax",
        licence="Apache-2.0",
        citation="none: made by data_builders.simulated of emjax",
        address="none: nothing is downloaded",
    )
    other_name = "--data_dir"
    files_sha256 = ""
    side, range_rule = 128, "percentile"

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Add the flags of this dataset to `parser`."""
        parser.add_argument("--patch", type=int, default=cls.side, help="an image's side in pixels")
        parser.add_argument("--records", type=int, default=600, help="over all splits")
        parser.add_argument("--seed", type=int, default=0)

    def __init__(self, options: argparse.Namespace) -> None:
        """Take the flags --patch, --records and --seed; raise UsageError for too small ones."""
        if options.patch < 32 or options.records < 1 or options.seed < 0:
            raise UsageError(
                f"--patch={options.patch} --records={options.records} --seed={options.seed}, "
                "expected at least 32, 1 and 0"
            )
        self.patch, self.seed = options.patch, options.seed
        self.folder = f"simulated/{self.kind}"
        self.options = {key: getattr(options, key) for key in ("patch", "records", "seed")}
        self.names = [f"{self.kind}_{i:05d}" for i in range(options.records)]

    def prepare(self) -> Contents:
        """Return the splits; there is nothing to read."""
        self.split_of = split_by_source(self.names)
        counts = {split: list(self.split_of.values()).count(split) for split in SPLITS}
        return Contents(
            splits={split: count for split, count in counts.items() if count},
            dtype=self.dtype,
            shape=(self.patch, self.patch),
            targets=self.targets,
            range_rule=self.range_rule,
            units=len(self.names),
            left_out=[],
        )

    def draw(self, rng: np.random.Generator, index: int) -> tuple[Images, float]:
        """Return ({"image" and the targets: [h, w]}, nm per pixel) of record `index`."""
        raise NotImplementedError

    def records(self, split: str, units: range = ALL) -> Iterator[Record]:
        """Yield the records of `split`."""
        for index, name in within(units, enumerate(self.names)):
            if self.split_of[name] == split:
                rng = np.random.default_rng([self.seed, list(KINDS).index(self.kind), index])
                images, nm_per_pixel = self.draw(rng, index)
                limits = micrographs.intensity_range([images["image"]], self.range_rule)
                yield {
                    **{key: image[..., None] for key, image in images.items()},
                    "intensity_range": np.array(limits, np.float32),
                    "nm_per_pixel": np.full(2, nm_per_pixel, np.float32),
                    "name": name,
                    "source": name,
                    "index": index,
                }


class Nanoparticles(Simulated):
    """Gold particles on carbon as a high-resolution microscope counts them, with their mask.

    uint16 detector counts, 0.06 nm per pixel.
    """

    kind, dtype, targets = "nanoparticles", "uint16", ("mask",)

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        super().add_options(parser)
        parser.add_argument(
            "--contrast",
            choices=[*scenes.CONTRASTS],
            default="faint",
            help="faint: some particles of the mask cannot be seen in the noise; clear: nearly all "
            "can, at a higher dose and absorption; default: %(default)s",
        )

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.contrast = scenes.CONTRASTS[options.contrast]
        if options.contrast != "faint":  # cards written before this option do not have it
            self.options["contrast"] = options.contrast

    def draw(self, rng: np.random.Generator, index: int) -> tuple[Images, float]:
        """Return ({"image": uint16 counts, "mask": uint8 in {0, 1}}, nm per pixel)."""
        expected, mask = scenes.nanoparticles(rng, self.patch, NM_PER_PIXEL, self.contrast)
        counts = rng.poisson(expected).astype(np.uint16)
        return {"image": counts, "mask": mask.astype(np.uint8)}, NM_PER_PIXEL


class Unlabelled(Simulated):
    """A mixture to pretrain on: cells, lattices, particles at high and at low magnification.

    uint8, as collections of micrographs are mostly kept; the pixel size is not stated.
    """

    kind, dtype, targets = "unlabelled", "uint8", ()

    def draw(self, rng: np.random.Generator, index: int) -> tuple[Images, float]:
        """Return ({"image": uint8}, NaN): counts in 8 bits, with a little room at both ends."""
        expected = SCENES[index % len(SCENES)](rng, self.patch)
        counts = rng.poisson(expected).astype(np.float32)
        low, high = np.percentile(counts, [0.5, 99.5])
        black, white = rng.uniform(5, 60), rng.uniform(190, 250)
        stretched = black + (counts - low) * (white - black) / max(high - low, 1.0)
        return {"image": np.clip(np.rint(stretched), 0, 255).astype(np.uint8)}, np.nan


class Atoms(Simulated):
    """Crystals along zone axes as ADF-STEM shows them, and the three restoration targets.

    denoised keeps probe and background, background_removed the probe, superresolved is drawn with
    a probe half as wide. uint8, all four in one scale (range 0 to 255), 0.01 to 0.03 nm per pixel.
    """

    kind, dtype = "atoms", "uint8"
    targets = ("denoised", "background_removed", "superresolved")
    side, range_rule = 256, "fixed"

    def draw(self, rng: np.random.Generator, index: int) -> tuple[Images, float]:
        """Return ({"image" and the targets: uint8}, nm per pixel)."""
        return atoms.atoms(rng, self.patch)


class Particles(Simulated):
    """Particles of many kinds in many kinds of micrographs, with their mask.

    Bright field, high resolution, dark field and secondary electrons; dark or bright particles.
    uint8, 0.02 to 5 nm per pixel.
    """

    kind, dtype, targets, side = "particles", "uint8", ("mask",), 256

    def draw(self, rng: np.random.Generator, index: int) -> tuple[Images, float]:
        """Return ({"image": uint8, "mask": uint8 in {0, 1}}, nm per pixel)."""
        image, mask, nm_per_pixel = particles.particles(rng, self.patch)
        return {"image": image, "mask": mask}, nm_per_pixel


class Noisy(Simulated):
    """Micrographs of every kind at 1 to 300 electrons per pixel, and without their noise.

    Cells, lattices and particles. uint16, image and target in one scale; the pixel size is not
    stated.
    """

    kind, dtype, targets = "noisy", "uint16", ("denoised",)
    side = 256

    def draw(self, rng: np.random.Generator, index: int) -> tuple[Images, float]:
        """Return ({"image" and "denoised": uint16}, NaN)."""
        expected = VIEWS[index % len(VIEWS)](rng, self.patch)
        dose = np.exp(rng.uniform(np.log(1), np.log(300)))
        expected = expected * (dose / expected.mean())
        counts = rng.poisson(expected) + rng.normal(0, rng.uniform(0, 0.5), expected.shape)
        low, high = np.percentile(counts, [0.05, 99.95])
        scale = (high - low) / rng.uniform(0.75, 0.95)
        dark = rng.uniform(0, 1) * (scale - (high - low)) - low
        both = {"image": counts, "denoised": expected}
        return {
            name: np.rint(np.clip((values + dark) / scale, 0, 1) * 65535).astype(np.uint16)
            for name, values in both.items()
        }, np.nan


def _particles(rng: np.random.Generator, size: int) -> Float32[np.ndarray, "{size} {size}"]:
    return particles.view(rng, size).image


def _nanoparticles(rng: np.random.Generator, size: int) -> Float32[np.ndarray, "{size} {size}"]:
    return scenes.nanoparticles(rng, size, rng.uniform(0.04, 0.09))[0]


Scene = Callable[[np.random.Generator, int], Float32[np.ndarray, "h w"]]
SCENES: tuple[Scene, ...] = (
    scenes.cells,
    scenes.lattice,
    _nanoparticles,
    scenes.supported_particles,
)
VIEWS = (*SCENES, _particles, _particles, scenes.lattice)  # with weights
# The index of a kind is part of its seed: append only.
KINDS: dict[str, type[Simulated]] = {
    "nanoparticles": Nanoparticles,
    "unlabelled": Unlabelled,
    "atoms": Atoms,
    "particles": Particles,
    "noisy": Noisy,
}
