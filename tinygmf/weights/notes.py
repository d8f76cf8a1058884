"""What a file says of its tensors before a number of them is read, and what else may stand there.

Every format is read in two steps: first its directory, which becomes containers of `TensorNote`s;
then, for the tensors that are wanted, the bytes of their storages. Nothing else costs memory.
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
    """A row of bytes in a file; tensors may share it. `kind` is the file's word for its numbers,
    `dtype` NumPy's, or None where they have no use here: complex, quantised, of eight bits."""

    key: str
    nbytes: int
    kind: str
    dtype: np.dtype | None


class TensorNote(NamedTuple):
    """Where a tensor lies in its storage: offset and strides count elements of `dtype`.

    Without a `dtype` it cannot be read, and `kind` is what to call it.
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
    """An object of a class that is not ours, inert: its class was not imported, nothing was called.

    It keeps what the file gives to it, because there may be a state dict in that: `arguments` of
    the class, `state` (a dict of attributes, or two), and the `items` of a class of dictionaries.
    """

    name: str
    arguments: tuple = ()
    state: Any = None
    items: dict[str | int, Any] | None = None


class Content(NamedTuple):
    """A file's directory: the containers that it holds, its metadata as text, and what gives the
    bytes of a storage."""

    tree: Any
    metadata: Mapping[str, str]
    fetch: Callable[[Storage], bytes | memoryview]


def is_natural(value: Any) -> bool:
    """Whether a value of a file is a whole number that a size can be: pickles know any length."""
    return type(value) is int and 0 <= value < 1 << 63


def note_tensor(
    storage: Storage, kind: str, dtype: np.dtype | None, offset: Any, shape: Any, strides: Any
) -> TensorNote:
    """Return a note whose tensor lies within its storage; ValueError if it cannot."""
    if not len(shape) == len(strides) <= MAX_DIMENSIONS:
        raise ValueError("a tensor has too many dimensions or too few strides")
    if not all(map(is_natural, (offset, *shape, *strides))):
        raise ValueError("a tensor's shape, strides or offset is no natural number")
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
        raise ValueError(f"the storage of {name!r} has not the {note.storage.nbytes} bytes it says")
    width = note.dtype.itemsize
    strides = [stride * width for stride in note.strides]
    return np.ndarray(note.shape, note.dtype, data, note.offset * width, strides)


def unsupported(name: str, note: TensorNote) -> ValueError:
    return ValueError(
        f"expected plain numbers in {name!r}, found a tensor of a kind that is not supported, "
        f"{note.kind}: save it as float32 with PyTorch: TENSOR.float(), dequantize() or to_dense()"
    )
