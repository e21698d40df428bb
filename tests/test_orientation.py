"""Pictures are turned as they say, masks too, and one of several channels is chosen."""

import json

import h5py
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from data_builders.micrographs.masks import interpret
from emjax import micrographs
from emjax.errors import InputError

RNG = np.random.default_rng(4)
IMAGE = RNG.integers(0, 200, (24, 20), np.uint8)
OTHER = RNG.integers(0, 200, (24, 20), np.uint8)
STACKS = RNG.integers(0, 200, (5, 2, 24, 20), np.uint8)  # z, channel


def with_orientation(path, pixels, orientation):
    """Write `pixels`, and return them as Pillow shows them by the orientation."""
    if path.suffix == ".tif":
        tags = [(274, "H", 1, orientation, True)]
        options = {"photometric": "minisblack"} if pixels.ndim == 2 else {"photometric": "rgb"}
        tifffile.imwrite(path, pixels, extratags=tags, metadata=None, **options)
    picture = Image.fromarray(pixels)
    exif = picture.getexif()
    exif[274] = orientation
    if path.suffix != ".tif":
        picture.save(path, exif=exif, quality=100)
    return np.asarray(ImageOps.exif_transpose(picture))


@pytest.mark.parametrize("suffix", [".tif", ".png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_and_masks_are_turned_by_their_orientation(tmp_path, caplog, suffix, orientation):
    path = tmp_path / f"a{suffix}"
    shown = with_orientation(path, IMAGE, orientation)
    np.testing.assert_array_equal(micrographs.read(path).image, shown)
    assert (f"{orientation}, by which it is turned" in caplog.text) == (orientation > 1)
    mask = (IMAGE > 100) * np.uint8(255)
    shown = with_orientation(path, mask, orientation)
    (plane,) = micrographs.planes(path, as_mask=True)
    np.testing.assert_array_equal(interpret(path, plane.image, None)[0], shown > 0)
    colours = np.stack([IMAGE, OTHER, IMAGE], -1)
    shown = with_orientation(path, colours, orientation)
    np.testing.assert_array_equal(micrographs.read_pixels(path), shown)


def test_a_jpeg_is_turned(tmp_path):
    smooth = np.add.outer(np.arange(64) * 2, np.arange(40)).astype(np.uint8)
    shown = with_orientation(tmp_path / "a.jpg", smooth, 6)
    found = micrographs.read(tmp_path / "a.jpg").image
    assert found.shape == (40, 64) and np.abs(found.astype(int) - shown).max() < 8


def test_the_pixel_size_turns_with_the_image_and_stacks_turn_plane_by_plane(tmp_path):
    stack = np.stack([IMAGE, OTHER])
    tags = [(274, "H", 1, 6, True)]
    tifffile.imwrite(
        tmp_path / "a.tif", stack, photometric="minisblack", metadata=None, extratags=tags,
        resolution=(1e7, 2e7), resolutionunit="CENTIMETER", compression="zlib",
    )  # fmt: skip
    planes = list(micrographs.planes(tmp_path / "a.tif"))
    for plane, expected in zip(planes, stack, strict=True):
        np.testing.assert_array_equal(plane.image, np.rot90(expected, -1))
        assert plane.nm_per_pixel == pytest.approx((1.0, 0.5))
    volume = micrographs.read_stack(tmp_path / "a.tif").image
    np.testing.assert_array_equal(volume, np.rot90(stack, -1, (1, 2)))


def imagej(path, stored, axes, **metadata):
    tifffile.imwrite(path, stored, imagej=True, metadata={"axes": axes, **metadata})
    return path


def ome(path, stored, axes, names):
    channel = {"Name": names} if names else {}
    tifffile.imwrite(path, stored, metadata={"axes": axes, "Channel": channel})
    return path


BOTH = np.stack([IMAGE, OTHER])
MAKE = {
    "ImageJ": lambda p: imagej(p / "a.tif", BOTH, "CYX"),
    "ImageJ, composite": lambda p: imagej(p / "a.tif", BOTH, "CYX", mode="composite"),
    "ImageJ, labels": lambda p: imagej(p / "a.tif", BOTH, "CYX", Labels=["SE", "BSE"]),
    "OME": lambda p: ome(p / "a.ome.tif", BOTH, "CYX", []),
    "OME, names": lambda p: ome(p / "a.ome.tif", BOTH, "CYX", ["SE", "BSE"]),
    "OME, tiled": lambda p: ome(p / "a.ome.tif", BOTH[None], "TCYX", ["SE", "BSE"]),
}


@pytest.mark.parametrize("kind", MAKE)
def test_channels_are_no_planes(tmp_path, kind):
    path = MAKE[kind](tmp_path)
    named = "names" in kind or "labels" in kind or "tiled" in kind
    first = "SE" if named else "0"
    with pytest.raises(micrographs.SeveralImages, match=f"channel {first} 24x20") as error:
        list(micrographs.planes(path))
    assert error.value.advice == "choose one by index= or channel="
    for number, expected in enumerate(BOTH):
        for choice in {str(number), ["se", "BSE"][number] if named else str(number)}:
            found = micrographs.read(path, channel=choice).image
            np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(micrographs.read(path, number).image, expected)
    listed = "SE, BSE" if named else "channel 0, channel 1"
    with pytest.raises(InputError, match=f"no channel 'x'; its channels are {listed}"):
        micrographs.read(path, channel="x")


@pytest.mark.parametrize("make", [imagej, lambda p, s, a: ome(p, s, a, ["SE", "BSE"])])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_channels_of_a_stack_are_stacks(tmp_path, make, compression):
    path = make(tmp_path / "a.tif", STACKS, "ZCYX")
    for number in range(2):
        stack = micrographs.read_stack(path, channel=str(number)).image
        np.testing.assert_array_equal(stack, STACKS[:, number])
    np.testing.assert_array_equal(micrographs.read_stack(path, 1).image, STACKS[:, 1])


def test_channels_of_other_files(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["exported_data"] = np.stack([IMAGE, OTHER], -1)
        keys = {"axes": [{"key": key} for key in "yxc"]}
        file["exported_data"].attrs["axistags"] = json.dumps(keys)
    np.testing.assert_array_equal(micrographs.read(tmp_path / "a.h5", channel="1").image, OTHER)
    colours = np.stack([IMAGE, OTHER, IMAGE // 2], -1)
    Image.fromarray(colours).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", colours, photometric="rgb")
    for name in ("a.png", "a.tif"):
        for choice in ("green", "1"):
            found = micrographs.read(tmp_path / name, channel=choice).image
            np.testing.assert_array_equal(found, OTHER)
    tifffile.imwrite(tmp_path / "grey.tif", IMAGE)
    with pytest.raises(InputError, match=r"grey.tif: no channel 'SE'; it has no channels"):
        micrographs.read(tmp_path / "grey.tif", channel="SE")
