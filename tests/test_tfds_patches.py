"""The private parts of TFDS that data_builders uses: a release that changes one fails here."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from tensorflow_datasets.core import hashing, shuffle

from data_builders import build, tfds_patches
from emjax.errors import UsageError
from tests.test_build import SIMULATED, call


def test_the_installed_release_has_every_private_part():
    """In a new process, where nothing is replaced yet. The output names what broke."""
    code = "from data_builders import tfds_patches; print(*tfds_patches.missing_parts())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


def test_parts_are_replaced_once():
    tfds_patches.apply()
    assert shuffle._Bucket is tfds_patches.Bucket
    shuffle.MAX_MEM_BUFFER_SIZE, before = 1, shuffle.MAX_MEM_BUFFER_SIZE
    try:
        tfds_patches.apply()
        assert shuffle.MAX_MEM_BUFFER_SIZE == 1
    finally:
        shuffle.MAX_MEM_BUFFER_SIZE = before
    assert before == 256 << 20


@pytest.mark.parametrize("buffer", [1 << 20, 100])
def test_buckets_on_disk_sort_records_as_memory_does(tmp_path, monkeypatch, buffer):
    """In the order of the hashes, which are taken here from TFDS itself."""
    tfds_patches.apply()
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", buffer)
    shuffler = shuffle.Shuffler(tmp_path, "train")
    records = {key: bytes([key % 256]) * (key % 7) for key in range(300)}
    for key, data in records.items():
        shuffler.add(key, data)
    assert bool(list(tmp_path.iterdir())) == (buffer == 100)
    hashed = {hashing.Hasher("train").hash_key(key): data for key, data in records.items()}
    assert list(shuffler) == sorted(hashed.items())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "module, part, named",
    [
        (shuffle, "_Bucket", "shuffle._Bucket"),
        (hashing.Hasher, "hash_key", "hashing.Hasher.hash_key"),
    ],
)
def test_a_missing_part_stops_a_build_with_one_line(
    tmp_path, capsys, monkeypatch, module, part, named
):
    monkeypatch.delattr(module, part)
    monkeypatch.setattr(metadata, "version", lambda name: "5.0.0")
    with pytest.raises(UsageError, match=f"5.0.0 has no .*{named}.*expected release 4.9.10"):
        tfds_patches.check()
    monkeypatch.setattr(build.Nanoparticles, "prepare", lambda self: pytest.fail("it was read"))
    code, _, err = call(capsys, *SIMULATED, f"--data_dir={tmp_path / 'data'}")
    assert code == 2 and err.count("\n") == 1 and "pip install tensorflow-datasets==4.9.10" in err
    assert not (tmp_path / "data").exists()


def test_a_changed_signature_is_a_missing_part(monkeypatch):
    monkeypatch.setattr(hashing.Hasher, "hash_key", lambda self, value: 0)
    assert tfds_patches.missing_parts() == ["hashing.Hasher.hash_key(key=)"]


def test_the_tested_release_is_the_pinned_one():
    pins = (Path(__file__).parents[1] / "requirements.txt").read_text().splitlines()
    [pin] = [line for line in pins if line.startswith("tensorflow-datasets==")]
    assert pin.split()[0].split("==")[1] == tfds_patches.TESTED
