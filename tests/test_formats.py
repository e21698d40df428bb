"""Every format against what another reader said, and every bad input refused in one line."""

import csv
import os
from pathlib import Path

import pytest
import tifffile

from emjax import micrographs
from emjax.errors import BadInput
from tests import formats_table

REAL = Path(os.environ.get("EMJAX_REAL_DATA", "/nowhere")) / "formats"
needs_files = pytest.mark.skipif(not REAL.is_dir(), reason="needs $EMJAX_REAL_DATA/formats")

# Files whose pixels or pixel size deliberately are not what the manifest says.
DIFFERENT = {
    "EMD-3197.map.bz2": ["not read"],  # the other reader did not try compressed files
    "emd_3197.map.gz": ["not read"],
    "plain.h5": ["not read"],  # nor HDF5 that is no EMD
    # It rounds to five digits; the file says 2.392791775876109e-11 m.
    "olympus_SIS.tif": ["nm per pixel (0.023928, 0.023928)"],
}
# What is refused, and why. "" is read.
ODD = {
    "all_nan.tif": "4096 of 4096 values are NaN",
    "array_float32.npy": "",
    "bool_bilevel.tif": "",
    "constant.tif": "",
    "empty.tif": "no format that emjax reads",
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
    "multipage_different_shapes.tif": "2 different images .* choose one by --index",
    "narrow_1x256.tif": "",
    "odd_shape_223x301.tif": "",
    "palette.png": "",
    "plain.h5": "2 different images .*/data 256x256.*/nested/stack 8x250x250.* --index",
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
    "cmyk-4c-8b.tiff": "SEPARATED colours, where grey or RGB was due",
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
    "sample-get-lzw-stuck.tiff": "corrupted tile",
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
    if file.startswith(("blockfile", "hspy", "nexus", "prz", "semper", "tvips")):
        pytest.importorskip("rsciio")
    due = formats_table.manifest(REAL)[file]
    told, found = formats_table.examine(REAL / file, due)
    assert sorted(set(found)) == DIFFERENT.get(file.rpartition("/")[2], []), told


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
def test_every_odd_file_is_read_or_refused_for_its_reason(capsys):
    found = {
        p.name: p for name in ("derived_odd", "tiff_odd_nonEM") for p in REAL.glob(f"{name}/*")
    }
    assert found.keys() == ODD.keys()
    for name, reason in ODD.items():
        if reason:
            with pytest.raises(BadInput, match=reason) as caught:
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
