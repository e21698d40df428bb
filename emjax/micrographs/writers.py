"""Micrographs written as TIFF, MRC or Zarr, whole or not at all, with their pixel size."""

import os
import shutil
from pathlib import Path

import numpy as np
import tifffile

from emjax.errors import UsageError
from emjax.micrographs.signal import UNKNOWN
from emjax.micrographs.units import pixel_size

CHUNK = 1024  # pixels a side of a chunk of a Zarr array


def write(path, image, nm_per_pixel=UNKNOWN):
    """Write uint8, uint16 or float32 [h, w] or [planes, h, w] by the suffix of `path`.

    .tif, .tiff as ImageJ writes and reads them, .ome.tif with OME-XML, .mrc and .zarr (OME-Zarr),
    each with the pixel size in nm, (y, x) or one number for both, if it is known. The file appears
    when it is complete.

    Raises: UsageError for another suffix, or a pixel size that is not positive.
    """
    path = Path(path)
    name = path.name.lower()
    suffix = next((s for s in WRITERS if name.endswith(s)), None)
    if suffix is None:
        raise UsageError(
            f"{path}: cannot write {path.suffix!r}; one of {', '.join(WRITERS)} was due"
        )
    sizes = pixel_size(nm_per_pixel)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    known = sizes if np.isfinite(sizes).all() else None
    try:
        WRITERS[suffix](partial, image, known)
        if path.is_dir():  # an older Zarr; a folder is not replaced in one step
            shutil.rmtree(path)
        os.replace(partial, path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        partial.unlink(missing_ok=True)


def _imagej(path, image, known):
    options = dict(photometric="minisblack")
    if known:
        options |= dict(imagej=True, resolution=(1 / known[1], 1 / known[0]))
        options |= dict(metadata={"unit": "nm", **({"axes": "ZYX"} if image.ndim == 3 else {})})
    tifffile.imwrite(path, image, **options)


def _ome(path, image, known):
    metadata = {"axes": "ZYX"[-image.ndim :]}
    if known:
        for axis, size in zip("YX", known, strict=True):
            metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "nm"}
    tifffile.imwrite(path, image, ome=True, photometric="minisblack", metadata=metadata)


def _mrc(path, image, known):
    """As MRC2014, whose numbers of 8 bits are signed: uint8 becomes uint16."""
    import mrcfile

    with mrcfile.new(path) as file:
        file.set_data(image.astype(np.uint16) if image.dtype == np.uint8 else image)
        if image.ndim == 3:
            file.set_image_stack()
        size = known or (0, 0)
        file.header.cella.x = image.shape[-1] * size[1] * 10  # angstrom
        file.header.cella.y = image.shape[-2] * size[0] * 10


def _zarr(path, image, known):
    import zarr

    axes = [{"name": axis, "type": "space"} for axis in "zyx"[-image.ndim :]]
    for axis in axes[-2:]:
        axis |= {"unit": "nanometer"} if known else {}
    scale = [1.0] * (image.ndim - 2) + list(known or (1.0, 1.0))
    level = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}
    group = zarr.open_group(path, mode="w")
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [{"name": path.stem, "axes": axes, "datasets": [level]}],
    }
    chunks = (1,) * (image.ndim - 2) + tuple(min(side, CHUNK) for side in image.shape[-2:])
    names = [axis["name"] for axis in axes]
    array = group.create_array(
        "0", shape=image.shape, chunks=chunks, dtype=image.dtype, dimension_names=names
    )
    array[...] = image


WRITERS = {
    ".ome.tif": _ome,
    ".ome.tiff": _ome,
    ".tif": _imagej,
    ".tiff": _imagej,
    ".mrc": _mrc,
    ".zarr": _zarr,
}
