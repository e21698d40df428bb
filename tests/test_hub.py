"""Models by name from a server with the layout of the Hugging Face Hub, and that layout."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import tifffile

import emjax
from emjax import publish
from emjax.errors import InputError, UsageError
from emjax.models import saved
from tests.exported_networks import field, written

COMMIT = "a" * 40


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a U-Net that segments."""
    return written(tmp_path_factory.mktemp("unet"), "unet_mask")


class Server(http.server.ThreadingHTTPServer):
    """Serves `folder` as the repository somebody/unet."""

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.lie = folder, {}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        parts = self.path.partition("?")[0].strip("/").split("/")
        name = parts[-1]
        path = self.server.folder / name
        if parts[:2] != ["somebody", "unet"]:
            return self.refuse("RepoNotFound")
        if parts[2] != "resolve" or not path.is_file():
            return self.refuse("EntryNotFound")
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", self.server.lie.get(name, len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def refuse(self, code):
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


# What is asked of the hub is asked in a process of its own, as it reads its variables once.
ASK = """
import json, sys
from emjax import cli
from emjax.errors import EmjaxError
from emjax.models import saved
with cli.printed_notes():
    for name in sys.argv[1:]:
        try:
            print(json.dumps(saved.digest(name)))
        except EmjaxError as error:
            print(json.dumps(f"{type(error).__name__}: {error}"))
"""


@pytest.fixture
def served(tmp_path, model):
    """(a server with the layout of publish, a function that asks for names in a fresh process)."""
    pytest.importorskip("huggingface_hub", reason="needs the extra hub: make test-handon")
    assert publish.main([str(model), f"--to={tmp_path / 'hub'}", "--licence=CC-BY-4.0"]) == 0
    server = Server(tmp_path / "hub")

    def ask(*names, **variables):
        environment = {
            **os.environ, "HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path / "hf"),
            "XDG_CACHE_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_TELEMETRY": "1", **variables,
        }  # fmt: skip
        done = subprocess.run([sys.executable, "-c", ASK, *names], env=environment,
                              capture_output=True, text=True, timeout=120)  # fmt: skip
        assert done.returncode == 0, done.stderr
        notes = [line for line in done.stderr.splitlines() if line.startswith("note: ")]
        return [json.loads(line) for line in done.stdout.splitlines()], notes

    yield server, ask
    server.shutdown()
    server.server_close()


def test_a_model_is_fetched_pinned_and_kept(served, model):
    server, ask = served
    digest = saved.digest(model)
    (found,), notes = ask("hf:somebody/unet")
    assert found == digest
    assert notes == [
        "note: hf:somebody/unet: is used for the first time here; "
        f"--model=hf:somebody/unet@{digest[:16]} takes this model or none"
    ]
    names = ["hf:somebody/unet", f"hf:somebody/unet@{digest[:12]}", f"hf:somebody/unet@{digest}"]
    assert ask(*names) == ([digest] * 3, [])
    (wrong,), _ = ask("hf:somebody/unet@" + "0" * 12)
    assert wrong.startswith("InputError: hf:somebody/unet@000000000000: the digest of the model is")
    assert ask("hf:somebody/unet", HF_HUB_OFFLINE="1") == ([digest], [])
    server.shutdown()
    server.server_close()
    assert ask("hf:somebody/unet") == ([digest], [])  # no connection


def test_a_name_that_stands_for_another_model_is_refused(served, model):
    server, ask = served
    ask("hf:somebody/unet")
    config = json.loads((server.folder / "config.json").read_text())
    (server.folder / "config.json").write_text(json.dumps({**config, "range_rule": "sigma"}))
    now = saved.digest(server.folder)
    (found,), _ = ask("hf:somebody/unet", HF_HOME=str(server.folder.parent / "another"))
    assert found.startswith(
        f"InputError: hf:somebody/unet: was the model {saved.digest(model)[:16]} when it was first "
        f"used here, and is {now[:16]} now; if you trust it, name it hf:somebody/unet@{now[:16]}"
    )


@pytest.mark.parametrize(
    "name, words",
    [
        ("hf:somebody/another", "InputError: .* there is no such repository, or it is private"),
        ("hf:somebody", "UsageError: .* expected hf:OWNER/NAME"),
        ("hf:somebody/unet@123", "UsageError: .* expected hf:OWNER/NAME"),
        ("hf:../x", "UsageError: "),
        ("hf:-a/b", "UsageError: "),
        ("hf:a/b--c", "UsageError: "),
        ("hf:../../x", "UsageError: .* expected hf:OWNER/NAME"),
        ("hf:somebody/unet/x", "UsageError: .* expected hf:OWNER/NAME"),
    ],
)
def test_wrong_names_are_one_line(served, name, words):
    import re

    (found,), _ = served[1](name)
    assert re.match(words, found) and "\n" not in found, found


def test_what_is_missing_or_too_large_is_one_line(served):
    server, ask = served
    (found,), _ = ask("hf:somebody/unet", HF_HUB_OFFLINE="1")
    assert "there is no connection, and it was not fetched before" in found
    server.lie["model.safetensors"] = 3 << 30
    (found,), _ = ask("hf:somebody/unet")
    assert "its model.safetensors has 3221225472 bytes, expected at most 2147483648" in found
    (server.folder / "model.safetensors").unlink()
    (found,), _ = ask("hf:somebody/unet")
    assert "there is no model.safetensors, config.json and README.md of emjax" in found


@pytest.mark.parametrize("text", ["not JSON", "[]", '{"architectures": ["ViT"]}'])
def test_repositories_of_others_are_refused_before_their_weights(served, text):
    server, ask = served
    (server.folder / "config.json").write_text(text)
    server.lie["model.safetensors"] = 3 << 30  # which is not looked at
    (found,), notes = ask("hf:somebody/unet")
    assert found == (
        "InputError: hf:somebody/unet: expected a model of emjax, got another kind of repository"
    )
    assert notes == []


def test_the_layout_is_a_model(model, tmp_path, capsys):
    to = tmp_path / "hub"
    assert publish.main([str(model), f"--to={to}", "--licence=CC-BY-4.0"]) == 0
    assert capsys.readouterr().out == f"{model} -> {to}  digest {saved.digest(model)}\n"
    assert sorted(path.name for path in to.iterdir()) == [
        *("README.md", "config.json", "model.safetensors")
    ]
    card = (to / "README.md").read_text()
    assert card.startswith(
        "---\nlibrary_name: emjax\nlicense: cc-by-4.0\npipeline_tag: image-segmentation\ntags:\n"
    )
    assert card.endswith((model / "README.md").read_text())
    image = field(60, 70)
    assert (emjax.load_model(to).predict(image) == emjax.load_model(model).predict(image)).all()
    assert publish.main([str(model), f"--to={to}"]) == 0  # again
    assert publish.main([str(to), f"--to={tmp_path / 'again'}", "--licence=mit"]) == 0
    card = (tmp_path / "again/README.md").read_text()
    assert card.count("library_name") == 1 and "license: mit\n" in card


def test_what_is_no_model_is_not_replaced(model, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(UsageError, match="README.md would be overwritten"):
        publish.main([str(model), f"--to={tmp_path}"])
    with pytest.raises(UsageError, match="is the model itself, expected another folder"):
        publish.main([str(model), f"--to={model}"])
    with pytest.raises(UsageError, match="expected an identifier such as cc-by-4.0"):
        publish.main([str(model), f"--to={tmp_path / 'a'}", "--licence=my: own"])
    with pytest.raises(InputError, match="no such file"):
        publish.main([str(tmp_path / "no"), f"--to={tmp_path / 'a'}"])
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_the_commands_take_such_names(served, tmp_path):
    server, _ = served
    tifffile.imwrite(tmp_path / "a.tif", field(60, 70))
    environment = {**os.environ, "HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path / "hf"),
                   "XDG_CACHE_HOME": str(tmp_path / "cache")}  # fmt: skip
    line = [
        sys.executable,
        "-m",
        "emjax",
        "predict",
        "--model=hf:somebody/unet",
        "--out=out",
        "a.tif",
    ]
    done = subprocess.run(line, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(tmp_path / "out/a.tif").exists()
