"""PyTorch's file format: a zip archive of one pickle and the bytes of every tensor.

    archive/data.pkl     a pickle: {"model": OrderedDict(key -> tensor)}
    archive/data/0 ...   one storage each: plain little-endian numbers, not compressed
    archive/version      "3";  archive/byteorder  "little"

Before PyTorch 1.6 a file was five pickles in a row and then the storages; `read_legacy` reads it.

Source: https://docs.pytorch.org/docs/stable/notes/serialization.html, `torch/serialization.py`.
"""

import struct
import zipfile
from collections.abc import Mapping
from math import prod
from typing import BinaryIO

import numpy as np

from tinygmf.weights.notes import Content, Storage
from tinygmf.weights.recognize import what_archive_is
from tinygmf.weights.unpickle import DTYPES, MAX_PICKLE_BYTES, STORAGES, PickleMachine

MAX_DIRECTORY_BYTES = 2_000_000
ALIGNMENT = 64  # as torch.save aligns storages
LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the number in the first pickle before PyTorch 1.6
NAMES = {DTYPES[kind]: name for name, (kind, _) in STORAGES.items() if kind in DTYPES}


def read_pth(file: BinaryIO, size: int) -> Content:
    """Return the directory of an open file of `size` bytes; text beside the tensors is metadata.

    Raises:
        ValueError: the archive or its pickle is not what torch.save writes.
    """
    reader = _Reader(file, MAX_DIRECTORY_BYTES)
    archive = zipfile.ZipFile(reader)
    reader.limit = size
    root = _check_archive(archive, size)
    tree = PickleMachine(archive.read(f"{root}/data.pkl")).run()
    return Content(tree, _texts(tree), lambda storage: archive.read(f"{root}/data/{storage.key}"))


def _texts(tree: object) -> dict[str, str]:
    """The entries of the outermost dictionary that are text."""
    entries = tree.items() if isinstance(tree, dict) else ()
    return {k: v for k, v in entries if isinstance(k, str) and isinstance(v, str)}


class _Reader:
    """An open file that gives no more than `limit` bytes at once.

    `zipfile` reads an archive's whole directory before anything in it can be checked, and makes an
    object of every 46 bytes.
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
    if problem := what_archive_is(list(records)):
        raise ValueError(problem)
    if len(pickles) != 1 or len(records) != len(archive.infolist()):
        raise ValueError("it is a zip archive without exactly one data.pkl or with duplicate names")
    if any(record.compress_type or record.flag_bits & 1 for record in records.values()):
        raise ValueError(
            "it is compressed or encrypted, and torch.save does neither: if it was unpacked and "
            "packed again, do that without compression (zip -0)"
        )
    if sum(max(record.file_size, record.compress_size) for record in records.values()) > size:
        raise ValueError("its records together are larger than the file")
    if records[pickles[0]].file_size > MAX_PICKLE_BYTES:
        raise ValueError(f"its pickle is larger than {MAX_PICKLE_BYTES} bytes")
    root = pickles[0].removesuffix("/data.pkl")
    if f"{root}/byteorder" in records and archive.read(f"{root}/byteorder") != b"little":
        raise ValueError("its numbers are big-endian; save it on a little-endian machine")
    return root


def looks_legacy(start: bytes) -> bool:
    """Whether a file that begins with `start` was written by torch.save before PyTorch 1.6."""
    return start[:1] == b"\x80" and LEGACY in start[:32]


def read_legacy(file: BinaryIO, size: int) -> Content:
    """Return the directory of an open file of `size` bytes, as torch.save wrote it before 1.6.

    It is a row of pickles: a magic number, the protocol, facts about the machine, the content, the
    keys of the storages. Then come the storages, each after its count of numbers.

    Raises:
        ValueError: it is truncated, or not a file of this kind.
    """
    start = file.read(MAX_PICKLE_BYTES)
    position, parts = 0, []
    for _ in range(5):
        machine = PickleMachine(start, position)
        parts.append(machine.run())
        position = machine.position
        if len(parts) == 4:
            storages = machine.storages
    _, _, about, tree, keys = parts
    if not about.get("little_endian", True):
        raise ValueError("its numbers are big-endian; save it on a little-endian machine")
    starts: dict[str, int] = {}
    for key in keys:
        starts[key] = position + 8
        position += 8 + storages[key].nbytes
    if position > size:
        raise ValueError(f"its tensors need {position} bytes, the file has {size}; copy it again")

    def fetch(storage: Storage) -> bytes:
        file.seek(starts[storage.key])
        return file.read(storage.nbytes)

    return Content(tree, _texts(tree), fetch)


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
    """Add a record, with an extra field that makes its bytes begin at a multiple of ALIGNMENT."""
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
    kind = _global(f"torch.{NAMES[array.dtype]}")
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
