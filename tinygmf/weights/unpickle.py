"""A stack machine for Python's pickles that builds only containers and notes of tensors.

A pickle is a program, and Python's own machine can call anything. This one imports nothing: what
torch.save calls `torch._utils._rebuild_tensor_v2` is here a function that notes a shape, and every
other class or function becomes an inert `Placeholder`. PyTorch's own guard
(`torch/_weights_only_unpickler.py`) is similar, but refuses what becomes a placeholder here.

Source: Python's `pickletools`; protocols 2 to 5.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinygmf.weights.notes import (
    BFLOAT16,
    Placeholder,
    Storage,
    TensorNote,
    is_natural,
    note_tensor,
)

# They bound the time and the memory that a hostile file can cost before it is refused. A training
# state of the largest published network, with two averages of it, takes 1.5 MB and half a million.
MAX_PICKLE_BYTES = 6_000_000
MAX_INSTRUCTIONS = 1_000_000
MAX_KEY = 500  # characters; the names of the largest published network have 60
DTYPES: dict[str, np.dtype] = {
    "bool": np.dtype("?"),
    "uint8": np.dtype("u1"),
    "int8": np.dtype("i1"),
    "uint16": np.dtype("<u2"),
    "int16": np.dtype("<i2"),
    "uint32": np.dtype("<u4"),
    "int32": np.dtype("<i4"),
    "uint64": np.dtype("<u8"),
    "int64": np.dtype("<i8"),
    "float16": np.dtype("<f2"),
    "bfloat16": BFLOAT16,
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
}
STORAGES = {  # torch's storage classes -> the type of their numbers, and bytes per number
    "UntypedStorage": ("uint8", 1),  # bytes, whose type the tensor knows
    "BoolStorage": ("bool", 1),
    "ByteStorage": ("uint8", 1),
    "CharStorage": ("int8", 1),
    "ShortStorage": ("int16", 2),
    "IntStorage": ("int32", 4),
    "LongStorage": ("int64", 8),
    "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2),
    "FloatStorage": ("float32", 4),
    "DoubleStorage": ("float64", 8),
    "ComplexFloatStorage": ("complex64", 8),
    "ComplexDoubleStorage": ("complex128", 16),
    "QInt8Storage": ("qint8", 1),
    "QUInt8Storage": ("quint8", 1),
    "QInt32Storage": ("qint32", 4),
    "QUInt4x2Storage": ("quint4x2", 1),
    "QUInt2x4Storage": ("quint2x4", 1),
}
NOWHERE = Storage("", 0, "", None)  # the storage of tensors that cannot be read


@dataclass(frozen=True)
class Global:
    """The name of a class, function or type. It is never looked up: no module is imported."""

    name: str


def _ordered_dict(pairs: Any = ()) -> Any:
    """`collections.OrderedDict`: a dict keeps its order. Python 2 passes pairs."""
    result: dict[Any, Any] = {}
    _update(result, [item for pair in pairs for item in (pair[0], pair[1])])
    return result


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Any:
    """`_rebuild_tensor_v2`: the rest is requires_grad, hooks and, rarely, deferred signs."""
    if type(storage) is not Storage:
        return Placeholder("a tensor without storage")
    if rest[2:] and rest[2]:
        return _unreadable("conjugated or negated", shape)
    return note_tensor(storage, storage.kind, storage.dtype, offset, shape, strides)


def _rebuild_tensor_of_type(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Any:
    """`_rebuild_tensor_v3`, for types without a storage class: the rest's third is the type."""
    if type(storage) is not Storage or type(rest[2]) is not Global:
        return Placeholder("a tensor without storage")
    kind = rest[2].name.removeprefix("torch.")
    return note_tensor(storage, kind, DTYPES.get(kind), offset, shape, strides)


def _rebuild_parameter(tensor: Any, *_rest: Any) -> Any:
    """`_rebuild_parameter`: the rest is requires_grad, hooks and attributes."""
    return tensor


def _rebuild_from_type(function: Any, _kind: Any, arguments: Any, _state: Any) -> Any:
    """`torch._tensor._rebuild_from_type_v2`: a tensor with attributes, or of a subclass."""
    return _call(function, arguments)


def _size(shape: Any) -> Any:
    """`torch.Size`"""
    if type(shape) is not tuple:
        raise ValueError("a torch.Size is not made of a tuple")
    return shape


def _unreadable(kind: str, shape: Any = ()) -> TensorNote:
    """Note a tensor of an unsupported kind, without looking at what it is made of."""
    whole = type(shape) is tuple and all(type(n) is int for n in shape)
    return TensorNote(NOWHERE, kind, None, 0, shape if whole else (), ())


def _of_kind(kind: str) -> Callable[..., Any]:
    return lambda *_: _unreadable(kind)


CALLABLES: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_of_type,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch._utils._rebuild_sparse_tensor": _of_kind("sparse"),
    "torch._utils._rebuild_nested_tensor": _of_kind("nested"),
    "torch._utils._rebuild_qtensor": _of_kind("quantized"),
    "torch._utils._rebuild_meta_tensor_no_storage": _of_kind("without numbers (meta)"),
    "torch.Size": _size,
}


def _call(function: Any, arguments: Any) -> Any:
    """Call one of CALLABLES; the result of anything else is a placeholder."""
    if type(function) not in (Global, Placeholder) or type(arguments) is not tuple:
        raise ValueError("its pickle calls what cannot be called")
    known = CALLABLES.get(function.name) if type(function) is Global else None
    return known(*arguments) if known else Placeholder(function.name, arguments)


def _update(target: Any, items: list[Any]) -> None:
    """SETITEM and SETITEMS. Only short strings and integers are kept as keys: hashing a nested
    tuple can take forever, and no network has other keys."""
    if type(target) not in (dict, Placeholder):
        raise ValueError("its pickle sets items of what is not a dictionary")
    pairs = zip(items[::2], items[1::2], strict=True)
    kept = {k: v for k, v in pairs if (type(k) is str and len(k) < MAX_KEY) or is_natural(k)}
    if type(target) is dict:
        target.update(kept)
    elif target.items is None:
        target.items = kept
    else:
        target.items.update(kept)


class PickleMachine:
    """Builds numbers, strings, tuples, lists, dicts, TensorNotes and Placeholders; nothing else.

    After `run`, `position` is past the program and `storages` holds those that it names.
    """

    def __init__(self, program: bytes, position: int = 0) -> None:
        self.program, self.position = program, position
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def run(self) -> Any:
        """Return what the program builds; ValueError if it is not valid."""
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

    def integer(self, length: int) -> int:
        """Return a signed integer of so many bytes."""
        return int.from_bytes(self.take(length), "little", signed=True)

    def text(self, length: int) -> str:
        """Return so many bytes as text; pickles may hold lone surrogates."""
        return self.take(length).decode("utf-8", "surrogatepass")

    def line(self) -> str:
        """Return the program's text up to the next line feed."""
        end = self.program.index(b"\n", self.position)
        return self.take(end + 1 - self.position)[:-1].decode()

    def pop_to_mark(self) -> list[Any]:
        """Take everything above the last mark off the stack."""
        start = self.marks.pop()
        items, self.stack[start:] = self.stack[start:], []
        return items

    def pop(self, count: int) -> list[Any]:
        """Take `count` items off the stack."""
        if count > len(self.stack):
            raise ValueError("its pickle takes from an empty stack")
        items, self.stack[-count:] = self.stack[-count:], []
        return items

    def protocol(self) -> None:
        """PROTO"""
        if not 2 <= (protocol := self.number("<B")) <= 5:
            raise ValueError(f"its pickle has protocol {protocol}, expected 2 to 5")

    def discard(self) -> None:
        """POP: the last item, or a mark that is above it."""
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.pop(1)

    def named(self, module: Any, name: Any) -> Global:
        """GLOBAL and STACK_GLOBAL: only a name."""
        if type(module) is not str or type(name) is not str:
            raise ValueError("its pickle uses a name that is not text")
        return Global(f"{module}.{name}")

    def persistent(self) -> Any:
        """BINPERSID: ("storage", class, key, device, count), or ("module", class, its source)."""
        [what] = self.pop(1)
        if type(what) is tuple and what[:1] == ("module",) and type(what[1]) is Global:
            return what[1]
        _, kind, key, _, count, *views = what
        if type(key) is not str or not is_natural(count) or any(v is not None for v in views):
            raise ValueError("its pickle names an invalid storage")
        name, width = STORAGES[kind.name.rpartition(".")[2]]
        self.storages[key] = Storage(key, count * width, name, DTYPES.get(name))
        return self.storages[key]

    def extend(self, items: list[Any]) -> None:
        """APPEND, APPENDS and ADDITEMS: what a placeholder's own list or set holds is dropped."""
        if type(self.stack[-1]) is list:
            self.stack[-1].extend(items)
        elif type(self.stack[-1]) is not Placeholder:
            raise ValueError("its pickle appends to what is not a list")

    def build(self) -> None:
        """BUILD: a dict's attributes, such as `_metadata`, are dropped; a placeholder's kept."""
        [state] = self.pop(1)
        if type(self.stack[-1]) is Placeholder:
            self.stack[-1].state = state
        elif type(self.stack[-1]) is not dict:
            raise ValueError("its pickle sets attributes of what is not an object")


def _push(make: Callable[[PickleMachine], Any]) -> Callable[[PickleMachine], None]:
    """An instruction that pushes what `make` returns."""
    return lambda machine: machine.stack.append(make(machine))


def _put(layout: str) -> Callable[[PickleMachine], None]:
    """An instruction that stores the top of the stack in the memo."""
    return lambda machine: machine.memo.update({machine.number(layout): machine.stack[-1]})


INSTRUCTIONS: dict[bytes, Callable[[PickleMachine], object]] = {
    b"\x80": PickleMachine.protocol,
    b"\x95": lambda machine: machine.take(8),  # FRAME
    b"c": _push(lambda machine: machine.named(machine.line(), machine.line())),
    b"\x93": _push(lambda machine: machine.named(*machine.pop(2))),
    b"R": _push(lambda machine: _call(*machine.pop(2))),
    b"\x81": _push(lambda machine: _call(*machine.pop(2))),  # NEWOBJ
    b"\x92": _push(lambda machine: _call(*machine.pop(3)[:2])),  # NEWOBJ_EX: without its keywords
    b"Q": _push(PickleMachine.persistent),
    b"b": PickleMachine.build,
    b"(": lambda machine: machine.marks.append(len(machine.stack)),
    b"0": PickleMachine.discard,
    b"1": lambda machine: machine.pop_to_mark(),
    b"2": _push(lambda machine: machine.stack[-1]),
    b"N": _push(lambda machine: None),
    b"\x88": _push(lambda machine: True),
    b"\x89": _push(lambda machine: False),
    b"K": _push(lambda machine: machine.number("<B")),
    b"M": _push(lambda machine: machine.number("<H")),
    b"J": _push(lambda machine: machine.number("<i")),
    b"G": _push(lambda machine: machine.number(">d")),
    b"\x8a": _push(lambda machine: machine.integer(machine.number("<B"))),
    b"\x8b": _push(lambda machine: machine.integer(machine.number("<I"))),
    b"X": _push(lambda machine: machine.text(machine.number("<I"))),
    b"\x8c": _push(lambda machine: machine.text(machine.number("<B"))),
    b"\x8d": _push(lambda machine: machine.text(machine.number("<Q"))),
    b"U": _push(lambda machine: machine.take(machine.number("<B")).decode("latin-1")),  # Python 2's
    b"T": _push(lambda machine: machine.take(machine.number("<I")).decode("latin-1")),
    b"C": _push(lambda machine: machine.take(machine.number("<B"))),
    b"B": _push(lambda machine: machine.take(machine.number("<I"))),
    b"\x8e": _push(lambda machine: machine.take(machine.number("<Q"))),
    b"\x96": _push(lambda machine: machine.take(machine.number("<Q"))),  # BYTEARRAY8
    b")": _push(lambda machine: ()),
    b"\x85": _push(lambda machine: tuple(machine.pop(1))),
    b"\x86": _push(lambda machine: tuple(machine.pop(2))),
    b"\x87": _push(lambda machine: tuple(machine.pop(3))),
    b"t": _push(lambda machine: tuple(machine.pop_to_mark())),
    b"]": _push(lambda machine: []),
    b"a": lambda machine: machine.extend(machine.pop(1)),
    b"e": lambda machine: machine.extend(machine.pop_to_mark()),
    b"\x8f": _push(lambda machine: Placeholder("builtins.set")),
    b"\x90": lambda machine: machine.extend(machine.pop_to_mark()),
    b"\x91": _push(lambda machine: Placeholder("builtins.frozenset", tuple(machine.pop_to_mark()))),
    b"}": _push(lambda machine: {}),
    b"s": lambda machine: _update(*_target(machine, machine.pop(2))),
    b"u": lambda machine: _update(*_target(machine, machine.pop_to_mark())),
    b"q": _put("<B"),
    b"r": _put("<I"),
    b"\x94": lambda machine: machine.memo.update({len(machine.memo): machine.stack[-1]}),
    b"h": _push(lambda machine: machine.memo[machine.number("<B")]),
    b"j": _push(lambda machine: machine.memo[machine.number("<I")]),
}


def _target(machine: PickleMachine, items: list[Any]) -> tuple[Any, list[Any]]:
    return machine.stack[-1], items
