"""Read weights from a .safetensors file with the standard library alone.

The format (https://huggingface.co/docs/safetensors): eight bytes with the header's length, the
header in JSON, and the tensors' numbers one after another. All numbers are little-endian.
"""

import json
import math
import struct
from pathlib import Path

from .ops import Nested

# The format's name for a type of number -> its code for `struct`. BF16 is handled separately.
CODES = {
    "F64": "d", "F32": "f", "F16": "e", "BF16": "H", "BOOL": "?",
    "I64": "q", "I32": "i", "I16": "h", "I8": "b",
    "U64": "Q", "U32": "I", "U16": "H", "U8": "B",
}  # fmt: skip


def read_safetensors(path: str | Path) -> dict[str, Nested]:
    """Every tensor of a .safetensors file as nested lists, by name.

    Raises OSError if the file cannot be read, and ValueError, in one line, if it is malformed.
    """
    content = Path(path).read_bytes()
    try:
        header, data = _split(content)
        _check_layout(header, len(data))
        return {name: _tensor(entry, data) for name, entry in header.items()}
    except ValueError as error:
        raise ValueError(
            f"{path}: not a whole .safetensors file: {error}; fetch or save it again"
        ) from None


def _split(content: bytes) -> tuple[dict[str, dict], memoryview]:
    """The header, without its metadata, and the bytes of the tensors."""
    if len(content) < 8:
        raise ValueError(f"expected 8 bytes with the header's length, found {len(content)}")
    [length] = struct.unpack_from("<Q", content)
    if length > len(content) - 8:
        raise ValueError(f"expected a header of {length} bytes, found {len(content) - 8}")
    try:
        header = json.loads(content[8 : 8 + length].decode(), object_pairs_hook=_no_repeats)
    except (ValueError, RecursionError) as error:
        reason = str(error) or "it cannot be read"
        raise ValueError(f"expected a header in JSON, found other text ({reason})") from None
    if not isinstance(header, dict):
        raise ValueError(f"expected a JSON object as header, found a {type(header).__name__}")
    header.pop("__metadata__", None)
    return header, memoryview(content)[8 + length :]


def _no_repeats(pairs: list[tuple[str, Nested]]) -> dict[str, Nested]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name occurs twice")
    return dict(pairs)


def _check_layout(header: dict[str, dict], size: int) -> None:
    """Every entry is well formed, and together they cover the data without gap or overlap."""
    for name, entry in header.items():
        _check_entry(name, entry)
    position = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, end = entry["data_offsets"]
        if start != position:
            raise ValueError(f"expected {name!r} to start at byte {position}, found {start}")
        position = end
    if position != size:
        raise ValueError(f"expected {position} bytes of numbers, found {size}")


def _check_entry(name: str, entry: dict) -> None:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"expected dtype, shape and data_offsets for {name!r}, found {entry!r}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in CODES:
        raise ValueError(f"expected a dtype among {', '.join(CODES)} for {name!r}, found {dtype!r}")
    if not _are_sizes(shape) or len(shape) > 8:
        raise ValueError(f"expected a shape of at most 8 sizes for {name!r}, found {shape!r}")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"expected two data_offsets for {name!r}, found {offsets!r}")
    expected = math.prod(shape) * struct.calcsize("<" + CODES[dtype])
    if offsets[1] - offsets[0] != expected:
        found = offsets[1] - offsets[0]
        raise ValueError(f"expected {expected} bytes for {name!r} {shape}, found {found}")


def _are_sizes(values: Nested) -> bool:
    # `type` and not `isinstance`: JSON's true and false are no sizes, though Python's are ints.
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)


def _tensor(entry: dict, data: memoryview) -> Nested:
    start, end = entry["data_offsets"]
    raw, code = bytes(data[start:end]), CODES[entry["dtype"]]
    if entry["dtype"] == "BF16":  # the upper half of a 32-bit float: add a lower half of zeros
        whole = bytearray(2 * len(raw))
        whole[2::4], whole[3::4] = raw[0::2], raw[1::2]
        raw, code = bytes(whole), "f"
    numbers = struct.unpack(f"<{len(raw) // struct.calcsize('<' + code)}{code}", raw)
    return _nest(list(numbers), entry["shape"])


def _nest(values: list, shape: list[int]) -> Nested:
    """[a * b * c], shape [a, b, c] -> [a][b][c]; a scalar for the shape [], [] for no numbers."""
    if not values:
        return []
    for size in reversed(shape[1:]):
        values = [values[start : start + size] for start in range(0, len(values), size)]
    return values if shape else values[0]
