"""HDF5 as programs write it: EMD, HyperSpy, NeXus, BigDataViewer, Imaris, netCDF; its refusals."""

import itertools
import json
import os
import struct
import subprocess
import sys

import h5py
import numpy as np
import pytest
from h5py import h5d, h5p, h5s, h5t, h5z

from emjax import micrographs
from emjax.errors import InputError
from emjax.micrographs.formats import hdf5_items
from emjax.micrographs.formats.stored_values import spacing, values_of
from tests import format_samples
from tests.format_samples import DEEP, GREY, NM, STACK


def planes(path, index=None):
    return list(micrographs.planes(path, index))


def pixels(path, index=None):
    return np.stack([plane.image for plane in planes(path, index)]).squeeze()


def refused(path, reason, index=None):
    with pytest.raises(InputError, match=reason) as caught:
        planes(path, index)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


# EMD


@pytest.mark.parametrize("units, size", [("A", 0.1), ("nm", 1), ("[n_m]", 1), ("[µ_m]", 1e3)])
@pytest.mark.parametrize("write", [format_samples.emd1, format_samples.berkeley])
def test_emd_states_sizes_in_every_spelling(tmp_path, write, units, size):
    more = {"units": units} if write is format_samples.emd1 else {"unit": units}
    write(tmp_path / "a.emd", DEEP, sizes=(5.0, 2.0), **more)
    (plane,) = planes(tmp_path / "a.emd")
    np.testing.assert_array_equal(plane.image, DEEP)
    np.testing.assert_allclose(plane.nm_per_pixel, (5 * size, 2 * size))


@pytest.mark.parametrize("units", ["A^-1", "1/nm", "mrad", "[n_m^-1]", "[1_/_n_m]", "Å⁻¹"])
def test_emd_of_reciprocal_space_is_refused(tmp_path, units):
    format_samples.emd1(tmp_path / "a.emd", DEEP, units=units, names=("Qx", "Qy"))
    refused(tmp_path / "a.emd", "reciprocal space")
    format_samples.berkeley(tmp_path / "b.emd", DEEP, unit=units)
    refused(tmp_path / "b.emd", "reciprocal space")


def test_emd_of_uncalibrated_diffraction_is_refused_by_its_names(tmp_path):
    format_samples.emd1(tmp_path / "a.emd", DEEP, units="pixels", names=("Qx", "Qy"))
    refused(tmp_path / "a.emd", "reciprocal space")
    format_samples.emd1(tmp_path / "b.emd", DEEP, units="pixels", names=("Rx", "Ry"))
    (plane,) = planes(tmp_path / "b.emd")
    np.testing.assert_array_equal(plane.image, DEEP)
    assert np.isnan(plane.nm_per_pixel).all()


@pytest.mark.parametrize("kind", ["S5", h5py.string_dtype()])
def test_emdfile_stacks_are_images_by_their_labels(tmp_path, kind):
    format_samples.emd1(tmp_path / "a.emd", np.moveaxis(STACK, 0, -1))
    with h5py.File(tmp_path / "a.emd", "r+") as file:
        file["root/image/dim2"] = np.array([b"BF", b"ADF", b"HAADF"], kind)
        file["root/image/dim2"].attrs["name"] = "_labels_"
    with pytest.raises(micrographs.SeveralImages, match="image BF 24x20.*image ADF 24x20"):
        planes(tmp_path / "a.emd")
    np.testing.assert_array_equal(pixels(tmp_path / "a.emd", 2), STACK[2])
    assert planes(tmp_path / "a.emd", 1)[0].nm_per_pixel == pytest.approx(NM)


def test_emd_1_of_several_arrays_and_of_other_groups(tmp_path):
    format_samples.emd1(tmp_path / "a.emd", DEEP)
    with h5py.File(tmp_path / "a.emd", "r+") as file:
        file.create_group("root/points").attrs["emd_group_type"] = "pointlist"
        file["root/points/x"] = GREY
        cube = file.create_group("root/cube")
        cube.attrs["emd_group_type"] = "array"
        cube["data"] = np.ones((2, 3, 4, 5))
        file.create_group("root/empty").attrs["emd_group_type"] = "array"
    np.testing.assert_array_equal(pixels(tmp_path / "a.emd"), DEEP)
    with micrographs.open_all(tmp_path / "a.emd") as found:
        assert sorted(signal.refused for signal in found) == ["", "4-D data (2, 3, 4, 5)"]


def test_berkeley_axes_by_their_names(tmp_path):
    """Three lengths in the order x, y, z, as vectors of [n] and [n, 1]."""
    with h5py.File(tmp_path / "a.emd", "w") as file:
        file.attrs.update(version_major=0, version_minor=2)
        group = file.create_group("data/volume")
        group.attrs["emd_group_type"] = 1
        group["data"] = STACK.transpose(2, 1, 0)
        for axis, (name, size) in enumerate(zip("xyz", (3.0, 2.0, 4.0), strict=True), start=1):
            vector = np.arange(group["data"].shape[axis - 1]) * size
            group[f"dim{axis}"] = vector[:, None] if name == "y" else vector
            group[f"dim{axis}"].attrs.update(name=name, units="[n_m]")
    np.testing.assert_array_equal(pixels(tmp_path / "a.emd"), STACK)
    assert planes(tmp_path / "a.emd")[0].nm_per_pixel == (2, 3)
    assert next(micrographs.planes(tmp_path / "a.emd", axis="y")).nm_per_pixel == (4, 3)


def test_velox_images_have_their_own_metadata(tmp_path):
    path = tmp_path / "a.emd"
    format_samples.velox(path, STACK, metres=(1e-10, 2e-10))
    with h5py.File(path, "r+") as file:
        for name, kind in (("ffff", "1/m"), ("0000", "m"), ("8888", None)):
            group = file.create_group(f"Data/Image/{name * 8}")
            group["Data"] = (STACK[:1] // 2).transpose(1, 2, 0)
            size = {"PixelSize": {"width": "5e-9", "height": "3e-9"}, "Detector": name}
            known = {"BinaryResult": size | {"PixelUnitX": kind, "PixelUnitY": kind}}
            if kind:
                words = np.frombuffer(json.dumps(known).encode().ljust(300, b"\0"), np.uint8)
                group["Metadata"] = words[:, None]
    with micrographs.open_all(path) as found:
        listed = {signal.name.split()[0]: (signal.nm_per_pixel, signal.refused) for signal in found}
    assert listed["0000"] == (pytest.approx((3, 5)), "")
    assert listed["BF"] == (pytest.approx((0.1, 0.2)), "")
    assert listed["ffff"][1] == "reciprocal space"
    assert np.isnan(listed["88888888"][0]).all() and listed["88888888"][1] == ""


@pytest.mark.parametrize("unit", ["", "nm"])
@pytest.mark.parametrize("names", [("", "", ""), ("z", "y", "x")])
@pytest.mark.parametrize("array", [DEEP, STACK])
def test_emd_of_hyperspy_has_all_axes_reversed(tmp_path, array, names, unit):
    """As RosettaSciIO 0.15 writes it: data.T, dim1 of x, two positions of each axis."""
    sizes = dict(zip("zyx", (1.0, 2.0, 3.0), strict=True))
    with h5py.File(tmp_path / "a.emd", "w") as file:
        file.attrs.update(version_major="0", version_minor="2")
        file.create_group("signals").attrs["emd_group_type"] = 1
        group = file.create_group("signals/__unnamed__")
        group.attrs["emd_group_type"] = 1
        group["data"] = array.T
        for number, (axis, name) in enumerate(zip("xyz"[: array.ndim], names[::-1], strict=False)):
            group[f"dim{number + 1}"] = [0.0, sizes[axis]]
            written = "_".join("s" if unit and axis == "z" else unit)
            group[f"dim{number + 1}"].attrs.update(name=name, units=f"[{written}]")
    np.testing.assert_array_equal(pixels(tmp_path / "a.emd"), array)
    if unit:
        assert planes(tmp_path / "a.emd")[0].nm_per_pixel == (2, 3)


# HyperSpy


@pytest.mark.parametrize("name", ["a.hspy", "a.h5", "a.hdf5", "a.emd", "a"])
def test_hyperspy_is_known_by_its_content(tmp_path, name):
    format_samples.hyperspy(tmp_path / name, STACK)
    found = planes(tmp_path / name)
    np.testing.assert_array_equal([plane.image for plane in found], STACK)
    assert found[0].nm_per_pixel == NM and found[0].origin == "HyperSpy"


def test_hyperspy_files_need_no_other_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rsciio", None)
    format_samples.hyperspy(tmp_path / "a.hspy", GREY)
    np.testing.assert_array_equal(pixels(tmp_path / "a.hspy"), GREY)
    assert [path.name for path in micrographs.find(tmp_path)] == ["a.hspy"]


def test_hyperspy_signals_that_are_no_images(tmp_path):
    format_samples.hyperspy(tmp_path / "a.hspy", GREY, units="1/nm")
    refused(tmp_path / "a.hspy", "reciprocal space")
    format_samples.hyperspy(tmp_path / "b.hspy", GREY, units="px", name="k")
    refused(tmp_path / "b.hspy", "reciprocal space")
    format_samples.hyperspy(tmp_path / "c.hspy", GREY)
    with h5py.File(tmp_path / "c.hspy", "r+") as file:
        file["Experiments/image/axis-0"].attrs["navigate"] = True  # spectra along a line
    refused(tmp_path / "c.hspy", "a spectrum or profile")
    with h5py.File(tmp_path / "c.hspy", "r+") as file:
        file["Experiments/image/axis-1"].attrs["navigate"] = True  # a number per position
    np.testing.assert_array_equal(pixels(tmp_path / "c.hspy"), GREY)


def test_hyperspy_axes_without_a_scale_are_unknown(tmp_path):
    format_samples.hyperspy(tmp_path / "a.hspy", GREY)
    with h5py.File(tmp_path / "a.hspy", "r+") as file:
        del file["Experiments/image/axis-1"].attrs["scale"]  # a list of positions instead
        file["Experiments/image/axis-1/axis"] = np.arange(20.0) ** 2
    assert np.isnan(planes(tmp_path / "a.hspy")[0].nm_per_pixel).all()


def test_hyperspy_of_several_signals(tmp_path):
    format_samples.hyperspy(tmp_path / "a.hspy", GREY)
    with h5py.File(tmp_path / "a.hspy", "r+") as file:
        file.copy("Experiments/image", "Experiments/second")
        file["Experiments/second/axis-0"].attrs["scale"] = 7.0
        file["Experiments/second/metadata/notes"] = np.ones((5, 5))
    with pytest.raises(micrographs.SeveralImages, match="0: image 24x20 uint8, 1: second 24x20"):
        planes(tmp_path / "a.hspy")
    assert planes(tmp_path / "a.hspy", 1)[0].nm_per_pixel == (7, NM[1])


@pytest.mark.parametrize("fields", ["RGB", "RGBA"])
@pytest.mark.parametrize("options", [{}, {"chunks": (8, 8), "compression": "gzip"}])
def test_hyperspy_in_colours(tmp_path, fields, options):
    colours = np.random.default_rng(0).integers(0, 65536, (24, 20, len(fields)), np.uint16)
    packed = colours.view([(name, np.uint16) for name in fields])[..., 0]
    format_samples.hyperspy(tmp_path / "a.hspy", GREY)
    with h5py.File(tmp_path / "a.hspy", "r+") as file:
        del file["Experiments/image/data"]
        file["Experiments/image"].create_dataset("data", data=packed, **options)
    found = micrographs.read_pixels(tmp_path / "a.hspy")
    np.testing.assert_array_equal(found, colours[..., :3])
    assert planes(tmp_path / "a.hspy")[0].nm_per_pixel == NM


def test_other_fields_than_colours_are_refused(tmp_path):
    for fields in ([("r", "f4"), ("i", "f4")], [("R", "u1"), ("G", "u1"), ("B", "u2")]):
        path = with_attributes(tmp_path / "a.h5", np.zeros((24, 20), fields))
        refused(path, "no 2-D or 3-D array of numbers|expected real numbers|complex")


# NeXus, BigDataViewer, Imaris


def test_nexus(tmp_path):
    format_samples.nexus(tmp_path / "a.nxs", DEEP, units="um")
    (plane,) = planes(tmp_path / "a.nxs")
    np.testing.assert_array_equal(plane.image, DEEP)
    np.testing.assert_allclose(plane.nm_per_pixel, (NM[0] * 1e3, NM[1] * 1e3))
    format_samples.nexus(tmp_path / "b.nxs", DEEP, units="1/nm")
    refused(tmp_path / "b.nxs", "reciprocal space")
    format_samples.nexus(tmp_path / "c.nxs", DEEP, interpretation="spectrum")
    refused(tmp_path / "c.nxs", "a spectrum or profile")
    with h5py.File(tmp_path / "a.nxs", "r+") as file:
        file["entry/scan/counts_scaling_factor"] = 0.5
    refused(tmp_path / "a.nxs", "scaled by a scaling_factor")


def test_nexus_follows_links_within_the_file_alone(tmp_path):
    path = tmp_path / "a.nxs"
    format_samples.nexus(path, DEEP)
    format_samples.berkeley(tmp_path / "other.h5", GREY)
    with h5py.File(path, "r+") as file:
        file["raw/mask"] = GREY
        file.move("entry/scan/counts", "raw/counts")
        file["raw/again"] = h5py.SoftLink("./counts")
        file["short"] = h5py.SoftLink("/raw")
        file["round"] = h5py.SoftLink("/round")
        file["out"] = h5py.ExternalLink("other.h5", "/data")
    for target, followed in {
        "/raw/counts": True,
        "/short/again": True,
        "/round": False,
        "/nowhere": False,
        "/out/image/data": False,
    }.items():
        with h5py.File(path, "r+") as file:
            if "counts" in list(file["entry/scan"]):
                del file["entry/scan/counts"]
            file["entry/scan/counts"] = h5py.SoftLink(target)
        if followed:
            np.testing.assert_array_equal(pixels(path), DEEP)
        else:
            refused(path, "/out: its values are virtual or in other files")
    with h5py.File(path, "r+") as file:
        del file["out"]
    refused(path, "/entry/scan/counts, which its NXdata is of, is not in the file")


@pytest.mark.parametrize("axes", ["y:x", "y,x", "[y, x]"])
def test_nexus_with_attributes_of_the_dataset(tmp_path, axes):
    format_samples.nexus(tmp_path / "a.nxs", DEEP)
    with h5py.File(tmp_path / "a.nxs", "r+") as file:
        group = file["entry/scan"]
        del group.attrs["signal"], group.attrs["axes"]
        group["counts"].attrs.update(signal=1, axes=axes)
        group["errors"] = np.sqrt(DEEP)
    np.testing.assert_array_equal(pixels(tmp_path / "a.nxs"), DEEP)
    assert planes(tmp_path / "a.nxs")[0].nm_per_pixel == NM


def test_nexus_images_at_positions(tmp_path):
    """The axes that are called x and y are those of the scan; the images are the last two."""
    with h5py.File(tmp_path / "a.nxs", "w") as file:
        group = file.create_group("entry/scan")
        axes = ["yaxis", "xaxis", ".", "."]
        group.attrs.update(NX_class="NXdata", signal="data", axes=axes, interpretation="image")
        group["data"] = STACK[:, None]
    np.testing.assert_array_equal(pixels(tmp_path / "a.nxs"), STACK)


def test_bigdataviewer_numbers_have_no_sign_and_levels_are_no_choice(tmp_path):
    bright = STACK | 0x8000
    format_samples.bigdataviewer(tmp_path / "a.h5", bright, STACK)
    with pytest.raises(
        micrographs.SeveralImages, match="0: t00000/s00 3x24x20 uint16, 1: t00000/s01 3x24x20"
    ):
        planes(tmp_path / "a.h5")
    assert (bright.view(np.int16) < 0).all()
    np.testing.assert_array_equal(pixels(tmp_path / "a.h5", 0), bright)
    assert pixels(tmp_path / "a.h5", 0).dtype == np.uint16


def test_imaris_images_are_cut_out_of_their_arrays(tmp_path):
    format_samples.imaris(tmp_path / "a.ims", STACK, STACK[::-1])
    with pytest.raises(micrographs.SeveralImages, match="0: time 0, channel 0 3x24x20 uint16"):
        planes(tmp_path / "a.ims")
    np.testing.assert_array_equal(pixels(tmp_path / "a.ims", 1), STACK[::-1])
    np.testing.assert_allclose(planes(tmp_path / "a.ims", 0)[0].nm_per_pixel, NM)
    with h5py.File(tmp_path / "a.ims", "r+") as file:
        for channel in (0, 1):
            group = file[f"DataSet/ResolutionLevel 0/TimePoint 0/Channel {channel}"]
            group.attrs["ImageSizeX"] = np.frombuffer(b"99", "S1")
    refused(tmp_path / "a.ims", r"an image of \[3.0, 24.0, 99.0\] in an array of \(16, 32, 32\)")


# Attributes that change values


def with_attributes(path, array, **attributes):
    with h5py.File(path, "w") as file:
        file["image"] = array
        file["image"].attrs.update(attributes)
    return path


SIGNED = DEEP.view(np.int16)


@pytest.mark.parametrize(
    "array, attributes, expected",
    [
        (SIGNED, {"scale_factor": 0.5}, SIGNED * 0.5),
        (SIGNED, {"add_offset": 32768}, SIGNED + 32768.0),
        (GREY, {"scale_factor": np.array([2.0]), "add_offset": -3}, GREY * 2.0 - 3),
        (GREY, {"scale_factor": 1.0, "add_offset": 0.0}, GREY),
        (SIGNED, {"_Unsigned": "true"}, DEEP),
        (SIGNED, {"_Unsigned": b"true", "scale_factor": 0.25}, DEEP * 0.25),
        (SIGNED, {"_Unsigned": "false"}, SIGNED),
        (GREY, {"_FillValue": np.float32(np.nan), "valid_min": 0, "valid_max": 255}, GREY),
        (SIGNED, {"valid_range": np.array([-32768, 32767])}, SIGNED),
    ],
)
def test_cf_attributes_are_applied(tmp_path, array, attributes, expected):
    found = pixels(with_attributes(tmp_path / "a.h5", array, **attributes))
    same = expected if expected.dtype.kind == "u" else np.float32(expected)
    np.testing.assert_array_equal(found, same)
    assert found.dtype == same.dtype


@pytest.mark.parametrize(
    "attributes, reason",
    [
        ({"scale_factor": "two"}, "scale_factor 'two', expected one finite number each"),
        ({"scale_factor": np.array([1.0, 2.0])}, "expected one finite number each"),
        ({"scale_factor": 0.0}, "scale_factor .*0.0.*, expected one finite number each"),
        ({"add_offset": np.nan}, "add_offset .*nan.*, expected one finite number each"),
        ({"_FillValue": GREY[0, 0]}, rf"of 480 values are {GREY[0, 0]}, its _FillValue"),
        ({"missing_value": int(GREY[0, 0])}, r"of 480 values are .*, its missing_value"),
        ({"valid_max": 250}, "of 480 values are outside -inf to 250, its valid range"),
        ({"valid_range": [10, 300]}, "of 480 values are outside 10 to 300, its valid range"),
    ],
)
def test_cf_attributes_that_are_not_clear_or_mark_missing_values(tmp_path, attributes, reason):
    refused(with_attributes(tmp_path / "a.h5", GREY, **attributes), reason)


def test_cf_fill_values_of_numbers_without_sign():
    values = values_of(np.dtype(np.int8), {"_Unsigned": "true", "_FillValue": -1})
    np.testing.assert_array_equal(values.convert(np.array([-2, 3], np.int8)), [254, 3])
    with pytest.raises(InputError, match="1 of 2 values are 255, its _FillValue"):
        values.convert(np.array([-1, 3], np.int8))


def test_spacing_is_that_of_even_positions():
    assert spacing(np.arange(5) * 0.5, "um") == 500
    assert spacing([4.0, 2.0, 0.0], "nm") == 2  # downwards
    assert spacing([0.0, 3.0], "A") == pytest.approx(0.3)
    for positions in ([0.0, 1, 4], [1.0], [], ["a", "b"], [2.0, 2.0]):
        assert np.isnan(spacing(positions, "nm"))


@pytest.mark.parametrize("mode, order", [("INTERLACE_PIXEL", "yxc"), ("INTERLACE_PLANE", "cyx")])
def test_hdf5_images_in_colours(tmp_path, mode, order):
    colours = np.stack([GREY, 255 - GREY, GREY // 2], -1)
    known = {"CLASS": b"IMAGE", "IMAGE_SUBCLASS": b"IMAGE_TRUECOLOR", "INTERLACE_MODE": mode}
    array = np.einsum(f"yxc->{order}", colours)
    path = with_attributes(tmp_path / "a.h5", array, **known)
    np.testing.assert_array_equal(micrographs.read_pixels(path), colours)


@pytest.mark.parametrize(
    "attributes, reason",
    [
        ({"IMAGE_SUBCLASS": b"IMAGE_INDEXED"}, "an image of palette indices"),
        ({"IMAGE_WHITE_IS_ZERO": np.uint8(1)}, "an image with white as zero"),
        ({"DISPLAY_ORIGIN": b"LL"}, "an image from 'LL', expected the upper left first"),
    ],
)
def test_hdf5_images_that_are_refused(tmp_path, attributes, reason):
    path = with_attributes(tmp_path / "a.h5", GREY, CLASS=b"IMAGE", **attributes)
    refused(path, reason)


# Filters and what was never written


def filtered(path, code, array=DEEP):
    """Write `array` as one chunk that says it went through filter `code`."""
    with h5py.File(path, "w") as file:
        settings = h5p.create(h5p.DATASET_CREATE)
        settings.set_chunk(array.shape)
        settings.set_filter(code, h5z.FLAG_OPTIONAL, ())
        space = h5s.create_simple(array.shape)
        data = h5d.create(file.id, b"image", h5t.NATIVE_UINT16, space, settings)
        data.write_direct_chunk((0, 0), array.tobytes())


def test_filters_that_are_not_there_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    monkeypatch.setattr(h5z, "filter_avail", lambda code: False)
    filtered(tmp_path / "a.h5", 32008)
    refused(
        tmp_path / "a.h5",
        r"HDF5 filter 32008 \(bitshuffle\); install emjax\[hdf5plugin\], or save it with gzip",
    )
    filtered(tmp_path / "b.h5", 32019)
    refused(tmp_path / "b.h5", "compressed by the HDF5 filter 32019 JPEG, which is not read")


def test_other_arrays_do_not_stand_for_one_that_is_not_read(tmp_path, monkeypatch, caplog):
    """Detectors keep a mask next to their images."""
    monkeypatch.setattr(h5z, "filter_avail", lambda code: code != 32019)
    filtered(tmp_path / "a.h5", 32019)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["mask"] = GREY
    np.testing.assert_array_equal(pixels(tmp_path / "a.h5"), GREY)
    assert "/image 24x20 uint16 is left out: compressed by the HDF5 filter 32019" in caplog.text


def test_hdf5plugin_is_used_only_for_files_that_need_it(tmp_path):
    hdf5plugin = pytest.importorskip("hdf5plugin")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("image", data=DEEP, chunks=(8, 8), **hdf5plugin.Bitshuffle())
    np.testing.assert_array_equal(pixels(tmp_path / "a.h5"), DEEP)


def test_reading_hdf5_does_not_import_hdf5plugin(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("image", data=DEEP, chunks=(8, 8), compression="gzip", shuffle=True)
    (tmp_path / "hdf5plugin.py").write_text("raise SystemExit('hdf5plugin was imported')")
    code = f"from emjax import micrographs; print(micrographs.read({str(tmp_path / 'a.h5')!r}))"
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True
    )
    assert done.returncode == 0, done.stderr


def test_arrays_that_were_never_written(tmp_path, caplog):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("image", DEEP.shape, DEEP.dtype)
    refused(tmp_path / "a.h5", "/image 24x20 uint16 is declared, but its values were never written")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        data = file.create_dataset("image", STACK.shape, STACK.dtype, chunks=(1, 8, 8), fillvalue=7)
        data[0] = STACK[0]
    found = pixels(tmp_path / "b.h5")
    np.testing.assert_array_equal(found[0], STACK[0])
    assert (found[1:] == 7).all()
    assert "18 of 27 chunks of /image were never written; their pixels are 7" in caplog.text


def test_whole_arrays_have_no_note(tmp_path, caplog):
    for name, options in (("a", {}), ("b", {"compression": "gzip"}), ("c", {"chunks": (1, 7, 9)})):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file.create_dataset("image", data=STACK, **options)
        np.testing.assert_array_equal(pixels(tmp_path / f"{name}.h5"), STACK)
    assert caplog.text == ""


def test_sparse_labels_are_read(tmp_path):
    """Chunks without a label are not written, however many."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset(
            "labels", (64, 2048, 2048), "u2", chunks=(1, 256, 256), compression="gzip"
        )
        data[3, 10:20, 10:20] = 5
    found = next(itertools.islice(micrographs.planes(tmp_path / "a.h5", as_mask=True), 3, None))
    assert found.image.sum() == 500


def test_palettes_are_no_images(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        palette = file.create_dataset("palette", data=np.zeros((256, 3), np.uint8))
        palette.attrs["CLASS"] = np.bytes_("PALETTE")
        image = file.create_dataset("image", data=DEEP.astype(np.uint8))
        image.attrs.update(CLASS=np.bytes_("IMAGE"), IMAGE_SUBCLASS=np.bytes_("IMAGE_GRAYSCALE"))
    np.testing.assert_array_equal(pixels(path), DEEP.astype(np.uint8))
    with h5py.File(path, "r+") as file:
        file["image"].attrs["IMAGE_SUBCLASS"] = np.bytes_("IMAGE_INDEXED")
    refused(path, "/image 24x20 uint8 is an image of palette indices")


def nion_swift(path, pixels, units, datum=2, values=None):
    known = {
        "dimensional_calibrations": [{"offset": 0, "scale": s, "units": u} for s, u in units],
        "datum_dimension_count": datum,
        "intensity_calibration": values or {"offset": 0.0, "scale": 1.0, "units": ""},
    }
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=pixels).attrs["properties"] = json.dumps(known)


def test_nion_swift(tmp_path, caplog):
    path = tmp_path / "a.h5"
    nion_swift(path, DEEP, [(0.5, "nm"), (0.25, "nm")])
    (found,) = planes(path)
    np.testing.assert_array_equal(found.image, DEEP)
    assert found.nm_per_pixel == (0.5, 0.25) and found.origin == "Nion Swift"
    nion_swift(path, STACK, [(1, "s"), (0.5, "nm"), (0.5, "nm")])
    np.testing.assert_array_equal(pixels(path), STACK)
    nion_swift(path, DEEP, [(1, "rad"), (1, "rad")])
    refused(path, "data 24x20 uint16 is reciprocal space")
    nion_swift(path, STACK, [(0.5, "nm"), (0.5, "nm"), (0.1, "eV")], datum=1)
    refused(path, "data 3x24x20 uint16 is a spectrum or profile")
    nion_swift(path, DEEP, [(1, "nm"), (1, "nm")], values={"offset": -5, "scale": 0.25})
    np.testing.assert_array_equal(pixels(path), DEEP)
    assert "its values mean (stored - 20) * 0.25" in caplog.text
    (found,) = micrographs.planes(path, brightness=True)
    np.testing.assert_array_equal(found.image, DEEP * 0.25 - 5)


def test_what_py4dstem_wrote_before_1_0_has_rows_along_x(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("4DSTEM_experiment/data/realslices/BF")
        group.attrs["emd_group_type"] = 1
        group["data"] = DEEP
        for number, (axis, side) in enumerate(zip("xy", DEEP.shape, strict=True), 1):
            dim = group.create_dataset(f"dim{number}", data=np.arange(side) * number / 2)
            dim.attrs.update(name=f"R_{axis}", units="nm")
    (found,) = planes(path)
    np.testing.assert_array_equal(found.image, DEEP)
    assert found.nm_per_pixel == (0.5, 1.0)


def test_nexus_says_to_which_dimension_an_axis_belongs(tmp_path):
    path = tmp_path / "a.h5"
    format_samples.nexus(path, DEEP)
    with h5py.File(path, "r+") as file:
        file["entry/scan"].attrs.update(axes=["x", "y"], x_indices=1, y_indices=0)
    (found,) = planes(path)
    np.testing.assert_array_equal(found.image, DEEP)
    assert found.nm_per_pixel == pytest.approx(NM)


def test_nexus_positions_decide_where_the_indices_contradict_them(tmp_path):
    """As pynxtools-em wrote them, which counted x first; without positions the indices stand."""
    path = tmp_path / "a.h5"
    format_samples.nexus(path, DEEP)
    with h5py.File(path, "r+") as file:
        file["entry/scan"].attrs.update(axes=["y", "x"], x_indices=0, y_indices=1)
    (found,) = planes(path)
    np.testing.assert_array_equal(found.image, DEEP)
    assert found.nm_per_pixel == pytest.approx(NM)
    with h5py.File(path, "r+") as file:
        del file["entry/scan/x"], file["entry/scan/y"]
    np.testing.assert_array_equal(pixels(path), DEEP.T)


@pytest.mark.parametrize("shape", [(20, 21), (21, 20), (20, 20)])
def test_nexus_of_sides_that_are_nearly_or_quite_alike(tmp_path, shape, caplog):
    """Positions may be those of edges, one more; of a square it cannot be told, which is said."""
    path, image = tmp_path / "a.h5", np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    format_samples.nexus(path, image)
    with h5py.File(path, "r+") as file:
        file["entry/scan"].attrs.update(axes=["y", "x"], x_indices=0, y_indices=1)
    (found,) = planes(path)
    is_square = shape[0] == shape[1]
    np.testing.assert_array_equal(found.image, image.T if is_square else image)
    assert np.isfinite(found.nm_per_pixel).all()
    assert ("either may be right: the indices are taken" in caplog.text) == is_square


@pytest.mark.parametrize("field", ["scaling_factor", "offset", "{}_scaling_factor"])
def test_nexus_that_is_scaled_is_refused(tmp_path, field):
    path = tmp_path / "a.h5"
    format_samples.nexus(path, DEEP)
    with h5py.File(path, "r+") as file:
        field = field.format(file["entry/scan"].attrs["signal"])
        file[f"entry/scan/{field}"] = 0.0 if field == "offset" else 1.0
    np.testing.assert_array_equal(pixels(path), DEEP)
    with h5py.File(path, "r+") as file:
        file[f"entry/scan/{field}"][()] = 0.5
    refused(path, "scaled by a scaling_factor or an offset")


def test_other_signals_of_nexus_are_named(tmp_path, caplog):
    path = tmp_path / "a.h5"
    format_samples.nexus(path, DEEP)
    with h5py.File(path, "r+") as file:
        file["entry/scan"].attrs["auxiliary_signals"] = ["bright_field"]
    np.testing.assert_array_equal(pixels(path), DEEP)
    assert "left out beside" in caplog.text and "bright_field" in caplog.text


@pytest.mark.parametrize("named", ["yx", "none"])
def test_colours_of_an_axis_without_a_name(tmp_path, named):
    path = tmp_path / "a.h5"
    colours = np.random.default_rng(0).integers(0, 255, (24, 20, 3), np.uint8)
    with h5py.File(path, "w") as file:
        file["image"] = colours
        if named == "yx":
            file["image"].dims[0].label, file["image"].dims[1].label = "y", "x"
    (found,) = planes(path)
    luminance = np.rint(colours @ np.array([0.299, 0.587, 0.114]))
    np.testing.assert_array_equal(found.image, luminance)


@pytest.mark.parametrize("bits", [0, 4, 8])
def test_eman2(tmp_path, bits, caplog):
    """Numbers of few bits are shares of a range; the pixel size is in angstrom."""
    path = tmp_path / "a.hdf"
    most = (1 << (bits or 8)) - 1
    stored = np.random.default_rng(0).integers(0, most, (24, 20), np.uint8, endpoint=True)
    with h5py.File(path, "w") as file:
        group = file.create_group("MDF/images/0")
        group["image"] = stored
        known = {"apix_x": 2.5, "apix_y": 5.0, "apix_z": 1.0}
        known |= {"stored_rendermin": -3.0, "stored_rendermax": 5.0} if bits else {}
        for name, value in known.items():
            group.attrs[f"EMAN.{name}"] = np.float32(value)
        group.attrs["EMAN.stored_renderbits"] = np.int32(bits)
    (found,) = planes(path)
    expected = stored / (2**bits - 1) * 8 - 3 if bits else stored
    np.testing.assert_allclose(found.image, expected, rtol=1e-6)
    assert found.nm_per_pixel == pytest.approx((0.5, 0.25))
    with h5py.File(path, "r+") as file:
        file["MDF/images/0"].attrs.update({"EMAN.apix_x": 1.0, "EMAN.apix_y": 1.0})
    assert planes(path)[0].nm_per_pixel == pytest.approx((0.1, 0.1))
    assert "exactly 1 angstrom" in caplog.text


def test_nexus_says_what_to_plot(tmp_path, caplog):
    path = tmp_path / "a.h5"
    format_samples.nexus(path, DEEP)
    with h5py.File(path, "r+") as file:
        file["entry/other/own"] = GREY
        file["entry/other"].attrs.update(NX_class="NXdata", signal="own")
    refused(path, "2 different images")
    with h5py.File(path, "r+") as file:
        file.attrs["default"], file["entry"].attrs["default"] = "entry", "scan"
    np.testing.assert_array_equal(pixels(path), DEEP)
    assert "/entry/scan is read, its default; left out: /entry/other" in caplog.text


def test_what_is_left_of_nexus_is_not_read_for_the_default(tmp_path):
    """Its signal is in another file; the one that is here may be a mask."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        for name in ("image", "mask"):
            file.create_group(f"entry/{name}").attrs.update(NX_class="NXdata", signal="own")
        file["entry/mask/own"] = GREY
        file["entry/image/own"] = h5py.ExternalLink("other.h5", "/image")
    for default in ("", "image"):
        with h5py.File(path, "r+") as file:
            file.attrs["default"], file["entry"].attrs["default"] = "entry", default
        refused(path, "/entry/image/own, which its NXdata is of, is not in the file")
    with h5py.File(path, "r+") as file:
        file["entry"].attrs["default"] = "mask"
    np.testing.assert_array_equal(pixels(path), GREY)


def test_a_signal_behind_a_link_opens_no_other_file(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["entry/data/out"] = h5py.ExternalLink("other.h5", "/")
        file["entry/data"].attrs.update(NX_class="NXdata", signal="out/own")
        file["entry/other"] = GREY
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["own"] = DEEP
    inside = h5py.Group.__contains__

    def watched(group, name):
        assert "/" not in str(name).strip("/") or not str(name).startswith("out")
        return inside(group, name)

    monkeypatch.setattr(h5py.Group, "__contains__", watched)
    refused(path, "/entry/data/out: its values are virtual or in other files")


def test_a_default_that_is_no_image_leaves_the_image(tmp_path):
    path = tmp_path / "a.h5"
    format_samples.nexus(path, DEEP)
    with h5py.File(path, "r+") as file:
        file["entry/spectra/own"] = STACK
        file["entry/spectra/own"].attrs["interpretation"] = "spectrum"
        file["entry/spectra"].attrs.update(NX_class="NXdata", signal="own")
        file.attrs["default"], file["entry"].attrs["default"] = "entry", "spectra"
    np.testing.assert_array_equal(pixels(path, 0), DEEP)


def test_a_block_of_the_user_may_come_first(tmp_path):
    for size in (512, 2048):
        with h5py.File(tmp_path / f"{size}.h5", "w", userblock_size=size) as file:
            file["image"] = DEEP
        np.testing.assert_array_equal(pixels(tmp_path / f"{size}.h5"), DEEP)
        with open(tmp_path / f"{size}.h5", "r+b") as file:
            file.write(b"MATLAB 7.3 MAT-file")  # axes from the last to the first
        refused(tmp_path / f"{size}.h5", "no format that emjax reads")


# What reaches out, or lies


def external_link(path):
    format_samples.berkeley(path.with_name("other.h5"), DEEP)
    with h5py.File(path, "w") as file:
        file["link"] = h5py.ExternalLink("other.h5", "/data/image/data")


def external_values(path):
    path.with_name("other.raw").write_bytes(DEEP.tobytes())
    with h5py.File(path, "w") as file:
        where = [(str(path.with_name("other.raw")), 0, DEEP.nbytes)]
        file.create_dataset("image", DEEP.shape, DEEP.dtype, external=where)


def virtual_values(path):
    with h5py.File(path.with_name("other.h5"), "w") as file:
        file["image"] = DEEP
    layout = h5py.VirtualLayout(DEEP.shape, DEEP.dtype)
    layout[:] = h5py.VirtualSource(path.with_name("other.h5"), "image", DEEP.shape)
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("image", layout)


def nexus_link(path):
    format_samples.nexus(path, DEEP)
    format_samples.berkeley(path.with_name("other.h5"), DEEP)
    with h5py.File(path, "r+") as file:
        del file["entry/scan/counts"]
        file["entry/scan/counts"] = h5py.ExternalLink("other.h5", "/data/image/data")


@pytest.mark.parametrize(
    "make, reason",
    [
        (external_link, "its values are virtual or in other files, which are not followed"),
        (external_values, "/image: its values are virtual or in other files, which are not"),
        (virtual_values, "/image: its values are virtual or in other files, which are not"),
        (nexus_link, "/entry/scan/counts: its values are virtual or in other files, which are not"),
    ],
)
def test_what_points_out_of_a_file_is_not_followed(tmp_path, make, reason):
    make(tmp_path / "scan.bin")
    refused(tmp_path / "scan.bin", reason)


def test_a_mask_beside_a_link_to_its_image_is_not_read(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["entry/data/data_000001"] = h5py.ExternalLink("other.h5", "/entry/data/data")
        file["entry/data"].attrs["NX_class"] = "NXdata"
        file["entry/instrument/pixel_mask"] = GREY
    refused(tmp_path / "a.h5", "/entry/data/data_000001: its values are virtual or in other files")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["entry/data/counts"] = h5py.SoftLink("/nowhere")
        file["entry/data"].attrs.update(NX_class="NXdata", signal="counts")
        file["entry/flatfield"] = GREY
    refused(tmp_path / "b.h5", "/entry/data/counts, which its NXdata is of, is not in the file")


@pytest.mark.parametrize("make", [external_values, virtual_values])
def test_an_array_that_is_kept_elsewhere_is_left_out_where_the_image_is_known(
    tmp_path, caplog, make
):
    """Without a program's layout, the one that is left may be its mask."""
    path = tmp_path / "a.h5"
    make(path)
    with h5py.File(path, "r+") as file:
        file["scan/own"] = GREY
    refused(path, "/image: its values are virtual or in other files, which are not")
    with h5py.File(path, "r+") as file:
        file["scan"].attrs.update(NX_class="NXdata", signal="own")
    np.testing.assert_array_equal(pixels(path), GREY)
    assert "/image is left out: its values are virtual or in other files" in caplog.text


def test_virtual_arrays_of_any_length_do_not_open_other_files(tmp_path):
    """HDF5 opens the sources of such an array when it is asked for its shape."""
    path, other = tmp_path / "a.h5", tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file.create_dataset("image", data=STACK, maxshape=(None, 24, 20))
    source = h5py.VirtualSource(other, "image", STACK.shape, maxshape=(None, 24, 20))
    layout = h5py.VirtualLayout(STACK.shape, STACK.dtype, maxshape=(None, 24, 20))
    layout[: h5s.UNLIMITED] = source[: h5s.UNLIMITED]
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("stack", layout)
        file["own"] = GREY
        file["scan/x"] = h5py.SoftLink("/stack")
        file["scan"].attrs.update(NX_class="NXdata", signal="x")
    with open(other, "r+b") as file:  # HDF5 would fail
        file.write(bytes(100))
    refused(path, "/stack: its values are virtual or in other files, which are not followed")


def test_a_group_in_itself_is_visited_once(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a/b/image"] = GREY
        file["a/b/c"] = file["a"]
    np.testing.assert_array_equal(pixels(tmp_path / "a.h5"), GREY)


def test_sizes_are_checked_before_anything_is_decoded(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("image", data=np.ones((100, 100), np.uint16), chunks=(50, 100))
    monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda *_: pytest.fail("decoded"))
    with pytest.raises(micrographs.TooLarge, match="20 kB, expected at most 19 kB"):
        list(micrographs.planes(tmp_path / "a.h5", limit=19_000))
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_dataset("image", data=np.ones((3, 10, 10)), chunks=(3, 10, 10))
    with pytest.raises(micrographs.TooLarge, match="a chunk of /image declares 3x10x10"):
        list(micrographs.planes(tmp_path / "b.h5", limit=1000))


def heap(*texts, longer=0):
    """Return what a heap of texts is in HDF5; the last part may claim to be longer than it is."""
    parts = [
        struct.pack("<HHIQ", number, 1, 0, len(text) + longer * (number == len(texts)))
        + text.ljust(-(-len(text) // 8) * 8, b"\0")
        for number, text in enumerate(texts, start=1)
    ]
    content = b"".join(parts)
    return b"GCOL\1\0\0\0" + struct.pack("<Q", 16 + len(content)) + content


def test_heaps_of_texts_are_checked(tmp_path):
    """Check bytes around heaps, which are no HDF5 files."""
    (tmp_path / "whole").write_bytes(bytes(40) + heap(b"words", b"more words") + bytes(40))
    hdf5_items.check_heaps(tmp_path / "whole")
    (tmp_path / "longer").write_bytes(bytes(40) + heap(b"words", b"more", longer=9) + bytes(40))
    with pytest.raises(InputError, match="a damaged heap of texts at byte 40"):
        hdf5_items.check_heaps(tmp_path / "longer")


def test_heaps_are_checked_before_hdf5_reads_a_text(tmp_path, monkeypatch):
    def damaged(path):
        raise InputError(f"a damaged heap in {path}")

    path = with_attributes(tmp_path / "a.h5", GREY, CLASS=np.array("IMAGE", h5py.string_dtype()))
    np.testing.assert_array_equal(pixels(path), GREY)
    monkeypatch.setattr(hdf5_items, "check_heaps", damaged)
    refused(path, "a damaged heap in")


def test_sequences_are_told_from_other_types_of_variable_length():
    with h5py.File("a.h5", "w", driver="core", backing_store=False) as file:
        file.attrs["name"] = "a text"
        kind = h5py.h5t.vlen_create(h5py.h5t.NATIVE_INT32)
        assert hdf5_items.is_sequence(kind.encode())
        assert not hdf5_items.is_sequence(h5py.h5t.NATIVE_INT32.encode())
        assert not hdf5_items.is_sequence(file.attrs.get_id("name").get_type().encode())
