"""Axes of arrays: by their names where a file has them, else by shape; channels are a choice."""

import json

import h5py
import numpy as np
import pytest
import zarr

from emjax import micrographs
from emjax.errors import InputError
from emjax.micrographs.axes import Axes, layouts, role

IMAGE = np.random.default_rng(5).integers(0, 256, (24, 20), np.uint8)
OTHER = 255 - IMAGE
STACK = np.random.default_rng(6).integers(0, 256, (3, 24, 20), np.uint8)
COLOURS = np.random.default_rng(7).integers(0, 256, (24, 20, 3), np.uint8)


def npy(path, array):
    np.save(path.with_suffix(".npy"), array)
    return path.with_suffix(".npy")


def hdf5(path, array):
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        file["image"] = array
    return path.with_suffix(".h5")


def zarr2(path, array):
    zarr.save_array(path.with_suffix(".zarr"), array, zarr_format=2)
    return path.with_suffix(".zarr")


def found(path, index=None):
    return np.stack([plane.image for plane in micrographs.planes(path, index)]).squeeze()


WRITERS = pytest.mark.parametrize("write", [npy, hdf5, zarr2])


@WRITERS
@pytest.mark.parametrize("image", [IMAGE, STACK, IMAGE[:1], IMAGE[:, :1]])
@pytest.mark.parametrize("where", [(0,), (-1,), (0, -1), (1,), (-1, -2), (0, 1, -1)])
def test_axes_of_length_1_are_left_out_wherever_they_stand(tmp_path, write, image, where):
    path = write(tmp_path / "a", np.expand_dims(image, where))
    np.testing.assert_array_equal(found(path), image.squeeze())


@WRITERS
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_two_channels_last_are_two_images(tmp_path, write, dtype):
    path = write(tmp_path / "a", np.stack([IMAGE, OTHER], -1).astype(dtype))
    with pytest.raises(
        micrographs.SeveralImages, match="channel 0 24x20.*channel 1 24x20"
    ) as error:
        micrographs.read(path)
    assert len(error.value.choices) == 2
    np.testing.assert_array_equal(found(path, 0), IMAGE.astype(dtype))
    np.testing.assert_array_equal(found(path, 1), OTHER.astype(dtype))


@WRITERS
def test_three_channels_are_colours_only_in_8_and_16_bits(tmp_path, write):
    path = write(tmp_path / "a", COLOURS)
    np.testing.assert_array_equal(micrographs.read_pixels(path), COLOURS)
    path = write(tmp_path / "b", np.stack([COLOURS] * 2))  # a stack of colours
    planes = micrographs.planes(path, colours=True)
    np.testing.assert_array_equal(np.stack([plane.image for plane in planes]), [COLOURS] * 2)
    path = write(tmp_path / "c", COLOURS / np.float32(255))  # of three classes, perhaps
    with pytest.raises(micrographs.SeveralImages, match="3 different images"):
        micrographs.read(path)
    np.testing.assert_array_equal(found(path, 2), COLOURS[..., 2] / np.float32(255))


@WRITERS
@pytest.mark.parametrize("shape", [(30, 2, 40), (3, 4, 2), (24, 20, 5), (40, 64, 8)])
def test_a_stack_of_strips_is_refused_with_advice(tmp_path, write, shape):
    path = write(tmp_path / "a", np.zeros(shape, np.uint8) + 1)
    advice = r"would be \d+ images of \d+x\d+; store the image axes last, or name the axes"
    with pytest.raises(InputError, match=advice):
        list(micrographs.planes(path))


@WRITERS
def test_four_dimensions_are_refused(tmp_path, write):
    path = write(tmp_path / "a", np.ones((2, 3, 5, 6), np.uint8))
    with pytest.raises(InputError, match=r"4-D data \(2, 3, 5, 6\)"):
        list(micrographs.planes(path))


# Axes in the order of the array, and the array of the stack [z, y, x] or two of them as channels.
ORDERS = ["zyx", "xyz", "yxz", "zxy", "zyxc", "tzyxc", "xyzct", "czyx"]


def in_order(axes):
    return np.einsum(f"zyx->{''.join(a for a in axes if a in 'zyx')}", STACK).reshape(
        [dict(zip("zyx", STACK.shape, strict=True)).get(axis, 1) for axis in axes]
    )


def axistags(path, array, axes):
    """Write what ilastik writes: vigra's axistags as JSON."""
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        keys = [{"key": axis, "typeFlags": 2, "resolution": 0, "description": ""} for axis in axes]
        file["exported_data"] = array
        file["exported_data"].attrs["axistags"] = json.dumps({"axes": keys})
    return path.with_suffix(".h5")


def labels(path, array, axes):
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        file["image"] = array
        for axis, name in enumerate(axes):
            file["image"].dims[axis].label = name
    return path.with_suffix(".h5")


def attached(path, array, axes):
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        data = file.create_dataset("image", data=array)
        for axis, name in enumerate(axes):
            scale = file.create_dataset(name, data=np.arange(array.shape[axis]) * 2.0)
            scale.make_scale(name)
            scale.attrs["units"] = "um"
            data.dims[axis].attach_scale(scale)
    return path.with_suffix(".h5")


def dimension_names(path, array, axes):
    path = path.with_suffix(".zarr")
    group = zarr.open_group(path, mode="w")
    group.create_array("image", data=array, dimension_names=list(axes))
    return path


def xarray(path, array, axes):
    path = path.with_suffix(".zarr")
    group = zarr.open_group(path, mode="w", zarr_format=2)
    group.create_array("image", data=array).attrs["_ARRAY_DIMENSIONS"] = list(axes)
    for axis, side in zip(axes, array.shape, strict=True):
        vector = group.create_array(axis, data=np.arange(side) * 2.0)
        vector.attrs.update(units="um", _ARRAY_DIMENSIONS=[axis])
    return path


def ngff(path, array, axes, version="0.4", unit="micrometer", **more):
    path = path.with_suffix(".zarr")
    group = zarr.open_group(path, mode="w", zarr_format=2 if version < "0.5" else 3)
    group.create_array("0", data=array)
    kinds = {"t": "time", "c": "channel"}
    listed = [{"name": axis, "type": kinds.get(axis, "space")} for axis in axes]
    for axis in listed:
        axis |= {"unit": unit} if axis["type"] == "space" else {}
    scale = [{"z": 4.0, "y": 2.0, "x": 3.0}.get(axis, 1.0) for axis in axes]
    level = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}
    known = {"multiscales": [{"version": version, "axes": listed, "datasets": [level]}], **more}
    group.attrs.update(known if version < "0.5" else {"ome": {"version": version, **known}})
    return path


NAMED = [axistags, labels, attached, dimension_names, xarray, ngff]


@pytest.mark.parametrize("write", NAMED)
@pytest.mark.parametrize("axes", ORDERS)
def test_named_axes_may_stand_in_any_order(tmp_path, write, axes):
    path = write(tmp_path / "a", in_order(axes), axes)
    np.testing.assert_array_equal(found(path), STACK)
    (first, *_) = micrographs.planes(path)
    known = {attached: (2e3, 2e3), xarray: (2e3, 2e3), ngff: (2e3, 3e3)}
    np.testing.assert_allclose(first.nm_per_pixel, known.get(write, (np.nan, np.nan)))


@pytest.mark.parametrize("write", NAMED)
def test_a_channel_axis_is_several_images(tmp_path, write):
    both = np.stack([STACK, 255 - STACK])
    for axes in ("czyx", "zcyx", "zyxc"):
        array = np.einsum(f"czyx->{axes}", both)
        path = write(tmp_path / axes, array, axes)
        for channel in (0, 1):
            np.testing.assert_array_equal(found(path, channel), both[channel])
        with pytest.raises(micrographs.SeveralImages, match="2 different images"):
            list(micrographs.planes(path))


@pytest.mark.parametrize("write", NAMED)
def test_names_decide_over_shape(tmp_path, write):
    narrow = STACK[:, :, :2]
    np.testing.assert_array_equal(found(write(tmp_path / "a", narrow, "zyx")), narrow)
    path = write(tmp_path / "b", np.stack([STACK, STACK]), "tzyx")
    with pytest.raises(InputError, match=r"4-D data \(2, 3, 24, 20\) of the axes t, z, y, x"):
        list(micrographs.planes(path))
    path = write(tmp_path / "c", np.ones((150, 8, 8), np.uint8), "cyx")
    with pytest.raises(InputError, match="150 channels, expected at most 100"):
        list(micrographs.planes(path))


def test_channels_of_ome_have_their_names(tmp_path):
    channels = {"channels": [{"label": "HAADF"}, {"label": "BF"}]}
    path = ngff(tmp_path / "a", np.stack([IMAGE, OTHER]), "cyx", omero=channels)
    with pytest.raises(micrographs.SeveralImages, match="0: / HAADF 24x20 uint8, 1: / BF 24x20"):
        micrographs.read(path)
    np.testing.assert_array_equal(found(path, 1), OTHER)


def test_reciprocal_space_is_refused_by_ngff_and_dimension_scales(tmp_path):
    path = ngff(tmp_path / "a", STACK, "zyx", unit="1/nm")
    with pytest.raises(InputError, match="reciprocal space"):
        list(micrographs.planes(path))
    path = attached(tmp_path / "b", IMAGE, "yx")
    with h5py.File(path, "r+") as file:
        file["x"].attrs["units"] = "mrad"
    with pytest.raises(InputError, match="reciprocal space"):
        list(micrographs.planes(path))


@pytest.mark.parametrize(
    "scales, sizes",
    [
        ([{"type": "scale", "scale": [2.0, 3.0]}], (2, 3)),
        ([{"type": "identity"}, {"type": "scale", "scale": [2.0, 3.0]}], (2, 3)),
        (
            [{"type": "scale", "scale": [2, 3]}, {"type": "translation", "translation": [1, 1]}],
            (2, 3),
        ),
        (
            [{"type": "sequence", "transformations": [{"type": "scale", "scale": [2.0, 3.0]}]}],
            (2, 3),
        ),
        ([{"type": "affine", "affine": [[2, 0, 0], [0, 3, 0]]}], None),
        ([{"type": "scale", "path": "scale"}], None),
        ([{"type": "scale", "scale": [2.0, 3.0, 1.0]}], None),
        ([], None),
    ],
)
def test_only_scales_are_pixel_sizes(tmp_path, scales, sizes):
    path = ngff(tmp_path / "a", IMAGE, "yx", unit="nanometer")
    attributes = json.loads((path / ".zattrs").read_text())
    attributes["multiscales"][0]["datasets"][0]["coordinateTransformations"] = scales
    (path / ".zattrs").write_text(json.dumps(attributes))
    np.testing.assert_allclose(micrographs.read(path).nm_per_pixel, sizes or (np.nan, np.nan))


@pytest.mark.parametrize("version, axes", [("0.3", ["z", "y", "x"]), ("0.5", None), ("0.2", None)])
def test_every_version_of_ome_zarr(tmp_path, version, axes):
    if version == "0.5":
        path = ngff(tmp_path / "a", STACK, "zyx", version)
        np.testing.assert_allclose(next(micrographs.planes(path)).nm_per_pixel, (2e3, 3e3))
    else:
        array = STACK if axes else STACK[None, None]
        path = ngff(tmp_path / "a", array, "zyx" if axes else "tczyx")
        known = {"version": version, "datasets": [{"path": "0"}]} | ({"axes": axes} if axes else {})
        (path / ".zattrs").write_text(json.dumps({"multiscales": [known]}))
    np.testing.assert_array_equal(found(path), STACK)


def test_names_of_axes():
    for name in ("y", "Y", b"y", "row", "rows", "height", "y axis", "axis-y"):
        assert role(name) == "y"
    assert [role(name) for name in ("x", "Col", "z", "t", "Channel", "Qx", "", None, 3)] == [
        "x", "x", "z", "t", "c", "", "", "", "",
    ]  # fmt: skip


def test_a_layout_takes_its_plane_from_any_array():
    array = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    (first, second), refused = layouts(array.shape, array.dtype, Axes("cxzy"))
    assert refused == "" and first.shape == second.shape == (4, 5, 3)
    for n in range(4):
        np.testing.assert_array_equal(second.plane(array, n), array[1, :, n].T)
    assert second.of([10, 20, 30, 40]) == [30, 40, 20]
