"""EER: frames of events, written bit by bit, and their sum."""

import numpy as np
import pytest
import tifffile

from emjax import micrographs
from emjax.errors import InputError
from tests.format_samples import EER_CODES, EER_METADATA, eer

RNG = np.random.default_rng(0)


@pytest.fixture
def frames():
    return RNG.random((3, 40, 30)) < 0.01


@pytest.mark.parametrize("compression", EER_CODES)
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
    eer(tmp_path / "a.eer", frames[:2], metadata=EER_METADATA)
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
    with pytest.raises(InputError, match="b.eer: .*(cut|TIFF|damaged|corrupt)"):
        micrographs.read(path)


def test_a_plain_bigtiff_stays_one(tmp_path):
    tifffile.imwrite(tmp_path / "a.eer", np.arange(12, dtype=np.uint8).reshape(3, 4), bigtiff=True)
    assert micrographs.read(tmp_path / "a.eer").image[2, 3] == 11
