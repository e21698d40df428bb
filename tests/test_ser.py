"""SER files of series that were stopped, and EMI files that stand for several of them."""

import struct

import numpy as np
import pytest

from emjax import micrographs
from emjax.errors import InputError
from tests.format_samples import NM, ser

STACK = np.random.default_rng(0).integers(0, 60_000, (3, 24, 20)).astype(np.uint16)


@pytest.mark.parametrize("planes", [1, 3])
@pytest.mark.parametrize("valid", ["recorded", "planned"])
def test_a_series_that_was_stopped_has_the_images_that_were_recorded(
    tmp_path, caplog, planes, valid
):
    path = tmp_path / "a_1.ser"
    ser(path, STACK[:planes], planned=999, valid=planes if valid == "recorded" else 999)
    found = list(micrographs.planes(path))
    assert np.array_equal([plane.image for plane in found], STACK[:planes])
    assert found[0].nm_per_pixel == pytest.approx(NM)
    assert f"{planes} of the 999 images of its series were recorded" in caplog.text


def test_a_pixel_of_a_metre_is_an_unknown_size(tmp_path, caplog):
    path = tmp_path / "a_1.ser"
    ser(path, STACK[:1], metres=(1.0, 1.0))
    found = micrographs.read(path)
    assert np.isnan(found.nm_per_pixel).all() and np.array_equal(found.image, STACK[0])
    assert "1 m per pixel, which stands for an unknown size" in caplog.text


def test_images_of_several_magnifications_have_no_size(tmp_path, caplog):
    path = tmp_path / "a_1.ser"
    ser(path, STACK)
    content = bytearray(path.read_bytes())
    step = 2 * STACK[0].size + struct.calcsize("<ddiddihii")
    at = len(content) - step
    content[at : at + 36] = struct.pack("<ddidd", 0, 1e-9, 0, 0, 1e-9)
    path.write_bytes(content)
    found = list(micrographs.planes(path))
    assert np.array_equal([plane.image for plane in found], STACK)
    assert np.isnan([plane.nm_per_pixel for plane in found]).all()
    assert "nm per pixel: none is taken for all" in caplog.text


@pytest.mark.parametrize("at, value", [(40, 99), (8, 0)])
def test_a_damaged_or_uncalibrated_image_says_nothing_of_the_others(tmp_path, at, value, caplog):
    path = tmp_path / "a_1.ser"
    ser(path, STACK)
    content = bytearray(path.read_bytes())
    step = 2 * STACK[0].size + struct.calcsize("<ddiddihii")
    struct.pack_into("<h" if at == 40 else "<d", content, len(content) - step + at, value)
    path.write_bytes(content)
    first = next(micrographs.planes(path))
    assert first.nm_per_pixel == pytest.approx(NM) and not caplog.text


def test_nothing_is_said_of_a_whole_series(tmp_path, caplog):
    ser(tmp_path / "a_1.ser", STACK)
    assert len(list(micrographs.planes(tmp_path / "a_1.ser"))) == 3 and not caplog.text


@pytest.mark.parametrize("valid", [0, -1, 10])
def test_an_empty_series_is_refused_as_such(tmp_path, valid):
    path = tmp_path / "a_1.ser"
    ser(path, STACK[:0], planned=10, valid=valid)
    with pytest.raises(InputError, match="a_1 is an empty series: no image of [0-9]+ was recorded"):
        micrographs.read(path)


def test_the_first_image_of_a_grid_is_an_image_but_more_are_4d(tmp_path):
    path = tmp_path / "a_1.ser"
    ser(path, STACK[:1], planned=100, scanned=[10, 10])
    assert np.array_equal(micrographs.read(path).image, STACK[0])
    ser(path, STACK, planned=100, scanned=[10, 10])
    with pytest.raises(InputError, match="4-D data, images at 10 x 10 positions"):
        micrographs.read(path)


def test_an_emi_gives_its_images_though_one_series_is_empty(tmp_path):
    (tmp_path / "a.emi").write_bytes(b"JL")
    ser(tmp_path / "a_1.ser", STACK[:0], planned=10)
    ser(tmp_path / "a_2.ser", STACK[:1])
    assert np.array_equal(micrographs.read(tmp_path / "a.emi").image, STACK[0])
    (tmp_path / "a_2.ser").unlink()
    with pytest.raises(InputError, match="a_1 is an empty series"):
        micrographs.read(tmp_path / "a.emi")


def test_an_image_that_is_not_in_the_file_is_named(tmp_path):
    path = tmp_path / "a_1.ser"
    ser(path, STACK)
    head = path.read_bytes()
    path.write_bytes(head[: len(head) - 3 * (2 * 24 * 20 + 50) + 20])
    with pytest.raises(InputError, match="cut off: an image at byte"):
        micrographs.read(path)


def described(mode, camera=False):
    """Return what an EMI file says of one of its objects."""
    known = f"<Label>Mode</Label><Value>{mode}</Value>"
    path = "<CameraNamePath>UltraScan</CameraNamePath>" if camera else ""
    return f"<ObjectInfo><Data>{known}</Data><AcquireInfo>{path}</AcquireInfo></ObjectInfo>"


STEM = described("STEM nP SA Zoom Diffraction")  # the lenses of a scan, and no pattern
CAMERA = described("STEM nP SA Zoom Diffraction", camera=True)
DIFFRACTION = described("TEM uP SA Zoom Diffraction")


@pytest.mark.parametrize(
    "objects, patterns",
    [
        ([STEM, CAMERA], {2}),
        ([CAMERA, STEM], {1}),
        ([STEM, DIFFRACTION], {2}),
        ([STEM], set()),
        ([CAMERA], {1, 2}),  # fewer than images: the first counts
    ],
)
def test_each_image_is_what_its_object_in_the_emi_says(tmp_path, objects, patterns):
    (tmp_path / "a.emi").write_bytes(b"JL" + b"\0\0".join(o.encode() for o in objects))
    for number in (1, 2):
        path = tmp_path / f"a_{number}.ser"
        ser(path, STACK[:1])
        if number in patterns:
            with pytest.raises(InputError, match="reciprocal space"):
                micrographs.read(path)
        else:
            assert np.array_equal(micrographs.read(path).image, STACK[0])
