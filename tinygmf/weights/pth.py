"""PyTorch's file format: a zip archive of one pickle and the bytes of every tensor.

    archive/data.pkl     a pickle, protocol 2: {"model": OrderedDict(key -> tensor)}
    archive/data/0 ...   one storage each: plain little-endian numbers, not compressed
    archive/version      "3";  archive/byteorder  "little"

A pickle is a program for a small stack machine, and Python's own machine can call anything. The
one below knows only the instructions that tensors and plain containers need, and it imports
nothing: what torch.save calls `torch._utils._rebuild_tensor_v2` is here a function that notes a
shape. PyTorch guards itself in the same way (`torch/_weights_only_unpickler.py`).

Source: https://docs.pytorch.org/docs/stable/notes/serialization.html and Python's `pickletools`.
"""

import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

import numpy as np

from tinygmf.weights.safetensors import BFLOAT16, MAX_DIMENSIONS

# Twice what a training checkpoint of the largest published network takes; they bound the time and
# the memory that a hostile file can cost before it is refused.
MAX_PICKLE_BYTES = 3_000_000
MAX_INSTRUCTIONS = 1_000_000
MAX_DIRECTORY_BYTES = 2_000_000
ALIGNMENT = 64  # as torch.save aligns storages
OLD_FORMAT = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # how files before PyTorch 1.6 begin
STORAGES = {
    "torch.BoolStorage": np.dtype("?"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": BFLOAT16,
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.DoubleStorage": np.dtype("<f8"),
}
NAMES = {dtype: name for name, dtype in STORAGES.items()}


@dataclass(frozen=True)
class Storage:
    """A row of `count` numbers in the archive's record `data/{key}`."""

    dtype: np.dtype
    key: str
    count: int


@dataclass(frozen=True)
class TensorNote:
    """Where a tensor lies in its storage. Offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Global:
    """An allowed name. It is never looked up: no module is imported."""

    name: str


def _ordered_dict() -> dict[Any, Any]:
    """`collections.OrderedDict()`: a dict keeps its order."""
    return {}


def _rebuild_tensor(
    storage: Storage, offset: int, shape: tuple, strides: tuple, *_rest: object
) -> TensorNote:
    """`torch._utils._rebuild_tensor_v2`: the rest is requires_grad, hooks and metadata."""
    if type(storage) is not Storage or not len(shape) == len(strides) <= MAX_DIMENSIONS:
        raise ValueError("a tensor has no storage, too many dimensions or too few strides")
    if not all(type(number) is int and number >= 0 for number in (offset, *shape, *strides)):
        raise ValueError("a tensor's shape, strides or offset is no natural number")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if prod(shape) > storage.count or (prod(shape) and last >= storage.count):
        raise ValueError(f"a tensor of shape {shape} does not fit its {storage.count} numbers")
    return TensorNote(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor: TensorNote, *_rest: object) -> TensorNote:
    """`torch._utils._rebuild_parameter`: the rest is requires_grad and hooks."""
    return tensor


def _size(shape: tuple) -> tuple:
    """`torch.Size`"""
    if type(shape) is not tuple:
        raise ValueError("a torch.Size is made of no tuple")
    return shape


CALLABLES: dict[str, Callable[..., object]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch.Size": _size,
}


class PickleMachine:
    """Builds numbers, strings, tuples, lists, dicts and TensorNotes, and nothing else."""

    def __init__(self, program: bytes) -> None:
        self.program, self.position = program, 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Return what the program builds; ValueError at anything that tensors do not need."""
        for _ in range(MAX_INSTRUCTIONS):
            if (code := self.take(1)) == b".":
                return self.stack.pop()
            if code not in INSTRUCTIONS:
                where = self.position - 1
                raise ValueError(f"its pickle has the instruction {code!r} at byte {where}")
            INSTRUCTIONS[code](self)
        raise ValueError(f"its pickle has more than {MAX_INSTRUCTIONS} instructions")

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes of the program."""
        self.position += count
        if self.position > len(self.program):
            raise ValueError("its pickle ends early")
        return self.program[self.position - count : self.position]

    def number(self, layout: str) -> Any:
        """Return the program's next number, by `struct`'s layout."""
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> str:
        """Return the program's text up to the next line feed."""
        end = self.program.index(b"\n", self.position)
        return self.take(end + 1 - self.position)[:-1].decode()

    def pop_to_mark(self) -> list[Any]:
        """Take everything above the last mark off the stack."""
        start = self.marks.pop()
        items, self.stack[start:] = self.stack[start:], []
        return items

    def protocol(self) -> None:
        """PROTO"""
        if (protocol := self.number("<B")) != 2:
            raise ValueError(f"its pickle has protocol {protocol}, torch.save's default is 2")

    def find_global(self) -> None:
        """GLOBAL: the one door to the outside, open to names that tensors need."""
        name = f"{self.line()}.{self.line()}"
        if name not in STORAGES and name not in CALLABLES:
            raise ValueError(
                f"expected tensors alone, found a pickle that asks for {name!r}: refused, and "
                "nothing was run; if you trust its author, save its 'model' alone with PyTorch"
            )
        self.stack.append(Global(name))

    def call(self) -> None:
        """REDUCE: call one of CALLABLES."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not Global or type(arguments) is not tuple:
            raise ValueError("its pickle calls what cannot be called")
        self.stack.append(CALLABLES[function.name](*arguments))

    def persistent(self) -> None:
        """BINPERSID: ("storage", type, key, device, count)"""
        _, kind, key, _, count = self.stack.pop()
        if type(key) is not str or type(count) is not int:
            raise ValueError("its pickle names a storage that is none")
        self.stack.append(Storage(STORAGES[kind.name], key, count))

    def extend(self, items: list[Any]) -> None:
        """APPEND and APPENDS"""
        if type(self.stack[-1]) is not list:
            raise ValueError("its pickle appends to what is no list")
        self.stack[-1].extend(items)

    def update(self, items: list[Any]) -> None:
        """SETITEM and SETITEMS. Keys are text or integers: hashing a nested tuple can go on for
        ever."""
        keys, values = items[::2], items[1::2]
        if type(self.stack[-1]) is not dict or not all(type(key) in (str, int) for key in keys):
            raise ValueError("its pickle has a dictionary key that is neither text nor integer")
        self.stack[-1].update(zip(keys, values, strict=True))

    def build(self) -> None:
        """BUILD: attributes of a state dict, such as `_metadata`, which no tensor needs."""
        self.stack.pop()
        if type(self.stack[-1]) is not dict:
            raise ValueError("its pickle sets attributes of what is no dictionary")

    def pop(self, count: int) -> list[Any]:
        """Take `count` items off the stack."""
        if count > len(self.stack):
            raise ValueError("its pickle takes from an empty stack")
        items, self.stack[-count:] = self.stack[-count:], []
        return items


def _push(make: Callable[[PickleMachine], Any]) -> Callable[[PickleMachine], None]:
    """An instruction that pushes what `make` returns."""
    return lambda machine: machine.stack.append(make(machine))


def _put(layout: str) -> Callable[[PickleMachine], None]:
    """An instruction that notes the top of the stack under a number."""
    return lambda machine: machine.memo.update({machine.number(layout): machine.stack[-1]})


INSTRUCTIONS: dict[bytes, Callable[[PickleMachine], None]] = {
    b"\x80": PickleMachine.protocol,
    b"c": PickleMachine.find_global,
    b"R": PickleMachine.call,
    b"Q": PickleMachine.persistent,
    b"b": PickleMachine.build,
    b"(": lambda machine: machine.marks.append(len(machine.stack)),
    b"N": _push(lambda machine: None),
    b"\x88": _push(lambda machine: True),
    b"\x89": _push(lambda machine: False),
    b"K": _push(lambda machine: machine.number("<B")),
    b"M": _push(lambda machine: machine.number("<H")),
    b"J": _push(lambda machine: machine.number("<i")),
    b"G": _push(lambda machine: machine.number(">d")),
    b"\x8a": _push(
        lambda machine: int.from_bytes(machine.take(machine.number("<B")), "little", signed=True)
    ),
    b"X": _push(lambda machine: machine.take(machine.number("<I")).decode()),
    b")": _push(lambda machine: ()),
    b"\x85": _push(lambda machine: tuple(machine.pop(1))),
    b"\x86": _push(lambda machine: tuple(machine.pop(2))),
    b"\x87": _push(lambda machine: tuple(machine.pop(3))),
    b"t": _push(lambda machine: tuple(machine.pop_to_mark())),
    b"]": _push(lambda machine: []),
    b"a": lambda machine: machine.extend(machine.pop(1)),
    b"e": lambda machine: machine.extend(machine.pop_to_mark()),
    b"}": _push(lambda machine: {}),
    b"s": lambda machine: machine.update(machine.pop(2)),
    b"u": lambda machine: machine.update(machine.pop_to_mark()),
    b"q": _put("<B"),
    b"r": _put("<I"),
    b"h": _push(lambda machine: machine.memo[machine.number("<B")]),
    b"j": _push(lambda machine: machine.memo[machine.number("<I")]),
}


def read_pth(file: BinaryIO, size: int) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the state dict of an open file of `size` bytes, as read-only views, and its metadata:
    the entries beside it that are text.

    The state dict stands under "model" (published files and training checkpoints), under
    "state_dict" or "model_ema", or is the whole file. Other parts of a training checkpoint are
    not read.

    Raises:
        ValueError: the archive or its pickle is not what torch.save writes for tensors.
    """
    reader = _Reader(file, MAX_DIRECTORY_BYTES)
    with zipfile.ZipFile(reader) as archive:
        reader.limit = size
        root = _check_archive(archive, size)
        content = PickleMachine(archive.read(f"{root}/data.pkl")).run()
        notes = _state_dict(content)
        metadata = {key: value for key, value in content.items() if type(value) is str}
        if sum(prod(n.shape) * n.storage.dtype.itemsize for n in notes.values()) > 2 * size:
            raise ValueError("its tensors hold more numbers than the file")
        storages = {note.storage.key: b"" for note in notes.values()}
        for key in storages:
            storages[key] = archive.read(f"{root}/data/{key}")
    tensors = {key: _view(note, storages[note.storage.key]) for key, note in notes.items()}
    return tensors, metadata


class _Reader:
    """An open file that gives no more than `limit` bytes at once.

    `zipfile` reads an archive's directory whole, before anything in it can be looked at, and makes
    an object of every 46 bytes.
    """

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self.file, self.limit = file, limit
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, count: int = -1) -> bytes:
        if count > self.limit:
            raise ValueError(f"its directory is larger than {self.limit} bytes")
        return self.file.read(self.limit if count < 0 else count)


def _check_archive(archive: zipfile.ZipFile, size: int) -> str:
    """Return the name of the archive's folder; ValueError if torch.save cannot have written it."""
    records = {record.filename: record for record in archive.infolist()}
    pickles = [name for name in records if name.endswith("/data.pkl")]
    if len(pickles) != 1 or len(records) != len(archive.infolist()):
        raise ValueError("it is a zip archive without exactly one data.pkl, or with names twice")
    if any(record.compress_type or record.flag_bits & 1 for record in records.values()):
        raise ValueError("it is compressed or encrypted, and torch.save does neither")
    if sum(max(record.file_size, record.compress_size) for record in records.values()) > size:
        raise ValueError("its records together are larger than the file")
    if records[pickles[0]].file_size > MAX_PICKLE_BYTES:
        raise ValueError(f"its pickle is larger than {MAX_PICKLE_BYTES} bytes")
    root = pickles[0].removesuffix("/data.pkl")
    if f"{root}/byteorder" in records and archive.read(f"{root}/byteorder") != b"little":
        raise ValueError("its numbers are big-endian; save it on a little-endian machine")
    return root


def _state_dict(content: Any) -> dict[str, TensorNote]:
    """Find the state dict in what the pickle built."""
    if type(content) is not dict:
        raise ValueError("it holds no dictionary of tensors")
    for name in ("model", "state_dict", "model_ema"):
        if type(content.get(name)) is dict:
            content = content[name]
            break
    for key, value in content.items():
        if type(key) is not str or type(value) is not TensorNote:
            raise ValueError(f"its entry {key!r} is no tensor; expected a state dict, or a 'model'")
    return content


def _view(note: TensorNote, data: bytes) -> np.ndarray:
    """Lay a tensor over the bytes of its storage."""
    width = note.storage.dtype.itemsize
    if len(data) != note.storage.count * width:
        raise ValueError(f"its storage {note.storage.key!r} has not {note.storage.count} numbers")
    strides = [stride * width for stride in note.strides]
    return np.ndarray(note.shape, note.storage.dtype, data, note.offset * width, strides)


def write_pth(
    tensors: Mapping[str, np.ndarray], file: BinaryIO, metadata: Mapping[str, str]
) -> None:
    """Write {"model": tensors, **metadata} to an open file as torch.save does: PyTorch reads it."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _write_record(archive, file, "archive/data.pkl", _pickle(tensors, metadata))
        _write_record(archive, file, "archive/byteorder", b"little")
        for index, array in enumerate(tensors.values()):
            _write_record(archive, file, f"archive/data/{index}", array.tobytes())
        _write_record(archive, file, "archive/version", b"3\n")


def _write_record(archive: zipfile.ZipFile, file: BinaryIO, name: str, data: bytes) -> None:
    """Add a record whose bytes begin at a multiple of ALIGNMENT, thanks to an extra field."""
    record = zipfile.ZipInfo(name)
    start = file.tell() + 30 + len(name) + 4  # a local header, the name, the field's own header
    padding = -start % ALIGNMENT
    record.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    archive.writestr(record, data)


def _pickle(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """Write the program that builds {"model": OrderedDict(tensors), **metadata}: PROTO 2 … STOP."""
    items = b"".join(
        _text(key) + _tensor(array, str(index))
        for index, (key, array) in enumerate(tensors.items())
    )
    model = _text("model") + _global("collections.OrderedDict") + b")R(" + items + b"us"
    others = b"".join(_text(key) + _text(value) + b"s" for key, value in metadata.items())
    return b"\x80\x02}" + model + others + b"."


def _tensor(array: np.ndarray, key: str) -> bytes:
    """_rebuild_tensor_v2(storage, offset 0, shape, strides, requires_grad False, no hooks)"""
    kind = _global(NAMES[array.dtype])
    storage = b"(" + _text("storage") + kind + _text(key) + _text("cpu") + _integer(array.size)
    strides = [prod(array.shape[axis + 1 :]) for axis in range(array.ndim)]
    place = _integer(0) + _integers(array.shape) + _integers(strides)
    hooks = _global("collections.OrderedDict") + b")R"
    function = _global("torch._utils._rebuild_tensor_v2")
    return function + b"(" + storage + b"tQ" + place + b"\x89" + hooks + b"tR"


def _text(text: str) -> bytes:
    """BINUNICODE"""
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def _integer(number: int) -> bytes:
    """BININT, or LONG1 beyond 31 bits"""
    if number < 2**31:
        return b"J" + struct.pack("<i", number)
    return b"\x8a\x08" + struct.pack("<q", number)


def _integers(numbers: tuple[int, ...] | list[int]) -> bytes:
    """MARK ... TUPLE"""
    return b"(" + b"".join(map(_integer, numbers)) + b"t"


def _global(name: str) -> bytes:
    """GLOBAL"""
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()
