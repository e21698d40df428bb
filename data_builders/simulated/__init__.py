"""Simulated records: data for the demo and the tests that come with the project.

Record i is a function of (--seed, kind, i) alone, so a larger set contains the smaller one.
"""

import numpy as np

from data_builders.common import ALL, SPLITS, About, Contents, split_by_source, within
from data_builders.simulated import atoms, scenes
from emjax import micrographs
from emjax.errors import Usage

NM_PER_PIXEL = 0.06  # of the nanoparticles


class Simulated:
    """Options, splits and records of all simulated datasets; each micrograph is its own source."""

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
    def add_options(cls, parser):
        parser.add_argument("--patch", type=int, default=cls.side, help="an image's side in pixels")
        parser.add_argument("--records", type=int, default=600, help="over all splits")
        parser.add_argument("--seed", type=int, default=0)

    def __init__(self, options):
        if options.patch < 32 or options.records < 1 or options.seed < 0:
            raise Usage(
                f"--patch={options.patch} --records={options.records} --seed={options.seed}; "
                "at least 32, 1 and 0 were due"
            )
        self.patch, self.seed = options.patch, options.seed
        self.folder = f"simulated/{self.kind}"
        self.options = {key: getattr(options, key) for key in ("patch", "records", "seed")}
        self.names = [f"{self.kind}_{i:05d}" for i in range(options.records)]

    def prepare(self):
        """Nothing to read; who is in which split."""
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

    def records(self, split, units=ALL):
        """Yield the records of `split`."""
        for index, name in within(units, enumerate(self.names)):
            if self.split_of[name] == split:
                rng = np.random.default_rng([self.seed, list(KINDS).index(self.kind), index])
                images, nm_per_pixel = self.draw(rng, index)
                yield {
                    **{key: image[..., None] for key, image in images.items()},
                    "intensity_range": np.float32(
                        micrographs.intensity_range([images["image"]], self.range_rule)
                    ),
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
    def add_options(cls, parser):
        super().add_options(parser)
        parser.add_argument(
            "--contrast",
            choices=[*scenes.CONTRASTS],
            default="faint",
            help="faint: some particles of the mask cannot be seen in the noise; clear: nearly all "
            "can, at a higher dose and absorption; default: %(default)s",
        )

    def __init__(self, options):
        super().__init__(options)
        self.contrast = scenes.CONTRASTS[options.contrast]
        if options.contrast != "faint":  # cards written before this option do not have it
            self.options["contrast"] = options.contrast

    def draw(self, rng, index):
        """Return {"image": uint16 [h, w] counts, "mask": uint8 [h, w], 0 or 1}, nm per pixel."""
        expected, mask = scenes.nanoparticles(rng, self.patch, NM_PER_PIXEL, self.contrast)
        counts = rng.poisson(expected).astype(np.uint16)
        return {"image": counts, "mask": mask.astype(np.uint8)}, NM_PER_PIXEL


class Unlabelled(Simulated):
    """A mixture to pretrain on: cells, lattices, particles at high and at low magnification.

    uint8, as collections of micrographs are mostly kept; the pixel size is not stated.
    """

    kind, dtype, targets = "unlabelled", "uint8", ()

    def draw(self, rng, index):
        """({"image": uint8 [h, w]}, NaN): counts in 8 bits, with a little room at both ends."""
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

    def draw(self, rng, index):
        """({"image" and the targets: uint8 [h, w]}, nm per pixel)."""
        return atoms.atoms(rng, self.patch)


def _nanoparticles(rng, size):
    return scenes.nanoparticles(rng, size, rng.uniform(0.04, 0.09))[0]


SCENES = (scenes.cells, scenes.lattice, _nanoparticles, scenes.supported_particles)
# The place of a kind is part of its seed: append only.
KINDS = {"nanoparticles": Nanoparticles, "unlabelled": Unlabelled, "atoms": Atoms}
