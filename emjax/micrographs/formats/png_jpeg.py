"""PNG and JPEG, which know no pixel size."""

import contextlib
import io
from pathlib import Path

import numpy as np
from PIL import Image

from emjax.errors import InputError
from emjax.micrographs.signal import Signal, declared, pixels_of

Image.MAX_IMAGE_PIXELS = None  # a 16k x 16k micrograph is no bomb; declared() looks at the size
SAMPLES = {"LA": 2, "RGB": 3, "RGBA": 4}
DTYPES = {"1": "bool", "F": "f4", "I": "i4", "I;16": "u2", "I;16B": ">u2", "I;16L": "<u2"}


@contextlib.contextmanager
def signals(path, limit):
    """The list of the one Signal of a PNG or JPEG file."""
    content = Path(path).read_bytes()  # Pillow believes lengths that a real file would not have
    with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as file:
        if getattr(file, "n_frames", 1) > 1:
            raise InputError(f"{file.n_frames} frames, one 2-D image was due")
        wide = bool(file.tile) and file.tile[0][3] in ("RGB;16B", "RGBA;16B", "LA;16B")
        mode = file.mode if file.mode in (*SAMPLES, *DTYPES, "L", "P") else "RGB"
        dtype = np.dtype("u2" if wide else DTYPES.get(mode, "u1"))
        sides, samples = file.size[::-1], SAMPLES.get(mode, 1)
        check = dict(stored=len(content), limit=limit, compressed=True)
        declared("it", pixels_of(sides, samples), dtype, **check)

        def raw(i):
            if wide:  # Pillow would drop the lower 8 bits
                import imagecodecs  # not at the top: few need it

                return imagecodecs.png_decode(content)
            return np.array(file if file.mode == mode else file.convert(mode))

        def finish(pixels):
            if mode != "P":
                return pixels
            palette = np.zeros((256, 3), np.uint8)
            colours = np.array(file.getpalette("RGB"), np.uint8).reshape(-1, 3)
            palette[: len(colours)] = colours
            return palette[pixels]

        yield [Signal("image", sides, dtype, raw, samples=samples, finish=finish)]
