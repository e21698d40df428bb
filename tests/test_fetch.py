"""Files arrive whole and as published, or not at all; tested against a local server."""

import hashlib
import http.server
import io
import json
import threading
import zipfile

import numpy as np
import pytest

from data_builders import fetch
from emjax.errors import InputError

CONTENT = {
    "a b.h5": np.random.default_rng(1).bytes(3_000_000),
    "labels.h5": b"labels " * 1000,
}


class Zenodo(http.server.BaseHTTPRequestHandler):
    """/records/1 lists CONTENT; /files/NAME sends it, from the byte that Range asks for."""

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Range")))
        if self.path == "/records/1":
            return self.answer(200, json.dumps({"files": self.server.listed}).encode())
        content = self.server.content.get(self.path.removeprefix("/files/").replace("%20", " "))
        if content is None:
            return self.answer(404, b"{}")
        asked = self.headers.get("Range")
        if asked and self.server.ranges:
            return self.answer(206, content[int(asked[6:-1]) :])
        self.answer(200, content)

    def answer(self, status, content):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: self.server.breaks_at])

    def log_message(self, *args):
        pass


@pytest.fixture
def zenodo():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Zenodo)
    address = f"http://127.0.0.1:{server.server_port}"
    server.base, server.asked, server.content = f"{address}/records", [], dict(CONTENT)
    server.ranges, server.breaks_at = True, None
    server.listed = [
        {
            "key": name,
            "size": len(content),
            "checksum": f"md5:{hashlib.md5(content).hexdigest()}",
            "links": {"self": f"{address}/files/{name.replace(' ', '%20')}"},
        }
        for name, content in CONTENT.items()
    ]
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def refused(zenodo, folder, names=tuple(CONTENT), base=None):
    with pytest.raises(InputError) as error:
        fetch.from_zenodo("1", names, folder, base=base or zenodo.base)
    line = str(error.value)
    assert "\n" not in line and f"zenodo.1 into {folder}" in line
    return line


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_missing_comes_and_the_rest_stays(zenodo, tmp_path, capsys):
    folder = tmp_path / "new"
    fetch.from_zenodo("1", CONTENT, folder, base=zenodo.base)
    assert contents(folder) == CONTENT
    assert "a b.h5: fetching 3.0 MB" in capsys.readouterr().out
    (folder / "labels.h5").unlink()
    (folder / "a b.h5").write_bytes(b"mine")
    del zenodo.asked[:]
    fetch.from_zenodo("1", CONTENT, folder, base=zenodo.base)
    assert contents(folder) == CONTENT | {"a b.h5": b"mine"}
    assert [path for path, _ in zenodo.asked] == ["/records/1", "/files/labels.h5"]
    fetch.from_zenodo("1", CONTENT, folder, base="http://nowhere.invalid")  # nothing is missing


@pytest.mark.parametrize("ranges", [True, False])
def test_what_broke_off_goes_on(zenodo, tmp_path, ranges):
    zenodo.breaks_at, zenodo.ranges = 1_000_000, ranges
    assert "it broke off after 1000000 of 3000000 bytes" in refused(zenodo, tmp_path, ("a b.h5",))
    assert list(contents(tmp_path)) == ["a b.h5.partial"]
    zenodo.breaks_at = None
    fetch.from_zenodo("1", CONTENT, tmp_path, base=zenodo.base)
    assert contents(tmp_path) == CONTENT
    assert ("/files/a%20b.h5", "bytes=1000000-") in zenodo.asked


def test_a_whole_partial_file_is_checked_and_not_fetched_again(zenodo, tmp_path):
    (tmp_path / "a b.h5.partial").write_bytes(CONTENT["a b.h5"])
    fetch.from_zenodo("1", ("a b.h5",), tmp_path, base=zenodo.base)
    assert contents(tmp_path) == {"a b.h5": CONTENT["a b.h5"]}
    assert [path for path, _ in zenodo.asked] == ["/records/1"]


def test_other_content_than_published_does_not_stay(zenodo, tmp_path):
    zenodo.content["labels.h5"] = CONTENT["labels.h5"][::-1]
    published = hashlib.md5(CONTENT["labels.h5"]).hexdigest()
    line = refused(zenodo, tmp_path, ("labels.h5",))
    assert "labels.h5 has the MD5" in line and f"expected {published}" in line
    assert contents(tmp_path) == {}


def test_a_record_without_the_file_says_what_it_has(zenodo, tmp_path):
    line = refused(zenodo, tmp_path / "new", ("other.h5",))
    assert "it has no other.h5, only a b.h5, labels.h5" in line and not (tmp_path / "new").exists()


def test_no_network_says_what_to_do(zenodo, tmp_path):
    line = refused(zenodo, tmp_path, base="http://127.0.0.1:9/records")
    assert line.startswith("http://127.0.0.1:9/records/1: ") and "refused" in line
    assert "download a b.h5, labels.h5 from https://doi.org/10.5281/zenodo.1" in line
    assert "Not Found" in refused(zenodo, tmp_path, base=f"{zenodo.base}/2")
    del zenodo.content["labels.h5"]
    assert "Not Found" in refused(zenodo, tmp_path, ("labels.h5",))
    zenodo.listed = None
    assert "/records/1: " in refused(zenodo, tmp_path)


@pytest.fixture
def snapshot(zenodo):
    """The bytes of an archive as GitHub makes them, at /files/owner/atoms/archive/...zip."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("image/00001.png", "noNoise/00001.png", "../outside.txt"):
            archive.writestr(f"atoms-master/{name}", name * 100)
    zenodo.content["owner/atoms/archive/refs/heads/master.zip"] = file.getvalue()
    return file.getvalue()


def test_a_snapshot_is_unpacked_once_and_its_digest_kept(zenodo, snapshot, tmp_path, capsys):
    base = zenodo.base.replace("records", "files")
    for _ in range(2):
        fetch.from_github("owner/atoms", tmp_path / "raw", base=base)
    assert len(zenodo.asked) == 1
    digest = hashlib.sha256(snapshot).hexdigest()
    assert digest in capsys.readouterr().out
    assert (tmp_path / "raw" / "atoms.sha256").read_text().startswith(digest)
    assert (tmp_path / "raw" / "atoms-master" / "noNoise" / "00001.png").exists()
    assert not list(tmp_path.rglob("*partial*")) and not (tmp_path / "outside.txt").exists()


@pytest.mark.parametrize("fault", ["breaks off", "no zip", "not there", "a bomb"])
def test_a_snapshot_that_does_not_arrive_whole_leaves_nothing(zenodo, snapshot, tmp_path, fault):
    base, name = zenodo.base.replace("records", "files"), "owner/atoms"
    if fault == "breaks off":
        zenodo.breaks_at = 100
    elif fault == "no zip":
        zenodo.content["owner/atoms/archive/refs/heads/master.zip"] = b"<html>"
    elif fault == "a bomb":
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("atoms-master/image/1.png", bytes(10_000_000))
        zenodo.content["owner/atoms/archive/refs/heads/master.zip"] = file.getvalue()
    else:
        name = "owner/nothing"
    with pytest.raises(InputError, match=f"git clone https://github.com/{name} in ") as error:
        fetch.from_github(name, tmp_path, base=base)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())
