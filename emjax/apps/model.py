"""A trained model as an object that does what the commands do, with their defaults."""

from pathlib import Path

from emjax import micrographs
from emjax.errors import UsageError
from emjax.inference.predictor import THRESHOLD, Predictor
from emjax.measurement import SPLIT, Labels, label, measure
from emjax.measurement.particles import Table
from emjax.micrographs.intensity import Range
from emjax.micrographs.reading import Grey
from emjax.micrographs.units import AnyPixelSize
from emjax.models import saved


class Model(Predictor):
    """A trained model: predict, mask, measure, finetune, export."""

    def measure(
        self,
        image: Grey,
        nm_per_pixel: AnyPixelSize = None,
        *,
        intensity_range: Range | None = None,
        split: float | None = SPLIT,
        min_size: int = 1,
    ) -> Table:
        """Return a table of the particles that the model finds, a row for each.

        As `emjax measure`: particles at the border are there, with `border` 1; what is nowhere
        more likely than `emjax.measurement.particles.SURE` is not.

        Args:
            image, nm_per_pixel, intensity_range: as `predict` takes them.
            split: the relative depth of a neck from which touching particles are split; None
                splits nothing.
            min_size: pixels; smaller particles are left out.

        Returns: {column: array}, as docs/reference/measuring.md lists them; lengths are in nm, or
            in pixels where the pixel size is not known.

        Raises: UsageError for a model that restores images, or of several classes; else as
            `predict`.
        """
        _, table = self.particles(
            image, nm_per_pixel, intensity_range=intensity_range, split=split, min_size=min_size
        )
        return table

    def particles(
        self,
        image: Grey,
        nm_per_pixel: AnyPixelSize = None,
        *,
        intensity_range: Range | None = None,
        split: float | None = SPLIT,
        min_size: int = 1,
    ) -> tuple[Labels, Table]:
        """Return (the particles as labels, what `measure` returns), with its arguments."""
        self.check_finds_particles(self.folder)
        probability = self.predict(image, nm_per_pixel, intensity_range=intensity_range)
        labels = label(probability > THRESHOLD, split)
        labels = labels.without_unsure(probability).without_small(min_size)
        return labels, measure(labels, nm_per_pixel, image=image, probability=probability)

    def finetune(
        self, images: str | Path, targets: str | Path, out: str | Path, *options: str
    ) -> "Model":
        """Return a model finetuned from this one on a folder of images and one of targets.

        As `emjax finetune`, which prints how it goes on and what is wrong with the targets.

        Args:
            out: the folder of the new model, its scores and its report.
            options: flags of `emjax finetune`, such as "--steps=500".

        Raises: UsageError for an export, which cannot be trained; else as `emjax finetune` ends.
        """
        from emjax import finetune

        self.check_is_folder()
        flags = dict(base=self.folder, images=images, targets=targets, out=out)
        finetune.main([*(f"--{name}={value}" for name, value in flags.items()), *options])
        return load_model(out, self.limit, self.engine)

    def export(self, path: str | Path, *, author: str = "", licence: str = "") -> float | None:
        """Write this model to a file; as `emjax.export.export`, which has the formats."""
        from emjax import export

        self.check_is_folder()
        return export.export(self.folder, path, author=author, licence=licence)

    def check_is_folder(self) -> None:
        """Raise UsageError for a model that was read from an export."""
        if not saved.inside(self.folder).is_dir():
            raise UsageError(
                f"{self.folder}: is an export, which only predicts; load the folder of the model"
            )


def load_model(
    folder: str | Path, memory: int = micrographs.LIMIT, engine: str | None = None
) -> Model:
    """Return the trained model in `folder`, ready for `model.predict(image)`.

    Args:
        folder: the workdir of a run, its model/, a folder that `emjax convert` wrote, the name of a
            model that comes with emjax, or a .stablehlo or .onnx file that `emjax export` wrote.
        memory: bytes that the network may take for an image, if it runs on the CPU; larger images
            are predicted in tiles. A GPU or TPU gives half of its own memory instead.
        engine: "jax", "onnxruntime" or "openvino"; by default OpenVINO on a CPU where the extra is
            installed, else JAX; for .onnx files OpenVINO or onnxruntime.

    Raises: InputError if there is no readable model; UsageError if it cannot predict yet, or not in
        this engine.
    """
    return Model(folder, memory, engine)
