"""Files as torch.save writes them, without PyTorch: by Python's pickler, or by hand.

`torch_save` pickles stand-ins for PyTorch's functions and classes, under the names that PyTorch's
own have. Arrays become tensors, with views on shared storages. The hand-written instructions below
it make what no pickler would.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

KINDS = {
    "bool": "BoolStorage",
    "uint8": "ByteStorage",
    "int8": "CharStorage",
    "int16": "ShortStorage",
    "int32": "IntStorage",
    "int64": "LongStorage",
    "float16": "HalfStorage",
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "complex64": "ComplexFloatStorage",
}
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class Registry:
    """Modules and names that exist while a pickle is written, and at no other time."""

    def __init__(self) -> None:
        self.modules: dict[str, types.ModuleType] = {}

    def add(self, name: str, value: Any) -> Any:
        """Let `value` be found under a dotted name."""
        module, _, attribute = name.rpartition(".")
        for end in range(1, module.count(".") + 2):
            part = ".".join(module.split(".")[:end])
            self.modules.setdefault(part, types.ModuleType(part))
        value.__module__, value.__qualname__, value.__name__ = module, attribute, attribute
        setattr(self.modules[module], attribute, value)
        return value

    def function(self, name: str) -> Any:
        return self.add(name, lambda *arguments: None)

    def kind(self, name: str, *bases: type) -> Any:
        """A class of this name, always the same one."""
        module, _, attribute = name.rpartition(".")
        if hasattr(self.modules.get(module), attribute):
            return getattr(self.modules[module], attribute)
        return self.add(name, type("Kind", bases or (object,), {}))


REGISTRY = Registry()
REBUILD = {
    version: REGISTRY.function(f"torch._utils._rebuild_tensor{version}")
    for version in ("", "_v2", "_v3")
}
PARAMETER = REGISTRY.function("torch._utils._rebuild_parameter")
PARAMETER_WITH_STATE = REGISTRY.function("torch._utils._rebuild_parameter_with_state")
FROM_TYPE = REGISTRY.function("torch._tensor._rebuild_from_type_v2")
SPARSE = REGISTRY.function("torch._utils._rebuild_sparse_tensor")
QUANTIZED = REGISTRY.function("torch._utils._rebuild_qtensor")
TENSOR = REGISTRY.kind("torch.Tensor")
SIZE = REGISTRY.kind("torch.Size")
STORAGES = {name: REGISTRY.kind(f"torch.{name}") for name in (*KINDS.values(), "BFloat16Storage")}
UNTYPED = REGISTRY.kind("torch.storage.UntypedStorage")


@dataclass
class Call:
    """What pickles as a call of `function`, whose name alone gets into the file."""

    function: Any
    arguments: tuple = ()
    state: Any = None

    def __call__(self) -> None:
        """Calls may be of what a call gave: pickle wants to see that it can be called."""

    def __reduce__(self) -> Any:
        given = (self.function, self.arguments)
        return given if self.state is None else (*given, self.state)


@dataclass
class AsNumPy:
    """An array, or a scalar of NumPy's, that stays one."""

    value: Any

    def __reduce__(self) -> Any:
        return self.value.__reduce__()


@dataclass
class Name:
    """What pickles as a bare name: `torch.float32`."""

    name: str

    def __reduce__(self) -> str:
        return self.name.rpartition(".")[2]


@dataclass
class Typed:
    """A tensor of a type that NumPy lacks or that has no class of storages, from its bytes."""

    data: np.ndarray
    kind: str  # "bfloat16", or as torch.dtype is named
    shape: tuple[int, ...]


@dataclass(eq=False)
class Row:
    """A storage."""

    kind: Any
    count: int
    data: bytes


DTYPES = {
    name: REGISTRY.add(f"torch.{name}", Name(f"torch.{name}"))
    for name in ("float32", "bfloat16", "uint16", "uint32", "uint64", "float8_e4m3fn")
}


def parameter(array: np.ndarray) -> Call:
    return Call(PARAMETER, (array, True, OrderedDict()))


class TorchPickler(pickle.Pickler):
    """Notes the storages of the arrays that it meets, as torch.save does."""

    def __init__(self, file: Any, protocol: int, legacy: bool) -> None:
        super().__init__(file, protocol)
        self.legacy = legacy
        self.rows: dict[int, tuple[Row, Any]] = {}  # by the address of their bytes

    def row(self, array: np.ndarray, kind: Any, width: int) -> Row:
        key = array.__array_interface__["data"][0]
        if key not in self.rows:
            flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            self.rows[key] = Row(kind, flat.size // width, flat.tobytes()), array
        return self.rows[key][0]

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, Row):
            return None
        key = str([row for row, _ in self.rows.values()].index(value))
        views = (None,) if self.legacy else ()
        return ("storage", value.kind, key, "cpu", value.count, *views)

    def reducer_override(self, value: Any) -> Any:
        hooks = (False, OrderedDict())
        if isinstance(value, Typed):
            strides = tuple(np.cumprod([1, *value.shape[:0:-1]])[::-1].tolist())
            if value.kind == "bfloat16":
                row = self.row(value.data, STORAGES["BFloat16Storage"], 2)
                return REBUILD["_v2"], (row, 0, value.shape, strides, *hooks)
            row = self.row(value.data, UNTYPED, 1)
            rest = (row, 0, value.shape, strides, *hooks, DTYPES[value.kind])
            return REBUILD["_v3"], rest
        if not isinstance(value, np.ndarray):
            return NotImplemented
        root = value
        while isinstance(root.base, np.ndarray):
            root = root.base
        width = value.itemsize
        addresses = [a.__array_interface__["data"][0] for a in (value, root)]
        row = self.row(root, STORAGES[KINDS[value.dtype.name]], width)
        offset, strides = (
            (addresses[0] - addresses[1]) // width,
            [s // width for s in value.strides],
        )
        return REBUILD["_v2"], (row, offset, value.shape, tuple(strides), *hooks)


def torch_save(content: Any, path: Path, protocol: int = 2, legacy: bool = False) -> Path:
    """Write what `torch.save(content, path, protocol)` would, were the arrays in it tensors."""
    program = io.BytesIO()
    pickler = TorchPickler(program, protocol, legacy)
    with patch.dict(sys.modules, REGISTRY.modules):
        pickler.dump(content)
    rows = [row for row, _ in pickler.rows.values()]
    if not legacy:
        return archive(
            path, program.getvalue(), **{f"data/{i}": row.data for i, row in enumerate(rows)}
        )
    about = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"int": 4}}
    parts = [pickle.dumps(value, protocol) for value in (MAGIC, PROTOCOL, about)]
    parts += [program.getvalue(), pickle.dumps([str(i) for i in range(len(rows))], protocol)]
    parts += [struct.pack("<q", row.count) + row.data for row in rows]
    path.write_bytes(b"".join(parts))
    return path


def module(tensors: dict[str, np.ndarray], name: str = "models.net.GroupMixFormer") -> Any:
    """A whole `nn.Module` with this state dict, pickled with its class and not its code."""
    kind, root = REGISTRY.kind(name), {}
    tree: dict[str, Any] = root
    for key, array in tensors.items():
        *parts, last = key.split(".")
        node = tree
        for part in parts:
            node = node.setdefault(part, {})
        node[last] = array

    def build(node: dict[str, Any]) -> Any:
        arrays = {k: v for k, v in node.items() if isinstance(v, np.ndarray)}
        statistics = ("running_mean", "running_var", "num_batches_tracked")
        result = kind()
        result.training = True
        result._parameters = {k: parameter(v) for k, v in arrays.items() if k not in statistics}
        result._buffers = {k: v for k, v in arrays.items() if k in statistics}
        result._modules = OrderedDict((k, build(v)) for k, v in node.items() if k not in arrays)
        return result

    return build(root)


# By hand


def number(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def tensor(
    shape: tuple[int, ...] = (2, 3),
    strides: tuple[int, ...] = (3, 1),
    offset: int = 0,
    count: int = 6,
    kind: str = "FloatStorage",
    key: str = "0",
) -> bytes:
    """The instructions with which torch.save describes a tensor."""
    storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu")
    place = number(offset) + numbers(*shape) + numbers(*strides)
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + (storage + number(count) + b"tQ" + place)
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )


def state(*tensors: bytes) -> bytes:
    """The program that builds {"t0": ..., "t1": ...}."""
    items = b"".join(text(f"t{index}") + code for index, code in enumerate(tensors))
    return b"\x80\x02}(" + items + b"u."


def archive(
    path: Path, program: bytes, compression: int = zipfile.ZIP_STORED, **records: bytes
) -> Path:
    """A zip archive as torch.save lays it out, with this pickle. Storage 0 holds six floats."""
    content = {"data/0": np.arange(6, dtype=np.float32).tobytes(), **records}
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", program)
        for name, data in content.items():
            file.writestr(f"archive/{name}", data)
        file.writestr("archive/version", "3\n")
    return path


def assert_identical(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Same keys in the same order, same types and shapes, same bits."""
    assert list(found) == list(expected)
    for key, array in expected.items():
        assert (found[key].dtype, found[key].shape) == (array.dtype, array.shape), key
        assert found[key].tobytes() == array.tobytes(), key


def refusal(path: Path, read: Callable[[Path], Any] | None = None) -> str:
    """Read a file that must be refused; return the message, which is one line that names it."""
    from tinygmf.weights.checkpoint import CheckpointError, read_tensors

    try:
        (read or read_tensors)(path)
    except CheckpointError as error:
        message = str(error)
    else:
        raise AssertionError(f"{path} was read")
    assert message.startswith(f"{path}: ") and len(message.splitlines()) == 1
    return message
