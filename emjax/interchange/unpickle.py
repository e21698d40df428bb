"""PyTorch's files as arrays, without running their code and without PyTorch.

A pickle is a program. Here it can build numbers, text, lists, dicts, sets and descriptions of
tensors; every other class and function it names becomes an inert Placeholder.
"""

import collections
import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from emjax.errors import Adjustable, InputError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # of files from before PyTorch 1.6
STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
DEEPEST = 3  # entries of a checkpoint inside each other
MOST_ENTRIES = 100_000  # modules and tensors; the largest HRNet has 3,500


class File(NamedTuple):
    """What a file of weights holds."""

    kind: str  # as people call it
    tensors: dict[str, np.ndarray]  # under their dotted names
    modules: dict[str, dict]  # plain attributes of each pickled module, and its "class"; often none
    metadata: dict[str, str]  # of a safetensors file


class SeveralNetworks(ValueError):
    """Several entries of a checkpoint, its only argument, hold what is wanted in other values."""


class Placeholder:
    """Stands for an object of a class that is not looked up; keeps the object's state."""

    origin = ""  # the class's full name

    def __new__(cls, *arguments: Any, **named: Any) -> "Placeholder":
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.state: dict = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


class Storage:
    """A run of numbers that tensors are cut from; its values may come later than its name."""

    def __init__(self, dtype: Any, count: int, values: np.ndarray | None = None) -> None:
        self.dtype, self.count, self.values = np.dtype(dtype), count, values


class Tensor(NamedTuple):
    """A tensor as pickled."""

    storage: Storage
    offset: int
    shape: tuple
    strides: tuple

    def array(self) -> np.ndarray:
        """Return a read-only view of the storage.

        Raises: ValueError unless the tensor lies inside it.
        """
        values, (shape, strides) = self.storage.values, (tuple(self.shape), tuple(self.strides))
        if values is None:
            raise ValueError("a tensor without its values")
        if any(type(n) is not int or n < 0 for n in (self.offset, *shape, *strides)):
            raise ValueError(f"a tensor of shape {shape}, strides {strides}")
        if len(shape) != len(strides):
            raise ValueError(f"a tensor with {len(shape)} axes and {len(strides)} strides")
        size = int(np.prod(shape, dtype=object))
        if size == 0:
            return np.zeros(shape, values.dtype)
        last = self.offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if last >= len(values) or size > len(values):
            raise ValueError(f"a tensor of shape {shape} in a storage of {len(values)} values")
        steps = [step * values.itemsize for step in strides]
        return np.lib.stride_tricks.as_strided(values[self.offset :], shape, steps, writeable=False)


StorageOf = Callable[[str, Any, int], Storage]  # (key, dtype, count) to the Storage


def read(
    path: Path, entry: str | None = None, wanted: Callable[[Iterable[str]], bool] = any
) -> File:
    """Return the File at `path`: safetensors, or a pickled state dict or module.

    Args:
        entry: which of the entries of a checkpoint: "state_dict", "ema.model", ...
        wanted: says by the names of its tensors whether an entry is what is looked for. If several
            are, one has to be named, unless all hold the same values.

    Raises: InputError for anything else, for damage, for what no honest file has, and if several
        entries are wanted.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            start = file.read(16)
            size = file.seek(0, io.SEEK_END)
        # The length of its header comes first, which may begin as a pickle does.
        header = int.from_bytes(start[:8], "little")
        is_safetensors = start[8:9] == b"{" and (header <= size or start[:1] != b"\x80")
        if start[:4] == b"PK\3\4":
            kind, top = "zip container", _zip(path, size)
        elif start[:1] == b"\x80" and not is_safetensors:
            kind, top = "container from before PyTorch 1.6", _legacy(path.read_bytes())
        elif is_safetensors and entry is not None:
            raise ValueError(f"a safetensors file has no entries, so no {entry!r}")
        elif is_safetensors:
            return _safetensors(path)
        else:
            raise ValueError(f"it starts with {start!r}")
        arrays, modules, what = _chosen(top, entry, wanted)
    except SeveralNetworks as error:
        names = error.args[0]
        problem = f"{path}: it holds {len(names)} networks, {', '.join(names)}"
        raise Adjustable(problem, f"choose one, such as entry={names[0]}") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; expected a file of weights") from None
    except Exception as error:  # a damaged pickle fails in any way it likes, out of memory too
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{path}: {reason}; expected a safetensors file, a PyTorch state dict or a pickled "
            "PyTorch module"
        ) from None
    return File(f"{what} in a {kind}", arrays, modules, {})


def _safetensors(path: Path) -> File:
    try:
        with safe_open(path, "numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            return File("safetensors", tensors, {}, file.metadata() or {})
    except (SafetensorError, TypeError) as error:
        raise InputError(f"{path}: not a readable safetensors file: {error}") from None


class _Unpickler(pickle.Unpickler):
    """Finds nothing but containers, tensors and placeholders."""

    def __init__(self, file: BinaryIO, storage_of: StorageOf) -> None:
        super().__init__(file, encoding="utf-8")
        self.storage_of = storage_of

    def find_class(self, module: str, name: str) -> Any:
        known = {
            "collections.OrderedDict": collections.OrderedDict,
            "builtins.set": set,
            "__builtin__.set": set,
            "torch._utils._rebuild_tensor": Tensor,
            "torch._utils._rebuild_tensor_v2": _tensor,
            "torch._utils._rebuild_parameter": lambda data, *rest: data,
            "torch._utils._rebuild_parameter_with_state": lambda data, *rest: data,
        }.get(f"{module}.{name}")
        return known or type(name, (Placeholder,), {"origin": f"{module}.{name}"})

    def persistent_load(self, identity: Any) -> Any:
        if identity[0] == "module":  # the class of a module, its file and its source text
            return identity[1]
        kind, storage, key, _, count, *view = identity
        dtype = STORAGES.get(storage.__name__)
        if kind != "storage" or dtype is None or any(view) or type(count) is not int:
            raise ValueError(f"a storage {getattr(storage, 'origin', kind)} that is not known")
        return self.storage_of(str(key), dtype, count)


def _tensor(storage: Storage, offset: int, shape: tuple, strides: tuple, *rest: Any) -> Tensor:
    return Tensor(storage, offset, shape, strides)


def _zip(path: Path, size: int) -> Any:
    """Return what is pickled in a zip container of `size` bytes."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("a compressed entry; PyTorch writes none")
        if sum(entry.file_size for entry in entries) > size:
            raise ValueError("entries that overlap")
        names = [entry.filename for entry in entries]
        roots = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError(f"{len(roots)} entries data.pkl, expected one")
        root = roots[0]
        storages: dict[str, Storage] = {}
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("written on a big-endian machine")

        def storage_of(key: str, dtype: Any, count: int) -> Storage:
            if key not in storages:
                values = np.frombuffer(archive.read(f"{root}data/{key}"), dtype)
                storages[key] = Storage(dtype, count, values)
            return storages[key]

        return _Unpickler(io.BytesIO(archive.read(f"{root}data.pkl")), storage_of).load()


def _legacy(content: bytes) -> Any:
    """Return what is pickled in a container from before PyTorch 1.6."""
    file = io.BytesIO(content)
    storages: dict[str, Storage] = {}

    def storage_of(key: str, dtype: Any, count: int) -> Storage:
        return storages.setdefault(key, Storage(dtype, count))

    def load() -> Any:
        return _Unpickler(file, storage_of).load()

    if load() != LEGACY_MAGIC:
        raise ValueError("a pickle, but not one of PyTorch's")
    load()  # the protocol
    if not load().get("little_endian"):
        raise ValueError("written on a big-endian machine")
    top, keys = load(), load()
    for key in keys:
        storage = storages[str(key)]
        (count,) = struct.unpack("<q", file.read(8))
        if count != storage.count:
            raise ValueError(f"storage {key} has {count} values, expected {storage.count}")
        values = file.read(count * storage.dtype.itemsize)
        storage.values = np.frombuffer(values, storage.dtype, count)
    if any(storage.values is None for storage in storages.values()):
        raise ValueError("the file ends before its numbers")
    return top


def _chosen(
    top: Any, entry: str | None, wanted: Callable[[Iterable[str]], bool]
) -> tuple[dict[str, np.ndarray], dict[str, dict], str]:
    """Return (tensors, modules, what it is) of the entry of `top` that is wanted, as `read` does.

    If none is, it is the largest.
    """
    if not isinstance(top, dict | Placeholder):
        raise ValueError(f"it holds a {type(top).__name__}")
    flat: dict[str, tuple[dict[str, Tensor], dict[str, dict]]] = {}
    kinds, total = {}, 0
    for name, node in _entries(top, "", 0):
        tensors: dict[str, Tensor] = {}
        modules: dict[str, dict] = {}
        _walk(node, "", tensors, modules, depth=0)
        total += 1 + len(tensors) + len(modules)
        if total > MOST_ENTRIES:
            raise ValueError("entries nested without end")
        if tensors:
            flat[name] = tensors, modules
            module = isinstance(node, Placeholder)
            kinds[name] = f"pickled module {node.origin}" if module else "state dict"
            kinds[name] += f", {name!r} of a checkpoint," if name else ""
    if isinstance(top, Placeholder):
        if not flat:
            raise ValueError(f"a pickled module {top.origin} without a tensor")
    elif not flat:
        raise ValueError(f"a dict with no network in it; it has {', '.join(map(str, [*top][:8]))}")
    if entry is not None and entry not in flat:
        raise ValueError(f"no entry {entry!r} with tensors; it has {', '.join(flat)}")
    meant = [entry] if entry is not None else [n for n, (each, _) in flat.items() if wanted(each)]
    meant = meant or [max(flat, key=lambda name: len(flat[name][0]))]
    arrays = [{n: each.array() for n, each in flat[name][0].items()} for name in meant]
    if not all(_equal(arrays[0], other) for other in arrays[1:]):
        raise SeveralNetworks(meant)
    return arrays[0], flat[meant[0]][1], kinds[meant[0]]


def _entries(node: Any, name: str, depth: int) -> Iterator[tuple[str, dict | Placeholder]]:
    """Yield (name, node) of the objects, and of the dicts with tensors, in `node` or `node` itself.

    An object next to tensors is a module among them.
    """
    if isinstance(node, Placeholder):
        yield name, node
        return
    has_tensors = any(isinstance(value, Tensor) for value in node.values())
    if has_tensors:
        yield name, node
    if depth < DEEPEST:
        for key, value in node.items():
            if isinstance(value, dict) or (isinstance(value, Placeholder) and not has_tensors):
                yield from _entries(value, f"{name}.{key}" if name else str(key), depth + 1)


def _equal(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(
        np.array_equal(value, other[name]) for name, value in one.items()
    )


def _walk(
    node: Any, prefix: str, tensors: dict[str, Tensor], modules: dict[str, dict], depth: int
) -> None:
    """Add to `tensors` and `modules` what `node`, a module or a dict, holds below `prefix`."""
    if len(tensors) + len(modules) > MOST_ENTRIES or depth > 50:
        raise ValueError("modules nested without end")
    if isinstance(node, Placeholder):
        plain = {
            key: value
            for key, value in node.state.items()
            if isinstance(value, bool | int | float | str | tuple)
        }
        modules[prefix] = {**plain, "class": node.origin}
        for group in ("_parameters", "_buffers", "_modules"):
            _walk(node.state.get(group) or {}, prefix, tensors, modules, depth + 1)
    elif isinstance(node, dict):
        for key, value in node.items():
            if isinstance(value, Tensor | Placeholder):
                name = f"{prefix}.{key}" if prefix else str(key)
                if isinstance(value, Tensor):
                    tensors[name] = value
                else:
                    _walk(value, name, tensors, modules, depth + 1)
