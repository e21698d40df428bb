"""MRC files as IMOD, FEI, SerialEM and others write them, by the byte and by mrcfile."""

import gzip
import struct

import mrcfile
import numpy as np
import pytest

from emjax import micrographs
from emjax.errors import InputError
from tests.format_samples import fei, mrc

RNG = np.random.default_rng(0)
BYTES = np.arange(24 * 20, dtype=np.uint16).reshape(24, 20).astype(np.uint8)
FLOATS = RNG.normal(size=(24, 20)).astype(np.float32)


def read(folder, content, name="a.mrc"):
    (folder / name).write_bytes(content)
    return micrographs.read(folder / name)


@pytest.mark.parametrize("order", "<>")
def test_bytes_are_unsigned_with_imods_stamp_alone(tmp_path, order):
    stamp = b"DD\0\0" if order == "<" else b"\x11\x11\0\0"
    found = read(tmp_path, mrc(BYTES, 0, flags=0, order=order, stamp=stamp))
    assert found.image.dtype == np.uint8 and np.array_equal(found.image, BYTES)
    assert found.nm_per_pixel == pytest.approx((2, 4))


def test_signed_bytes_of_imod_are_read_as_imod_shows_them(tmp_path):
    stored = (BYTES.astype(np.int16) - 128).astype(np.int8)
    found = read(tmp_path, mrc(stored, 0, flags=1))
    assert found.image.dtype == np.uint8 and np.array_equal(found.image, BYTES)


@pytest.mark.parametrize("flags, zero, one", [(0, 0, 255), (0, 0, 1), (1, -128, -127)])
def test_a_mask_of_two_bytes_keeps_two_values_and_its_zero(tmp_path, flags, zero, one):
    mask = BYTES > 100
    stored = np.where(mask, one, zero).astype(np.int16).astype(np.uint8)
    found = read(tmp_path, mrc(stored, 0, flags=flags))
    assert np.array_equal(found.image != 0, mask) and len(np.unique(found.image)) == 2


@pytest.mark.parametrize(
    "stats, unsigned, said",
    [
        ((0, 255), True, "bytes of 0 to 255 by its header; read as unsigned"),
        ((3, 128), True, "bytes of 3 to 128 by its header; read as unsigned"),
        ((-128, 127), False, ""),
        ((0, 0), False, ""),
        ((0, -1), False, ""),  # MRC2014: a maximum below the minimum is not determined
        ((-5, 200), False, "neither signed nor unsigned; read as signed"),
    ],
)
def test_bytes_without_a_stamp_are_what_minimum_and_maximum_say(
    tmp_path, caplog, stats, unsigned, said
):
    found = read(tmp_path, mrc(BYTES, 0, stats=stats))
    due = BYTES if unsigned else BYTES.view(np.int8)
    assert np.array_equal(found.image, due.astype(np.uint8 if unsigned else np.float32))
    assert said in caplog.text and ("bytes of" in caplog.text) == bool(said)


def test_mrcfile_and_emjax_agree_on_its_own_bytes(tmp_path):
    mrcfile.write(tmp_path / "a.mrc", BYTES.view(np.int8))
    expected = mrcfile.read(tmp_path / "a.mrc")
    assert np.array_equal(micrographs.read(tmp_path / "a.mrc").image, expected)


@pytest.mark.parametrize("flags", [None, 16])
@pytest.mark.parametrize("width", [20, 17])
@pytest.mark.parametrize("planes", [1, 3])
@pytest.mark.parametrize("suffix", ["mrc", "mrc.gz"])
def test_four_bits_the_first_pixel_in_the_low_ones(tmp_path, flags, width, planes, suffix):
    if flags and width % 2:
        return  # IMOD writes odd widths in mode 101 alone
    pixels = RNG.integers(0, 16, (planes, 24, width), np.uint8)
    padded = np.pad(pixels, ((0, 0), (0, 0), (0, width % 2)))
    packed = padded[..., ::2] | padded[..., 1::2] << 4
    columns = packed.shape[-1] if flags else width
    content = mrc(packed, 0 if flags else 101, columns=columns, flags=flags)
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    found = list(micrographs.planes(path))
    assert np.array_equal([plane.image for plane in found], pixels)
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(InputError, match="cut off|bytes|end"):
        list(micrographs.planes(path))


@pytest.mark.parametrize(
    "mode, dtype", [(0, "i1"), (1, "i2"), (2, "f4"), (6, "u2"), (12, "f2"), (16, "u1")]
)
@pytest.mark.parametrize("order", "<>")
def test_every_mode_and_byte_order(tmp_path, mode, dtype, order):
    shape = (24, 20, 3) if mode == 16 else (24, 20)
    pixels = RNG.integers(0, 100, shape).astype(dtype)
    (tmp_path / "a.mrc").write_bytes(mrc(pixels, mode, order=order, stamp=b"\0\0\0\0"))
    assert np.array_equal(micrographs.read_pixels(tmp_path / "a.mrc"), pixels)


@pytest.mark.parametrize("mode", [3, 4])
def test_complex_modes_are_refused_by_name(tmp_path, mode):
    with pytest.raises(InputError, match="complex numbers"):
        read(tmp_path, mrc(FLOATS, mode))


def test_an_unknown_mode_is_named(tmp_path):
    with pytest.raises(InputError, match="an MRC file of the unknown mode 9; expected one of 0, 1"):
        read(tmp_path, mrc(FLOATS, 9))


@pytest.mark.parametrize("stamp", [b"DA\0\0", b"D   ", b"D\0\0\0", b"\0\0\0\0", b"    "])
@pytest.mark.parametrize("order", "<>")
def test_sizes_and_mode_decide_the_byte_order(tmp_path, caplog, stamp, order):
    found = read(tmp_path, mrc(FLOATS, 2, stamp=stamp, order=order))
    assert np.array_equal(found.image, FLOATS)
    contradicts = order == ">" and stamp[:1] == b"D"
    assert ("sizes and mode are big-endian" in caplog.text) == contradicts


def test_mapc_to_maps_3_2_1_and_pixels_that_are_no_cubes(tmp_path):
    volume = RNG.normal(size=(8, 12, 16)).astype(np.float32)
    content = bytearray(mrc(volume, 2, axes=(3, 2, 1)))
    struct.pack_into("<3i3f", content, 28, 8, 12, 16, 80.0, 240.0, 640.0)
    (tmp_path / "a.map").write_bytes(content)
    with micrographs.open_all(tmp_path / "a.map") as (signal,):
        assert signal.nm_per_pixel == pytest.approx((2, 4)) and signal.nm_per_plane == 1


@pytest.mark.parametrize("name", ["a.mrc", "a.st", "a.map.gz", "a.img"])
def test_a_file_without_map_is_read_where_its_length_agrees(tmp_path, caplog, name):
    content = mrc(FLOATS, 2, identifier=struct.pack("<f", 1.5), stamp=struct.pack("<f", 2.5))
    packed = gzip.compress(content) if name.endswith("gz") else content
    assert np.array_equal(read(tmp_path, packed, name).image, FLOATS)
    assert "no MAP at byte 208; read as MRC" in caplog.text


@pytest.mark.parametrize("change", [lambda c: c[:-4], lambda c: c + b"abcd"])
@pytest.mark.parametrize("name", ["a.mrc", "a.map.gz", "a.img"])
def test_a_file_without_map_of_another_length_is_refused(tmp_path, change, name):
    content = change(mrc(FLOATS, 2, identifier=b"\0\0\0\0"))
    packed = gzip.compress(content) if name.endswith("gz") else content
    with pytest.raises(InputError, match="cut off|not an MRC file|no format"):
        read(tmp_path, packed, name)


@pytest.mark.parametrize("axes", [(1, 2, 3), (2, 1, 3)])
def test_without_intervals_each_pixel_is_one(tmp_path, axes):
    """As HyperSpy writes it, by mrcz."""
    content = bytearray(mrc(FLOATS, 2, axes=axes))
    cell = struct.unpack_from("<3f", content, 40)
    struct.pack_into("<3i3f", content, 28, 0, 0, 0, *(cell[axis - 1] for axis in axes))
    assert read(tmp_path, content).nm_per_pixel == pytest.approx((2, 4))


def test_a_text_that_is_called_mrc_is_refused(tmp_path):
    with pytest.raises(InputError, match="not an MRC file: no MAP at byte 208"):
        read(tmp_path, b"some words " * 200)


@pytest.mark.parametrize("kind", ["FEI1", "FEI2"])
@pytest.mark.parametrize("cell", [(0.0, 0.0), (1.0, 1.0), (20.0, 40.0), (7.0, 7.0)])
def test_feis_extended_header_states_the_pixel_size(tmp_path, caplog, kind, cell):
    extended = fei((4e-9, 2e-9), kind=kind)
    found = read(tmp_path, mrc(FLOATS, 2, size=cell, kind=kind.encode(), extended=extended))
    assert found.nm_per_pixel == pytest.approx((2, 4)) and found.origin == "FEI extended header"
    differs = cell in [(1.0, 1.0), (7.0, 7.0)]
    said = f"20 x 40 angstrom per pixel by FEI extended header, {cell[0]:g} angstrom per pixel"
    assert (said in caplog.text) == differs


def test_imods_cell_counts_before_an_extended_header_that_it_kept(tmp_path, caplog):
    extended = fei((1e-9, 1e-9))
    found = read(tmp_path, mrc(FLOATS, 2, kind=b"FEI1", extended=extended, flags=1))
    assert found.nm_per_pixel == pytest.approx((2, 4)) and "10 angstrom per pixel" in caplog.text


def test_agards_extended_header_states_the_pixel_size(tmp_path):
    block = np.zeros((1024, 32), "<f4")
    block[:, 11] = 3e-9
    for options in ({"kind": b"AGAR"}, {"reals": 32}):
        found = read(tmp_path, mrc(FLOATS, 2, size=(0, 0), extended=block.tobytes(), **options))
        assert found.nm_per_pixel == pytest.approx((3, 3))


def test_flags_of_serialem_are_not_the_numbers_of_feis_floats(tmp_path):
    content = bytearray(mrc(FLOATS, 2, extended=struct.pack("<2h", 100, 200) * 512, reals=32))
    struct.pack_into("<h", content, 128, 4)  # bytes per section; 32: its dose
    found = read(tmp_path, bytes(content))
    assert found.nm_per_pixel == pytest.approx((2, 4)) and found.origin == "MRC header"


def test_an_extended_header_in_reciprocal_space_is_refused(tmp_path):
    with pytest.raises(InputError, match="reciprocal space by its extended header, 2e\\+07 1/m"):
        read(tmp_path, mrc(FLOATS, 2, kind=b"FEI1", extended=fei((2e7, 2e7))))


@pytest.mark.parametrize(
    "label, is_refused",
    [
        ("Calibration: 0.02 1/nm per pixel", True),
        ("scale 0.05 nm^-1", True),
        ("units 1/Å", True),
        ("power spectrum", True),
        ("0.1 mrad/pixel", True),
        ("band pass filter 0.1 to 0.5 1/nm", False),
        ("alignment run-1  28-Nov-26", False),
        ("/home/a/1/nm.mrc", False),
        ("convergence angle 10 mrad", False),
        ("SerialEM: Krios, Grid A-1 square 3", False),
        ("sample M-1, 1/a of the grid", False),
        ("scale 0.05 A^-1", True),
        ("scale 0.05 m**-1", True),
        ("scale 0.05 nm-1", True),
        ("scale 0.05 Å-1", True),
    ],
)
def test_labels_that_state_reciprocal_space(tmp_path, label, is_refused):
    content = mrc(FLOATS, 2, labels=("written by a program", label))
    if is_refused:
        with pytest.raises(InputError, match="reciprocal space by its label"):
            read(tmp_path, content)
    else:
        assert read(tmp_path, content).nm_per_pixel == pytest.approx((2, 4))


def test_one_angstrom_is_a_placeholder(tmp_path, caplog):
    assert read(tmp_path, mrc(FLOATS, 2, size=(1.0, 1.0))).nm_per_pixel == pytest.approx((0.1, 0.1))
    assert "exactly 1 angstrom per pixel" in caplog.text


@pytest.mark.parametrize("size, used", [((1.0, 1.0), 0.54), ((0.0, 0.0), 0.54), ((9.0, 9.0), 0.9)])
def test_serialems_mdoc_states_what_the_header_does_not(tmp_path, caplog, size, used):
    (tmp_path / "a.mrc.mdoc").write_text("PixelSpacing = 5.4\nImageSize = 20 24\n[ZValue = 0]\n")
    found = read(tmp_path, mrc(FLOATS, 2, size=size))
    assert found.nm_per_pixel == pytest.approx((used, used))
    assert ("5.4 angstrom per pixel by SerialEM .mdoc" in caplog.text) == (size[0] > 0)


def test_an_oblique_cell_has_no_pixel_size(tmp_path, caplog):
    found = read(tmp_path, mrc(FLOATS, 2, angles=(90.0, 90.0, 120.0)))
    assert np.isnan(found.nm_per_pixel).all() and "angles other than 90 degrees" in caplog.text


def test_values_that_the_mode_cannot_hold_are_noted(tmp_path, caplog):
    read(tmp_path, mrc(BYTES.astype(np.int16), 1, stats=(0, 65535)))
    assert "values of 0 to 65535 by its header, which mode 1 (int16) cannot hold" in caplog.text


def test_volumes_whose_sections_do_not_divide_are_refused(tmp_path):
    content = bytearray(mrc(RNG.normal(size=(3, 24, 20)).astype(np.float32), 2))
    struct.pack_into("<i", content, 88, 401)
    struct.pack_into("<i", content, 36, 2)
    with pytest.raises(InputError, match="volumes of 2 sections, 3 in all"):
        read(tmp_path, bytes(content))


SAID = "SerialEMCCD: Dose frac. image, 4 bits packed"


@pytest.mark.parametrize("shape", [(7420, 3838), (7676, 3710), (8184, 5760), (11520, 4092)])
def test_frames_of_serialem_without_a_flag_are_unpacked_by_their_label(tmp_path, shape):
    packed = np.zeros(shape, np.uint8)
    packed[0, :3] = 0x21, 0x43, 0xF5
    found = read(tmp_path, mrc(packed, 0, labels=[SAID])).image
    assert found.shape == (shape[0], 2 * shape[1]) and found.dtype == np.uint8
    assert found[0, :7].tolist() == [1, 2, 3, 4, 5, 15, 0]


def test_bytes_that_may_be_two_pixels_are_said_to_be_one_or_refused(tmp_path):
    packed = np.zeros((7676, 3710), np.uint8)
    for labels in ([], [SAID, "written by another program"]):
        with pytest.raises(InputError, match="7676x3710 bytes, the size of a K2 or K3 frame"):
            read(tmp_path, mrc(packed, 0, labels=labels))
        assert read(tmp_path, mrc(packed, 0, flags=0, labels=labels)).image.shape == (7676, 3710)
    assert read(tmp_path, mrc(BYTES, 0, labels=[SAID])).image.shape == BYTES.shape
