"""Files of weights: every tensor arrives, nothing in a file runs, damage is one clear error."""

import collections
import csv
import hashlib
import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from emjax.errors import InputError
from emjax.interchange import unpickle

REAL = os.environ.get("EMJAX_REAL_DATA")
needs_real_weights = pytest.mark.skipif(not REAL, reason="released weights: $EMJAX_REAL_DATA")


@needs_real_weights
def test_every_tensor_of_the_released_networks():
    folder = Path(REAL) / "weights"
    with open(folder / "tensors.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for name in {row["file"] for row in rows}:
        read = unpickle.read(folder / name)
        expected = {row["name"]: row["sha256"] for row in rows if row["file"] == name}
        digests = {n: hashlib.sha256(a.tobytes()).hexdigest() for n, a in read.tensors.items()}
        assert digests == expected
        assert "pickled module __main__.UNet" in read.kind


class Canary:
    """An object that would leave a folder behind if it were unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def evil(trace, call):
    """A pickle that calls `call` (module, name) on the path `trace`."""
    module, name = call
    path = str(trace).encode()
    return b"\x80\x02c%s\n%s\nX%s%s\x85R." % (
        module.encode(),
        name.encode(),
        struct.pack("<I", len(path)),
        path,
    )


def in_zip(content, extra=()):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        for name, value in extra:
            archive.writestr(name, value)
    return file.getvalue()


def in_legacy(content):
    start = [unpickle.LEGACY_MAGIC, 1001, {"little_endian": True}]
    return b"".join(pickle.dumps(part, 2) for part in start) + content + pickle.dumps([], 2)


CALLS = [("os", "mkdir"), ("posix", "mkdir"), ("builtins", "open"), ("pathlib", "Path.mkdir")]


@pytest.mark.parametrize("wrap", [in_zip, in_legacy, bytes])
@pytest.mark.parametrize("call", CALLS, ids=".".join)
def test_nothing_in_a_pickle_runs(wrap, call, tmp_path):
    trace = tmp_path / "ran"
    file = tmp_path / "evil.pt"
    file.write_bytes(wrap(evil(trace, call)))
    with pytest.raises(InputError, match="evil.pt: "):
        unpickle.read(file)
    assert not trace.exists()


@pytest.mark.parametrize("wrap", [in_zip, in_legacy])
def test_a_canary_among_tensors_does_not_run(wrap, tmp_path):
    trace = tmp_path / "ran"
    state = {"state_dict": {"canary": Canary(trace)}, "model": collections.OrderedDict()}
    pickle.loads(pickle.dumps(state, 2))
    assert trace.exists()  # it would
    trace.rmdir()
    file = tmp_path / "evil.pt"
    file.write_bytes(wrap(pickle.dumps(state, 2)))
    with pytest.raises(InputError):
        unpickle.read(file)
    assert not trace.exists()


@pytest.mark.parametrize(
    "offset, shape, strides",
    [
        (0, (7,), (1,)),
        (3, (2, 2), (2, 1)),
        (0, (1 << 40,), (0,)),
        (-1, (2,), (1,)),
        (0, (2, -1), (1, 1)),
        (0, (2, 2), (1 << 62, 1)),
        (0, (2,), (1, 1)),
        (0, ("2",), (1,)),
    ],
)
def test_a_tensor_outside_of_its_storage_is_refused(offset, shape, strides):
    storage = unpickle.Storage(np.float32, 6)
    storage.values = np.arange(6, dtype=np.float32)
    good = unpickle.Tensor(storage, 1, (2, 2), (1, 2)).array()
    np.testing.assert_array_equal(good, [[1, 3], [2, 4]])
    with pytest.raises(ValueError, match="a tensor"):
        unpickle.Tensor(storage, offset, shape, strides).array()


def test_modules_nested_without_end_are_refused():
    """Twenty modules, each twice inside the next, would be a million names."""
    inner = unpickle.Placeholder()
    for _ in range(20):
        outer = unpickle.Placeholder()
        outer.__setstate__({"_modules": {"a": inner, "b": inner}})
        inner = outer
    with pytest.raises(ValueError, match="without end"):
        unpickle._walk(inner, "", {}, {}, 0)


def tensors(prefix="", value=1.0):
    """Return {name: tensor} of a network that has a head."""
    storage = unpickle.Storage(np.float32, 2, np.full(2, value, np.float32))
    return {
        f"{prefix}{name}": unpickle.Tensor(storage, 0, (2,), (1,))
        for name in ("conv.weight", "head.weight")
    }


def module(state):
    made = unpickle.Placeholder()
    made.__setstate__({"_parameters": state})
    return made


def chosen(top, entry=None):
    return unpickle._chosen(top, entry, lambda names: any("head" in name for name in names))


CHECKPOINTS = {
    "": tensors(),
    "state_dict": {"epoch": 3, "state_dict": tensors(), "optimizer": {"state": {0: {"m": 1.0}}}},
    "any name": {"any name": tensors(), "lr": [0.1]},
    "a.b.c": {"a": {"b": {"c": tensors()}}},
    "ema": {"ema": tensors(), "optimizer": {"state": {0: {"m": tensors()["conv.weight"]}}}},
    "beside a number": {"loss": tensors()["conv.weight"], "beside a number": tensors()},
    "network_weights": {"init_args": {}, "network_weights": module(tensors())},
    "the same twice": {"the same twice": tensors(), "copy": tensors()},
}


@pytest.mark.parametrize("entry", CHECKPOINTS)
def test_the_entry_that_holds_the_network_is_found(entry):
    arrays, _, what = chosen(CHECKPOINTS[entry])
    assert [*arrays] == ["conv.weight", "head.weight"]
    assert entry in what and what.startswith(("state dict", "pickled module"))


def test_several_networks_in_a_checkpoint_are_a_choice(tmp_path):
    top = {"state_dict": tensors(), "state_dict_ema": tensors(value=2.0), "best": {"x": 1}}
    with pytest.raises(unpickle.SeveralNetworks) as error:
        chosen(top)
    assert error.value.args == (["state_dict", "state_dict_ema"],)
    assert (chosen(top, "state_dict_ema")[0]["conv.weight"] == 2).all()
    with pytest.raises(ValueError, match="no entry 'ema' with tensors; it has state_dict, state_"):
        chosen(top, "ema")
    loop = {"a": {}}
    loop["a"]["b"] = loop  # a pickle can hold itself
    with pytest.raises(ValueError, match="no network in it; it has a"):
        chosen(loop)


def test_safetensors_of_any_length_of_header_are_read(tmp_path):
    """One in 32 begins with 0x80, as pickles do."""
    from safetensors.numpy import save_file

    starts = []
    for more in range(0, 512, 8):
        save_file({"x" * (more + 200): np.arange(3, dtype=np.float32)}, tmp_path / "x.safetensors")
        starts.append((tmp_path / "x.safetensors").read_bytes()[:1])
        (found,) = unpickle.read(tmp_path / "x.safetensors").tensors.values()
        np.testing.assert_array_equal(found, [0, 1, 2])
    assert starts.count(b"\x80") == 2 and len({*starts}) == 32


@pytest.mark.parametrize(
    "content", [b"", b"junk", b"PK\3\4", b"\x80\x02.", b"\x80\x02}.", b"12345678{"]
)
def test_other_files_are_refused(content, tmp_path):
    file = tmp_path / "x.pt"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.pt: .*; expected|x\.pt: not a readable safetensors"):
        unpickle.read(file)
    with pytest.raises(InputError, match="No such file"):
        unpickle.read(tmp_path / "absent.pt")


def test_compressed_and_overlapping_entries_are_refused(tmp_path):
    file = tmp_path / "bomb.pt"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data/0", bytes(10_000_000))
    with pytest.raises(InputError, match="a compressed entry"):
        unpickle.read(file)


@pytest.fixture(params=["zip", "legacy", "safetensors"])
def saved(request, tmp_path):
    """(path, values) of a checkpoint that PyTorch itself wrote, in each container."""
    torch = pytest.importorskip("torch", reason="needs PyTorch: make test TORCH=1")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4))
    state = net.state_dict()
    state["0.weight"] = state["0.weight"].to(memory_format=torch.channels_last)
    state["half"], state["brain"] = torch.arange(6.0).half(), torch.arange(6.0).bfloat16()
    state["part"] = torch.arange(12).reshape(3, 4)[1:, ::2]
    file = tmp_path / "net.pt"
    if request.param == "safetensors":
        from safetensors.torch import save_file

        save_file({name: value.contiguous() for name, value in state.items()}, file)
    else:
        whole = {"epoch": 3, "optimizer": {"lr": 0.1}, "state_dict": state}
        torch.save(whole, file, _use_new_zipfile_serialization=request.param == "zip")
    return file, {name: value.float().numpy() for name, value in state.items()}


def test_what_torch_saved_reads_back(saved):
    file, values = saved
    read = unpickle.read(file).tensors
    assert read.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(read[name].astype(np.float32), value)


def test_damage_is_one_error(saved):
    """Cut off anywhere it is an InputError; a flipped bit is that, or changes a number."""
    file, _ = saved
    whole = file.read_bytes()
    for length in range(0, len(whole), max(len(whole) // 150, 1)):
        file.write_bytes(whole[:length])
        with pytest.raises(InputError):
            unpickle.read(file)
    rng = np.random.default_rng(0)
    for index in rng.integers(0, len(whole), 300):
        flipped = bytearray(whole)
        flipped[index] ^= 1 << rng.integers(8)
        file.write_bytes(bytes(flipped))
        try:
            unpickle.read(file)
        except InputError:
            continue
