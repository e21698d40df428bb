"""Micrographs written as TIFF, MRC or Zarr, whole or not at all, with their pixel size."""

import errno
import hashlib
import os
import secrets
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from emjax.errors import UsageError
from emjax.files import draft_name
from emjax.micrographs.formats.npy_zarr import is_zarr
from emjax.micrographs.shapes import Planes
from emjax.micrographs.units import UNKNOWN, AnyPixelSize, PixelSize, is_known, pixel_size

CHUNK = 1024  # pixels along each side of a chunk of a Zarr array
# Number formats of TIFF that tifffile writes as ImageJ does; ImageJ reads whole numbers of 32 bits
# with the same metadata. (Source: ij.io.TiffDecoder.)
IMAGEJ = "BHhf"
OME = "bool int8 uint8 int16 uint16 int32 uint32 float32"
NUMBERS = {".mrc": "int8 uint8 int16 uint16 float32", ".ome.tif": OME, ".ome.tiff": OME}


def write(
    path: str | os.PathLike[str],
    image: Planes,
    nm_per_pixel: AnyPixelSize = UNKNOWN,
    *,
    info: str = "",
    software: str = "emjax",
) -> None:
    """Write numbers of up to 32 bits, [h, w] or [planes, h, w], by the suffix of `path`.

    .tif, .tiff as ImageJ writes and reads them, .ome.tif with OME-XML, .mrc and .zarr (OME-Zarr),
    each with the pixel size if it is known. The file appears when it is complete. Rows keep their
    order: the first row of `image` is the first of the file, also in MRC, which has no whole
    numbers of 32 bits. The same arguments give the same bytes of a TIFF.

    Args:
        nm_per_pixel: (y, x) in nm, or one number for both; None or NaN if unknown.
        info: ASCII text about the image that the file is to keep.
        software: ASCII text about what made the image; kept in TIFF alone, as its tag Software.

    Raises: UsageError for another suffix, numbers that the format does not have, a pixel size that
        is not positive, or a folder of that name that is not a Zarr store.
    """
    path = Path(path)
    name = path.name.lower()
    suffix = next((s for s in WRITERS if name.endswith(s)), None)
    if suffix is None:
        raise UsageError(f"{path}: expected one of {', '.join(WRITERS)}, got {path.suffix!r}")
    size = pixel_size(nm_per_pixel)
    numbers = NUMBERS.get(suffix, image.dtype.name)
    if image.dtype.name not in numbers.split():
        raise UsageError(
            f"{path}: this format has no {image.dtype}; expected {', '.join(numbers.split())}, or "
            "another suffix, such as .tif"
        )
    if path.is_dir() and not (suffix == ".zarr" and is_zarr(path)):
        raise UsageError(f"{path} is a folder, expected a name for a file; choose another")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(draft_name(f".{path.name}", f".{secrets.token_hex(4)}"))
    try:
        WRITERS[suffix](partial, image, size if is_known(size) else None, info, software)
        if path.is_dir():  # an older Zarr; a folder is not replaced in one step
            shutil.rmtree(path)
        os.replace(partial, path)
    except OSError as error:
        if error.errno is None and "written" in str(error):  # by NumPy, which does not say why
            raise OSError(errno.ENOSPC, f"only a part could be written ({error})", path) from error
        raise
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        partial.unlink(missing_ok=True)


def _imagej(path: Path, image: Planes, known: PixelSize | None, info: str, software: str) -> None:
    """Write a TIFF with ImageJ's metadata if the pixel size is known, else a plain one."""
    options: dict[str, Any] = {"photometric": "minisblack", "software": software}
    if known:
        options["resolution"] = 1 / known[1], 1 / known[0]
    if known and image.dtype.char in IMAGEJ:
        options["imagej"] = True
        options["metadata"] = {"unit": "nm", **({"axes": "ZYX"} if image.ndim == 3 else {})}
        options["metadata"] |= {"Info": info} if info else {}
    elif known:
        slices = [f"images={len(image)}", f"slices={len(image)}"] if image.ndim == 3 else []
        lines = ["ImageJ=1.11a", *slices, "unit=nm", *([info] if info else [])]
        options |= {"description": "\n".join(lines) + "\n", "metadata": None}
    else:
        options |= {"description": info} if info else {}
        options |= {"metadata": {"axes": "ZYX"}} if image.ndim == 3 else {}
    tifffile.imwrite(path, image, **options)


def _ome(path: Path, image: Planes, known: PixelSize | None, info: str, software: str) -> None:
    # By default tifffile takes the host and the time for the UUID.
    content = hashlib.md5(np.ascontiguousarray(image).data, usedforsecurity=False)
    metadata: dict[str, Any] = {"axes": "ZYX"[-image.ndim :]}
    metadata |= {"UUID": f"urn:uuid:{uuid.UUID(content.hexdigest())}"}
    metadata |= {"Description": info} if info else {}
    if known:
        for axis, size in zip("YX", known, strict=True):
            metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "nm"}
    tifffile.imwrite(
        path, image, ome=True, photometric="minisblack", metadata=metadata, software=software
    )


def _mrc(path: Path, image: Planes, known: PixelSize | None, info: str, _software: str) -> None:
    """Write MRC2014; its 8-bit numbers are signed, so uint8 becomes uint16."""
    import mrcfile

    with mrcfile.new(path) as file:
        file.set_data(image.astype(np.uint16) if image.dtype == np.uint8 else image)
        if image.ndim == 3:
            file.set_image_stack()
        header: Any = file.header
        if info:
            file.add_label(info)
        y, x = known or (0, 0)
        header.cella.x = image.shape[-1] * x * 10  # angstrom
        header.cella.y = image.shape[-2] * y * 10


def _zarr(path: Path, image: Planes, known: PixelSize | None, info: str, _software: str) -> None:
    """Write OME-Zarr 0.5, in chunks of one plane and at most CHUNK x CHUNK pixels.

    Args:
        path: of the draft, .NAME.zarr.TOKEN.
    """
    import zarr

    axes = [{"name": axis, "type": "space"} for axis in "zyx"[-image.ndim :]]
    for axis in axes[-2:]:
        axis |= {"unit": "nanometer"} if known else {}
    scale = [1.0] * (image.ndim - 2) + list(known or (1.0, 1.0))
    level = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}
    name = Path(path.stem).stem.removeprefix(".")
    group = zarr.open_group(path, mode="w")
    if info:
        group.attrs["info"] = info
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [{"name": name, "axes": axes, "datasets": [level]}],
    }
    chunks = (1,) * (image.ndim - 2) + tuple(min(side, CHUNK) for side in image.shape[-2:])
    names = [axis["name"] for axis in axes]
    array = group.create_array(
        "0",
        shape=image.shape,
        chunks=chunks,
        dtype=image.dtype,
        dimension_names=names,
        config={"write_empty_chunks": True},  # a chunk that is not there is then one that was lost
    )
    array[...] = image


WRITERS: dict[str, Callable[[Path, Planes, PixelSize | None, str, str], None]] = {
    ".ome.tif": _ome,
    ".ome.tiff": _ome,
    ".tif": _imagej,
    ".tiff": _imagej,
    ".mrc": _mrc,
    ".zarr": _zarr,
}
