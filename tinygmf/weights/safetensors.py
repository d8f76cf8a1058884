"""The safetensors format: eight bytes of length, a JSON header, the tensors' bytes in a row.

`read_safetensors` checks all that the header says against the file's size before using it: a
hostile file costs no more memory than an honest one.

Source: https://huggingface.co/docs/safetensors
"""

import json
from collections.abc import Mapping
from math import prod
from typing import Any, BinaryIO

import numpy as np

from tinygmf.weights.notes import BFLOAT16, MAX_DIMENSIONS, Content, Storage, TensorNote, is_natural

MAX_HEADER_BYTES = 2_000_000  # four times the header of the largest published network
DTYPES = {
    "BOOL": np.dtype("?"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "BF16": BFLOAT16,
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def looks_like_safetensors(start: bytes) -> bool:
    """Whether a file that begins with `start` (at least nine bytes) can be safetensors."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= MAX_HEADER_BYTES


def read_safetensors(file: BinaryIO, size: int) -> Content:
    """Return the directory of an open file of `size` bytes.

    Raises:
        ValueError: the header is not what the format prescribes, or contradicts the file's size.
    """
    length = int.from_bytes(file.read(8), "little")
    if length > min(MAX_HEADER_BYTES, size - 8):
        raise ValueError(f"its header claims {length} bytes, the file has {size}; copy it again")
    text = file.read(length).decode("utf-8")  # json would accept, and import, other encodings
    header = json.loads(text, object_pairs_hook=_without_duplicates)
    metadata = header.pop("__metadata__", {})
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata holds something other than text")
    notes = {key: _note(key, entry) for key, entry in header.items()}
    spans = {key: entry["data_offsets"] for key, entry in header.items()}
    _check_spans(list(spans.values()), size - 8 - length)

    def fetch(storage: Storage) -> bytes:
        file.seek(8 + length + spans[storage.key][0])
        return file.read(storage.nbytes)

    return Content(notes, metadata, fetch)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object whose names all differ."""
    if len(result := dict(pairs)) != len(pairs):
        raise ValueError("a name appears twice in its header")
    return result


def _note(key: str, entry: Any) -> TensorNote:
    """Note a tensor; ValueError unless the entry's type, shape and number of bytes agree."""
    kind, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"tensor {key!r} has {len(shape)} dimensions, more than {MAX_DIMENSIONS}")
    if type(kind) is not str or not all(map(is_natural, (*shape, begin, end))) or begin > end:
        raise ValueError(f"tensor {key!r} has a shape or an offset that is not a natural number")
    dtype = DTYPES.get(kind)  # None: floats of 8 bits or less, or complex
    if dtype is not None and prod(shape) * dtype.itemsize != end - begin:
        raise ValueError(f"tensor {key!r} of shape {shape} does not fill its {end - begin} bytes")
    strides = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
    storage = Storage(key, end - begin, kind, dtype)
    return TensorNote(storage, kind, dtype, 0, tuple(shape), tuple(strides))


def _check_spans(spans: list[list[int]], size: int) -> None:
    """Raise ValueError unless the spans follow one another from 0 to `size`."""
    position = 0
    for begin, end in sorted(spans):
        if begin != position:
            raise ValueError(f"its tensors overlap or leave a hole at byte {position}")
        position = end
    if position != size:
        raise ValueError(f"its tensors need {position} bytes, the file has {size} for them")


def write_safetensors(
    tensors: Mapping[str, np.ndarray], file: BinaryIO, metadata: Mapping[str, str]
) -> None:
    """Write the tensors to an open file, with this metadata and what PyTorch's readers expect.

    The header keeps the tensors' order. Their bytes come widest type first, to be aligned.
    """
    entries: dict[str, dict[str, Any]] = {key: {} for key in tensors}
    widest_first = sorted(tensors, key=lambda key: -tensors[key].itemsize)
    position = 0
    for key in widest_first:
        array = tensors[key]
        span = [position, position + array.nbytes]
        name = NAMES[array.dtype]
        entries[key] = {"dtype": name, "shape": list(array.shape), "data_offsets": span}
        position += array.nbytes
    about = {"format": "pt", **metadata}
    header = json.dumps({"__metadata__": about, **entries}, separators=(",", ":"))
    encoded = header.encode()
    encoded += b" " * (-len(encoded) % 8)
    if len(encoded) > MAX_HEADER_BYTES:
        raise ValueError(
            f"expected names and metadata of at most {MAX_HEADER_BYTES} bytes, found {len(encoded)}"
        )
    file.write(len(encoded).to_bytes(8, "little") + encoded)
    for key in widest_first:
        file.write(tensors[key].tobytes())
