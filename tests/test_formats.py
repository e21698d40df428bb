"""Every format compared with another reader, and every bad input refused in one line."""

import contextlib
import csv
import gzip
import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import imagecodecs
import mrcfile
import numpy as np
import pytest
import tifffile

from emjax import cli, micrographs
from emjax.errors import InputError, UsageError
from emjax.micrographs import signal
from emjax.micrographs.formats import lzw, rosettasciio, tiff
from tests import format_samples, formats_table, soak_formats
from tests.format_samples import DEEP, GREY, NM, STACK

REAL = Path(os.environ.get("EMJAX_REAL_DATA", "/nowhere")) / "formats"
needs_files = pytest.mark.skipif(not REAL.is_dir(), reason="needs $EMJAX_REAL_DATA/formats")

# Files read with other pixels or another pixel size than in the manifest, on purpose.
DIFFERENT = {
    "EMD-3197.map.bz2": ["not read"],  # the other reader did not try compressed files
    "emd_3197.map.gz": ["not read"],
    "plain.h5": ["not read"],  # nor HDF5 that is no EMD
    "example_axis_len_1.emd": ["shape 5x1x5"],  # axes of length 1 are left out
    "simple_signal.nxs": ["3 signals"],  # two of them are profiles
    # The manifest rounds to five digits; the file states 2.392791775876109e-11 m.
    "olympus_SIS.tif": ["nm per pixel (0.023928, 0.023928)"],
}
# Files that are refused, with the reason; "" for those that are read.
ODD = {
    "all_nan.tif": "4096 of 4096 values are NaN",
    "array_float32.npy": "",
    "bool_bilevel.tif": "",
    "constant.tif": "",
    "empty.tif": "an empty file",
    "float32_nan_inf.tif": "302 of 65536 values are NaN",
    "float32_negative.tif": "",
    "float64.tif": "",
    "gray16.png": "",
    "gray_progressive.jpg": "",
    "imagej_stack_zcyx.tif": "",
    "int32.tif": "",
    "mode1_int16_stack.mrc": "",
    "mode2_float32.mrc": "",
    "mode6_uint16.mrc": "",
    "multipage_different_shapes.tif": "2 different images .* choose one by index=",
    "narrow_1x256.tif": "",
    "odd_shape_223x301.tif": "",
    "palette.png": "",
    "plain.h5": "2 different images .*/data 256x256.*/nested/stack 8x250x250.* index=",
    "png_named_as.tif": "",
    "rgb_em_figure_0289bd97e6.jpg": "",
    "rgb_em_figure_0289bd97e6.png": "",
    "rgba.png": "",
    "small_31x17.tif": "",
    "stack8_uint8.tif": "",
    "text_named.tif": "no format that emjax reads",
    "truncated.dm3": "cut off: an array at byte",
    "truncated.emd": "truncated file",
    "truncated.mrc": "cut off, or a wrong header",
    "truncated.png": "truncated",
    "truncated.ser": "cut off, or a wrong header",
    "truncated.tif": "cut off, or a wrong header",
    "uint16_bigendian.tif": "",
    "uint8_deflate_predictor_tiled.tif": "",
    "uint8_lzw.tif": "",
    "12bit.cropped.tiff": "",
    "BigTIFF.tif": "",
    "BigTIFFMotorola.tif": "",
    "cmyk-4c-8b.tiff": "SEPARATED colours, expected grey or RGB",
    "cramps-tile.tif": "",
    "flower-minisblack-16.tif": "",
    "gradient-1c-32b-float.tiff": "",
    "gradient-1c-64b-float.tiff": "",
    "int16.tif": "",
    "int16_zstd.tif": "",
    "int8.tif": "",
    "issue_69_lzw.tiff": "",
    "issue_69_packbits.tiff": "",
    "minisblack-1c-16b.tiff": "",
    "minisblack-1c-8b.tiff": "",
    "miniswhite-1c-1b.tiff": "",
    "palette-1c-8b.tiff": "",
    "planar-rgb-u8.tif": "",
    "quad-jpeg.tif": "",
    "quad-lzw-compat.tiff": "",
    "rgb-3c-16b.tiff": "",
    "rgb-3c-8b.tiff": "",
    "tiled-jpeg-rgb-u8.tif": "",
    "white-fp16-pred3.tiff": "",
}


def rows():
    if not REAL.is_dir():
        return []
    with open(REAL / "MANIFEST.csv", newline="", encoding="utf-8") as file:
        return sorted({row["file"] for row in csv.DictReader(file)})


@needs_files
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Semper's reader
@pytest.mark.parametrize("file", rows())
def test_pixels_and_pixel_sizes_are_what_another_reader_found(file):
    if file.startswith(("blockfile", "prz", "semper", "tvips")):
        pytest.importorskip("rsciio")
    rows = formats_table.manifest(REAL)[file]
    described, found = formats_table.examine(REAL / file, rows)
    assert sorted(set(found)) == DIFFERENT.get(file.rpartition("/")[2], []), described


@needs_files
@pytest.mark.parametrize(
    "file, size",
    [
        ("tiff_microscope/test_loading_image_saved_with_imageJ.tif", 1e6 / 5928571 * 1e3),
        ("tiff_microscope/test_loading_image_saved_with_imageJ_stack.tif", 1e6 / 5928571 * 1e3),
    ],
)
def test_imagej_units_are_its_own(file, size):
    with tifffile.TiffFile(REAL / file) as opened:
        assert opened.imagej_metadata["unit"] == "micron"
    for image in micrographs.planes(REAL / file):
        assert image.nm_per_pixel == pytest.approx((size, size)) and image.origin == "ImageJ"


@needs_files
def test_every_odd_file_is_read_or_refused_for_its_reason():
    found = {
        p.name: p for name in ("derived_odd", "tiff_odd_nonEM") for p in REAL.glob(f"{name}/*")
    }
    assert found.keys() == ODD.keys()
    for name, reason in ODD.items():
        if reason:
            with pytest.raises(InputError, match=reason) as caught:
                list(micrographs.planes(found[name]))
            assert str(caught.value).startswith(f"{found[name]}: ")
            assert "\n" not in str(caught.value)
        else:
            assert list(micrographs.planes(found[name]))


@needs_files
def test_a_ser_and_its_emi_are_one_micrograph():
    found = [path.name for path in micrographs.find(REAL / "ser_emi")]
    assert len(found) == len(set(found)) == 8 and not [n for n in found if n.endswith(".emi")]
    with micrographs.open_all(REAL / "ser_emi" / "16x16_STEM_BF_DF_acquire.emi") as signals:
        assert [signal.shape for signal in signals] == [(16, 16), (16, 16)]


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return format_samples.write_all(tmp_path_factory.mktemp("samples"))


def test_every_format_gives_its_pixels_back(samples):
    for name, path in samples.items():
        found = np.stack([plane.image for plane in micrographs.planes(path)])
        if name in ("jpeg.tif", "grey.jpg"):
            assert found.shape == (1, *GREY.shape) and found.dtype == np.uint8
        else:
            found = found[0] if len(found) == 1 else found
            assert any(np.array_equal(found, written) for written in (GREY, DEEP, STACK)), name
            assert found.dtype in (GREY.dtype, DEEP.dtype), name


ORIGINS = {
    "imagej.tif": "ImageJ",
    "imagej_stack.tif": "ImageJ",
    "ome.ome.tif": "OME-XML",
    "mrc.mrc": "MRC header",
    "stack.mrc": "MRC header",
    "mrc.mrc.gz": "MRC header",
    "zarr.zarr": "OME-Zarr",
    "stack.zarr": "OME-Zarr",
    "velox.emd": "Velox",
    "berkeley.emd": "Berkeley EMD",
    "emd1.emd": "EMD 1.0",
    "series.hspy": "HyperSpy",
    "scan.nxs": "NeXus",
    "stack.ims": "Imaris",
    "scales.h5": "dimension scales",
    "image.dm3": "DM",
    "stack.dm4": "DM",
    "stack_1.ser": "SER",
}


@pytest.mark.parametrize("writer", ["a.tif", "a.ome.tif", "a.mrc", "a.zarr"])
@pytest.mark.parametrize("reader", ORIGINS)
def test_pixel_sizes_survive_every_reader_and_writer(samples, tmp_path, reader, writer):
    first = list(micrographs.planes(samples[reader]))
    assert first[0].nm_per_pixel == pytest.approx(NM, rel=1e-6)
    assert first[0].origin == ORIGINS[reader]
    images = np.stack([plane.image for plane in first])
    images = images[0] if len(images) == 1 else images
    for scale in (1.0, 1e-3, 12345.678):  # 0.25 pm to 6 um
        sizes = tuple(scale * size for size in first[0].nm_per_pixel)
        micrographs.write(tmp_path / writer, images, sizes)
        again = list(micrographs.planes(tmp_path / writer))
        assert again[0].nm_per_pixel == pytest.approx(sizes, rel=1e-6)
        np.testing.assert_array_equal(np.stack([p.image for p in again]).squeeze(), images)
    assert [path.name for path in tmp_path.iterdir()] == [writer]


@pytest.mark.parametrize("name", ["a.tif", "a.ome.tif", "a.mrc", "a.zarr"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_files_written_without_a_pixel_size_have_none(tmp_path, name, dtype):
    micrographs.write(tmp_path / name, STACK.astype(dtype))
    stack = STACK.astype(dtype)
    for plane, written in zip(micrographs.planes(tmp_path / name), stack, strict=True):
        assert np.isnan(plane.nm_per_pixel).all() and plane.origin == "none"
        np.testing.assert_array_equal(plane.image, written)
        assert plane.image.dtype == (np.uint16 if name == "a.mrc" and dtype == np.uint8 else dtype)
    with pytest.raises(UsageError, match=r"expected one of .ome.tif, .*, got '.gif'"):
        micrographs.write(tmp_path / "a.gif", DEEP)


@pytest.mark.parametrize("unit, nm", [("pm", 1e-3), ("A", 0.1), ("nm", 1), ("µm", 1e3), ("m", 1e9)])
def test_units_of_dm_and_imagej(tmp_path, unit, nm):
    format_samples.dm(tmp_path / "a.dm3", DEEP, scales=(2.0, 4.0), unit=unit)
    assert micrographs.read(tmp_path / "a.dm3").nm_per_pixel == pytest.approx((2 * nm, 4 * nm))
    options = dict(imagej=True, resolution=(0.5, 0.5))
    tifffile.imwrite(tmp_path / "a.tif", DEEP, **options, metadata={"unit": unit.replace("µ", "u")})
    assert micrographs.read(tmp_path / "a.tif").nm_per_pixel == pytest.approx((2 * nm, 2 * nm))


def test_of_two_pixel_sizes_in_a_tiff_the_first_is_used_and_a_note_says_so(tmp_path, caplog):
    path = tmp_path / "a.ome.tif"
    known = {"axes": "YX", "PhysicalSizeX": 2.0, "PhysicalSizeY": 2.0}
    tifffile.imwrite(path, DEEP, metadata=known, resolution=(1e6, 1e6), resolutionunit="CENTIMETER")
    found = micrographs.read(path)
    assert found.nm_per_pixel == pytest.approx((2000, 2000)) and found.origin == "OME-XML"
    assert "2000, 2000 by OME-XML, 10, 10 by resolution tag; the first" in caplog.text


@pytest.mark.parametrize("dpi, nm", [(72, None), (96, None), (300, None), (1e6, 25.4)])
def test_a_resolution_for_printers_is_no_pixel_size(tmp_path, dpi, nm):
    tifffile.imwrite(tmp_path / "a.tif", DEEP, resolution=(dpi, dpi), resolutionunit="INCH")
    size = micrographs.read(tmp_path / "a.tif").nm_per_pixel[0]
    assert size == pytest.approx(nm) if nm else np.isnan(size)


def test_several_images_are_chosen_from_by_index(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["one"], file["two"], file["text"], file["line"] = DEEP, STACK, "words", np.arange(5)
        file["complex"] = DEEP.astype(np.complex64)
    with pytest.raises(
        micrographs.SeveralImages, match=r"2 different images \(0: /one 24x20 uint16, 1: /two"
    ) as caught:
        micrographs.read(tmp_path / "a.h5")
    assert caught.value.choices == ("/one 24x20 uint16", "/two 3x24x20 uint16")
    assert cli.message(caught.value).endswith("; choose one by --index")
    np.testing.assert_array_equal(micrographs.read(tmp_path / "a.h5", 0).image, DEEP)
    assert len(list(micrographs.planes(tmp_path / "a.h5", 1))) == 3
    with pytest.raises(InputError, match="no image 2; it holds 0: /one"):
        micrographs.read(tmp_path / "a.h5", 2)


def test_names_in_files_break_no_line_and_are_no_advice(tmp_path):
    path = tmp_path / "index=.h5"
    with h5py.File(path, "w") as file:
        file["one\nlimit="], file["two"] = DEEP, STACK
    with pytest.raises(micrographs.SeveralImages) as caught:
        micrographs.read(path)
    assert str(caught.value).startswith(f"{path}: 2 different images (0: /one limit= 24x20")
    assert cli.message(caught.value) == str(caught.value)[: -len("index=")] + "--index"


def test_signals_that_are_no_micrographs_are_refused_with_their_reason(tmp_path, monkeypatch):
    def refused(path, reason):
        with pytest.raises(InputError, match=reason):
            list(micrographs.planes(path))

    format_samples.dm(tmp_path / "a.dm3", DEEP, unit="1/nm")
    refused(tmp_path / "a.dm3", "reciprocal space; expected a 2-D image or a stack of them")
    format_samples.dm(tmp_path / "b.dm3", DEEP, unit="eV")
    refused(tmp_path / "b.dm3", "an energy axis")
    format_samples.dm(tmp_path / "c.dm3", DEEP.astype(np.complex64), kind=3)
    refused(tmp_path / "c.dm3", "complex numbers")
    format_samples.velox(tmp_path / "a.emd", STACK, unit="1/m")
    refused(tmp_path / "a.emd", "reciprocal space")
    format_samples.ser(tmp_path / "a_1.ser", STACK, metres=(2e8, 2e8))
    refused(tmp_path / "a_1.ser", "reciprocal space")
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 4, 5)))
    refused(tmp_path / "a.npy", r"4-D data \(2, 3, 4, 5\)")
    (tmp_path / "a.npz").write_bytes(b"PK\3\4" + bytes(30))
    refused(tmp_path / "a.npz", "no format that emjax reads: a ZIP archive, such as NPZ; unpack it")
    (tmp_path / "a.emi").write_bytes(b"JL")
    assert micrographs.find(tmp_path)[0].name == "a.dm3"
    (tmp_path / "b.emi").write_bytes(b"JL")
    refused(tmp_path / "b.emi", "an EMI file without its images, expected b_1.ser")
    monkeypatch.setitem(sys.modules, "rsciio.blockfile", None)
    (tmp_path / "a.blo").write_bytes(b"x")
    refused(tmp_path / "a.blo", r".blo is read by RosettaSciIO; install emjax\[rsciio\]")


@pytest.mark.parametrize("save, lazy", [(np.savez, True), (np.savez_compressed, False)])
def test_what_is_compressed_is_not_read_in_parts(tmp_path, monkeypatch, save, lazy):
    """RosettaSciIO takes the compressed bytes of Panta Rhei's files for pixels then."""
    asked = []
    axes = [{"name": name, "size": 4, "scale": 1.0, "units": "nm"} for name in "yx"]

    def file_reader(path, lazy):
        asked.append(lazy)
        return [{"data": np.load(path)["data"], "axes": axes}]

    found = SimpleNamespace(file_reader=file_reader)
    monkeypatch.setitem(sys.modules, "rsciio", SimpleNamespace(pantarhei=found))
    monkeypatch.setitem(sys.modules, "rsciio.pantarhei", found)
    save(tmp_path / "a.npz", data=np.eye(4, dtype=np.uint8))
    (tmp_path / "a.npz").rename(tmp_path / "a.prz")
    image = micrographs.read(tmp_path / "a.prz").image
    assert np.array_equal(image, np.eye(4)) and asked == [lazy]


@pytest.mark.parametrize("scanned", [(), (5,), (2, 3)])
def test_blockfiles_are_diffraction_patterns_however_many(tmp_path, monkeypatch, scanned):
    """RosettaSciIO's own axes of a screen are in cm."""
    patterns = np.zeros((*scanned, 8, 8), np.uint8)
    axes = [dict(size=n, name="", units="nm", scale=1, offset=0, navigate=True) for n in scanned]
    axes += [dict(size=8, name="dx", units="cm", scale=0.1, offset=0, navigate=False)] * 2
    found = SimpleNamespace(file_reader=lambda path, lazy: [{"data": patterns, "axes": axes}])
    monkeypatch.setitem(sys.modules, "rsciio", SimpleNamespace(blockfile=found))
    monkeypatch.setitem(sys.modules, "rsciio.blockfile", found)
    rows, columns = ((1, 1) + scanned)[-2:]
    head = struct.pack("<20x4H", 8, 0, columns, rows)
    (tmp_path / "a.blo").write_bytes(head + patterns.tobytes())
    with pytest.raises(InputError, match="diffraction patterns|4-D data"):
        list(micrographs.planes(tmp_path / "a.blo"))


def unknown_codec(path):
    tifffile.imwrite(path, GREY, compression="jpeg2000")


def lying_mrc(path):
    micrographs.write(path.with_suffix(".mrc"), DEEP)
    content = bytearray(path.with_suffix(".mrc").read_bytes())
    content[:12] = struct.pack("<iii", 50_000, 50_000, 50)
    path.write_bytes(content)


def lying_dm(path):
    format_samples.dm(path, DEEP, lie=(100_000, 100_000))


def lying_ser(path):
    format_samples.ser(path, STACK, valid=2**31 - 1)


def bomb_gz(path):
    micrographs.write(path.with_suffix(".mrc"), np.zeros((64, 64), np.float32))
    content = bytearray(path.with_suffix(".mrc").read_bytes())
    content[:8] = struct.pack("<ii", 20_000, 20_000)
    path.write_bytes(gzip.compress(bytes(content) + bytes(1 << 20)))


BAD = {
    unknown_codec: "compressed by JPEG2000",
    lying_mrc: "declares 50x50000x50000 uint16, 250 GB, but the file has 960 bytes",
    lying_dm: "declares 100000x100000 uint16, 20 GB, but the file has 960 bytes",
    lying_ser: "its table declares 2147483647 int64, 17.2 GB, but the file has",
    bomb_gz: "declares 20000x20000 float32, 1.6 GB, .* times the file's",
}


@pytest.mark.parametrize("make", BAD)
def test_files_that_lie_or_reach_out_are_refused(tmp_path, make):
    path = tmp_path / "scan.bin"
    make(path)
    with pytest.raises(InputError, match=BAD[make]) as caught:
        micrographs.read(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert not (tmp_path / "canary").exists()


def test_find_follows_nothing_out_of_the_folder(tmp_path, caplog):
    inside = tmp_path / "in"
    inside.mkdir()
    micrographs.write(tmp_path / "secret.tif", DEEP)
    micrographs.write(inside / "a.tif", DEEP)
    micrographs.write(inside / "b.zarr", DEEP)
    (inside / "linked.tif").symlink_to(tmp_path / "secret.tif")
    (inside / "same.tif").symlink_to(inside / "a.tif")
    (inside / "folder").symlink_to(tmp_path)
    found = [path.name for path in micrographs.find(inside)]
    assert found == ["a.tif", "b.zarr", "same.tif"]
    assert "linked.tif: leads out of" in caplog.text


def test_an_ome_tiff_that_names_another_file_reads_only_itself(tmp_path):
    micrographs.write(tmp_path / "secret.ome.tif", DEEP)
    uuid = "urn:uuid:00000000-0000-0000-0000-000000000001"
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image><Pixels '
        'DimensionOrder="XYCZT" Type="uint8" SizeX="20" SizeY="24" SizeC="1" SizeZ="2" SizeT="1">'
        f'<TiffData IFD="0" FirstZ="1"><UUID FileName="secret.ome.tif">{uuid}</UUID></TiffData>'
        '<TiffData IFD="0" FirstZ="0"/></Pixels></Image></OME>'
    )
    tifffile.imwrite(tmp_path / "a.tif", GREY, description=xml, metadata=None)
    np.testing.assert_array_equal(micrographs.read(tmp_path / "a.tif").image, GREY)


def test_the_error_above_the_limit_states_it_and_it_can_be_raised(tmp_path):
    micrographs.write(tmp_path / "a.tif", np.zeros((300, 400), np.uint8))
    with pytest.raises(
        micrographs.TooLarge, match="expected at most 100 kB; raise limit="
    ) as error:
        micrographs.read(tmp_path / "a.tif", limit=100_000)
    assert (error.value.needed, error.value.limit) == (120_000, 100_000)
    assert cli.message(error.value).endswith("expected at most 100 kB; raise --memory_limit")
    again = pickle.loads(pickle.dumps(error.value))
    assert str(again) == str(error.value) and again.needed == 120_000
    assert micrographs.read(tmp_path / "a.tif", limit=120_000).image.shape == (300, 400)


def test_planes_are_read_one_by_one(tmp_path):
    """Read a stack of 256 MB with less than 40 MB of memory."""
    path = tmp_path / "a.mrc"
    with mrcfile.new_mmap(path, (64, 1024, 1024), mrc_mode=2) as file:
        file.set_image_stack()
    code = (
        "import resource, sys\nfrom emjax import micrographs\n"
        "used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "list(micrographs.planes(sys.argv[2])); before = used()\n"
        "n = sum(1 for _ in micrographs.planes(sys.argv[1])); print(n, used() - before)"
    )
    with mrcfile.new_mmap(tmp_path / "small.mrc", (2, 8, 8), mrc_mode=2) as file:
        file.set_image_stack()
    line = [sys.executable, "-c", code, path, tmp_path / "small.mrc"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    planes, megabytes = map(int, done.stdout.split())
    assert planes == 64 and megabytes < 40


def volume_mrc(path, volume):
    with mrcfile.new(path) as file:
        file.set_data(volume.astype(np.float32))
        file.voxel_size = (10, 20, 40)  # x, y, z in angstrom


def volume_ome(path, volume):
    sizes = {"PhysicalSizeX": 1, "PhysicalSizeY": 2, "PhysicalSizeZ": 0.004}
    units = {"PhysicalSizeXUnit": "nm", "PhysicalSizeYUnit": "nm", "PhysicalSizeZUnit": "µm"}
    tifffile.imwrite(path, volume, ome=True, metadata={"axes": "ZYX", **sizes, **units})


def volume_imagej(path, volume):
    metadata = {"axes": "ZYX", "unit": "nm", "spacing": 4.0}
    tifffile.imwrite(path, volume, imagej=True, resolution=(1, 1 / 2), metadata=metadata)


def volume_hdf5(path, volume):
    with h5py.File(path, "w") as file:
        file["a"] = volume
        file["a"].attrs["element_size_um"] = [0.004, 0.002, 0.001]


def volume_berkeley(path, volume):
    with h5py.File(path, "w") as file:
        file["data/a/data"] = volume
        for axis, (side, nm) in enumerate(zip(volume.shape, (4, 2, 1), strict=True), start=1):
            file[f"data/a/dim{axis}"] = np.arange(side) * float(nm)
            file[f"data/a/dim{axis}"].attrs["units"] = np.bytes_("[n_m]")
        file["data/a"].attrs["emd_group_type"] = 1


def volume_zarr(path, volume):
    micrographs.write(path, volume, (2, 1))
    held = json.loads((path / "zarr.json").read_text())
    scales = held["attributes"]["ome"]["multiscales"][0]
    scales["axes"][0]["unit"] = "micrometer"
    scales["datasets"][0]["coordinateTransformations"][0]["scale"][0] = 0.004
    (path / "zarr.json").write_text(json.dumps(held))


@pytest.mark.parametrize(
    ("suffix", "make"),
    [
        ("mrc", volume_mrc),
        ("ome.tif", volume_ome),
        ("tif", volume_imagej),
        ("h5", volume_hdf5),
        ("emd", volume_berkeley),
        ("zarr", volume_zarr),
    ],
)
def test_volumes_are_sliced_with_the_size_of_each_side(tmp_path, suffix, make):
    path, volume = tmp_path / f"a.{suffix}", np.random.default_rng(2).integers(0, 99, (5, 9, 7))
    volume = volume.astype(np.uint8)
    make(path, volume)
    for axis, index, sizes in (("z", 0, (2, 1)), ("y", 1, (4, 1)), ("x", 2, (4, 2))):
        planes = list(micrographs.planes(path, axis=axis))
        np.testing.assert_array_equal([p.image for p in planes], np.moveaxis(volume, index, 0))
        np.testing.assert_allclose(planes[-1].nm_per_pixel, sizes, rtol=1e-5)


@pytest.mark.parametrize("suffix", ["mrc", "ome.tif", "tif", "zarr"])
def test_a_stack_of_images_has_no_distance_of_planes(tmp_path, suffix):
    stack = np.random.default_rng(2).random((5, 9, 7)).astype(np.float32)
    micrographs.write(tmp_path / f"a.{suffix}", stack, (2, 1))
    for axis, nm in (("y", 1), ("x", 2)):
        first = next(micrographs.planes(tmp_path / f"a.{suffix}", axis=axis))
        np.testing.assert_allclose(first.nm_per_pixel, (np.nan, nm), rtol=1e-5)
    advice = "expected at most 1.25 kB; raise limit=, or slice along axis=z"
    with pytest.raises(InputError, match=f"1.26 kB, to be sliced along y or x, {advice}"):
        next(micrographs.planes(tmp_path / f"a.{suffix}", axis="y", limit=1255))
    assert not list(micrographs.planes(tmp_path / f"a.{suffix}", axis="z"))[5:]
    micrographs.write(tmp_path / f"one.{suffix}", stack[0])
    assert not list(micrographs.planes(tmp_path / f"one.{suffix}", axis="x"))


@pytest.mark.long
def test_broken_files_end_in_a_micrograph_or_one_line():
    """Run the soak in small; docs/background/reliability.md reports the large one."""
    results = soak_formats.run(3000, first=7_000_000)
    assert len(results) == 3000
    assert [r for r in results.items() if r[1][1] not in ("read", "refused")] == []


def test_no_reader_of_rosettasciio_but_those_listed_is_reached():
    allowed = {"blockfile", "pantarhei", "semper", "tvips"}
    assert set(rosettasciio.READERS.values()) == allowed
    texts = [path.read_text() for path in Path("emjax").rglob("*.py")]
    assert sum("rsciio" in text and "import_module" in text for text in texts) == 1


@pytest.fixture
def decoded(monkeypatch):
    """Return the list of what tifffile is asked to decode."""
    asked = []
    for kind in (tifffile.TiffPage, tifffile.TiffPageSeries):
        monkeypatch.setattr(kind, "asarray", lambda self, *_, **__: asked.append(self))
    return asked


def test_lzw_data_are_checked_before_they_are_decoded(tmp_path, monkeypatch, decoded):
    rng = np.random.default_rng(0)
    for size in (1, 2, 700, 9000, 300_000):
        for levels in (2, 256):
            lzw.check(imagecodecs.lzw_encode(rng.integers(0, levels, size).astype(np.uint8)))
    with pytest.raises(InputError, match="damaged LZW data"):
        lzw.check(bytes(100))  # a hole in a file
    tifffile.imwrite(tmp_path / "a.tif", GREY, compression="lzw")
    seen = []
    monkeypatch.setattr(lzw, "check", seen.append)
    with micrographs.open_all(tmp_path / "a.tif") as (image,), contextlib.suppress(AttributeError):
        image.raw(0)
    assert len(seen) == len(decoded) == 1

    def refuse(data):
        raise InputError(lzw.DAMAGED)

    monkeypatch.setattr(lzw, "check", refuse)
    with pytest.raises(InputError, match="damaged LZW data"):
        micrographs.read(tmp_path / "a.tif")
    assert len(decoded) == 1


def test_a_tiff_is_refused_before_it_is_decoded(tmp_path, monkeypatch, decoded):
    """Compare good files with limits that are too small for them."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((300, 400), np.uint8), compression="zlib", metadata=None)
    with monkeypatch.context() as small:
        small.setattr(signal, "SMALL", 1000)
        small.setattr(signal, "RATIO", 10)
        with pytest.raises(InputError, match=r"declares 300x400 uint8, 120 kB, \d+ times"):
            micrographs.read(path)
    tifffile.imwrite(path, GREY, compression="jpeg")
    with monkeypatch.context() as small:
        small.setattr(tiff, "LARGER", 0.5)
        with pytest.raises(InputError, match="a JPEG of 24x20 in a tile of"):
            micrographs.read(path)
    tifffile.imwrite(path, STACK, photometric="minisblack", metadata=None)
    with monkeypatch.context() as small:
        small.setattr(tiff, "PAGES", 2)
        small.setattr(tiff, "TiffFile", decoded.append)
        with pytest.raises(InputError, match="a damaged chain of pages, or one of more than 2"):
            micrographs.read(path)
    assert decoded == []
