"""The page of emjax serve: it answers as the commands do, and nobody else can act in it."""

import asyncio
import contextlib
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile

from emjax import measure, predict, serve
from emjax.errors import UsageError
from emjax.micrographs import write
from tests.exported_networks import field
from tests.format_samples import NM, ser
from tests.soak_archive import resident

pytest.importorskip("starlette", reason="needs the extra app: make test-handon")
pytest.importorskip("uvicorn", reason="needs the extra app: make test-handon")

from emjax.apps.web import server, sessions  # noqa: E402


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The folder in which the page keeps what it is given."""
    return tmp_path_factory.mktemp("kept")


@contextlib.contextmanager
def served(root, *flags, constants=""):
    """Yield (process, port) of a running page that keeps its files in `root`.

    Args:
        constants: Python that sets constants of `server`.
    """
    port = free_port()
    line = ["-m", "emjax.serve"]
    if constants:
        code = "import sys; from emjax import cli, serve; from emjax.apps.web import server"
        line = ["-c", f"{code}; {constants}; cli.run(serve.main, sys.argv[1:])"]
    process = subprocess.Popen([sys.executable, *line, f"--port={port}", *flags], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               env={**os.environ, "TMPDIR": str(root)})  # fmt: skip
    try:
        assert process.stdout.readline() == (
            f"open http://127.0.0.1:{port}/ in a browser; Ctrl-C ends it\n"
        )
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield process, port
    finally:
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=20)[0]
    assert (process.returncode, said) == (0, "")
    assert list(root.iterdir()) == []


@pytest.fixture(scope="module")
def port(root):
    """The port of a running page, whose uploads are at most 2 MB."""
    with served(root, "--upload_limit=0.002") as (_, port):
        yield port


class Visitor:
    """A browser that has opened the page."""

    def __init__(self, port):
        self.port, self.headers = port, {}
        status, headers, body = self.ask("GET", "/")
        assert status == 200
        self.page, self.answer = body.decode(), headers
        cookie = headers["set-cookie"].partition(";")[0]
        token = re.search('name="token" content="([^"]+)"', self.page)[1]
        self.headers = {"Cookie": cookie, "X-Emjax-Token": token}

    def ask(self, method, path, body=None, **headers):
        """Return (status, headers, content) of a request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, {**self.headers, **named})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, content

    def json(self, method, path, body=None, **headers):
        status, _, content = self.ask(method, path, body, **headers)
        return status, json.loads(content)

    def send(self, name, content):
        """Send a file; return (its number, the work that looks at it)."""
        status, found = self.json("POST", f"/files?name={name}", content)
        assert status == 200, found
        return found["file"], self.ended(found["work"])

    def ended(self, work):
        for _ in range(1200):
            _, found = self.json("GET", f"/work/{work}")
            if found["state"] not in ("waiting", "running"):
                return found
            time.sleep(0.1)
        raise AssertionError("it does not end")

    def run(self, files, **flags):
        status, found = self.json("POST", "/work", json.dumps({"files": files, "flags": flags}))
        assert status == 200, found
        return found["work"], self.ended(found["work"])


@pytest.fixture
def visitor(port):
    return Visitor(port)


@pytest.fixture(scope="module")
def micrograph(tmp_path_factory):
    path = tmp_path_factory.mktemp("in") / "field.tif"
    write(path, field(120, 150), 0.5)
    return path


def png_of(side):
    """Return a PNG that says it has side x side pixels, and holds none of them."""

    def chunk(kind, data):
        content = kind + data
        return struct.pack(">I", len(data)) + content + struct.pack(">I", zlib.crc32(content))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_it_answers_as_the_commands_do(visitor, micrograph, tmp_path):
    number, seen = visitor.send("field.tif", micrograph.read_bytes())
    facts = seen["result"]
    assert (facts["height"], facts["width"], facts["dtype"]) == (120, 150, "uint16")
    assert facts["nm_per_pixel"] == [0.5, 0.5] and facts["planes"] == 1
    work, found = visitor.run([number], min_size=20)
    assert found["state"] == "done", found
    assert predict.main([f"--out={tmp_path / 'masks'}", str(micrograph)]) == 0
    assert measure.main([f"--out={tmp_path / 'sizes'}", "--min_size=20", str(micrograph)]) == 0

    def content(name):
        status, _, got = visitor.ask("GET", f"/work/{work}/{name}?as=a")
        assert status == 200
        return got

    assert found["result"]["files"][str(number)] == [
        "predicted/micrograph-1.overlay.png", "predicted/micrograph-1.tif"
    ]  # fmt: skip
    for theirs, ours in {
        "predicted/micrograph-1.tif": "masks/field.tif",
        "predicted/micrograph-1.overlay.png": "masks/field.overlay.png",
        "sizes/particles.csv": "sizes/particles.csv",
        "sizes/summary.json": "sizes/summary.json",
        "sizes/report.html": "sizes/report.html",
    }.items():
        assert content(theirs) == (tmp_path / ours).read_bytes(), theirs
    bare = [line.removeprefix("note: ") for line in found["lines"]]
    assert len(set(bare)) == len(bare)
    assert "field.tif" in found["lines"][0] and "/tmp" not in "".join(found["lines"])
    status, headers, _ = visitor.ask("GET", f"/work/{work}/predicted/micrograph-1.small.png")
    assert (status, headers["content-type"]) == (200, "image/png")
    status, headers, _ = visitor.ask("GET", f"/work/{work}/sizes/report.html")
    assert "sandbox" in headers["content-security-policy"]
    _, headers, _ = visitor.ask(
        "GET", f"/work/{work}/predicted/micrograph-1.tif?as=%22a%0d%0ab.tif"
    )
    assert headers["content-disposition"] == "attachment; filename*=UTF-8''%22a%0D%0Ab.tif"


def test_files_of_one_name_are_apart(visitor):
    first, second = (visitor.send("a.tif", _tiff(k))[0] for k in range(2))
    third = visitor.send("b.npy", _npy())[0]
    work, found = visitor.run([first, second, third], pixel_size=1.0)
    files = found["result"]["files"]
    assert {each: files[str(each)] for each in (first, second, third)} == {
        each: [f"predicted/micrograph-{each}{end}" for end in (".overlay.png", ".tif")]
        for each in (first, second, third)
    }
    _, _, content = visitor.ask("GET", f"/work/{work}/sizes/summary.json?as=a")
    names = [each["image"] for each in json.loads(content)["images"]]
    assert names == ["a.tif", "a.tif (2)", "b.npy"]


def test_a_file_of_another_unit_is_predicted_and_named(visitor):
    """One file states its pixel size, the other does not."""
    known, unknown = visitor.send("a.tif", _tiff(0, 0.5))[0], visitor.send("b.tif", _tiff(1))[0]
    _, found = visitor.run([known, unknown])
    assert found["state"] == "done" and "sizes/particles.csv" in found["result"]["sizes"]
    assert found["result"]["code"] == 3
    assert all(len(found["result"]["files"][str(each)]) == 2 for each in (known, unknown))
    assert any(
        line.startswith("error: b.tif: does not state its pixel size, but a.tif does")
        for line in found["lines"]
    )


def _npy():
    buffer = io.BytesIO()
    np.save(buffer, field(70, 64, seed=5))
    return buffer.getvalue()


def _tiff(seed, nm_per_pixel=None):
    buffer = io.BytesIO()
    size = {}
    if nm_per_pixel:
        size = dict(resolution=(1 / nm_per_pixel,) * 2, imagej=True, metadata={"unit": "nm"})
    tifffile.imwrite(buffer, field(64, 70, seed=seed), **size)
    return buffer.getvalue()


BAD = {
    "text.tif": b"no image at all",
    "empty.png": b"",
    "bomb.png": png_of(60000),
    "cut.tif": _tiff(0)[:-2000],
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_line_and_the_page_lives(visitor, name):
    _, found = visitor.send(name, BAD[name])
    assert found["state"] == "failed" and found["result"] is None
    errors = [line for line in found["lines"] if line.startswith("error: ")]
    assert len(errors) == 1 and name in errors[0], found
    assert visitor.ask("GET", "/")[0] == 200


@pytest.mark.parametrize(
    "name, words",
    [
        ("a.emi", "its images are in the .ser files of the same name; drop those"),
        ("a.EMI", "its images are in the .ser files of the same name; drop those"),
        ("a.mrc.mdoc", "a text that lies next to an image; drop the image alone, and type its"),
        ("a-tif.hdr", "a text that lies next to an image"),
        ("a.txt", "a text that lies next to an image"),
    ],
)
def test_files_beside_an_image_say_what_to_drop_instead(visitor, name, words):
    status, answer = visitor.json("POST", f"/files?name={name}", b"JL" + bytes(500))
    assert status == 400 and answer["error"].startswith(f"{name}: {words}")
    assert visitor.json("GET", "/files")[1] == {"files": [], "run": None}


def test_a_ser_is_read_without_its_emi(visitor, tmp_path):
    ser(tmp_path / "a_1.ser", field(30, 40)[None])
    _, found = visitor.send("a_1.ser", (tmp_path / "a_1.ser").read_bytes())
    assert found["state"] == "done" and found["result"]["nm_per_pixel"] == pytest.approx(NM)


def test_a_bad_file_among_good_ones_is_named(visitor):
    good, bad = visitor.send("a.tif", _tiff(1))[0], visitor.send("text.tif", BAD["text.tif"])[0]
    _, found = visitor.run([good, bad])
    assert found["state"] == "done" and found["result"]["code"] == 3
    assert any(line.startswith("error: text.tif") for line in found["lines"])
    assert len(found["result"]["files"][str(good)]) == 2


def test_requests_from_elsewhere_do_nothing(port, visitor):
    host = f"127.0.0.1:{port}"
    assert visitor.ask("GET", "/", Cookie="", Sec_Fetch_Site="cross-site")[0] == 403
    refused = [
        (421, dict(Host="example.org")),
        (421, dict(Host=f"example.org:{port}")),
        (403, dict(Origin="http://example.org")),
        (403, dict(Origin="null")),
        (403, dict(Sec_Fetch_Site="cross-site")),
        (403, dict(Sec_Fetch_Site="same-site")),
        (403, {"X-Emjax-Token": "another"}),
        (403, {"X-Emjax-Token": ""}),
        (401, dict(Cookie=f"emjax_session_{port}=another")),
    ]
    for status, headers in refused:
        answer = visitor.json("POST", "/files?name=a.tif", _tiff(0), **headers)
        assert (answer[0], list(answer[1])) == (status, ["error"]), headers
    assert visitor.json("POST", "/here", Host=host, Origin=f"http://{host}")[0] == 200
    for name, value in (("x-content-type-options", "nosniff"), ("cache-control", "no-store"),
                        ("referrer-policy", "no-referrer")):  # fmt: skip
        assert visitor.answer[name] == value
    assert "HttpOnly" in visitor.answer["set-cookie"]
    assert "samesite=strict" in visitor.answer["set-cookie"].lower()


def test_visitors_do_not_see_each_other(port, visitor):
    number, _ = visitor.send("a.tif", _tiff(0))
    work, _ = visitor.run([number])
    other = Visitor(port)
    assert other.ask("GET", f"/work/{work}")[0] == 404
    assert other.ask("GET", f"/work/{work}/predicted/micrograph-1.tif")[0] == 404
    assert other.ask("DELETE", f"/files/{number}")[0] == 404
    assert other.json("POST", "/work", json.dumps({"files": [number]}))[0] == 400
    mixed = {"Cookie": visitor.headers["Cookie"]}
    assert other.ask("DELETE", f"/files/{number}", **mixed)[0] == 403  # not with its own token
    kept = [{"file": number, "label": "a.tif", "work": 2}]
    assert visitor.json("GET", "/files")[1] == {
        "files": kept,
        "run": {"work": work, "pixel_size": None},
    }
    assert other.json("GET", "/files")[1]["files"] == []
    assert visitor.ask("GET", "/work/2/picture.png")[0] == 200
    assert visitor.ask("DELETE", f"/files/{number}")[0] == 200
    assert visitor.ask("DELETE", f"/files/{number}")[0] == 404
    assert visitor.ask("GET", "/work/2/picture.png")[0] == 404
    assert visitor.json("GET", "/files")[1]["files"] == []


PATHS = ["..%2F..%2Fetc%2Fpasswd", "../../file-1/micrograph-1.tif", "/etc/passwd", "%00", "picture"]


@pytest.mark.parametrize("path", PATHS)
def test_only_results_are_sent(visitor, path):
    number, _ = visitor.send("a.tif", _tiff(0))
    assert visitor.ask("GET", f"/work/{number + 1}/picture.png")[0] == 200
    assert visitor.ask("GET", f"/work/{number + 1}/{path}")[0] in (404, 307)


@pytest.mark.parametrize(
    "order, words",
    [
        ({"files": []}, "no such file"),
        ({"files": [99]}, "no such file"),
        ({"files": ["1"]}, "no such file"),
        ([], "expected files and flags"),
        ({"files": [1], "flags": {"out": "/tmp"}}, "out: expected one of model, pixel_size"),
        ({"files": [1], "flags": {"model": "../x"}}, "model=../x: expected one of "),
        ({"files": [1], "flags": {"pixel_size": "1"}}, "pixel_size='1': expected float"),
        ({"files": [1], "flags": []}, "flags: expected one of"),
    ],
)
def test_wrong_orders_are_one_line(visitor, order, words):
    number, _ = visitor.send("a.tif", _tiff(0))
    assert number == 1
    status, answer = visitor.json("POST", "/work", json.dumps(order))
    assert (status, list(answer)) == (400, ["error"]) and answer["error"].startswith(words)
    assert visitor.json("POST", "/work", "{")[0] == 400


def test_a_wrong_value_ends_the_work_with_its_line(visitor):
    assert "<option selected>particles</option>" in visitor.page
    number, _ = visitor.send("a.tif", _tiff(0))
    _, found = visitor.run([number], range="7,1")
    assert found["state"] == "failed"
    assert found["lines"][-1].startswith("error: ") and "expected LOW,HIGH" in found["lines"][-1]


def test_what_is_too_large_is_not_kept(visitor, root):
    large = bytes(3 << 20)
    status, answer = visitor.json("POST", "/files?name=large.tif", large)
    assert status == 400 and answer["error"].startswith("large.tif: more than 2.15 MB")
    parts = iter([large[: 1 << 20]] * 3)  # without a length
    assert visitor.json("POST", "/files?name=large.tif", parts)[0] == 400
    assert visitor.json("GET", "/files")[1]["files"] == []
    assert sum(path.stat().st_size > 1 << 20 for path in root.rglob("micrograph-*")) == 0
    status, answer = visitor.json("POST", "/work", b" " * (2 << 20))
    assert (status, answer["error"]) == (400, "expected an order of at most 1048576 bytes")
    assert visitor.json("POST", "/work", "[" * 100000)[0] == 400


def test_an_upload_that_breaks_off_is_not_kept(port, visitor, root):
    before = sorted(root.rglob("micrograph-*"))
    connection = socket.create_connection(("127.0.0.1", port))
    head = {**visitor.headers, "Host": f"127.0.0.1:{port}", "Content-Length": "100000"}
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    connection.sendall(f"POST /files?name=a.tif HTTP/1.1\r\n{lines}\r\n".encode() + bytes(5000))
    connection.close()
    time.sleep(0.5)
    assert sorted(root.rglob("micrograph-*")) == before
    number, found = visitor.send("b.tif", _tiff(0))
    assert found["state"] == "done"


def workers():
    """Return the numbers of the processes that work for a page."""
    count = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            count += b"emjax.apps.web.worker" in path.read_bytes()
    return count


def test_work_can_be_stopped(visitor):
    number, _ = visitor.send("a.tif", _tiff(0))
    _, found = visitor.json("POST", "/work", json.dumps({"files": [number]}))
    for _ in range(100):
        if workers():
            break
        time.sleep(0.05)
    assert workers() == 1
    assert visitor.ask("DELETE", f"/work/{found['work']}")[0] == 200
    assert visitor.ended(found["work"])["state"] == "stopped"
    assert workers() == 0
    assert visitor.run([number])[1]["state"] == "done"  # the next one gets its turn


def test_one_run_at_a_time(visitor):
    number, _ = visitor.send("a.tif", _tiff(0))
    order = json.dumps({"files": [number]})
    _, found = visitor.json("POST", "/work", order)
    status, answer = visitor.json("POST", "/work", order)
    assert status == 400 and answer["error"].startswith("a run is not finished, of this page or")
    assert visitor.ended(found["work"])["state"] == "done"
    assert visitor.run([number])[1]["state"] == "done"
    assert visitor.ask("GET", f"/work/{found['work']}")[0] == 404  # one run is kept


def test_many_requests_at_once_lose_nothing(port, visitor):
    """What cannot be answered is refused; a file that was taken stays."""
    number, _ = visitor.send("a.tif", _tiff(0))
    answers = []

    def ask():
        for _ in range(40):
            try:
                answers.append(visitor.ask("POST", "/here")[0])
            except OSError:
                answers.append(0)

    threads = [threading.Thread(target=ask) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(answers) <= {0, 200, 503} and answers.count(200) > 100
    assert visitor.run([number])[1]["state"] == "done"


def test_a_closed_page_is_stopped_and_later_forgotten(monkeypatch):
    async def live():
        page = server.Page({"127.0.0.1:1"}, sessions.Limits())
        session = page.sessions["name"] = sessions.Session(page.root, page.limits)
        work = sessions.Work(session.folder)
        work.task = asyncio.create_task(session.do(work, {"kind": "look"}, asyncio.Semaphore(0)))
        session.works[1] = work
        await page.tend()
        assert work.state == "waiting"
        session.heard -= sessions.GONE + 1
        await page.tend()
        assert work.state == "stopped" and session.folder.is_dir()
        session.heard -= sessions.FORGOTTEN
        await page.tend()
        assert not session.folder.exists() and not page.sessions
        shutil.rmtree(page.root)

    asyncio.run(live())


def test_files_of_others_are_not_readable(tmp_path):
    session = sessions.Session(tmp_path, sessions.Limits())
    assert session.folder.stat().st_mode & 0o077 == 0


def test_work_that_waits_is_limited(tmp_path):
    async def live():
        session = sessions.Session(tmp_path, sessions.Limits())
        turn = asyncio.Semaphore(0)
        for _ in range(sessions.UNFINISHED):
            session.start(dict(kind="look", files=[], flags={}), turn)
        with pytest.raises(UsageError, match="8 pieces of work are not finished; wait for one"):
            session.start(dict(kind="look", files=[], flags={}), turn)
        await session.close()

    asyncio.run(live())


def test_the_oldest_visitor_without_files_makes_room():
    async def live():
        page = server.Page({"127.0.0.1:1"}, sessions.Limits(sessions=2))
        for name in ("with a file", "older", "newer"):
            await page.make_room()
            page.sessions[name] = sessions.Session(page.root, page.limits)
            page.sessions[name].files = {1: None} if name == "with a file" else {}
            page.sessions[name].heard = len(page.sessions)
        assert list(page.sessions) == ["with a file", "newer"]
        page.sessions["newer"].files = {1: None}
        with pytest.raises(server.Refused, match="too many visitors"):
            await page.make_room()
        shutil.rmtree(page.root)

    asyncio.run(live())


def test_labels_become_distinct():
    assert sessions.distinct(["a", "a", "b", "a (2)", "a"]) == [
        "a",
        "a (2)",
        "b",
        "a (2) (2)",
        "a (3)",
    ]


@pytest.mark.parametrize(
    "name, label, suffix",
    [
        ("../../etc/passwd", "passwd", ""),
        ("C:\\data\\a.DM4", "a.DM4", ".dm4"),
        ("a.ome.tif", "a.ome.tif", ".tif"),
        ("a.mrc.gz", "a.mrc.gz", ".mrc.gz"),
        ("x\n\x1b[1m.tif", "x??[1m.tif", ".tif"),
        ("", "file", ""),
        ("/", "file", ""),
        ("a.exe", "a.exe", ""),
        ("n" * 500 + ".png", "n" * 116 + ".png", ".png"),
    ],
)
def test_names_are_labels(name, label, suffix):
    assert sessions.label_of(name) == label
    assert sessions.suffix_of(label) == suffix


@pytest.mark.parametrize(
    "line, words",
    [
        (["--port=0"], "--port=0: expected a number from 1 to 65535"),
        (["--memory_limit=0"], "--memory_limit=0.0: expected GiB, more than 0"),
        (["--host=0.0.0.0"], "--host=0.0.0.0: expected one address or name of this machine"),
        (["--host=::"], "--host=::: expected one address or name of this machine"),
        (["--host="], "--host: expected a value, got nothing"),
        (["--host=no.such.name.invalid"], "--host=no.such.name.invalid --port=8765: cannot be"),
    ],
)
def test_wrong_lines(line, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        serve.main(line)


@pytest.mark.parametrize(
    "host, named", [("MyHost", "myhost"), ("::1", "[::1]"), ("192.168.0.7", "192.168.0.7")]
)
def test_hosts_are_written_as_browsers_do(host, named):
    assert serve.in_address(host) == named


def test_a_port_that_is_taken_is_one_line(port):
    done = subprocess.run([sys.executable, "-m", "emjax.serve", f"--port={port}"],
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: --host=127.0.0.1 --port={port}: cannot be listened at: ")


def children(process):
    """Return the numbers of the processes that a process has started, and that still run."""
    threads = Path(f"/proc/{process}/task").iterdir()
    return [int(number) for each in threads for number in (each / "children").read_text().split()]


@pytest.mark.long
def test_the_200th_file_takes_no_more_memory_than_the_40th(tmp_path):
    """Neither of the page nor of the process that predicts.

    The 160 files in between have 5.2 MB: to keep them, or a picture of each, takes more than the
    bound of 4 MB.
    """
    generator = np.random.default_rng(0)
    with served(tmp_path, constants="server.AT_ONCE = 2") as (process, port):
        visitor, files, looks, memory = Visitor(port), [], [], {}
        for number in range(1, 201):
            buffer = io.BytesIO()
            tifffile.imwrite(buffer, generator.normal(9000, 500, (128, 128)).astype(np.uint16))
            status, sent = visitor.json("POST", f"/files?name={number}.tif", buffer.getvalue())
            assert status == 200, sent
            files.append(sent["file"])
            looks.append(sent["work"])
            while len(looks) > (6 if number % 40 else 0):
                assert visitor.ended(looks.pop(0))["state"] == "done"
            if number % 40 == 0:
                memory[number] = resident(process.pid)
        assert children(process.pid) == []
        assert memory[200] - memory[40] < 4, memory
        _, sent = visitor.json("POST", "/work", json.dumps({"files": files, "flags": {}}))
        taken = {}
        while (found := visitor.json("GET", f"/work/{sent['work']}")[1])["state"] != "done":
            assert found["state"] in ("waiting", "running"), found
            predicted = sum(" -> predicted/" in line for line in found["lines"])
            if not any(" particles" in line for line in found["lines"]):  # it does not measure yet
                taken[predicted] = max(map(resident, children(process.pid)), default=0)
            time.sleep(0.05)
        assert len(found["result"]["files"]) == 200
        early, late = min(n for n in taken if n >= 40), max(n for n in taken if n < 200)
        assert late >= early + 120 and taken[late] - taken[early] < 4, taken
        assert resident(process.pid) - memory[40] < 4 and children(process.pid) == []


class Browser:
    """Chromium without a window, with a profile of its own."""

    def __init__(self, folder):
        from selenium import webdriver
        from selenium.webdriver.support.wait import WebDriverWait

        options = webdriver.ChromeOptions()
        for flag in ("--headless=new", "--no-sandbox", "--window-size=1200,2200",
                     f"--user-data-dir={folder / 'profile'}"):  # fmt: skip
            options.add_argument(flag)
        options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
        options.binary_location = shutil.which("chromium")
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        self.driver = webdriver.Chrome(options=options, service=service)
        self.wait = WebDriverWait(self.driver, 90)

    def all(self, selector):
        """Return the elements of a CSS selector."""
        return self.driver.find_elements("css selector", selector)

    def text(self, name):
        """Return what the element of a name says."""
        return self.driver.find_element("id", name).text

    def until(self, condition):
        """Wait until a condition holds."""
        self.wait.until(lambda _: condition())

    def open(self, port):
        """Open the page."""
        self.driver.get(f"http://127.0.0.1:{port}/")

    def choose(self, *paths):
        """Choose files."""
        self.driver.find_element("id", "choose").send_keys("\n".join(map(str, paths)))

    def click(self, name):
        """Click on the element of a name."""
        self.driver.find_element("id", name).click()

    def fetched(self, path):
        """Return (status, text) of what a script of the page can fetch."""
        script = """const [path, done] = arguments
            fetch(path).then(async (answer) => done([answer.status, await answer.text()]))"""
        return self.driver.execute_async_script(script, path)


@pytest.fixture
def new_browser(tmp_path):
    """new_browser() starts a Browser."""
    pytest.importorskip("selenium.webdriver", reason="needs selenium: make test-handon")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("needs Chromium and its driver: make test-handon")
    started = []

    def new_browser():
        folder = tmp_path / f"browser-{len(started)}"
        folder.mkdir()
        started.append(Browser(folder))
        return started[-1]

    yield new_browser
    for each in started:
        each.driver.quit()


@pytest.mark.screen
def test_in_a_browser(new_browser, port, micrograph, tmp_path):
    """Choose two files, one of them bad; predict; read the sizes; download the table."""
    browser = new_browser()
    driver = browser.driver
    browser.open(port)
    bad = tmp_path / "<img src=x onerror=alert(1)>.tif"
    bad.write_bytes(b"no image")
    browser.choose(micrograph, bad)
    browser.until(lambda: "uint16" in browser.text("files"))
    browser.until(lambda: browser.all("#files .error"))
    assert "0.5 x 0.5 nm per pixel" in browser.text("files")
    assert not browser.all("#files img[src=x]")
    browser.click("run")
    browser.until(lambda: "done after" in browser.text("status"))
    browser.until(lambda: browser.all("#results iframe"))
    shown = browser.all("#files img")
    browser.until(lambda: all(driver.execute_script("return arguments[0].naturalWidth", each)
                              for each in shown))  # fmt: skip
    assert len(shown) == 2
    driver.find_element("link text", "particles.csv").click()
    table = tmp_path / "browser-0/particles.csv"
    browser.until(table.exists)
    assert table.read_text().startswith('"image","plane"')
    driver.save_screenshot(str(tmp_path / "page.png"))
    assert [each for each in driver.get_log("browser") if each["level"] == "SEVERE"] == []
    browser.open(port)  # the run is there after the page was loaded again
    browser.until(lambda: browser.text("status").startswith("done"))
    browser.until(lambda: browser.all("#results iframe"))
    driver.switch_to.frame(browser.all("#results iframe")[0])
    assert "Particles:" in driver.find_element("tag name", "body").text


@pytest.mark.screen
def test_files_and_a_folder_are_dropped(new_browser, port, micrograph, tmp_path):
    """Files arrive; a folder is named."""
    browser, folder = new_browser(), tmp_path / "a folder"
    folder.mkdir()
    browser.open(port)
    dragged = {"items": [], "files": [str(folder), str(micrograph)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        event = dict(type=kind, x=300, y=120, data=dragged)
        browser.driver.execute_cdp_cmd("Input.dispatchDragEvent", event)
    browser.until(lambda: "uint16" in browser.text("files"))
    assert [each.text for each in browser.all("#files .error")] == [
        "a folder; drop the files in it"
    ]


@pytest.mark.screen
def test_two_browsers_do_not_see_each_other(new_browser, port, micrograph):
    """Not after loading the page again either, which shows each their own."""
    first, second = new_browser(), new_browser()
    for browser in (first, second):
        browser.open(port)
    first.choose(micrograph)
    first.until(lambda: first.all("#files img"))
    (picture,) = (each.get_attribute("src") for each in first.all("#files img"))
    for browser, status, count in ((first, 200, 1), (second, 404, 0)):
        browser.open(port)
        assert browser.fetched(picture)[0] == status
        assert len(json.loads(browser.fetched("/files")[1])["files"]) == count
    first.until(lambda: first.all("#files img"))
    assert not second.all("#files section")


@pytest.mark.screen
def test_a_tab_that_is_closed_while_its_work_runs(new_browser, micrograph, tmp_path):
    """The work is stopped, the files are deleted, and the page goes on.

    After seconds instead of minutes.
    """
    root, stack = tmp_path / "kept", tmp_path / "stack.tif"
    root.mkdir()
    tifffile.imwrite(stack, np.tile(field(256, 256), (2000, 1, 1)), photometric="minisblack")
    browser = new_browser()
    driver = browser.driver
    with served(root, constants="server.GONE, server.FORGOTTEN = 3, 9") as (process, port):
        tab = driver.current_window_handle
        driver.switch_to.new_window("tab")
        browser.open(port)
        browser.choose(stack)
        browser.until(lambda: "2000 planes" in browser.text("files"))
        browser.click("run")
        browser.until(lambda: "running" in browser.text("status"))
        (worker,) = children(process.pid)
        (folder,) = root.glob("*/session-*")
        assert list(folder.rglob("micrograph-1.tif"))
        driver.close()
        driver.switch_to.window(tab)
        browser.until(lambda: worker not in children(process.pid))
        assert not list(folder.rglob("predicted/*.tif"))  # it was stopped, and did not end
        browser.until(lambda: not folder.exists())
        browser.open(port)
        assert not browser.all("#files section")
        browser.choose(micrograph)
        browser.until(lambda: "uint16" in browser.text("files"))
