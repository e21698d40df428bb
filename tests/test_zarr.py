"""Zarr and NPY: chunks that are not there or have other names, values by CF, what reaches out."""

import json
import os
import struct

import numpy as np
import pytest
import zarr

from emjax import micrographs
from emjax.errors import InputError
from emjax.micrographs.formats import npy_zarr
from tests.format_samples import DEEP, GREY, NM, STACK


def pixels(path, index=None):
    return np.stack([plane.image for plane in micrographs.planes(path, index)]).squeeze()


def refused(path, reason):
    with pytest.raises(InputError, match=reason) as caught:
        list(micrographs.planes(path))
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def store(path, array=DEEP, separator="/", version=2, **more):
    """Write an OME-Zarr of one level with chunks of 8 x 8 (of 24 x 20: nine)."""
    group = zarr.open_group(path, mode="w", zarr_format=version)
    kind = "v2" if version == 2 else "default"
    level = group.create_array(
        "0",
        shape=array.shape,
        dtype=array.dtype,
        chunks=(1, 8, 8)[-array.ndim :],
        chunk_key_encoding={"name": kind, "separator": separator},
        config={"write_empty_chunks": True},
        **more,
    )
    level[...] = array
    known = {"axes": [{"name": a} for a in "zyx"[-array.ndim :]], "datasets": [{"path": "0"}]}
    group.attrs.update(
        {"multiscales": [known]} if version == 2 else {"ome": {"multiscales": [known]}}
    )
    return path


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("separator", ["/", "."])
@pytest.mark.parametrize("array", [DEEP, STACK])
def test_whole_stores_have_no_note(tmp_path, caplog, version, separator, array):
    path = store(tmp_path / "a.zarr", array, separator, version)
    np.testing.assert_array_equal(pixels(path), array)
    assert caplog.text == ""


def test_whole_stores_of_shards_have_no_note(tmp_path, caplog):
    path = store(tmp_path / "a.zarr", version=3, shards=(16, 16))
    np.testing.assert_array_equal(pixels(path), DEEP)
    assert caplog.text == ""
    next(file for file in (path / "0" / "c").rglob("*") if file.is_file()).unlink()
    assert (pixels(path) == 0).sum() > 16
    assert "1 of 4 chunks of / are not there; their pixels are 0" in caplog.text


@pytest.mark.parametrize("declared, stored", [(None, "/"), (".", "/"), ("/", ".")])
def test_chunks_with_the_other_separator_are_read(tmp_path, caplog, declared, stored):
    """OME-Zarr 0.2 and 0.3 have nested folders, and metadata that do not say so."""
    path = store(tmp_path / "a.zarr", separator=stored)
    metadata = json.loads((path / "0" / ".zarray").read_text())
    metadata.pop("dimension_separator")
    if declared:
        metadata["dimension_separator"] = declared
    (path / "0" / ".zarray").write_text(json.dumps(metadata))
    np.testing.assert_array_equal(pixels(path), DEEP)
    assert f"chunks of / are named with {stored!r}, unlike its metadata" in caplog.text


def test_chunks_with_other_names_in_zarr_3_are_refused(tmp_path):
    path = store(tmp_path / "a.zarr", version=3)
    metadata = json.loads((path / "0" / "zarr.json").read_text())
    metadata["chunk_key_encoding"]["configuration"]["separator"] = "."
    (path / "0" / "zarr.json").write_text(json.dumps(metadata))
    refused(path, "chunks of / are not named as its metadata say")


@pytest.mark.parametrize("version", [2, 3])
def test_missing_chunks_are_counted(tmp_path, caplog, version):
    path = store(tmp_path / "a.zarr", DEEP | 1, ".", version, fill_value=5)
    chunks = sorted(f for f in (path / "0").rglob("*") if f.is_file() and "z" not in f.name)
    for chunk in chunks[4:]:
        chunk.unlink()
    found = pixels(path)
    np.testing.assert_array_equal(found[:8], DEEP[:8] | 1)
    assert (found[8:, 8:] == 5).all()
    text = "5 of 9 chunks of / are not there; their pixels are 5: they were never written, or the "
    assert text + "store was copied in part" in caplog.text


def test_what_emjax_writes_has_all_its_chunks(tmp_path, caplog):
    micrographs.write(tmp_path / "a.zarr", np.zeros((30, 40), np.uint8))
    assert not pixels(tmp_path / "a.zarr").any()
    assert caplog.text == ""


@pytest.mark.parametrize("version", [2, 3])
def test_cf_attributes_are_applied(tmp_path, version):
    path = store(tmp_path / "a.zarr", DEEP.view(np.int16), version=version)
    array = zarr.open_group(path, mode="r+")["0"]
    array.attrs.update(scale_factor=0.5, add_offset=10)
    np.testing.assert_array_equal(pixels(path), np.float32(DEEP.view(np.int16) * 0.5 + 10))
    array.attrs.update(scale_factor="a half")
    refused(path, "scale_factor 'a half'.*, expected one finite number each")
    array.attrs.update(scale_factor=1, add_offset=0, _FillValue=int(DEEP.view(np.int16)[0, 0]))
    refused(path, "of 480 values are .*, its _FillValue")


def test_hyperspy_in_zarr(tmp_path):
    path = tmp_path / "a.zspy"
    group = zarr.open_group(path, mode="w", zarr_format=2)
    group.attrs.update(file_format="ZSpy", file_format_version="3.3")
    signal = group.create_group("Experiments/image")
    signal.create_array("data", data=STACK, config={"write_empty_chunks": True})
    signal.create_group("metadata").create_array("peaks", data=np.ones((4, 4)))
    for axis, (scale, units) in enumerate(((1, "s"), (2, "nm"), (3, "µm"))):
        known = signal.create_group(f"axis-{axis}").attrs
        known.update(scale=scale, units=units, navigate=axis == 0, name="zyx"[axis])
    np.testing.assert_array_equal(pixels(path), STACK)
    (first, *_) = micrographs.planes(path)
    assert (first.nm_per_pixel, first.origin) == ((2, 3000), "HyperSpy")
    assert micrographs.find(tmp_path) == [path]


# What declares too much, or reaches out


def changed(path, **changes):
    micrographs.write(path, DEEP, NM)
    file = path / "0" / "zarr.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_sizes_are_checked_before_anything_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(zarr.Array, "__getitem__", lambda *_: pytest.fail("decoded"))
    path = tmp_path / "a.zarr"
    changed(path)
    with pytest.raises(micrographs.TooLarge, match="its image declares 24x20 uint16, 960 bytes"):
        list(micrographs.planes(path, limit=900))
    changed(path, shape=[2, 3], chunk_grid=json.loads('{"name": "regular", "configuration": '
                                                      '{"chunk_shape": [40, 40]}}'))  # fmt: skip
    with pytest.raises(micrographs.TooLarge, match="a chunk declares 40x40 uint16, 3.2 kB"):
        list(micrographs.planes(path, limit=3000))
    monkeypatch.setattr("emjax.micrographs.signal.SMALL", 100)
    monkeypatch.setattr("emjax.micrographs.signal.RATIO", 1)
    changed(path, shape=[2, 3], chunk_grid=json.loads('{"name": "regular", "configuration": '
                                                      '{"chunk_shape": [240, 200]}}'))  # fmt: skip
    refused(path, r"a chunk declares 240x200 uint16, 96 kB, \d+ times the file's")
    stack = zarr.open_array(tmp_path / "b.zarr", mode="w", shape=(1000, 24, 20), dtype="u2",
                            chunks=(1, 24, 20))  # fmt: skip
    stack[0] = DEEP
    with pytest.raises(InputError, match=r"it declares 1000x24x20 uint16, 960 kB, \d+ times"):
        list(micrographs.planes(tmp_path / "b.zarr", limit=2000))


def test_sparse_labels_are_read(tmp_path):
    """Chunks without a label are not there, however many."""
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=3)
    labels = group.create_array("0", shape=(8192, 8192), chunks=(512, 512), dtype="u4")
    labels[100:110, 100:110] = 3
    (found,) = micrographs.planes(tmp_path / "a.zarr", as_mask=True)
    assert found.image.sum() == 300


@pytest.mark.parametrize(
    "steps, size", [([], np.nan), ([("translation", 5.0)], np.nan), ([("scale", 0.5)], 500)]
)
def test_without_a_scale_the_pixel_size_is_unknown(tmp_path, steps, size):
    path = store(tmp_path / "a.zarr")
    group = zarr.open_group(path)
    (known,) = group.attrs["multiscales"]
    known["axes"] = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"]
    known["datasets"][0]["coordinateTransformations"] = [
        {"type": kind, kind: [value, value]} for kind, value in steps
    ]
    group.attrs["multiscales"] = [known]
    found = micrographs.read(path)
    assert found.nm_per_pixel == pytest.approx((size, size), nan_ok=True)
    np.testing.assert_array_equal(found.image, DEEP)


def test_only_codecs_that_compress_are_allowed(tmp_path):
    changed(tmp_path / "a.zarr", codecs=[{"name": "numcodecs.other", "configuration": {}}])
    refused(tmp_path / "a.zarr", "asks for the codec 'numcodecs.other'; not allowed")


def test_links_in_a_store_are_not_followed(tmp_path):
    path = tmp_path / "a.zarr"
    micrographs.write(path, DEEP)
    chunk = next(file for file in (path / "0" / "c").rglob("*") if file.is_file())
    chunk.rename(tmp_path / "elsewhere")
    chunk.symlink_to(tmp_path / "elsewhere")
    refused(path, "is a link, which is not followed")
    (tmp_path / "b.zarr").mkdir()
    refused(tmp_path / "b.zarr", "a folder that is no Zarr store, expected a micrograph")


def test_an_ome_image_outside_the_store_is_refused(tmp_path):
    micrographs.write(tmp_path / "a.zarr", DEEP)
    file = tmp_path / "a.zarr" / "zarr.json"
    held = json.loads(file.read_text())
    held["attributes"]["ome"]["multiscales"][0]["datasets"][0]["path"] = "../b.zarr/0"
    file.write_text(json.dumps(held))
    refused(tmp_path / "a.zarr", "an OME image at '../b.zarr/0'")


def test_npy_of_objects_is_not_unpickled(tmp_path):
    class Mark:
        """An object that leaves a file where it is unpickled."""

        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "mark"),)

    np.save(tmp_path / "a.npy", np.array([[Mark()]], dtype=object), allow_pickle=True)
    refused(tmp_path / "a.npy", "an NPY file of pickled Python objects, which are not read")
    assert not (tmp_path / "mark").exists()


def test_npy_of_other_versions_and_orders(tmp_path):
    np.save(tmp_path / "a.npy", np.asfortranarray(STACK))
    np.testing.assert_array_equal(pixels(tmp_path / "a.npy"), STACK)
    for version in ((2, 0), (3, 0)):
        with open(tmp_path / "b.npy", "wb") as file:
            np.lib.format.write_array(file, STACK.astype(">u2"), version=version)
        np.testing.assert_array_equal(pixels(tmp_path / "b.npy"), STACK)
    np.save(tmp_path / "c.npy", GREY.astype(np.complex64))
    refused(tmp_path / "c.npy", "array 24x20 complex64 is complex numbers")
    np.save(tmp_path / "d.npy", np.zeros((0, 4)))
    refused(tmp_path / "d.npy", r"an array without values \(0, 4\)")


def test_npy_that_declares_more_than_it_has(tmp_path):
    header = b"{'descr': '<u2', 'fortran_order': False, 'shape': (30, 20), }"
    content = b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + DEEP.tobytes()
    (tmp_path / "a.npy").write_bytes(content)
    refused(tmp_path / "a.npy", "declares 30x20 uint16, 1.2 kB, but the file has 960 bytes")
    with pytest.raises(micrographs.TooLarge, match="expected at most 900 bytes"):
        np.save(tmp_path / "b.npy", DEEP)
        list(micrographs.planes(tmp_path / "b.npy", limit=900))


def test_names_of_files_are_read_once_for_all_arrays(tmp_path, monkeypatch):
    micrographs.write(tmp_path / "a.zarr", STACK)
    walked = []
    walk = os.walk
    monkeypatch.setattr(npy_zarr.os, "walk", lambda path: walked.append(path) or walk(path))
    np.testing.assert_array_equal(pixels(tmp_path / "a.zarr"), STACK)
    assert len(walked) == 1


@pytest.mark.parametrize("version", [2, 3])
def test_an_array_of_texts_does_not_hide_the_images(tmp_path, version):
    path = store(tmp_path / "a.zarr", version=version)
    group = zarr.open_group(path, mode="r+").create_group("tables")
    names = group.create_array("name", shape=(2,), chunks=(2,), dtype="str")
    names[...] = np.array(["first", "second"], names.dtype)
    assert "vlen-utf8" in "".join(f.read_text() for f in (path / "tables/name").glob("*z*r*"))
    np.testing.assert_array_equal(pixels(path), DEEP)
    refused(path / "tables", "is .*, expected real numbers|a spectrum or profile")


def test_a_codec_that_is_not_allowed_is_named_with_its_array(tmp_path):
    path = store(tmp_path / "a.zarr")
    metadata = json.loads((path / "0" / ".zarray").read_text())
    metadata["filters"] = [{"id": "pickle"}]
    (path / "0" / ".zarray").write_text(json.dumps(metadata))
    refused(path, "0/.zarray asks for the codec 'pickle'; not allowed")


def test_colours_in_fields(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8)
    packed = colours.view([(name, np.uint8) for name in "RGB"])[..., 0]
    zarr.create_array(tmp_path / "a.zarr", data=packed, chunks=(8, 8), zarr_format=2)
    np.testing.assert_array_equal(micrographs.read_pixels(tmp_path / "a.zarr"), colours)
    np.save(tmp_path / "a.npy", packed)
    np.testing.assert_array_equal(micrographs.read_pixels(tmp_path / "a.npy"), colours)
