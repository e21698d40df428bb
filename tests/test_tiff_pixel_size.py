"""Pixel sizes of every vendor, in a tag or a text next to the image, each made here."""

import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

from emjax import micrographs
from emjax.errors import InputError
from emjax.micrographs.formats import vendors

IMAGE = np.random.default_rng(0).integers(0, 256, (24, 20), np.uint8)


def written(path, *tags, **options):
    """Write IMAGE with extra tags (code, type, value); return what emjax reads."""
    extra = [(code, kind, 0 if kind == "s" else len(value) if kind == "B" else 1, value, True)
             for code, kind, value in tags]  # fmt: skip
    options = {"metadata": None, **options}
    tifffile.imwrite(path, IMAGE, extratags=extra, photometric="minisblack", **options)
    return micrographs.read(path)


@pytest.mark.parametrize(
    "unit, dots, nm", [("inch", 300, None), ("cm", 28.346, None), ("cm", 1e6, 10), ("nm", 0.5, 2)]
)
def test_resolutions_of_paper_are_no_calibration_of_imagej(tmp_path, unit, dots, nm):
    options = dict(imagej=True, resolution=(dots, dots), metadata={"unit": unit})
    tifffile.imwrite(tmp_path / "a.tif", IMAGE, **options)
    found = micrographs.read(tmp_path / "a.tif")
    expected = (nm, nm) if nm else (np.nan, np.nan)
    assert found.nm_per_pixel == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("unit, dots, nm", [(4, 1e5, 10), (5, 200, 5), (4, 11.8, None)])
def test_resolutions_per_millimetre_and_micrometre(tmp_path, unit, dots, nm):
    found = written(tmp_path / "a.tif", resolution=(dots, dots), resolutionunit=unit)
    expected = (nm, nm) if nm else (np.nan, np.nan)
    assert found.nm_per_pixel == pytest.approx(expected, nan_ok=True)


def test_a_resolution_without_a_unit_is_per_inch(tmp_path):
    """By TIFF 6.0; where ImageJ writes no unit it knows none."""
    path = tmp_path / "a.tif"
    for options, nm in (({"metadata": None}, 5.0), ({"imagej": True}, np.nan)):
        tifffile.imwrite(path, IMAGE, resolution=(5.08e6, 5.08e6), resolutionunit="inch", **options)
        with tifffile.TiffFile(path) as file:
            tag = file.pages[0].tags[296]
        content = bytearray(path.read_bytes())
        content[tag.offset : tag.offset + 2] = struct.pack("<H", 65000)  # another tag
        path.write_bytes(content)
        found = micrographs.read(path)
        assert found.nm_per_pixel == pytest.approx((nm, nm), nan_ok=True)


@pytest.mark.parametrize("last, nm", [(1e6, 10), (2e6, np.nan), (28, 10), (None, 10)])
def test_pages_of_several_magnifications_have_no_size(tmp_path, last, nm, caplog):
    """Pages that state none, or one of paper, are no other ones."""
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for dots in (1e6, last):
            options = dict(resolution=(dots, dots), resolutionunit=3) if dots else {}
            file.write(IMAGE, metadata=None, **options)
    for plane in micrographs.planes(tmp_path / "a.tif"):
        assert plane.nm_per_pixel == pytest.approx((nm, nm), nan_ok=True)
    assert ("pages of 5 to 10 nm per pixel: none is taken" in caplog.text) == (last == 2e6)


@pytest.mark.parametrize("imagej", [False, True])
def test_a_resolution_that_states_no_unit_is_none(tmp_path, imagej):
    path, options = tmp_path / "a.tif", {"imagej": True} if imagej else {"metadata": None}
    tifffile.imwrite(path, IMAGE, resolution=(5e7, 5e7), resolutionunit=1, **options)
    assert np.isnan(micrographs.read(path).nm_per_pixel).all()


def test_a_vendors_size_counts_for_all_pages(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for dots in (1e6, 2e6):
            text = "[Scan]\r\nPixelWidth=2e-09\r\nPixelHeight=2e-09\r\n"
            tags = [(34682, "s", 0, text, True)] if dots == 1e6 else []
            options = dict(resolution=(dots, dots), resolutionunit=3, extratags=tags)
            file.write(IMAGE, metadata=None, **options)
    sizes = [plane.nm_per_pixel[0] for plane in micrographs.planes(tmp_path / "a.tif")]
    assert sizes == pytest.approx([2, 2])


@pytest.mark.parametrize("code", [34680, 34682])
@pytest.mark.parametrize("section", ["[Scan]", "[Beam]\nBeam=EBeam\nScan=EScan\n[EScan]"])
def test_fei(tmp_path, code, section):
    text = f"[User]\nDate=1/1/2020\n{section}\nPixelWidth=5e-10\nPixelHeight=2.5e-10\n"
    found = written(tmp_path / "a.tif", (code, "s", text))
    assert found.nm_per_pixel == pytest.approx((0.25, 0.5)) and found.origin == "FEI tag"


def test_zeiss_states_the_pixel_of_an_image_1024_wide(tmp_path):
    found = written(tmp_path / "a.tif", (34118, "s", "0\n0\n0\n1e-9\n"))
    size = 1024 / IMAGE.shape[1]
    assert found.nm_per_pixel == pytest.approx((size, size)) and found.origin == "Zeiss tag"
    named = "AP_IMAGE_PIXEL_SIZE\nImage Pixel Size = 2.5 µm\n".encode("cp1252")
    for number, first in enumerate((b"0\n0\n0\n1e-9\n", b"0\n0\n0\n0\n", b"")):
        found = written(tmp_path / f"b{number}.tif", (34118, "s", first + named))
        assert found.nm_per_pixel == pytest.approx((2500, 2500))


def test_olympus(tmp_path):
    path = tmp_path / "a.tif"
    name, data = bytes(32), struct.pack("<10xhdd8xd2x34s32s", -6, 0.5, 0.25, 1e5, b"", b"")
    head = struct.pack("<4s6xhhhhh6x32sH", b"SIS0", 0, 0, 1, 0, 120, name, 1)
    written(path, (33560, "B", head + struct.pack("<hhI", 1, 1, 0) + data))
    content = bytearray(path.read_bytes())
    start = content.index(b"SIS0") + len(head)
    struct.pack_into("<I", content, start + 4, start + 8)  # offsets count from the file's start
    path.write_bytes(content)
    found = micrographs.read(path)
    assert found.nm_per_pixel == pytest.approx((250, 500)) and found.origin == "Olympus tag"


def test_tvips(tmp_path):
    first = struct.pack("<i", 2) + bytes(240)
    second = (
        bytes(2724) + struct.pack("<2f", 0.5, 0.25) + bytes(3332) + struct.pack("<I", 0xAAAAAAAA)
    )
    found = written(tmp_path / "a.tif", (37706, "B", first + second))
    assert found.nm_per_pixel == pytest.approx((0.25, 0.5)) and found.origin == "TVIPS tag"


@pytest.mark.parametrize("unit, nm", [("nm", 1.0), ("µm", 1000.0)])
def test_gatan(tmp_path, unit, nm):
    units = [(code, "s", unit.encode("cp1252")) for code in (65003, 65004)]
    found = written(tmp_path / "a.tif", *units, (65009, "d", 0.5), (65010, "d", 0.25))
    assert found.nm_per_pixel == pytest.approx((0.25 * nm, 0.5 * nm))
    assert found.origin == "Gatan tag"


@pytest.mark.parametrize("unit, kind", [("1/nm", "reciprocal space"), ("eV", "an energy axis")])
def test_gatan_in_other_units_is_refused(tmp_path, unit, kind):
    tags = [(65003, "s", unit), (65004, "s", unit), (65009, "d", 0.5), (65010, "d", 0.25)]
    with pytest.raises(InputError, match=f"image 0 24x20 uint8 is {kind}; expected a 2-D image"):
        written(tmp_path / "a.tif", *tags)


def jeol(path, mode, eos=""):
    """Write a page of a detector with pixels of 15 and 20 micrometres (y, x), at 50 000 times."""
    report = (
        f"<TemReporter>{eos}<ImageFormingSystem><ModeString>{mode}</ModeString>"
        "<SelectorValue>50000</SelectorValue></ImageFormingSystem></TemReporter>"
    )
    options = {"resolution": (1 / 20e-4, 1 / 15e-4), "resolutionunit": "CENTIMETER"}
    return written(path, (271, "s", "JEOL Ltd."), description=report, **options)


def test_jeol(tmp_path):
    found = jeol(tmp_path / "a.tif", "MAG")
    assert found.nm_per_pixel == pytest.approx((0.3, 0.4)) and found.origin == "JEOL tag"
    with pytest.raises(InputError, match="is reciprocal space"):
        jeol(tmp_path / "b.tif", "DIFF")
    for eos, size in (("eosTEM", (0.3, 0.4)), ("modeASID", (np.nan, np.nan))):  # TEM, STEM
        found = jeol(tmp_path / "c.tif", "MAG", f"<Eos><EosMode>{eos}</EosMode></Eos>")
        assert found.nm_per_pixel == pytest.approx(size, nan_ok=True)
    assert np.isnan(jeol(tmp_path / "c.tif", "LOWMAG").nm_per_pixel).all()


def test_fei_counts_whatever_the_size(tmp_path):
    text = "[Beam]\nBeam=\nScan=\n[IRBeam]\nHFW=0.2112\nVFW=0.1408\n"
    text += "[Image]\nResolutionX=20\nResolutionY=20\n"
    found = written(tmp_path / "a.tif", (34682, "s", text))  # a navigation camera
    assert found.nm_per_pixel == pytest.approx((7.04e6, 1.056e7)) and found.origin == "FEI tag"
    text = "[Scan]\nPixelWidth=2.64e-4\nPixelHeight=2.64e-4\n"
    assert written(tmp_path / "b.tif", (34682, "s", text)).nm_per_pixel == pytest.approx(
        (264e3,) * 2
    )


PHENOM = (
    '<?xml version="1.0" encoding="utf-8"?>\r\n<FeiImage type="SEM"><cropHint><left>0</left>'
    '</cropHint><pixelWidth unit="{0}">12.5</pixelWidth><pixelHeight unit="{0}">25</pixelHeight>'
    '<samplePosition unit="um"><x>1</x><y>2</y></samplePosition></FeiImage>'
)
TITAN = (
    "<Root><ObjectInfo/><PixelsSize><X{0}>2.5e-10</X><Y{0}>5e-10</Y></PixelsSize>"
    "<StagePosition><X>1</X><Y>2</Y></StagePosition></Root>"
)


@pytest.mark.parametrize(
    ("text", "nm"),
    [
        (PHENOM.format("nm"), (25, 12.5)),
        (PHENOM.format("um"), (25e3, 12.5e3)),
        (TITAN.format(' unit="m"'), (0.5, 0.25)),
        (TITAN.format(""), (0.5, 0.25)),
        ("\ufeff" + TITAN.format("") + "\0junk", (0.5, 0.25)),
    ],
)
def test_thermo_fisher(tmp_path, text, nm):
    tags = [(34682, "s", ""), (34683, "B", text.encode() + b"\0")]  # the Helios tag is empty
    found = written(tmp_path / "a.tif", *tags)
    assert found.nm_per_pixel == pytest.approx(nm) and found.origin == "Thermo Fisher tag"


def test_thermo_fisher_in_reciprocal_space_is_refused(tmp_path):
    with pytest.raises(InputError, match="is reciprocal space"):
        written(tmp_path / "a.tif", (34683, "s", TITAN.format(' unit="1/m"')))


def test_fibics(tmp_path):
    text = (
        '<?xml version="1.0"?><Fibics version="1.2"><Application><Version>Atlas 5</Version>'
        "</Application><Image><Width>20</Width><Height>24</Height></Image><Scan><Ux>0.003</Ux>"
        "<Uy>0.004</Uy><Vx>0</Vx><Vy>-0.01</Vy></Scan></Fibics>"
    )
    for name, kind, value in (("a.tif", "s", text), ("b.tif", "B", text.encode() + b"\0")):
        found = written(tmp_path / name, (51023, kind, value), resolutionunit="NONE")
        assert found.nm_per_pixel == pytest.approx((10, 5)) and found.origin == "Fibics tag"


MAIN = "AccFrames=1\r\nCompany=TESCAN\r\nPixelSizeX=2.5e-009\r\nPixelSizeY=5e-009\r\nDate=1\r\n"
SEM = "Detector=E-T\r\nHV=5000\r\nPixelSizeX=9\r\n"


def test_tescan_tag(tmp_path):
    blocks = [(1, b"\xff\xd8\xff\xd9"), (2, MAIN.encode()), (3, SEM.encode()), (0, b"")]
    data = b"".join(struct.pack("<IH", len(d) + 2, kind) + d for kind, d in blocks)
    found = written(tmp_path / "a.tif", (50431, "B", data))
    assert found.nm_per_pixel == pytest.approx((5, 2.5)) and found.origin == "TESCAN tag"


@pytest.mark.parametrize("name", ["a.hdr", "a.tif.hdr", "a-tif.hdr"])
def test_tescan_hdr(tmp_path, name):
    (tmp_path / name).write_text(f"[MAIN]\r\n{MAIN}[SEM]\r\n{SEM}")
    found = written(tmp_path / "a.tif")
    assert found.nm_per_pixel == pytest.approx((5, 2.5)) and found.origin == "TESCAN .hdr"
    Image.fromarray(IMAGE).save(tmp_path / "b.png")
    (tmp_path / "b-png.hdr").write_text(f"[MAIN]\n{MAIN}")
    assert micrographs.read(tmp_path / "b.png").nm_per_pixel == pytest.approx((5, 2.5))
    (tmp_path / name).write_text("ENVI\nsamples = 20\n")  # another program's header
    assert np.isnan(written(tmp_path / "a.tif").nm_per_pixel).all()


HITACHI = "[SemImageFile]\r\nInstructName=S-4800\r\nImageName=a.tif\r\nDataSize=20x24\r\n"
HITACHI += "PixelSize=24.8\r\nMagnification=4000\r\n"
JEOL = "$CM_FORMAT JEOL/SEM\r\n$CM_MAG 5000\r\n$CM_FULL_SIZE 20 24\r\n"
JEOL += "$$SM_MICRON_BAR 160\r\n$$SM_MICRON_MARKER {}\r\n"


def of_picture(path):
    Image.fromarray(IMAGE).save(path)
    return micrographs.read(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "cp1252"])
def test_hitachi_txt(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes(HITACHI.encode(encoding))
    for found in (written(tmp_path / "a.tif"), of_picture(tmp_path / "a.jpg")):
        assert found.nm_per_pixel == pytest.approx((24.8, 24.8)) and found.origin == "Hitachi .txt"


@pytest.mark.parametrize("label, nm", [("5um", 31.25), ("5 µm", 31.25), ("100nm", 0.625)])
def test_jeol_txt(tmp_path, label, nm):
    (tmp_path / "a.txt").write_text(JEOL.format(label), encoding="utf-8")
    for found in (written(tmp_path / "a.tif"), of_picture(tmp_path / "a.png")):
        assert found.nm_per_pixel == pytest.approx((nm, nm)) and found.origin == "JEOL .txt"


def test_serialem_mdoc(tmp_path):
    (tmp_path / "a.tif.mdoc").write_text("[ZValue = 0]\nPixelSpacing = 5.4\nBinning = 2\n")
    found = written(tmp_path / "a.tif")
    assert found.nm_per_pixel == pytest.approx((0.54, 0.54)) and found.origin == "SerialEM .mdoc"


def test_a_text_without_a_pixel_size_is_none(tmp_path):
    for text in ("", "notes", "[SemImageFile]\nPixelSize=wide\n", "$$SM_MICRON_BAR 0\n"):
        (tmp_path / "a.txt").write_text(text)
        found = written(tmp_path / "a.tif")
        assert np.isnan(found.nm_per_pixel).all() and found.origin == "none"


def test_the_resolution_of_pictures_is_for_printing(tmp_path):
    for name in ("a.png", "a.jpg"):
        Image.fromarray(IMAGE).save(
            tmp_path / name, dpi=(2.54e7, 2.54e7) if "png" in name else (9, 9)
        )
        assert np.isnan(micrographs.read(tmp_path / name).nm_per_pixel).all()


@pytest.mark.parametrize("width", [20, 40])
def test_a_tag_of_an_image_of_another_width_is_noted(tmp_path, caplog, width):
    text = f"[Scan]\nPixelWidth=5e-9\nPixelHeight=5e-9\n[Image]\nResolutionX={width}\n"
    found = written(tmp_path / "a.tif", (34682, "s", text))
    assert found.nm_per_pixel == pytest.approx((5, 5))
    said = "20 pixels wide, its FEI tag is of an image of 40: 5, 5 nm per pixel are used, right if "
    assert (said in caplog.text) == (width == 40)
    assert ("it was cut out; 10, 10 if it was resized" in caplog.text) == (width == 40)


def test_sizes_of_zeiss_that_differ_are_noted(tmp_path, caplog):
    text = "0\n0\n0\n1e-9\nAP_IMAGE_PIXEL_SIZE\nImage Pixel Size = 2.5 nm\n"
    assert written(tmp_path / "a.tif", (34118, "s", text)).nm_per_pixel == (2.5, 2.5)
    assert "2.5, 2.5 by Zeiss tag, 51.2, 51.2 by Zeiss tag, at 1024 pixels" in caplog.text


def test_exactly_one_angstrom_is_noted(tmp_path, caplog):
    text = "[Scan]\nPixelWidth=1e-10\nPixelHeight=1e-10\n"
    assert written(tmp_path / "a.tif", (34682, "s", text)).nm_per_pixel == pytest.approx((0.1, 0.1))
    assert "exactly 1 angstrom (0.1 nm) per pixel by FEI tag, often a placeholder" in caplog.text


def test_every_vendor_has_a_test_and_names_its_source():
    tests = [name.replace("_", " ") for name in globals() if name.startswith("test_")]
    for origin, (_, stated_by) in (*vendors.TAGS.items(), *vendors.TEXTS.items()):
        vendor = origin.partition(",")[0].removesuffix(" tag").replace(".", "").lower()
        assert any(test.startswith(f"test {vendor}") for test in tests), origin
        assert "Source: " in stated_by.__doc__ or stated_by is vendors.zeiss.stated


@pytest.mark.parametrize(
    "tag",
    [
        (34682, "s", "[Beam]\nScan=EScan\n"),
        (34118, "s", "0\n0\n0\n"),
        (33560, "B", b"SIS1" + bytes(60)),
        (37706, "B", bytes(244)),
        (65003, "s", "nm"),
        (271, "s", "JEOL Ltd."),
        (34683, "s", " \r\n"),
        (34683, "s", "<Root>"),
        (51023, "s", "<Fibics/>"),
        (51023, "s", "<!DOCTYPE a><Fibics><Scan><Ux>1</Ux></Scan></Fibics>"),
        (50431, "B", b"no size"),
        (50431, "B", b"PixelSizeX=0\r\nPixelSizeY=0\r\n"),
    ],
)
def test_a_tag_without_a_calibration_is_no_pixel_size(tmp_path, tag):
    found = written(tmp_path / "a.tif", tag)
    assert np.isnan(found.nm_per_pixel).all() and found.origin == "none"
    np.testing.assert_array_equal(found.image, IMAGE)


def test_a_vendor_comes_before_the_resolution_tags(tmp_path, caplog):
    text = "[Scan]\nPixelWidth=5e-9\nPixelHeight=5e-9\n"
    options = {"resolution": (1e6, 1e6), "resolutionunit": "CENTIMETER"}
    found = written(tmp_path / "a.tif", (34682, "s", text), **options)
    assert found.nm_per_pixel == pytest.approx((5, 5)) and found.origin == "FEI tag"
    assert "5, 5 by FEI tag, 10, 10 by resolution tag; the first is used" in caplog.text
