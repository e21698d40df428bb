"""Micrographs of all formats as layers of napari, with their scale; stacks plane by plane."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emjax import micrographs
from emjax.errors import imported
from emjax.micrographs import Signal, reading
from emjax.micrographs.units import is_known

Layer = tuple[Any, dict[str, Any], str]  # what napari takes: data, arguments, kind
SIDE, NM_PER_PIXEL = 512, 0.05  # of the sample


def get_reader(path: str | Sequence[str]) -> Callable[[str | Sequence[str]], list[Layer]] | None:
    """Return `read` if all paths are named like micrographs, else None."""
    paths = [path] if isinstance(path, str) else path
    return read if all(reading.has_known_suffix(Path(each)) for each in paths) else None


def read(path: str | Sequence[str]) -> list[Layer]:
    """Return a layer for each image or stack of each file.

    Raises: InputError for a file that cannot be read.
    """
    layers: list[Layer] = []
    for each in [path] if isinstance(path, str) else path:
        with micrographs.open_all(each) as signals:
            usable = [signal for signal in signals if not signal.refused]
        if not usable:
            micrographs.read(each)  # says why
        for index, signal in enumerate(usable):
            own = f" {' '.join(signal.name.split())}" if len(usable) > 1 else ""
            layers.append(layer(Path(each), index, signal, f"{Path(each).stem}{own}"))
    return layers


def layer(path: Path, index: int, signal: Signal, name: str) -> Layer:
    """Return the layer of one image or stack of a file; planes are read when they are shown."""
    first = micrographs.read_plane(path, 0, index)
    arguments: dict[str, Any] = {"name": name, "metadata": {"pixel_size_from": signal.origin}}
    if is_known(signal.nm_per_pixel):
        arguments |= scaled(signal.nm_per_pixel, signal.nm_per_plane, signal.planes)
    if signal.planes == 1:
        return first, arguments, "image"
    dask: Any = imported("dask", "napari")
    arrays: Any = imported("dask.array", "napari")

    def plane(number: int) -> Any:
        later = dask.delayed(micrographs.read_plane)(path, number, index)
        return arrays.from_delayed(later, first.shape, first.dtype)

    return arrays.stack([plane(number) for number in range(signal.planes)]), arguments, "image"


def scaled(
    nm_per_pixel: Sequence[float], nm_per_plane: float = np.nan, planes: int = 1
) -> dict[str, Any]:
    """Return the scale and units of a layer, (y, x) or (plane, y, x)."""
    scale, units = tuple(nm_per_pixel), ("nm", "nm")
    if planes == 1:
        return {"scale": scale, "units": units}
    if is_known((nm_per_plane, nm_per_plane)):
        return {"scale": (nm_per_plane, *scale), "units": ("nm", *units)}
    return {"scale": (1.0, *scale), "units": ("pixel", *units)}


def nanoparticles() -> list[Layer]:
    """Return a simulated micrograph and its true mask."""
    from data_builders.simulated import scenes

    image, mask = scenes.nanoparticles(np.random.default_rng(0), SIDE, NM_PER_PIXEL)
    size = scaled((NM_PER_PIXEL, NM_PER_PIXEL))
    return [
        (image.astype(np.float32), {"name": "simulated nanoparticles", **size}, "image"),
        (mask.astype(np.int32), {"name": "their true mask", "visible": False, **size}, "labels"),
    ]
