"""Write small files of every format, without the programs that the formats come from."""

import bz2
import gzip
import json
import struct

import h5py
import imagecodecs
import mrcfile
import numpy as np
import tifffile
from mrcfile import dtypes
from PIL import Image

from emjax import micrographs

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (24, 20), np.uint8)
DEEP = RNG.integers(0, 65536, (24, 20), np.uint16)
STACK = RNG.integers(0, 65536, (3, 24, 20), np.uint16)
NM = (0.25, 0.5)  # y, x
METRES = tuple(size * 1e-9 for size in NM)
ANGSTROM = tuple(10 * size for size in NM)
IMOD = 1146047817  # its stamp in an MRC header


def dm(path, pixels, *, version=3, kind=10, scales=NM, unit="nm", lie=None):
    """Write `pixels` as DM3 or DM4; `lie` is a false shape (x first) for the header."""
    axes = [(scale, unit) for scale in [*scales[::-1], 1.0][: pixels.ndim]]
    dm_images(path, [dict(pixels=pixels, kind=kind, axes=axes, lie=lie)], version=version)


def dm_images(path, images, *, version=4, thumbnail=None, order="<"):
    """Write DM3 or DM4 of several images.

    Each is a dict of pixels [.., h, w] (None: an image without), kind (its DataType), axes (scale
    and unit of x, y, ...), name, brightness (origin, scale, unit), lie (a false shape) and means
    ("Spectrum", ...).
    `thumbnail` is the image that the tag Thumbnails names.
    """
    size = ">I" if version == 3 else ">Q"
    utf16 = "utf-16-le" if order == "<" else "utf-16-be"

    def tag(kind, name, content):
        length = struct.pack(size, len(content)) if version == 4 else b""
        return struct.pack(">BH", kind, len(name)) + name.encode() + length + content

    def group(name, *members):
        return tag(20, name, b"\1\0" + struct.pack(size, len(members)) + b"".join(members))

    def value(name, info, content):
        head = b"%%%%" + struct.pack(size, len(info)) + b"".join(struct.pack(size, i) for i in info)
        return tag(21, name, head + content)

    def ulong(name, number):
        return value(name, [5], struct.pack(order + "I", number))

    def single(name, number):
        return value(name, [6], struct.pack(order + "f", number))

    def text(name, words):
        return value(name, [20, 4, len(words)], words.encode(utf16))

    def written(pixels=None, kind=10, axes=(), name="", brightness=None, lie=None, means=""):
        if pixels is None:
            return group("", text("Name", name))
        scales = [group("", single("Scale", scale), text("Units", unit)) for scale, unit in axes]
        calibrations = [group("Dimension", *scales)]
        if brightness:
            origin, scale, unit = brightness
            parts = single("Origin", origin), single("Scale", scale), text("Units", unit)
            calibrations.append(group("Brightness", *parts))
        data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
        shape = pixels.shape[:-1] if kind in (8, 23) else pixels.shape
        image = group(
            "ImageData",
            group("Calibrations", *calibrations),
            value("Data", [20, 4, len(data) // 2], data),
            ulong("DataType", kind),
            group("Dimensions", *(ulong("", side) for side in lie or shape[::-1])),
        )
        meant = group("ImageTags", group("Meta Data", text("Format", means)))
        return group("", image, text("Name", name), *([meant] if means else []))

    members = [group("ImageList", *(written(**image) for image in images))]
    if thumbnail is not None:
        members.append(group("Thumbnails", group("", ulong("ImageIndex", thumbnail))))
    body = b"\1\0" + struct.pack(size, len(members)) + b"".join(members)
    head = struct.pack(">I", version) + struct.pack(size, len(body))
    path.write_bytes(head + struct.pack(">I", order == "<") + body + bytes(8))


def ser(path, pixels, *, metres=METRES, valid=None, planned=None, scanned=None):
    """Write uint16 [planes, h, w] as SER.

    `valid` is a count of planes that may be false, `planned` the length of the series, `scanned`
    the sizes of its dimensions.
    """
    planes, h, w = pixels.shape
    valid = planes if valid is None else valid
    more = 0 if planned is None else planned - planes
    head = struct.pack("<HHHiiii", 0x4949, 0x0197, 0x0220, 0x4122, 0x4152, planned or valid, valid)
    scanned = scanned or [planes + more]
    dimension = b"".join(struct.pack("<iddiii", side, 0.0, 1.0, 0, 0, 0) for side in scanned)
    table = len(head) + 12 + len(dimension)
    first = table + 16 * (planes + more)
    one = struct.pack("<ddiddihii", 0, metres[1], 0, 0, metres[0], 0, 2, w, h)
    step = len(one) + 2 * h * w
    offsets = [first + i * step for i in range(planes)]
    offsets += [0] * more
    content = head + struct.pack("<qi", table, len(scanned)) + dimension
    content += struct.pack(f"<{2 * len(offsets)}q", *offsets, *[0] * len(offsets))
    path.write_bytes(content + b"".join(one + plane[::-1].tobytes() for plane in pixels))


def mrc(
    pixels,
    mode,
    *,
    columns=None,
    size=(20.0, 40.0),
    stats=(0.0, 0.0),
    axes=(1, 2, 3),
    stamp=b"DD\0\0",
    identifier=b"MAP ",
    flags=None,
    kind=b"",
    extended=b"",
    labels=(),
    order="<",
    angles=(90.0, 90.0, 90.0),
    reals=0,
):
    """Return the bytes of an MRC file of [h, w] or [z, h, w], `size` angstrom (y, x) a pixel."""
    sections = pixels.shape[0] if pixels.ndim == 3 and mode != 16 else 1
    h = pixels.shape[-3 if mode == 16 else -2]
    w = columns or pixels.shape[-2 if mode == 16 else -1]
    head = bytearray(1024)
    cell = (w * size[1], h * size[0], float(sections))
    values = (w, h, sections, mode, 0, 0, 0, w, h, 1, *cell, *angles, *axes, *stats, 0.0, 0)
    struct.pack_into(f"{order}10i6f3i3fi", head, 0, *values)
    struct.pack_into(f"{order}i", head, 92, len(extended))
    head[104 : 104 + len(kind)] = kind
    struct.pack_into(f"{order}i2h", head, 108, 20140, 0, 0)
    struct.pack_into(f"{order}2h", head, 128, 0, reals)
    if flags is not None:
        struct.pack_into(f"{order}2i", head, 152, IMOD, flags)
    head[208:216] = identifier + stamp
    struct.pack_into(f"{order}i", head, 220, len(labels))
    for index, label in enumerate(labels):
        head[224 + 80 * index : 304 + 80 * index] = label.encode().ljust(80)
    return bytes(head) + extended + pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()


def fei(pixel, order="<", blocks=1, kind="FEI1"):
    block = np.zeros(blocks, dtypes.get_ext_header_dtype(kind.encode(), order))
    block["Metadata size"] = block.dtype.itemsize
    block["Pixel size X"], block["Pixel size Y"] = pixel
    return block.tobytes()


EER_CODES = {
    65000: (8, 2, 2),
    65001: (7, 2, 2),
    65002: (6, 2, 1),
}  # bits of a run, and within a pixel
EER_METADATA = (
    '<metadata><item name="numberOfFrames">3</item>'
    '<item name="sensorPixelSize.width" unit="m">5e-11</item>'
    '<item unit="m" name="sensorPixelSize.height">6e-11</item></metadata>'
)


def eer_frame(events, compression):
    """Return the bits of a frame, bool [h, w]: runs of pixels without event, lowest bit first."""
    run_bits, *within = EER_CODES[compression]
    longest, bits, gap = (1 << run_bits) - 1, [], 0

    def put(value, count):
        bits.extend(value >> i & 1 for i in range(count))

    for event in events.ravel():
        if not event:
            gap += 1
            continue
        while gap >= longest:
            put(longest, run_bits)
            gap -= longest
        put(gap, run_bits)
        put(int(RNG.integers(1 << sum(within))), sum(within))
        gap = 0
    while gap >= longest:
        put(longest, run_bits)
        gap -= longest
    put(gap, run_bits)
    content = np.packbits(bits, bitorder="little").tobytes()
    return content + bytes(len(content) % 2)  # imagecodecs takes words of 16 bits


def eer(path, frames, compression=65001, metadata=EER_METADATA, integrated=None):
    """Write bool [frames, h, w]; `integrated` is an image that comes first."""
    h, w = frames.shape[1:]
    pages = [(compression, eer_frame(frame, compression)) for frame in frames]
    if integrated is not None:
        pages.insert(0, (1, integrated.astype("<u4").tobytes()))
    body, offset = b"", 16
    for index, (kind, data) in enumerate(pages):
        tags = [(256, 4, w), (257, 4, h), (259, 3, kind), (262, 3, 1), (278, 4, h),
                (279, 16, len(data))]  # fmt: skip
        tags += [(258, 3, 32), (339, 3, 1)] if kind == 1 else []
        if kind == 65002:
            tags += [(65007 + i, 3, bits) for i, bits in enumerate(EER_CODES[kind])]
        length = 8 + 20 * (len(tags) + 2) + 8
        tags.append((273, 16, offset + length))
        words = metadata.encode() if not index else b"<metadata></metadata>"
        tags.append((65001, 7, (offset + length + len(data), len(words))))
        body += struct.pack("<Q", len(tags))
        for tag, form, value in sorted(tags):
            if form == 7:
                body += struct.pack("<HHQQ", tag, form, value[1], value[0])
            else:
                body += struct.pack("<HHQQ", tag, form, 1, value)
        offset += length + len(data) + len(words)
        last = index == len(pages) - 1
        body += struct.pack("<Q", 0 if last else offset) + data + words
    path.write_bytes(b"II+\0\x08\0\0\0" + struct.pack("<Q", 16) + body)


def velox(path, pixels, *, metres=METRES, unit="m"):
    """Write [planes, h, w] as Velox does."""
    size = {"width": str(metres[1]), "height": str(metres[0])}
    result = {"Detector": "BF", "PixelSize": size, "PixelUnitX": unit, "PixelUnitY": unit}
    text = np.zeros((4000, len(pixels)), np.uint8)
    words = json.dumps({"BinaryResult": result}).encode()
    text[: len(words)] = np.frombuffer(words, np.uint8)[:, None]
    with h5py.File(path, "w") as file:
        group = file.create_group("Data/Image/0123456789abcdef")
        group.create_dataset("Data", data=pixels.transpose(1, 2, 0), chunks=(*pixels.shape[1:], 1))
        group.create_dataset("Metadata", data=text)


def berkeley(path, pixels, *, sizes=NM, unit="[n_m]"):
    """Write [h, w] as an EMD of Berkeley."""
    with h5py.File(path, "w") as file:
        group = file.create_group("data/image")
        group.attrs["emd_group_type"] = 1
        group.create_dataset("data", data=pixels)
        for axis, (side, size) in enumerate(zip(pixels.shape, sizes, strict=True), start=1):
            dim = group.create_dataset(f"dim{axis}", data=np.arange(side) * size)
            dim.attrs["units"] = unit


VENDORS = {  # tags of TIFF files: code, type, value
    "fei": (34682, "s", "[Scan]\nPixelWidth=5e-10\nPixelHeight=2.5e-10\n[Image]\nResolutionX=20\n"),
    "titan": (34683, "s", "<Root><PixelsSize><X>5e-10</X><Y>2.5e-10</Y></PixelsSize></Root>"),
    "fibics": (
        51023,
        "s",
        "<Fibics><Scan><Ux>5e-4</Ux><Uy>0</Uy><Vx>0</Vx><Vy>-2.5e-4</Vy></Scan></Fibics>",
    ),
    "tescan": (50431, "s", "PixelSizeX=5e-10\r\nPixelSizeY=2.5e-10\r\n"),
    "zeiss": (34118, "s", "0\n0\n0\n1e-12\n"),
}
TEXTS = {  # next to an image
    "tescan.hdr": "[MAIN]\r\nPixelSizeX=5e-10\r\nPixelSizeY=2.5e-10\r\n[SEM]\r\nHV=5000\r\n",
    "hitachi.txt": "[SemImageFile]\r\nDataSize=20x24\r\nPixelSize=0.25\r\n",
    "jeol.txt": "$CM_FULL_SIZE 20 24\n$$SM_MICRON_BAR 160\n$$SM_MICRON_MARKER 40nm\n",
    "serialem.mdoc": "ImageSize = 20 24\n\n[ZValue = 0]\nPixelSpacing = 2.5\nBinning = 1\n",
}


def write_texts(folder):
    """Write a text of each kind that lies next to an image to `folder`; return {name: path}."""
    for name, text in TEXTS.items():
        (folder / name).write_text(text)
    return {name: folder / name for name in TEXTS}


def emd1(path, pixels, *, sizes=NM, units="nm", names=("Rx", "Ry")):
    """Write [h, w] as emdfile and py4DSTEM do: EMD 1.0, axes of two positions each."""
    with h5py.File(path, "w") as file:
        file.attrs.update(emd_group_type="file", version_major=1, version_minor=0)
        file.create_group("root").attrs.update(emd_group_type="root")
        group = file.create_group("root/image")
        group.attrs.update(emd_group_type="array", python_class="Array")
        group.create_dataset("data", data=pixels).attrs["units"] = "counts"
        for axis, (name, size) in enumerate(zip(names, sizes, strict=True)):
            dim = group.create_dataset(f"dim{axis}", data=[0.0, size])
            dim.attrs.update(name=name, units=units)


def hyperspy(path, pixels, *, sizes=NM, units="nm", name=""):
    """Write [h, w] or [planes, h, w] as HyperSpy does: an image, or a series of images."""
    with h5py.File(path, "w") as file:
        file.attrs.update(file_format="HyperSpy", file_format_version="3.3")
        group = file.create_group("Experiments/image")
        group.create_dataset("data", data=pixels)
        for axis, side in enumerate(pixels.shape):
            known = group.create_group(f"axis-{axis}")
            inner = axis - pixels.ndim + 2
            known.attrs.update(_type="UniformDataAxis", size=side, offset=0.0, navigate=inner < 0)
            scale, unit = (sizes[inner], units) if inner >= 0 else (1.0, "s")
            known.attrs.update(scale=scale, units=unit, name=name + ("zyx"[axis - pixels.ndim]))


def nexus(path, pixels, *, sizes=NM, units="nm", interpretation=""):
    """Write [h, w] as an NXdata group of NeXus."""
    with h5py.File(path, "w") as file:
        group = file.create_group("entry/scan")
        file["entry"].attrs["NX_class"] = "NXentry"
        group.attrs.update(NX_class="NXdata", signal="counts", axes=["y", "x"][-pixels.ndim :])
        group.create_dataset("counts", data=pixels)
        if interpretation:
            group["counts"].attrs["interpretation"] = interpretation
        for axis, size, side in zip("yx", sizes, pixels.shape, strict=True):
            group.create_dataset(axis, data=np.arange(side) * size).attrs["units"] = units


def bigdataviewer(path, *setups):
    """Write one time of uint16 [planes, h, w] for each setup as BigDataViewer does, as int16."""
    with h5py.File(path, "w") as file:
        for number, pixels in enumerate(setups):
            setup = f"s{number:02d}"
            file[f"{setup}/resolutions"] = np.array([[1.0, 1, 1], [2, 2, 1]])
            file[f"{setup}/subdivisions"] = np.array([[16, 16, 1], [16, 16, 1]], np.int32)
            for level, shown in enumerate((pixels, pixels[:, ::2, ::2])):
                file.create_dataset(
                    f"t00000/{setup}/{level}/cells",
                    data=np.ascontiguousarray(shown).view(np.int16),
                    chunks=(1, 8, 8),
                    compression="gzip",
                )


def imaris(path, *channels, nm=(4.0, *NM)):
    """Write [planes, h, w] for each channel as Imaris does: in an array of whole chunks."""

    def letters(value):
        return np.frombuffer(str(value).encode(), "S1")

    with h5py.File(path, "w") as file:
        known = file.create_group("DataSetInfo/Image")
        shape = channels[0].shape
        known.attrs["Unit"] = letters("um")
        for axis, (side, size) in enumerate(zip(shape[::-1], nm[::-1], strict=True)):
            known.attrs[f"ExtMin{axis}"] = letters(1.5)
            known.attrs[f"ExtMax{axis}"] = letters(1.5 + side * size * 1e-3)
        for level in (0, 1):
            for number, pixels in enumerate(channels):
                shown = pixels[:, :: level + 1, :: level + 1]
                name = f"DataSet/ResolutionLevel {level}/TimePoint 0/Channel {number}"
                group = file.create_group(name)
                for axis, side in zip("ZYX", shown.shape, strict=True):
                    group.attrs[f"ImageSize{axis}"] = letters(side)
                whole = np.pad(shown, [(0, -side % 16) for side in shown.shape])
                group.create_dataset("Data", data=whole, chunks=(16, 16, 16), compression="gzip")


def scales(path, pixels, *, sizes=NM, units="nm", names="yx"):
    """Write an array with a dimension scale for each axis, as netCDF does."""
    with h5py.File(path, "w") as file:
        array = file.create_dataset("image", data=pixels)
        for axis, (name, size) in enumerate(zip(names, sizes, strict=True)):
            scale = file.create_dataset(name, data=np.arange(pixels.shape[axis]) * size)
            scale.attrs["units"] = units
            scale.make_scale(name)
            array.dims[axis].attach_scale(scale)


def write_more(folder):
    """Write samples that are read with a note, or as other values; return {name: path}."""
    written = {
        "imod.mrc": mrc(GREY, 0, size=ANGSTROM, flags=1),
        "fourbits.mrc": mrc(GREY, 101, columns=39, size=ANGSTROM),
        "fei.mrc": mrc(DEEP, 6, kind=b"FEI1", extended=fei(METRES[::-1])),
        "nomap.mrc": mrc(DEEP, 6, size=ANGSTROM, identifier=bytes(4)),
    }
    for name, content in written.items():
        (folder / name).write_bytes(content)
    eer(folder / "events.eer", STACK > 60_000)
    ser(folder / "stopped_1.ser", STACK, planned=9)
    named = [dict(pixels=DEEP, name="a", brightness=(1, 2, "e")), dict(pixels=STACK, name="b")]
    dm_images(folder / "several.dm4", named)
    names = (*written, "events.eer", "stopped_1.ser", "several.dm4")
    return {name: folder / name for name in names}


def write_all_of(folder, field):
    """Write uint16 [h, w] to `folder` in fourteen formats, under different names."""
    folder.mkdir()
    for name in ("imagej.tif", "ome.ome.tif", "zarr.zarr"):
        micrographs.write(folder / name, field, NM)
    mrcfile.write(folder / "mrc.mrc", field)
    tifffile.imwrite(folder / "big.tif", field, bigtiff=True, byteorder=">")
    (folder / "png.png").write_bytes(imagecodecs.png_encode(field))
    np.save(folder / "npy.npy", field)
    with h5py.File(folder / "plain.h5", "w") as file:
        file["image"] = field
    velox(folder / "velox.emd", field[None])
    berkeley(folder / "berkeley.emd", field)
    emd1(folder / "emd1.emd", field)
    hyperspy(folder / "hyperspy.hspy", field)
    dm(folder / "dm.dm4", field, version=4)
    ser(folder / "ser.ser", field[None])


def write_all(folder):
    """Write a sample of every format to `folder`, of DEEP, GREY or STACK; return {name: path}."""

    def at(name):
        paths[name] = folder / name
        return paths[name]

    paths = {}
    for name in ("imagej.tif", "ome.ome.tif", "mrc.mrc", "zarr.zarr"):
        micrographs.write(at(name), DEEP, NM)
    for name in ("imagej_stack.tif", "stack.mrc", "stack.zarr"):
        micrographs.write(at(name), STACK, NM)
    for name, options in {
        "big.tif": dict(bigtiff=True, byteorder=">"),
        "lzw.tif": dict(compression="lzw", predictor=True),
        "tiled.tif": dict(compression="zlib", tile=(16, 16)),
        "zstd.tif": dict(compression="zstd"),
        "packbits.tif": dict(compression="packbits"),
    }.items():
        tifffile.imwrite(at(name), DEEP, **options)
    tifffile.imwrite(at("jpeg.tif"), GREY, compression="jpeg")
    levels = np.stack([np.arange(256, dtype=np.uint16) * 257] * 3)
    tifffile.imwrite(at("palette.tif"), GREY, photometric="palette", colormap=levels)
    tifffile.imwrite(at("colour.tif"), np.stack([GREY] * 3, -1), photometric="rgb")
    tifffile.imwrite(at("pages.tif"), STACK, photometric="minisblack", compression="zlib")
    for name, (code, kind, text) in VENDORS.items():
        tag = [(code, kind, 0, text, True)]
        tifffile.imwrite(at(f"{name}.tif"), DEEP, extratags=tag, metadata=None)
    at("grey.png").write_bytes(imagecodecs.png_encode(GREY))
    at("colour.png").write_bytes(imagecodecs.png_encode(np.stack([DEEP] * 3, -1)))
    Image.fromarray(GREY).convert("P").save(at("palette.png"))
    Image.fromarray(GREY).save(at("grey.jpg"))
    at("mrc.mrc.gz").write_bytes(gzip.compress(paths["stack.mrc"].read_bytes()))
    at("mrc.mrc.bz2").write_bytes(bz2.compress(paths["stack.mrc"].read_bytes()))
    np.save(at("array.npy"), STACK)
    with h5py.File(at("plain.h5"), "w") as file:
        file.create_dataset("a/image", data=DEEP)
    with h5py.File(at("packed.h5"), "w") as file:
        file.create_dataset("image", data=STACK, chunks=(1, 8, 8), compression="gzip")
    velox(at("velox.emd"), STACK)
    berkeley(at("berkeley.emd"), DEEP)
    emd1(at("emd1.emd"), DEEP)
    hyperspy(at("series.hspy"), STACK)
    nexus(at("scan.nxs"), DEEP)
    bigdataviewer(at("bdv.h5"), STACK)
    imaris(at("stack.ims"), STACK)
    scales(at("scales.h5"), DEEP)
    dm(at("image.dm3"), DEEP)
    dm(at("stack.dm4"), STACK, version=4)
    ser(at("stack_1.ser"), STACK)
    return paths
