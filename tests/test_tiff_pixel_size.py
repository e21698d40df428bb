"""The pixel size of TIFFs of every vendor, each made here byte by byte, and of other programs."""

import struct

import numpy as np
import pytest
import tifffile

from emjax import micrographs
from emjax.errors import InputError
from emjax.micrographs.formats import vendors

IMAGE = np.random.default_rng(0).integers(0, 256, (24, 20), np.uint8)


def written(path, *tags, **options):
    """Write IMAGE with extra tags (code, type, value); return what emjax reads."""
    extra = [(code, kind, 0 if kind == "s" else len(value) if kind == "B" else 1, value, True)
             for code, kind, value in tags]  # fmt: skip
    options = {"metadata": None, **options}
    tifffile.imwrite(path, IMAGE, extratags=extra, photometric="minisblack", **options)
    return micrographs.read(path)


@pytest.mark.parametrize("code", [34680, 34682])
@pytest.mark.parametrize("section", ["[Scan]", "[Beam]\nBeam=EBeam\nScan=EScan\n[EScan]"])
def test_fei(tmp_path, code, section):
    text = f"[User]\nDate=1/1/2020\n{section}\nPixelWidth=5e-10\nPixelHeight=2.5e-10\n"
    found = written(tmp_path / "a.tif", (code, "s", text))
    assert found.nm_per_pixel == pytest.approx((0.25, 0.5)) and found.origin == "FEI tag"


def test_zeiss_states_the_pixel_of_an_image_1024_wide(tmp_path):
    found = written(tmp_path / "a.tif", (34118, "s", "0\n0\n0\n1e-9\n"))
    size = 1024 / IMAGE.shape[1]
    assert found.nm_per_pixel == pytest.approx((size, size)) and found.origin == "Zeiss tag"
    text = "0\n0\n0\n1e-9\nAP_IMAGE_PIXEL_SIZE\nImage Pixel Size = 2.5 µm\n".encode("cp1252")
    found = written(tmp_path / "b.tif", (34118, "s", text))
    assert found.nm_per_pixel == pytest.approx((2500, 2500))


def test_olympus(tmp_path):
    path = tmp_path / "a.tif"
    name, data = bytes(32), struct.pack("<10xhdd8xd2x34s32s", -6, 0.5, 0.25, 1e5, b"", b"")
    head = struct.pack("<4s6xhhhhh6x32sH", b"SIS0", 0, 0, 1, 0, 120, name, 1)
    written(path, (33560, "B", head + struct.pack("<hhI", 1, 1, 0) + data))
    content = bytearray(path.read_bytes())
    start = content.index(b"SIS0") + len(head)
    struct.pack_into("<I", content, start + 4, start + 8)  # offsets count from the file's start
    path.write_bytes(content)
    found = micrographs.read(path)
    assert found.nm_per_pixel == pytest.approx((250, 500)) and found.origin == "Olympus tag"


def test_tvips(tmp_path):
    first = struct.pack("<i", 2) + bytes(240)
    second = (
        bytes(2724) + struct.pack("<2f", 0.5, 0.25) + bytes(3332) + struct.pack("<I", 0xAAAAAAAA)
    )
    found = written(tmp_path / "a.tif", (37706, "B", first + second))
    assert found.nm_per_pixel == pytest.approx((0.25, 0.5)) and found.origin == "TVIPS tag"


@pytest.mark.parametrize("unit, nm", [("nm", 1.0), ("µm", 1000.0)])
def test_gatan(tmp_path, unit, nm):
    units = [(code, "s", unit.encode("cp1252")) for code in (65003, 65004)]
    found = written(tmp_path / "a.tif", *units, (65009, "d", 0.5), (65010, "d", 0.25))
    assert found.nm_per_pixel == pytest.approx((0.25 * nm, 0.5 * nm))
    assert found.origin == "Gatan tag"


@pytest.mark.parametrize("unit, kind", [("1/nm", "reciprocal space"), ("eV", "an energy axis")])
def test_gatan_in_other_units_is_refused(tmp_path, unit, kind):
    tags = [(65003, "s", unit), (65004, "s", unit), (65009, "d", 0.5), (65010, "d", 0.25)]
    with pytest.raises(InputError, match=f"image 0 24x20 uint8 is {kind}; expected a 2-D image"):
        written(tmp_path / "a.tif", *tags)


def jeol(path, mode):
    """Write a page of a detector with pixels of 15 and 20 micrometres (y, x), at 50 000 times."""
    report = (
        f"<TemReporter><ImageFormingSystem><ModeString>{mode}</ModeString>"
        "<SelectorValue>50000</SelectorValue></ImageFormingSystem></TemReporter>"
    )
    options = {"resolution": (1 / 20e-4, 1 / 15e-4), "resolutionunit": "CENTIMETER"}
    return written(path, (271, "s", "JEOL Ltd."), description=report, **options)


def test_jeol(tmp_path):
    found = jeol(tmp_path / "a.tif", "MAG")
    assert found.nm_per_pixel == pytest.approx((0.3, 0.4)) and found.origin == "JEOL tag"
    with pytest.raises(InputError, match="is reciprocal space"):
        jeol(tmp_path / "b.tif", "DIFF")
    assert np.isnan(jeol(tmp_path / "c.tif", "LOWMAG").nm_per_pixel).all()


def test_every_vendor_has_a_test():
    tested = {name.removeprefix("test_").split("_")[0] for name in globals() if "test_" in name}
    assert {vendor.lower() for vendor in tiff_pixel_size.VENDORS} <= tested


@pytest.mark.parametrize(
    "tag",
    [
        (34682, "s", "[Beam]\nScan=EScan\n"),
        (34118, "s", "0\n0\n0\n"),
        (33560, "B", b"SIS1" + bytes(60)),
        (37706, "B", bytes(244)),
        (65003, "s", "nm"),
        (271, "s", "JEOL Ltd."),
    ],
)
def test_a_tag_without_a_calibration_is_no_pixel_size(tmp_path, tag):
    found = written(tmp_path / "a.tif", tag)
    assert np.isnan(found.nm_per_pixel).all() and found.origin == "none"
    np.testing.assert_array_equal(found.image, IMAGE)


def test_a_vendor_comes_before_the_resolution_tags(tmp_path, caplog):
    text = "[Scan]\nPixelWidth=5e-9\nPixelHeight=5e-9\n"
    options = {"resolution": (1e6, 1e6), "resolutionunit": "CENTIMETER"}
    found = written(tmp_path / "a.tif", (34682, "s", text), **options)
    assert found.nm_per_pixel == pytest.approx((5, 5)) and found.origin == "FEI tag"
    assert "5, 5 by FEI tag, 10, 10 by resolution tag; the first is used" in caplog.text
