"""DM3 and DM4: several images, thumbnails, calibrations of axes and of values."""

import numpy as np
import pytest

from emjax import micrographs
from emjax.errors import InputError
from tests.format_samples import dm_images

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 60_000, (24, 20)).astype(np.uint16)
OTHER = RNG.normal(size=(16, 12)).astype(np.float32)
STACK = RNG.integers(0, 60_000, (3, 24, 20)).astype(np.uint16)
NM = [(0.5, "nm"), (0.25, "nm")]  # x, y
HAADF = dict(pixels=IMAGE, axes=NM, name="HAADF")
BF = dict(pixels=OTHER, kind=2, axes=[(3.0, "pm"), (4.0, "pm")], name="BF")
THUMBNAIL = dict(pixels=RNG.integers(0, 255, (8, 8, 4), np.uint8), kind=23)
LARGE = dict(pixels=np.zeros((600, 4, 4), np.uint8), kind=23, name="colours")


def listed(path):
    with micrographs.open_all(path) as signals:
        return [(signal.name, signal.nm_per_pixel) for signal in signals]


@pytest.mark.parametrize("version, order", [(3, "<"), (3, ">"), (4, "<"), (4, ">")])
@pytest.mark.parametrize("images, thumbnail", [
    ([THUMBNAIL, HAADF, BF], 0), ([HAADF, THUMBNAIL, BF], 1), ([HAADF, BF, THUMBNAIL], 2),
    ([HAADF, BF], None), ([THUMBNAIL, HAADF, BF], None),
])  # fmt: skip
def test_each_image_has_its_own_name_size_and_pixels(
    tmp_path, caplog, images, thumbnail, version, order
):
    path = tmp_path / f"a.dm{version}"
    dm_images(path, images, thumbnail=thumbnail, version=version, order=order)
    found = listed(path)
    assert [name for name, _ in found] == ["HAADF", "BF"]
    assert found[0][1] == pytest.approx((0.25, 0.5))
    assert found[1][1] == pytest.approx((0.004, 0.003))
    assert np.array_equal(micrographs.read(path, 0).image, IMAGE)
    assert np.array_equal(micrographs.read(path, 1).image, OTHER)
    guessed = thumbnail is None and images[0] is THUMBNAIL
    assert ("taken to be a thumbnail" in caplog.text) == guessed


def test_no_image_is_dropped_because_it_comes_first_or_is_in_colours(tmp_path, caplog):
    dm_images(tmp_path / "a.dm4", [LARGE, HAADF])
    assert [name for name, _ in listed(tmp_path / "a.dm4")] == ["colours", "HAADF"]
    dm_images(tmp_path / "b.dm4", [THUMBNAIL], thumbnail=0)  # nothing else is there
    assert micrographs.read(tmp_path / "b.dm4").image.shape == (8, 8)
    assert "thumbnail" not in caplog.text


def test_an_image_without_pixels_or_of_an_unknown_format_does_not_hide_the_others(tmp_path):
    path = tmp_path / "a.dm4"
    dm_images(path, [HAADF, dict(name="empty"), dict(pixels=IMAGE, kind=99, name="odd")])
    assert np.array_equal(micrographs.read(path).image, IMAGE)
    with micrographs.open_all(path) as (_, empty, odd):
        assert empty.refused == "an image without pixels"
        assert odd.refused == "an image of the number format 99, which is not known"
    dm_images(path, [dict(name="empty")])
    with pytest.raises(InputError, match="empty .*is an image without pixels"):
        micrographs.read(path)


@pytest.mark.parametrize("brightness", [(10.0, 0.25, "e-"), (0.0, -2.0, ""), (5.0, 1.0, "counts")])
def test_values_are_as_stored_unless_brightness_is_asked_for(tmp_path, caplog, brightness):
    path, (origin, scale, unit) = tmp_path / "a.dm4", brightness
    dm_images(path, [dict(pixels=STACK, axes=NM, brightness=brightness)])
    found = list(micrographs.planes(path))
    assert np.array_equal([plane.image for plane in found], STACK)
    assert found[0].image.dtype == np.uint16
    said = f"its values mean (stored - {origin:g}) * {scale:g} {unit}".strip()
    assert f"{said}; they are read as stored" in caplog.text
    caplog.clear()
    found = micrographs.read_stack(path, brightness=True).image
    assert found.dtype == np.float32 and not caplog.text
    np.testing.assert_allclose(found, (STACK - np.float64(origin)) * scale, rtol=1e-6)


@pytest.mark.parametrize("brightness", [None, (0.0, 1.0, "counts"), (0.0, 0.0, "")])
def test_nothing_is_said_of_values_that_stand_for_themselves(tmp_path, caplog, brightness):
    dm_images(tmp_path / "a.dm4", [dict(pixels=IMAGE, axes=NM, brightness=brightness)])
    found = micrographs.read(tmp_path / "a.dm4", brightness=True)
    assert np.array_equal(found.image, IMAGE) and found.image.dtype == np.uint16
    assert not caplog.text


def test_calibrations_count_from_x_also_where_some_are_missing(tmp_path, caplog):
    path = tmp_path / "a.dm4"
    for axes in (NM, [*NM, (2.0, "s")], [*NM, (2.0, "s"), (7.0, "nm")]):
        dm_images(path, [dict(pixels=STACK, axes=axes, name="a")])
        assert listed(path) == [("a", pytest.approx((0.25, 0.5)))]
    assert not caplog.text
    dm_images(path, [dict(pixels=IMAGE, axes=NM[:1], name="a")])
    assert np.isnan(listed(path)[0][1]).all()
    assert "a states the scale of one of its axes; the pixel size is unknown" in caplog.text


@pytest.mark.parametrize("shape", [(1, 24, 20), (24, 1, 20), (24, 20, 1), (1, 24, 1, 20)])
def test_axes_of_length_1_are_dropped_with_their_calibrations(tmp_path, shape):
    of_side = {24: (0.25, "nm"), 20: (0.5, "nm"), 1: (9.0, "nm")}
    axes = [of_side[side] for side in shape[::-1]]
    dm_images(tmp_path / "a.dm4", [dict(pixels=IMAGE.reshape(shape), axes=axes)])
    found = micrographs.read(tmp_path / "a.dm4")
    assert np.array_equal(found.image, IMAGE) and found.nm_per_pixel == pytest.approx((0.25, 0.5))


@pytest.mark.parametrize("unit, reason", [
    ("1/nm", "reciprocal space"), ("(1/nm)", "reciprocal space"), ("nm^-1", "reciprocal space"),
    ("mrad", "reciprocal space"), ("1/Å", "reciprocal space"), ("eV", "an energy axis"),
])  # fmt: skip
def test_other_axes_than_lengths_are_refused(tmp_path, unit, reason):
    dm_images(tmp_path / "a.dm4", [dict(pixels=IMAGE, axes=[(0.1, unit)] * 2)])
    with pytest.raises(InputError, match=reason):
        micrographs.read(tmp_path / "a.dm4")


@pytest.mark.parametrize("unit", ["deg", "°", "1/nm", "s"])
def test_a_stack_may_run_along_an_angle_but_not_along_an_energy(tmp_path, unit):
    dm_images(tmp_path / "a.dm4", [dict(pixels=STACK, axes=[*NM, (2.0, unit)])])
    found = micrographs.read_stack(tmp_path / "a.dm4")
    assert np.array_equal(found.image, STACK) and found.nm_per_pixel == pytest.approx((0.25, 0.5))
    dm_images(tmp_path / "b.dm4", [dict(pixels=STACK, axes=[*NM, (2.0, "eV")])])
    with pytest.raises(InputError, match="an energy axis"):
        micrographs.read_stack(tmp_path / "b.dm4")


@pytest.mark.parametrize("kind", [8, 23])
def test_colours_are_stored_from_blue_to_red(tmp_path, kind):
    stored = RNG.integers(0, 255, (24, 20, 4), np.uint8)
    dm_images(tmp_path / "a.dm4", [dict(pixels=stored, kind=kind)])
    found = micrographs.read_pixels(tmp_path / "a.dm4")
    assert np.array_equal(found, stored[..., [2, 1, 0]])


def test_spectra_are_refused_whatever_their_axes(tmp_path):
    wavelengths = [(0.5, "nm"), (100.0, "nm")]
    for means in ("Spectrum", "Spectrum image"):
        dm_images(tmp_path / "a.dm4", [dict(pixels=OTHER, kind=2, axes=wavelengths, means=means)])
        with pytest.raises(InputError, match="is a spectrum or profile"):
            micrographs.read(tmp_path / "a.dm4")
    dm_images(tmp_path / "b.dm4", [dict(pixels=STACK, axes=NM, means="Spectrum image")])
    assert np.array_equal(micrographs.read_stack(tmp_path / "b.dm4").image, STACK)
    dm_images(tmp_path / "c.dm4", [dict(pixels=IMAGE, axes=NM, means="Image")])
    assert np.array_equal(micrographs.read(tmp_path / "c.dm4").image, IMAGE)
