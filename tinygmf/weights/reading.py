"""Read a weight file into arrays: `.pth` of either kind and `.safetensors`.

A weight file is hostile until proven otherwise: nothing in it is executed, nothing is imported for
it, and whatever is wrong with it becomes one `CheckpointError` of one line. Files are recognized by
their content, not by their name.
"""

from __future__ import annotations

import json
import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from tinygmf.files import did_you_mean, one_line
from tinygmf.weights.entries import Found, find_tensors
from tinygmf.weights.notes import BFLOAT16, Content, view
from tinygmf.weights.pth import looks_legacy, read_legacy, read_pth
from tinygmf.weights.recognize import what_file_is
from tinygmf.weights.safetensors import looks_like_safetensors, read_safetensors

BUNDLED = {  # weights in the package, by name
    "digits": "digits.safetensors",
    "scenes-segment": "scenes_segment.safetensors",
    "scenes-instance": "scenes_instance.safetensors",
}
RUN, NETWORK = "run.safetensors", "model.safetensors"  # in a training run's folder
METADATA = "tinygmf"  # the entry, in either format, that holds the metadata


class CheckpointError(ValueError):
    """A weight file or state dict that cannot be used. The message is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class Checkpoint(NamedTuple):
    """What a weight file holds: arrays by name, JSON metadata, and a remark for the user on what
    was chosen from it."""

    tensors: dict[str, np.ndarray]
    metadata: dict[str, Any]
    remark: str = ""


def read_checkpoint(
    path: str | os.PathLike[str], find: Callable[[Any], Found] = find_tensors
) -> Checkpoint:
    """Return the state dict of a PyTorch or safetensors file, in the file's order, and the metadata
    that `write_tensors` left there.

    `find` chooses the tensors: `find_tensors`, the largest state dict of any network, or
    `find_network`. Others are not read. Floating point becomes
    float32, integers keep their type. The arrays are writable and own their memory.

    Raises:
        CheckpointError: no such file, not a regular file, or anything wrong with its content.
    """
    try:
        found = find_weights(path)
        size = _regular_size(found)
        with open(found, "rb") as file:
            return parse_checkpoint(file, size, find)
    except OSError as error:
        near = did_you_mean(os.fspath(path), BUNDLED)
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}{near}") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


def is_bundled(path: str | os.PathLike[str]) -> bool:
    """Whether these are weights in the package, and there is no file of that name."""
    return os.fspath(path) in BUNDLED and not os.path.exists(path)


def find_weights(path: str | os.PathLike[str]) -> Path:
    """A weight file's path; of bundled weights the path in the package."""
    if is_bundled(path):
        return Path(__file__).parents[1] / "assets" / BUNDLED[os.fspath(path)]
    return Path(path)


def network_file(path: str | os.PathLike[str]) -> Path:
    """The network's file if the path is a training run's folder or run file; else the path."""
    place = Path(path)
    folder = place.parent if place.name == RUN else place
    return folder / NETWORK if (folder / NETWORK).is_file() else place


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the metadata of `read_checkpoint`, which raises the same, and read no tensor."""
    return read_checkpoint(path, lambda _: Found({})).metadata


def parse_checkpoint(
    file: BinaryIO, size: int, find: Callable[[Any], Found] = find_tensors
) -> Checkpoint:
    """Return what `read_checkpoint` does, of an open file of `size` bytes.

    Raises:
        ValueError: anything wrong with its content.
        OSError: it cannot be read.
    """
    try:
        content = _read(file, size)
        notes, remark = find(content.tree)
        if sum(note.nbytes for note in notes.values()) > 2 * size:
            raise ValueError("its tensors hold more numbers than the file")
        metadata = json.loads(content.metadata.get(METADATA, "{}"))
        storages = {note.storage for note in notes.values() if note.dtype is not None}
        rows = {storage: content.fetch(storage) for storage in storages}
        tensors = {
            key: _own(view(key, note, rows.get(note.storage, b""))) for key, note in notes.items()
        }
    except OSError:
        raise
    except zipfile.BadZipFile:
        raise ValueError(
            "expected a .pth file, found one cut short or damaged: copy or download it again"
        ) from None
    except MemoryError:
        raise ValueError("expected a weight file that fits in memory, found a larger one") from None
    except Exception as error:  # whatever a hostile file provokes in zipfile, json or numpy
        raise ValueError(str(error) if type(error) is ValueError else _damage(error)) from None
    if not isinstance(metadata, dict):
        raise ValueError(f"expected an object in its metadata {METADATA!r}, found another value")
    return Checkpoint(tensors, metadata, remark)


def _damage(error: Exception) -> str:
    """An unexpected error in one line."""
    return (
        f"expected a .pth or .safetensors file, found it damaged "
        f"({type(error).__name__}: {error}); copy or download it again"
    )


def _regular_size(path: Path) -> int:
    """Return a regular file's size; ValueError for others, which could block or never end."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(
            "expected a weight file, found a folder or a device: name a file, or the folder of a "
            "training run"
        )
    if not status.st_size:
        raise ValueError("expected a .pth or .safetensors file, found it empty; copy it again")
    return status.st_size


def _read(file: BinaryIO, size: int) -> Content:
    """Recognize the format by the first bytes and read its directory."""
    start = file.read(512)
    file.seek(0)
    if start.startswith(b"PK\x03\x04"):
        return read_pth(file, size)
    if looks_like_safetensors(start):
        return read_safetensors(file, size)
    if looks_legacy(start):
        return read_legacy(file, size)
    raise ValueError(what_file_is(start))


def _own(array: np.ndarray) -> np.ndarray:
    """Copy a view of a file's bytes: floating point to float32, anything else in its own type."""
    if array.dtype == BFLOAT16:
        return (array["bfloat16"].astype(np.uint32) << 16).view(np.float32)
    if array.dtype == np.bool_:
        return array.view(np.uint8) != 0
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(np.float32 if array.dtype.kind == "f" else array.dtype, order="C")
