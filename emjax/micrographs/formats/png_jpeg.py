"""PNG and JPEG; their pixel size is that of a text next to them.

Their own resolution (pHYs, JFIF) is for printing: no public source names a microscope's program
that writes the pixel size there.
"""

import contextlib
import io
import os
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from emjax.errors import InputError, note
from emjax.micrographs.formats import vendors
from emjax.micrographs.formats.vendors.common import choose
from emjax.micrographs.masks import has_grey_edges
from emjax.micrographs.shapes import Stored
from emjax.micrographs.signal import ORIENTATIONS, Signal, check_declared, with_samples

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

PNG = b"\x89PNG"
ORIENTATION = 274
SAMPLES = {"LA": 2, "RGB": 3, "RGBA": 4}
SPREAD = {"L;2": 85, "L;4": 17}  # by what Pillow multiplies grey values of 2 and 4 bits
DTYPES = {"1": "bool", "F": "f4", "I": "i4", "I;16": "u2", "I;16B": ">u2", "I;16L": "<u2"}


def _opened(content: bytes) -> "ImageFile":
    """Return the file of Pillow, by the class that is behind `Image.open` for its format.

    `Image.open` itself warns of more than `Image.MAX_IMAGE_PIXELS` pixels and refuses twice as
    many, by a setting of the whole process that is not ours to change. A micrograph of 16k x 16k
    is above it; `check_declared` looks at the size instead.
    """
    from PIL.JpegImagePlugin import jpeg_factory  # not at the top: TIFF and others need no Pillow
    from PIL.PngImagePlugin import PngImageFile

    file = io.BytesIO(content)
    return PngImageFile(file) if content.startswith(PNG) else jpeg_factory(file)


def _orientation(file: "ImageFile") -> int:
    """Return the orientation that Exif states, 1 (as stored) where there is none."""
    from PIL.Image import Exif  # not at the top, as above

    exif = Exif()
    with contextlib.suppress(Exception):  # damaged Exif damages no pixel
        exif.load(file.info.get("exif", b""))  # file.getexif() would decode a PNG
    return exif.get(ORIENTATION, 1)


@contextlib.contextmanager
def signals(path: str | os.PathLike[str], limit: int) -> Generator[list[Signal]]:
    """Yield the list of the one Signal of a PNG or JPEG file."""
    content = Path(path).read_bytes()  # lengths in it cannot exceed what is there
    with _opened(content) as file:
        frames = getattr(file, "n_frames", 1)
        if frames > 1:
            raise InputError(f"{frames} frames, expected one 2-D image")
        stored = file.tile[0][3] if file.tile else ""
        wide = stored in ("RGB;16B", "RGBA;16B", "LA;16B")
        mode = file.mode if file.mode in (*SAMPLES, *DTYPES, "L", "P") else "RGB"
        mode = "LA" if stored == "LA;16B" else mode  # Pillow says RGBA
        dtype = np.dtype("u2" if wide else DTYPES.get(mode, "u1"))
        shape, samples = file.size[::-1], SAMPLES.get(mode, 1)
        whole = with_samples(shape, samples)
        check_declared("it", whole, dtype, stored=len(content), limit=limit, compressed=True)

        def raw(_: int) -> Stored:
            if wide:  # Pillow would drop the lower 8 bits
                import imagecodecs  # not at the top: few need it

                return imagecodecs.png_decode(content)
            return np.array(file if file.mode == mode else file.convert(mode))

        def finish(pixels: Stored) -> Stored:
            return pixels[..., 0] if mode == "LA" else coloured(pixels)

        def labels(pixels: Stored) -> Stored:
            if stored not in SPREAD:
                return coloured(pixels)
            ends = np.isin(pixels, (0, 255))  # black and white, perhaps with grey edges: no labels
            if ends.all() or (
                ends.mean() > 0.5 and has_grey_edges(Path(path), pixels, is_asked=True)
            ):
                return pixels
            return pixels // np.uint8(SPREAD[stored])

        def coloured(pixels: Stored) -> Stored:
            if mode != "P":
                return pixels
            palette = np.zeros((256, 3), np.uint8)
            colours = np.array(file.getpalette("RGB"), np.uint8).reshape(-1, 3)
            palette[: len(colours)] = colours
            return palette[pixels]

        if (orientation := _orientation(file)) in ORIENTATIONS:
            note(path, f"its Exif orientation is {orientation}, by which it is turned")
        sizes, origin, no_length = choose(path, vendors.beside(path, shape), shape[-1])
        signal = Signal(
            "image", shape, dtype, raw, samples=samples, refused=no_length, finish=finish
        )._replace(labels=labels)
        yield [signal.calibrated(sizes, origin).oriented(orientation)]
