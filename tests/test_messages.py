"""Reading changes nothing of the process, whatever threads do; decoders' messages become notes."""

import io
import itertools
import logging
import random
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageFile

from emjax import cli, micrographs
from emjax.errors import InputError, UsageError, imported
from tests import format_samples
from tests.format_samples import GREY

LOGGERS = ("", "PIL", "emjax", "py.warnings", "rsciio", "tifffile")


def settings():
    """Return everything of Pillow, warnings and logging that a reader might change."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    return (
        (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES),
        (id(warnings.filters), tuple(warnings.filters), warnings.showwarning),
        tuple(
            (x.level, x.propagate, x.disabled, tuple(x.handlers), tuple(x.filters)) for x in loggers
        ),
    )


def tiff_with_an_unknown_type(path):
    """Write GREY with a tag of an unknown type, of which tifffile logs an error and reads on."""
    tifffile.imwrite(path, GREY, extratags=[(65000, "H", 1, 7, True)], metadata=None)
    content = bytearray(path.read_bytes())
    entry = content.index(struct.pack("<HHI", 65000, 3, 1))
    struct.pack_into("<H", content, entry + 2, 99)
    path.write_bytes(content)


def png_with_bad_animation(path):
    """Write GREY as a PNG with an animation of no frames, of which Pillow warns and reads on."""
    file = io.BytesIO()
    Image.fromarray(GREY).save(file, "PNG")
    content, chunk = file.getvalue(), b"acTL" + bytes(8)
    length, check = struct.pack(">I", 8), struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(content[:33] + length + chunk + check + content[33:])  # after IHDR


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Return the paths of files of all formats, one that tifffile complains of, a broken one."""
    folder = tmp_path_factory.mktemp("samples")
    paths = list(format_samples.write_all(folder).values())
    tiff_with_an_unknown_type(folder / "complaint.tif")
    whole = (folder / "tiled.tif").read_bytes()
    (folder / "broken.tif").write_bytes(whole[: len(whole) - 300])
    return [*paths, folder / "complaint.tif", folder / "broken.tif"]


def outcome(path):
    """Return all that reading `path` gives, as values to compare."""
    try:
        planes = list(micrographs.planes(path))
    except InputError as error:
        return str(error)
    return [
        (p.image.dtype, p.image.shape, p.image.tobytes(), repr(p.nm_per_pixel), p.origin)
        for p in planes
    ]


def test_eight_threads_read_like_one_and_change_no_setting(samples, caplog):
    alone = {path: outcome(path) for path in samples}
    assert sum(isinstance(found, str) for found in alone.values()) == 1
    notes = [record.getMessage() for record in caplog.records]
    notes = [note for note in notes if not note.startswith("MRC files: ")]  # once a process
    assert all(note.split(":")[0].endswith("complaint.tif") for note in notes) and notes
    caplog.clear()
    before, seen, done = settings(), set(), threading.Event()

    def watch():
        while not done.is_set():
            seen.add(settings())

    def log():
        for number in itertools.count():
            if done.wait(0.001):
                return number
            logging.getLogger("tifffile").warning("of another thread %d", number)

    order = samples * 8
    random.Random(0).shuffle(order)
    with ThreadPoolExecutor(10) as threads:
        watcher, logger = threads.submit(watch), threads.submit(log)
        found = list(threads.map(outcome, order))
        done.set()
        watcher.result()
        logged = logger.result()
    assert [path for path, got in zip(order, found, strict=True) if got != alone[path]] == []
    assert seen == {before} and settings() == before
    own = [r.getMessage() for r in caplog.records if r.name == "emjax"]
    assert sorted(own) == sorted(notes * 8)
    others = [r.getMessage() for r in caplog.records if r.name == "tifffile"]
    assert others == [f"of another thread {number}" for number in range(logged)] and logged > 0
    assert len(own) + len(others) == len(caplog.records)


def test_log_lines_of_a_decoder_become_notes_that_name_the_file(tmp_path, caplog):
    tiff_with_an_unknown_type(tmp_path / "a.tif")
    np.testing.assert_array_equal(micrographs.read(tmp_path / "a.tif").image, GREY)
    (record,) = caplog.records
    assert record.name == "emjax" and record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"{tmp_path / 'a.tif'}: ")
    assert "99" in record.getMessage()


def test_a_file_that_cannot_be_opened_has_an_error_and_no_notes(tmp_path, caplog):
    tiff_with_an_unknown_type(tmp_path / "a.tif")
    content = bytearray((tmp_path / "a.tif").read_bytes())
    width = content.index(struct.pack("<HHI", 256, 4, 1)) + 8
    struct.pack_into("<I", content, width, 60_000)
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(InputError, match="declares 24x60000 uint8, .* cut off, or a wrong header"):
        micrographs.read(tmp_path / "a.tif")
    assert caplog.records == []


def test_warnings_of_a_decoder_are_the_callers_and_notes_in_commands(tmp_path, capsys):
    path = tmp_path / "a.png"
    png_with_bad_animation(path)
    with pytest.warns(UserWarning, match="Invalid APNG"):
        np.testing.assert_array_equal(micrographs.read(path).image, GREY)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        before = settings()
        with cli.printed_notes():
            micrographs.read(path)
        assert settings() == before
    line = f"note: {path}: Invalid APNG, will use default PNG image if possible\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_images_beyond_pillows_limit_are_read_and_the_limit_stays(tmp_path, monkeypatch, name):
    Image.fromarray(np.full((24, 20), 7, np.uint8)).save(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / name)
    assert (micrographs.read(tmp_path / name).image == 7).all()
    assert Image.MAX_IMAGE_PIXELS == 100


def test_importing_leaves_pillows_limit_alone():
    assert Image.MAX_IMAGE_PIXELS == 1024 * 1024 * 1024 // 4 // 3  # Pillow's default


def test_several_frames_are_refused(tmp_path):
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    for name, form in (("a.png", "PNG"), ("a.jpg", "MPO")):
        frames[0].save(tmp_path / name, form, save_all=True, append_images=frames[1:])
        with pytest.raises(InputError, match="2 frames, expected one 2-D image"):
            micrographs.read(tmp_path / name)


@pytest.mark.parametrize("library", ["nothing_like_it", "nothing_like_it.part", "json.nothing"])
def test_a_library_of_an_extra_that_is_missing_is_one_line(library):
    with pytest.raises(UsageError, match=rf"{library} is not installed; .*'emjax\[some\]'"):
        imported(library, "some")


def test_what_a_library_of_an_extra_lacks_itself_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "incomplete.py").write_text("import incomplete_part")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="incomplete_part"):
        imported("incomplete", "some")
