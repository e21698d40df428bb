"""EER: frames of events, written bit by bit, and their sum."""

import struct

import numpy as np
import pytest
import tifffile

from emjax import micrographs
from emjax.errors import InputError

RNG = np.random.default_rng(0)
CODES = {65000: (8, 2, 2), 65001: (7, 2, 2), 65002: (6, 2, 1)}  # bits of a run, and within a pixel
METADATA = (
    '<metadata><item name="numberOfFrames">3</item>'
    '<item name="sensorPixelSize.width" unit="m">5e-11</item>'
    '<item unit="m" name="sensorPixelSize.height">6e-11</item></metadata>'
)


def encoded(events, compression):
    """Return the bits of a frame, bool [h, w]: runs of pixels without event, lowest bit first."""
    run_bits, *within = CODES[compression]
    longest, bits, gap = (1 << run_bits) - 1, [], 0

    def put(value, count):
        bits.extend(value >> i & 1 for i in range(count))

    for event in events.ravel():
        if not event:
            gap += 1
            continue
        while gap >= longest:
            put(longest, run_bits)
            gap -= longest
        put(gap, run_bits)
        put(int(RNG.integers(1 << sum(within))), sum(within))
        gap = 0
    while gap >= longest:
        put(longest, run_bits)
        gap -= longest
    put(gap, run_bits)
    content = np.packbits(bits, bitorder="little").tobytes()
    return content + bytes(len(content) % 2)  # imagecodecs takes words of 16 bits


def eer(path, frames, compression=65001, metadata=METADATA, integrated=None):
    """Write bool [frames, h, w]; `integrated` is an image that comes first."""
    h, w = frames.shape[1:]
    pages = [(compression, encoded(frame, compression)) for frame in frames]
    if integrated is not None:
        pages.insert(0, (1, integrated.astype("<u4").tobytes()))
    body, offset = b"", 16
    for index, (kind, data) in enumerate(pages):
        tags = [(256, 4, w), (257, 4, h), (259, 3, kind), (262, 3, 1), (278, 4, h),
                (279, 16, len(data))]  # fmt: skip
        tags += [(258, 3, 32), (339, 3, 1)] if kind == 1 else []
        if kind == 65002:
            tags += [(65007 + i, 3, bits) for i, bits in enumerate(CODES[kind])]
        length = 8 + 20 * (len(tags) + 2) + 8
        tags.append((273, 16, offset + length))
        words = metadata.encode() if not index else b"<metadata></metadata>"
        tags.append((65001, 7, (offset + length + len(data), len(words))))
        body += struct.pack("<Q", len(tags))
        for tag, form, value in sorted(tags):
            if form == 7:
                body += struct.pack("<HHQQ", tag, form, value[1], value[0])
            else:
                body += struct.pack("<HHQQ", tag, form, 1, value)
        offset += length + len(data) + len(words)
        last = index == len(pages) - 1
        body += struct.pack("<Q", 0 if last else offset) + data + words
    path.write_bytes(b"II+\0\x08\0\0\0" + struct.pack("<Q", 16) + body)


@pytest.fixture
def frames():
    return RNG.random((3, 40, 30)) < 0.01


@pytest.mark.parametrize("compression", CODES)
@pytest.mark.parametrize("name", ["a.eer", "a.tif"])
def test_frames_are_summed(tmp_path, caplog, frames, compression, name):
    eer(tmp_path / name, frames, compression)
    found = micrographs.read(tmp_path / name)
    assert np.array_equal(found.image, frames.sum(0)) and found.image.dtype == np.uint16
    assert found.nm_per_pixel == pytest.approx((0.06, 0.05)) and found.origin == "EER metadata"
    assert "events of 3 frames; their sum is used" in caplog.text
    assert micrographs.find(tmp_path) == [tmp_path / name]


def test_an_integrated_image_is_not_a_frame(tmp_path, frames):
    eer(tmp_path / "a.eer", frames, integrated=np.full(frames.shape[1:], 77))
    assert np.array_equal(micrographs.read(tmp_path / "a.eer").image, frames.sum(0))


def test_another_number_of_frames_than_the_metadata_say_is_noted(tmp_path, caplog, frames):
    eer(tmp_path / "a.eer", frames[:2], metadata=METADATA)
    assert np.array_equal(micrographs.read(tmp_path / "a.eer").image, frames[:2].sum(0))
    assert "events of 2 frames, of 3 by its metadata" in caplog.text


def test_without_metadata_the_pixel_size_is_unknown(tmp_path, frames):
    eer(tmp_path / "a.eer", frames, metadata="<metadata></metadata>")
    assert np.isnan(micrographs.read(tmp_path / "a.eer").nm_per_pixel).all()


def test_the_limit_counts_before_anything_is_decoded(tmp_path, frames, monkeypatch):
    eer(tmp_path / "a.eer", frames)
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda *_: pytest.fail("decoded"))
    with pytest.raises(micrographs.TooLarge):
        micrographs.read(tmp_path / "a.eer", limit=1000)


def test_a_file_that_is_cut_off_is_refused(tmp_path, frames):
    eer(tmp_path / "a.eer", frames)
    path = tmp_path / "b.eer"
    path.write_bytes((tmp_path / "a.eer").read_bytes()[:40])
    with pytest.raises(InputError, match="b.eer"):
        micrographs.read(path)


def test_a_plain_bigtiff_stays_one(tmp_path):
    tifffile.imwrite(tmp_path / "a.eer", np.arange(12, dtype=np.uint8).reshape(3, 4), bigtiff=True)
    assert micrographs.read(tmp_path / "a.eer").image[2, 3] == 11
