"""One piece of work of the page, in a process of its own: reads an order, prints what it does.

The order is a line of JSON: `kind` (look, run), `files` {path: label}, `out`, `memory`, and `flags`
{name: value} of `emjax predict`. To look at a file writes a picture of it; a run does what
`emjax predict` and `emjax measure` do, by these commands themselves.
"""

import contextlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from emjax import cli, micrographs
from emjax.apps.web.sessions import RESULT
from emjax.errors import EmjaxError, InputError
from emjax.inference.options import MEMORY, MODEL
from emjax.micrographs import banner
from emjax.micrographs.resampling import resample
from emjax.models import pretrained
from emjax.pictures import png, stretched

SHOWN = 1200  # pixels: the longer side of a picture on the page
PREDICTED = ("cut_banner", "model", "mrc_rows", "no_resample", "pixel_size", "range")
MEASURED = ("min_size", "no_split")


def reduced(image: np.ndarray) -> np.ndarray:
    """Return an image with a longer side of SHOWN pixels at most, by area means."""
    factor = min(1.0, SHOWN / max(image.shape))
    return image if factor == 1 else resample(image.astype(np.float32), (factor, factor))


def look(order: Mapping[str, Any]) -> dict[str, Any]:
    """Write a picture of the first plane of a file; return what is known of the file."""
    (name, _), *_ = order["files"].items()
    file, out = Path(name), Path(order["out"])
    limit = cli.memory(order["memory"])
    rows = None if micrographs.top_row_is_stated(file, limit) else "top"
    first = next(micrographs.planes(file, None, limit, mrc_rows=rows))
    with micrographs.open_all(file, limit) as signals:
        count = max(signal.planes for signal in signals if not signal.refused)
    image = first.image
    try:
        seen = micrographs.intensity_range([image], "percentile")
    except micrographs.NoRange:  # the first plane of a stack may be empty
        seen = float(image.min()), float(image.max())
    (out / "picture.png").write_bytes(png(stretched(reduced(image), seen)))
    known = bool(np.isfinite(first.nm_per_pixel).all())
    return {
        "height": image.shape[0],
        "width": image.shape[1],
        "dtype": str(image.dtype),
        "planes": count,
        "nm_per_pixel": [float(side) for side in first.nm_per_pixel] if known else None,
        "origin": first.origin,
        "range": list(seen),
        "rows": rows,
        "banner": banner.described(image.shape, banner.picture(image)),
    }


def flags(order: Mapping[str, Any], names: tuple[str, ...]) -> list[str]:
    """Return the flags of an order that a command has."""
    given = {name: value for name, value in order["flags"].items() if name in names}
    if "model" in given:
        given["model"] = pretrained.of_package(given["model"])
    return [f"--{name}" if value is True else f"--{name}={value}"
            for name, value in given.items() if value is not False]  # fmt: skip


def is_single(file: Path, limit: int) -> bool:
    """Return whether a file holds images of one plane, and no stack."""
    with contextlib.suppress(InputError, OSError), micrographs.open_all(file, limit) as signals:
        return all(signal.planes == 1 for signal in signals)
    return True  # what cannot be read is named later


def run(order: Mapping[str, Any]) -> dict[str, Any]:
    """Predict the files, and measure the particles of masks; return what was written."""
    from emjax import measure, predict  # which a look does without

    out, files = Path(order["out"]), {Path(path): label for path, label in order["files"].items()}
    # Left out where it is the commands' own: results keep the options that made them.
    memory = [] if order["memory"] == MEMORY else [f"--memory_limit={order['memory']}"]
    common = [*memory, *flags(order, PREDICTED)]
    # Measured from what is predicted here, so that each image goes through the network once.
    # Not of stacks, whose probabilities may be larger than the memory.
    is_mask = pretrained.for_use()[order["flags"].get("model", MODEL)] == "segmentation"
    limit = cli.memory(order["memory"])
    kept = ["--probabilities"] if is_mask and all(is_single(file, limit) for file in files) else []
    code = predict.main([*common, *kept, f"--out={out / 'predicted'}", *map(str, files)])
    stems = {file.name.partition(".")[0]: file for file in files}
    known = {
        stems[path.name.partition(".")[0]]: path
        for path in (out / "predicted").glob("*.probability.tif")
    }
    result: dict[str, Any] = {"code": code, "files": {}}
    written = sorted(
        path
        for path in (out / "predicted").rglob("*")
        if path.is_file() and path not in known.values()
    )
    for file in files:
        name = file.name.partition(".")[0]
        own = [path for path in written if path.name.partition(".")[0] == name]
        number = name.rpartition("-")[2]
        result["files"][number] = [path.relative_to(out).as_posix() for path in own]
    overlays = [path for path in written if path.name.endswith(".overlay.png")]
    if not overlays:
        return result
    for path in overlays:
        small = path.with_name(path.name.replace(".overlay.png", ".small.png"))
        small.write_bytes(reduced_picture(path))
    try:
        options = measure.parse(
            [*common, *flags(order, MEASURED), f"--out={out / 'sizes'}", *map(str, files)]
        )
        with cli.printed_notes():
            result["code"] = max(code, measure.measure_files(options, files, known))
    except EmjaxError as error:  # the masks are there
        print(f"error: not measured: {cli.message(error)}")
        result["code"] = max(code, error.code)
    for path in known.values():
        path.unlink()
    result["sizes"] = sorted(
        path.relative_to(out).as_posix()
        for path in (out / "sizes").glob("*")
        if not path.name.startswith(".")
    )
    return result


def reduced_picture(path: Path) -> bytes:
    """Return the bytes of a picture in colour, reduced for the page."""
    from PIL import Image

    with Image.open(path) as picture:
        picture.thumbnail((SHOWN, SHOWN), Image.Resampling.BOX)
        return png(np.asarray(picture))


def main() -> int:
    """Do what the order on stdin says."""
    order = json.loads(sys.stdin.readline())
    stdout: Any = sys.stdout
    stdout.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    try:
        if order["kind"] == "look":
            with cli.printed_notes():  # the commands have their own
                result = look(order)
        else:
            result = run(order)
    except EmjaxError as error:
        print(f"error: {cli.message(error)}")
        return error.code
    except (OSError, MemoryError) as error:
        print(f"error: {error or 'too little memory'}")
        return InputError.code
    print(RESULT + json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
