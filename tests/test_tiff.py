"""TIFF files as programs write them: axes, samples, calibrations, palettes, OME-XML."""

import struct

import numpy as np
import pytest
import tifffile

from emjax import micrographs
from emjax.errors import InputError

RNG = np.random.default_rng(3)
GREY = RNG.integers(0, 200, (24, 20), np.uint8)
OME = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
ROOT = "urn:uuid:00000000-0000-0000-0000-000000000002"


def images_in(path):
    """Return every image or stack in a file, as [planes, h, w]."""
    with micrographs.open_all(path) as signals:
        count = len([signal for signal in signals if not signal.refused])
    return [np.stack([p.image for p in micrographs.planes(path, k)]) for k in range(count)]


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize(
    ("shape", "planes"),
    [
        ((24, 20, 1), 1),
        ((1, 5, 1, 24, 20), 5),
        ((5, 24, 20, 1), 5),
        ((24, 1, 20), 1),
        ((5, 24, 1, 20), 5),
    ],
)
def test_axes_of_length_one_are_dropped_wherever_they_stand(tmp_path, shape, planes, compression):
    stored = RNG.integers(0, 200, shape, np.uint8)
    for name, options in (("a.tif", {}), ("b.tif", {"bigtiff": True, "byteorder": ">"})):
        path = tmp_path / name
        tifffile.imwrite(path, stored, compression=compression, **options)
        (found,) = images_in(path)
        assert len(found) == planes
        np.testing.assert_array_equal(found.squeeze(), stored.squeeze())


@pytest.mark.parametrize("kind", ["imagej", "ome"])
def test_hyperstacks_with_one_long_axis_are_stacks_and_others_are_refused(tmp_path, kind):
    path = tmp_path / f"a.{'ome.' if kind == 'ome' else ''}tif"
    stack = RNG.integers(0, 200, (1, 5, 1, 24, 20), np.uint8)
    tifffile.imwrite(path, stack, metadata={"axes": "TZCYX"}, **{kind: True})
    np.testing.assert_array_equal(images_in(path), stack.reshape(1, 5, 24, 20))
    both = RNG.integers(0, 200, (3, 5, 24, 20), np.uint8)
    tifffile.imwrite(path, both, metadata={"axes": "TZYX"}, **{kind: True})
    with pytest.raises(InputError, match=r"4-D data \(3 T x 5 Z x 24 Y x 20 X\)"):
        micrographs.read(path)


def test_an_axis_after_x_is_the_planes(tmp_path):
    stored = RNG.integers(0, 200, (24, 20, 5), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", stored, metadata={"axes": "YXZ"})
    np.testing.assert_array_equal(images_in(tmp_path / "a.tif"), stored.transpose(2, 0, 1)[None])
    cube = RNG.integers(0, 200, (5, 5, 5), np.uint8)  # no length tells the axes apart
    tifffile.imwrite(tmp_path / "b.tif", cube, metadata={"axes": "YXZ"}, compression="zlib")
    np.testing.assert_array_equal(images_in(tmp_path / "b.tif"), cube.transpose(2, 0, 1)[None])


TWO = {
    "as tifffile does by default": {},
    "compressed": {"compression": "zlib"},
    "samples": {"photometric": "minisblack", "planarconfig": "contig"},
    "samples without names": {
        "photometric": "minisblack",
        "planarconfig": "contig",
        "metadata": None,
        "extrasamples": ["unspecified"],
    },
}


@pytest.mark.parametrize("options", TWO.values(), ids=TWO)
def test_two_channels_last_are_two_images(tmp_path, options):
    both = RNG.integers(0, 65536, (24, 20, 2), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", both, **options)
    with pytest.raises(micrographs.SeveralImages, match="image 0, sample 0 24x20 uint16, 1: "):
        micrographs.read(tmp_path / "a.tif")
    for k in range(2):
        np.testing.assert_array_equal(micrographs.read(tmp_path / "a.tif", k).image, both[..., k])


def test_planes_of_samples_and_stacks_of_two_channels(tmp_path):
    separate = RNG.integers(0, 200, (2, 24, 20), np.uint8)
    options = {"photometric": "minisblack", "planarconfig": "separate"}
    tifffile.imwrite(tmp_path / "a.tif", separate, **options)
    np.testing.assert_array_equal(images_in(tmp_path / "a.tif"), separate[:, None])
    stack = RNG.integers(0, 200, (5, 24, 20, 2), np.uint8)
    tifffile.imwrite(tmp_path / "b.tif", stack)
    np.testing.assert_array_equal(images_in(tmp_path / "b.tif"), stack.transpose(3, 0, 1, 2))


def test_alpha_is_no_image_and_colours_are_none(tmp_path):
    grey = np.stack([GREY, 255 - GREY], -1)
    options = {"photometric": "minisblack", "planarconfig": "contig"}
    tifffile.imwrite(tmp_path / "a.tif", grey, extrasamples=["unassalpha"], **options)
    np.testing.assert_array_equal(micrographs.read(tmp_path / "a.tif").image, GREY)
    colours = np.stack([GREY, GREY, GREY, 255 - GREY], -1)
    tifffile.imwrite(tmp_path / "b.tif", colours, photometric="rgb")
    np.testing.assert_array_equal(micrographs.read(tmp_path / "b.tif").image, GREY)
    more = np.concatenate([colours, colours[..., :1]], -1)
    kinds = ["unassalpha", "unspecified"]
    tifffile.imwrite(tmp_path / "c.tif", more, photometric="rgb", extrasamples=kinds)
    np.testing.assert_array_equal(micrographs.read(tmp_path / "c.tif").image, GREY)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("planes", [3, 4])
@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint8, np.uint16])
@pytest.mark.filterwarnings("ignore:.*are stored as RGB")
def test_stacks_that_tifffile_calls_colours_by_default(tmp_path, dtype, planes, compression):
    stack = RNG.integers(0, 200, (planes, 24, 20)).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", stack, compression=compression)
    if np.dtype(dtype).kind == "u":  # as colours are written, too
        said = f"0: image 0 in colours 24x20 .*, 1: image 0 as a stack {planes}x24x20"
        with pytest.raises(micrographs.SeveralImages, match=said):
            micrographs.read_stack(tmp_path / "a.tif")
        with micrographs.open_all(tmp_path / "a.tif") as (colours, _):
            np.testing.assert_array_equal(colours.raw(0), np.moveaxis(stack, 0, -1))
        found = micrographs.read_stack(tmp_path / "a.tif", 1)
    else:
        found = micrographs.read_stack(tmp_path / "a.tif")
    np.testing.assert_array_equal(found.image, stack)


@pytest.mark.parametrize("count", [3, 4])
def test_three_and_four_grey_channels_last_are_as_many_images(tmp_path, count):
    every = RNG.integers(0, 200, (24, 20, count), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", every, photometric="minisblack")
    np.testing.assert_array_equal(images_in(tmp_path / "a.tif"), np.moveaxis(every, -1, 0)[:, None])


def test_more_channels_last_are_refused_as_in_npy(tmp_path):
    every = RNG.integers(0, 200, (24, 20, 5), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", every)
    np.save(tmp_path / "a.npy", every)
    for name in ("a.tif", "a.npy"):
        with pytest.raises(InputError, match=r"\(24, 20, 5\) would be 24 images of 20x5; store"):
            micrographs.read_stack(tmp_path / name)
    tifffile.imwrite(tmp_path / "b.tif", every, metadata={"axes": "ZYX"})
    np.testing.assert_array_equal(micrographs.read_stack(tmp_path / "b.tif").image, every)


SAID = "SerialEMCCD: Dose frac. image, 4 bits packed  r/f 0"


def test_frames_of_serialem_are_unpacked_by_their_description(tmp_path):
    frames = RNG.integers(0, 16, (3, 24, 20), np.uint8)
    packed = frames[..., ::2] | frames[..., 1::2] << 4
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for frame in packed:
            file.write(frame, compression="lzw", photometric="minisblack", metadata=None,
                       datetime=True, description=SAID)  # fmt: skip
    np.testing.assert_array_equal(micrographs.read_stack(tmp_path / "a.tif").image, frames)
    tifffile.imwrite(tmp_path / "b.tif", packed[0].astype(np.uint16), description=SAID)
    np.testing.assert_array_equal(micrographs.read(tmp_path / "b.tif").image, packed[0])


@pytest.mark.parametrize("shape", [(8184, 5760), (11520, 4092), (7676, 3710), (7422, 3840)])
def test_frames_of_that_size_without_the_words_are_refused(tmp_path, shape):
    options = dict(compression="zlib", photometric="minisblack", metadata=None)
    frame = np.zeros(shape, np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", frame, datetime=True, **options)
    with pytest.raises(InputError, match=f"{shape[0]}x{shape[1]} bytes, the size of a K2 or K3 fr"):
        micrographs.read(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "b.tif", frame, **options)  # not of SerialEM, which dates frames
    assert micrographs.read(tmp_path / "b.tif").image.shape == shape


@pytest.mark.parametrize("options", [{"imagej": True}, {"metadata": {"axes": "ZYX"}}])
def test_a_named_stack_of_narrow_images_is_refused_with_advice(tmp_path, options):
    tifffile.imwrite(tmp_path / "a.tif", RNG.integers(0, 200, (24, 20, 2), np.uint8), **options)
    with pytest.raises(InputError, match=r"24 images 2 wide, perhaps \[h, w, channels\] saved"):
        micrographs.read(tmp_path / "a.tif")


def imagej(path, stored, **calibration):
    """Write what ImageJ does of `stored` with a calibration of its values."""
    lines = ["ImageJ=1.54f", "unit=nm", *(f"{k}={v}" for k, v in calibration.items())]
    description = "\n".join([*lines, "min=0.0", "max=9.0", ""])
    options = {"photometric": "minisblack", "metadata": None, "resolution": (0.5, 0.5)}
    tifffile.imwrite(path, stored, description=description, resolutionunit="NONE", **options)
    return micrographs.read(path)


def test_signed_values_of_imagej(tmp_path, caplog):
    true = RNG.integers(-32768, 32768, (24, 20)).astype(np.int16)
    true[0, :2] = -32768, 32767
    stored = (true.astype(np.int32) + 32768).astype(np.uint16)
    found = imagej(tmp_path / "a.tif", stored, cf=0, c0=-32768.0, c1=1.0, vunit="Gray Value")
    np.testing.assert_array_equal(found.image, true)
    assert found.nm_per_pixel == (2, 2) and not caplog.text


def test_a_straight_line_of_imagej_is_applied_and_other_functions_are_noted(tmp_path, caplog):
    found = imagej(tmp_path / "a.tif", GREY, cf=0, c0=10.5, c1=-0.25)
    np.testing.assert_allclose(found.image, 10.5 - 0.25 * GREY, rtol=1e-6)
    assert "values are 10.5 + -0.25 times the stored ones" in caplog.text
    for calibration in ({"cf": 7, "c0": 1, "c1": 2}, {"cf": 21}, {"cf": 0, "c0": 0, "c1": "x"}):
        caplog.clear()
        np.testing.assert_array_equal(imagej(tmp_path / "b.tif", GREY, **calibration).image, GREY)
        assert "is not a straight line; values stay as stored" in caplog.text
    caplog.clear()
    np.testing.assert_array_equal(imagej(tmp_path / "c.tif", GREY, cf=0, c0=0, c1=1).image, GREY)
    floats = GREY.astype(np.float32)  # ImageJ applies none to 32 bits
    assert (imagej(tmp_path / "d.tif", floats, cf=0, c0=5, c1=2).image == floats).all()
    assert not caplog.text


@pytest.mark.parametrize("unit", ["1/nm", "nm^-1", "mrad"])
def test_reciprocal_units_of_imagej_and_ome_are_refused(tmp_path, unit):
    tifffile.imwrite(tmp_path / "a.tif", GREY, imagej=True, resolution=(20.0, 20.0),
                     metadata={"unit": unit})  # fmt: skip
    with pytest.raises(InputError, match="is reciprocal space"):
        micrographs.read(tmp_path / "a.tif")
    sizes = {"PhysicalSizeX": 1, "PhysicalSizeY": 1}
    units = {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    tifffile.imwrite(tmp_path / "a.ome.tif", GREY, metadata={"axes": "YX", **sizes, **units})
    with pytest.raises(InputError, match="is reciprocal space"):
        micrographs.read(tmp_path / "a.ome.tif")


@pytest.mark.parametrize("step", [1, 256, 257])
def test_palettes_of_8_and_of_16_bits(tmp_path, step):
    levels = np.arange(256, dtype=np.uint16)[::-1] * step
    colours = np.stack([levels, levels, levels])
    tifffile.imwrite(tmp_path / "a.tif", GREY, photometric="palette", colormap=colours)
    np.testing.assert_array_equal(micrographs.read(tmp_path / "a.tif").image, 255 - GREY)


@pytest.mark.parametrize("same", [True, False])
def test_pages_of_different_palettes_are_refused(tmp_path, same):
    levels = np.arange(256, dtype=np.uint16) * 257
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for palette in (levels, levels if same else levels[::-1]):
            colours = np.stack([palette] * 3)
            file.write(GREY, photometric="palette", colormap=colours, metadata=None)
    if same:
        assert len(list(micrographs.planes(tmp_path / "a.tif"))) == 2
        return
    with pytest.raises(InputError, match="a stack whose pages have different palettes"):
        list(micrographs.planes(tmp_path / "a.tif"))


@pytest.mark.parametrize("turned", [1, 4])
def test_pages_of_different_orientations_are_refused(tmp_path, turned):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for orientation in (None, 1, turned):  # without one it is 1
            tags = [(274, "H", 1, orientation, True)] if orientation else []
            file.write(GREY, photometric="minisblack", metadata=None, extratags=tags)
    if turned == 1:
        assert len(list(micrographs.planes(tmp_path / "a.tif"))) == 3
        return
    with pytest.raises(InputError, match="a stack whose pages have different orientations"):
        list(micrographs.planes(tmp_path / "a.tif"))


def test_a_palette_of_two_colours(tmp_path):
    levels = np.array([200, 30], np.uint16)
    bits = GREY > 100
    packed = np.packbits(bits, axis=1)
    header = struct.pack("<2sHI", b"II", 42, 8)
    colours = np.concatenate([levels * 257] * 3).astype("<u2").tobytes()
    h, w = bits.shape
    after = 8 + 2 + 9 * 12 + 4
    entries = [(256, 3, 1, w), (257, 3, 1, h), (258, 3, 1, 1), (259, 3, 1, 1), (262, 3, 1, 3),
               (273, 4, 1, after + len(colours)), (278, 3, 1, h), (279, 4, 1, packed.size),
               (320, 3, 6, after)]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    body = struct.pack("<H", len(entries)) + directory + bytes(4) + colours + packed.tobytes()
    (tmp_path / "a.tif").write_bytes(header + body)
    expected = np.where(bits, 30, 200)
    np.testing.assert_array_equal(micrographs.read(tmp_path / "a.tif").image, expected)


def test_a_palette_of_black_alone_is_refused(tmp_path):
    colours = np.zeros((3, 256), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", GREY, photometric="palette", colormap=colours)
    with pytest.raises(InputError, match="a palette of black alone"):
        micrographs.read(tmp_path / "a.tif")


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_white_is_low_only_for_unsigned_integers(tmp_path, caplog, dtype):
    values = GREY.astype(dtype) - dtype(100)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite")
    np.testing.assert_array_equal(micrographs.read(tmp_path / "a.tif").image, values)
    assert f"MINISWHITE of {np.dtype(dtype).name} values, which stay as stored" in caplog.text


def test_values_stay_where_no_photometric_interpretation_is_stated(tmp_path, caplog):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, GREY, photometric="miniswhite", metadata=None)
    tag, other = (struct.pack("<HHIH", code, 3, 1, 0) for code in (262, 263))
    assert path.read_bytes().count(tag) == 1
    path.write_bytes(path.read_bytes().replace(tag, other))
    np.testing.assert_array_equal(micrographs.read(path).image, GREY)
    assert "MINISWHITE" not in caplog.text


def test_gatans_scale_of_intensity_is_noted(tmp_path, caplog):
    tags = [(65024, "d", 1, 5.0, True), (65025, "d", 1, 0.5, True)]
    tifffile.imwrite(tmp_path / "a.tif", GREY, metadata=None, extratags=tags)
    np.testing.assert_array_equal(micrographs.read(tmp_path / "a.tif").image, GREY)
    assert "an intensity of 5.0 + 0.5 times the stored values; values stay" in caplog.text


@pytest.mark.parametrize("photometric, name", [(32803, "CFA"), (32844, "LOGL"), (5, "SEPARATED")])
def test_values_that_are_neither_grey_nor_colours_are_refused(tmp_path, photometric, name):
    tifffile.imwrite(tmp_path / "a.tif", GREY, photometric="minisblack", metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:
        file.pages[0].tags[262].overwrite(photometric)
    with pytest.raises(InputError, match=f"{name} colours, expected grey or RGB"):
        micrographs.read(tmp_path / "a.tif")


def ome(*images, root=ROOT):
    """Return OME-XML of images (size in nm, what stands inside <Pixels>)."""
    text = "".join(
        f'<Image ID="Image:{n}"><Pixels ID="Pixels:{n}" DimensionOrder="XYCZT" Type="uint8" '
        f'SizeX="20" SizeY="24" SizeC="1" SizeZ="1" SizeT="1" PhysicalSizeX="{nm}" '
        f'PhysicalSizeXUnit="nm" PhysicalSizeY="{nm}" PhysicalSizeYUnit="nm">{inside}</Pixels>'
        "</Image>"
        for n, (nm, inside) in enumerate(images)
    )
    uuid = f' UUID="{root}"' if root else ""
    return f'<?xml version="1.0" encoding="UTF-8"?><OME xmlns="{OME}"{uuid}>{text}</OME>'


def in_file(name, uuid):
    return f'<TiffData IFD="0" PlaneCount="1"><UUID FileName="{name}">{uuid}</UUID></TiffData>'


def written(path, text, pages=1):
    with tifffile.TiffWriter(path) as file:
        for k in range(pages):
            file.write(GREY + k, photometric="minisblack", metadata=None,
                       description=text if k == 0 else None)  # fmt: skip
    return path


OTHER = "urn:uuid:00000000-0000-0000-0000-000000000001"
PAGE = '<TiffData IFD="{}" PlaneCount="1"/>'
OME_FILES = {
    "a UUID": (ome((100, in_file("b.tif", OTHER)), (4, in_file("old.tif", ROOT))), 4),
    "a name": (ome((100, in_file("b.tif", OTHER)), (4, in_file("a.tif", "x")), root=""), 4),
    "one name, renamed": (ome((4, in_file("old.tif", OTHER)), root=""), 4),
    "no data": (ome((100, "<MetadataOnly/>"), (4, PAGE.format(0))), 4),
    "in the other order": (ome((100, PAGE.format(1)), (4, PAGE.format(0))), 4),
    "without TiffData": (ome((4, "")), 4),
    "all pages": (ome((4, "<TiffData/>")), 4),
    "others alone": (ome((100, in_file("b.tif", OTHER)), (50, in_file("c.tif", "x"))), None),
    "only metadata": (ome((100, "<MetadataOnly/>")), None),
    "another page": (ome((100, PAGE.format(5)), (50, PAGE.format(6))), None),
    "two of one page": (ome((100, PAGE.format(0)), (4, PAGE.format(0))), None),
}


@pytest.mark.parametrize(("text", "nm"), OME_FILES.values(), ids=OME_FILES)
def test_the_pixel_size_of_ome_is_that_of_the_images_page(tmp_path, caplog, text, nm):
    found = micrographs.read(written(tmp_path / "a.tif", text), 0)
    np.testing.assert_array_equal(found.image, GREY)
    if nm:
        assert found.nm_per_pixel == (nm, nm) and found.origin == "OME-XML"
    else:
        assert np.isnan(found.nm_per_pixel).all()
        assert "no pixel size is taken from it" in caplog.text


def test_every_image_of_ome_has_its_own_size(tmp_path):
    text = ome((100, PAGE.format(1)), (4, PAGE.format(0)))
    path = written(tmp_path / "a.tif", text, pages=2)
    for k in range(2):
        found = micrographs.read(path, k)
        first = (found.image == GREY).all()
        assert found.nm_per_pixel == ((4, 4) if first else (100, 100))


FILES = "".join(  # one file for each time, with every channel and depth
    f'<TiffData FirstC="{c}" FirstZ="{z}" FirstT="{t}" IFD="{c + 3 * z}" PlaneCount="1">'
    f'<UUID FileName="{t}.ome.tif">{ROOT if t == 0 else OTHER}</UUID></TiffData>'
    for t in (0, 1)
    for z in (0, 1)
    for c in (0, 1, 2)
)
IN_ONE = (
    f'<TiffData PlaneCount="6"><UUID FileName="0.ome.tif">{ROOT}</UUID></TiffData>'
    f'<TiffData FirstT="1" PlaneCount="6"><UUID FileName="1.ome.tif">{OTHER}</UUID></TiffData>'
)
LAST_TWO = (  # channels 1 and 2 of the first depth
    f'<TiffData FirstC="1" IFD="0" PlaneCount="2"><UUID FileName="0.ome.tif">{ROOT}</UUID>'
    f'</TiffData><TiffData FirstC="0"><UUID FileName="1.ome.tif">{OTHER}</UUID></TiffData>'
)


@pytest.mark.parametrize(
    ("blocks", "planes", "channels"),
    [(FILES, 2, ["HAADF", "BF", "DF"]), (IN_ONE, 2, ["HAADF", "BF", "DF"]),
     (LAST_TWO, 1, ["BF", "DF"])],
)  # fmt: skip
def test_channels_of_ome_in_several_files_are_images(tmp_path, blocks, planes, channels):
    named = "".join(f'<Channel Name="{name}"/>' for name in ("HAADF", "BF", "DF"))
    text = ome((4, named + blocks)).replace('SizeC="1"', 'SizeC="3"')
    text = text.replace('SizeZ="1" SizeT="1"', 'SizeZ="2" SizeT="2"')
    path = written(tmp_path / "0.ome.tif", text, pages=planes * len(channels))
    with micrographs.open_all(path) as found:
        assert [signal.channel for signal in found] == channels
    for k, channel in enumerate(channels):
        found = list(micrographs.planes(path, channel=channel))
        expected = [GREY + k + len(channels) * z for z in range(planes)]
        np.testing.assert_array_equal([plane.image for plane in found], expected)
        assert found[0].nm_per_pixel == (4, 4)


def test_a_companion_file_is_not_opened(tmp_path, caplog):
    (tmp_path / "set.companion.ome").write_text(ome((100, PAGE.format(0))))
    only = '<BinaryOnly MetadataFile="set.companion.ome" UUID="x"/>'
    found = micrographs.read(written(tmp_path / "a.tif", ome().replace("</OME>", only + "</OME>")))
    assert np.isnan(found.nm_per_pixel).all()
    assert "its OME-XML is in set.companion.ome, which is not opened" in caplog.text


def test_a_pyramid_is_its_full_image(tmp_path):
    large = RNG.integers(0, 200, (64, 48), np.uint8)
    sizes = {"PhysicalSizeX": 4, "PhysicalSizeY": 4}
    units = {"PhysicalSizeXUnit": "nm", "PhysicalSizeYUnit": "nm"}
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as file:
        file.write(large, subifds=2, tile=(16, 16), metadata={"axes": "YX", **sizes, **units})
        for step in (2, 4):
            file.write(large[::step, ::step], subfiletype=1, tile=(16, 16))
    found = micrographs.read(tmp_path / "a.ome.tif")
    np.testing.assert_array_equal(found.image, large)
    assert found.nm_per_pixel == (4, 4)
    with tifffile.TiffWriter(tmp_path / "b.tif") as file:  # the levels are pages
        file.write(large, metadata=None)
        file.write(large[::2, ::2], subfiletype=1, metadata=None)
        file.write(large > 9, subfiletype=4, metadata=None)
    np.testing.assert_array_equal(micrographs.read(tmp_path / "b.tif").image, large)
