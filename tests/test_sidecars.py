"""Text files next to an image: which are opened, and what SerialEM's .mdoc states."""

import os

import numpy as np
import pytest

from emjax.micrographs.formats import sidecars

MDOC = """PixelSpacing = 5.4
Voltage = 300
ImageFile = a.tif
ImageSize = 64 48
DataMode = 1

[T = SerialEM: a title]

[ZValue = 0]
PixelSpacing = 5.4
Binning = 2

[ZValue = 1]
PixelSpacing = 5.4
Binning = 2
"""


@pytest.mark.parametrize("name", ["a.tif.mdoc", "a.mdoc"])
def test_the_pixel_size_of_an_mdoc_includes_its_binning(tmp_path, name):
    (tmp_path / name).write_text(MDOC)
    assert sidecars.serialem(tmp_path / "a.tif", (2, 48, 64)) == pytest.approx((0.54, 0.54))
    assert np.isnan(sidecars.serialem(tmp_path / "b.tif", (2, 48, 64))).all()


@pytest.mark.parametrize("shape, nm", [((24, 32), 1.08), ((96, 128), 0.27), ((40, 64), 0.54)])
def test_an_image_binned_later_is_noted(tmp_path, caplog, shape, nm):
    (tmp_path / "a.mdoc").write_text(MDOC)
    assert sidecars.serialem(tmp_path / "a.mrc", shape) == pytest.approx((nm, nm))
    assert bool(caplog.text) == (shape[1] != 64)


def test_an_mdoc_that_does_not_fit_leaves_the_size_unknown(tmp_path, caplog):
    (tmp_path / "a.mdoc").write_text(MDOC)
    assert np.isnan(sidecars.serialem(tmp_path / "a.mrc", (50, 70))).all()
    assert "70 x 50 pixels, its .mdoc is of 64 48; the pixel size is unknown" in caplog.text
    changed = MDOC[::-1].replace("4.5", "8.01", 1)[::-1]  # the last image at another magnification
    (tmp_path / "a.mdoc").write_text(changed)
    assert np.isnan(sidecars.serialem(tmp_path / "a.mrc", (2, 48, 64))).all()
    assert "5.4 to 10.8 angstrom per pixel" in caplog.text


def test_frames_state_their_own_binning(tmp_path):
    text = "T = SerialEM\nVoltage = 200\n\n[FrameSet = 0]\nPixelSpacing = 0.694291\nBinning = 0.5\n"
    (tmp_path / "a.tif.mdoc").write_text(text)
    found = sidecars.serialem(tmp_path / "a.tif", (5, 48, 64))
    assert found == pytest.approx((0.0694291, 0.0694291))


def test_no_link_no_pipe_and_no_large_file_is_opened(tmp_path, caplog, monkeypatch):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b.mdoc").write_text(MDOC)
    (tmp_path / "a.mdoc").symlink_to(tmp_path / "other" / "b.mdoc")
    assert sidecars.text_beside(tmp_path / "a.tif", ".mdoc") == ""
    assert "a.mdoc: a link, which is not followed" in caplog.text
    os.mkfifo(tmp_path / "c.mdoc")
    (tmp_path / "d.mdoc").mkdir()
    assert sidecars.text_beside(tmp_path / "c.tif", ".mdoc") == ""
    assert sidecars.text_beside(tmp_path / "d.tif", ".mdoc") == ""
    monkeypatch.setattr(sidecars, "LARGEST", 100)
    (tmp_path / "e.mdoc").write_text(MDOC)
    assert sidecars.text_beside(tmp_path / "e.tif", ".mdoc") == ""
    assert "bytes, expected at most 100; not read" in caplog.text


def test_names_of_sidecars(tmp_path):
    for name in ("a.tif.hdr", "b.hdr", "c-tif.hdr", "d.png.hdr"):
        (tmp_path / name).write_text(name)
    for image in ("a.tif", "b.tif", "c.tif", "d.png"):
        assert sidecars.text_beside(tmp_path / image, ".hdr").startswith(image[0])
    assert sidecars.text_beside(tmp_path / "c.png", ".hdr") == ""
    (tmp_path / "E.HDR").write_text("E")
    assert sidecars.text_beside(tmp_path / "E.TIF", ".hdr") == "E"
    assert sidecars.text_beside(tmp_path / "E.HDR", ".hdr") == ""
    assert sidecars.text_beside(tmp_path / "b.hdr", ".hdr") == ""


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"]
)
def test_encodings_of_text(encoding):
    assert sidecars.decoded("Größe in µm: 1".encode(encoding)) == "Größe in µm: 1"
