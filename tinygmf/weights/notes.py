"""What a file says about its tensors, before any of their values is read.

Every format is read in two steps: first its directory, which becomes containers of `TensorNote`s;
then, for the tensors that are wanted, the bytes of their storages. Nothing else takes memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np

MAX_DIMENSIONS = 8  # the network's tensors have at most four; bounds the work on hostile shapes
BFLOAT16 = np.dtype([("bfloat16", "<u2")])  # NumPy has none: these are the upper bits of a float32


class Storage(NamedTuple):
    """A run of bytes in a file, which tensors may share. `kind` is the file's name for their type,
    `dtype` NumPy's, or None if it is not supported: complex, quantized, 8-bit floats."""

    key: str
    nbytes: int
    kind: str
    dtype: np.dtype | None


class TensorNote(NamedTuple):
    """Where a tensor lies in its storage: offset and strides count elements of `dtype`.

    Without a `dtype` it cannot be read, and `kind` names its type.
    """

    storage: Storage
    kind: str
    dtype: np.dtype | None
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize if self.dtype else 0


@dataclass(eq=False, slots=True)
class Placeholder:
    """An inert stand-in for an object of another class: nothing was imported or called.

    It keeps what the file gives it, because that may hold a state dict: `arguments` of the class,
    `state` (a dict of attributes, or two), and the `items` of a subclass of dict.
    """

    name: str
    arguments: tuple = ()
    state: Any = None
    items: dict[str | int, Any] | None = None


class Content(NamedTuple):
    """A file's directory: the containers that it holds, its metadata as text, and a function that
    returns the bytes of a storage."""

    tree: Any
    metadata: Mapping[str, str]
    fetch: Callable[[Storage], bytes | memoryview]


def is_natural(value: Any) -> bool:
    """Whether a value is an integer that can be a size; those of a pickle have any length."""
    return type(value) is int and 0 <= value < 1 << 63


def note_tensor(
    storage: Storage, kind: str, dtype: np.dtype | None, offset: Any, shape: Any, strides: Any
) -> TensorNote:
    """Note a tensor; ValueError if it does not lie within its storage."""
    if not len(shape) == len(strides) <= MAX_DIMENSIONS:
        raise ValueError("a tensor has too many dimensions or too few strides")
    if not all(map(is_natural, (offset, *shape, *strides))):
        raise ValueError("a tensor's shape, strides or offset is not a natural number")
    note = TensorNote(storage, kind, dtype, offset, tuple(shape), tuple(strides))
    if dtype is not None and 0 not in note.shape:
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        count = storage.nbytes // dtype.itemsize
        if prod(shape) > count or last >= count:
            raise ValueError(f"a tensor of shape {note.shape} does not fit its {count} numbers")
    return note


def view(name: str, note: TensorNote, data: bytes | memoryview) -> np.ndarray:
    """Lay the tensor `name` over the bytes of its storage."""
    if note.dtype is None:
        raise unsupported(name, note)
    if len(data) != note.storage.nbytes:
        raise ValueError(f"the storage of {name!r} does not have its {note.storage.nbytes} bytes")
    width = note.dtype.itemsize
    strides = [stride * width for stride in note.strides]
    return np.ndarray(note.shape, note.dtype, data, note.offset * width, strides)


def unsupported(name: str, note: TensorNote) -> ValueError:
    return ValueError(
        f"expected plain numbers in {name!r}, found an unsupported kind of tensor, {note.kind}: "
        f"save it as float32 with PyTorch: TENSOR.float(), dequantize() or to_dense()"
    )
