"""Reading and writing weights: `.pth` and `.safetensors`, strict, both ways.

A weight file is hostile until proven otherwise: nothing in it is executed, nothing is imported for
it, and whatever is wrong with it becomes one `CheckpointError` of one line. Files are recognised by
their content, not by their name.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from tinygrad import Context, Tensor, dtypes
from tinygrad.nn.state import get_state_dict

from tinygmf.config import GroupMixFormerConfig, Settings
from tinygmf.files import one_line, replacing
from tinygmf.model import GroupMixFormer, state_shapes
from tinygmf.tensors import tensor_from_numpy
from tinygmf.weights.pth import OLD_FORMAT, read_pth, write_pth
from tinygmf.weights.safetensors import (
    BFLOAT16,
    looks_like_safetensors,
    read_safetensors,
    write_safetensors,
)

WRITERS = {".pth": write_pth, ".safetensors": write_safetensors}
BLOCK_TENSORS = 40  # a block has 50: names alone must not cost the time to build blocks
METADATA = "tinygmf"  # the entry, in either format, that holds the metadata
SHOWN = 3  # keys of each kind that an error lists


class CheckpointError(ValueError):
    """A weight file or state dict that cannot be used. The message is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class Checkpoint(NamedTuple):
    """What a file of weights holds: arrays by name, and what was noted beside them, as JSON has
    it."""

    tensors: dict[str, np.ndarray]
    metadata: dict[str, Any]


class NetworkWeights(NamedTuple):
    """A network without modules: its configuration, its state dict as arrays, its settings."""

    config: GroupMixFormerConfig
    arrays: Mapping[str, np.ndarray]
    settings: Settings = Settings()

    @classmethod
    def of(cls, model: GroupMixFormer) -> NetworkWeights:
        """Copy a model's present weights."""
        return cls(model.config, state_arrays(model), model.settings)


def load_weights(path: str | os.PathLike[str]) -> NetworkWeights:
    """Return the network that a weight file holds, its architecture inferred from keys and shapes.

    Raises:
        CheckpointError: the file cannot be read or is no GroupMixFormer.
    """
    weights = _read_network(path)
    check_state(weights.arrays, state_shapes(weights.config), GroupMixFormer.__name__, str(path))
    return weights


def load_model(path: str | os.PathLike[str], device: str | None = None) -> GroupMixFormer:
    """Return what `load_weights` does, as a module.

    `device` is the tinygrad device of its weights; None is the default device.

    Raises:
        CheckpointError: the file cannot be read or is no GroupMixFormer.
    """
    weights = _read_network(path)
    with Context(DEV=device) if device else nullcontext():
        model = GroupMixFormer(weights.config, seed=None)
        load_state_dict(model, weights.arrays, str(path))
    model.settings = weights.settings
    return model


def _read_network(path: str | os.PathLike[str]) -> NetworkWeights:
    """Read a file and infer the configuration; other names and shapes may still be wrong."""
    tensors, metadata = read_checkpoint(path)
    try:
        config = GroupMixFormerConfig.from_state_dict({k: a.shape for k, a in tensors.items()})
        settings = Settings.from_json(metadata)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if (blocks := sum(config.serial_depths)) * BLOCK_TENSORS > len(tensors):
        raise CheckpointError(
            f"{path}: expected {BLOCK_TENSORS} tensors and more for each of its {blocks} blocks, "
            f"found {len(tensors)} in all: the file is not whole"
        )
    return NetworkWeights(config, tensors, settings)


def save_model(model: GroupMixFormer, path: str | os.PathLike[str]) -> None:
    """Write the network's weights in the published layout: `.pth` or `.safetensors` by suffix.

    `model.settings` go into the metadata. PyTorch's `torch.load(path, weights_only=True)["model"]`
    fits the published code strictly.

    Raises:
        CheckpointError: another suffix, or the file cannot be written; an older one stays whole.
    """
    _writer(Path(path))  # a wrong name is found before anything is computed
    write_tensors(state_arrays(model), path, model.settings.to_json())


def state_arrays(model: Any) -> dict[str, np.ndarray]:
    """Return a module's state dict as arrays, floating point as float32."""
    state = get_state_dict(model)
    plain = {k: t.float() if dtypes.is_float(t.dtype) else t for k, t in state.items()}
    Tensor.realize(*plain.values())  # at once: one plan for whatever is still to be computed
    return {key: tensor.numpy() for key, tensor in plain.items()}


def load_state_dict(
    model: Any, tensors: Mapping[str, np.ndarray], source: str = "the state dict"
) -> None:
    """Give the model's parameters and buffers the values of `tensors`: all of them and no other.

    Raises:
        CheckpointError: keys are missing, unexpected or of another shape; the model is unchanged.
            The message names `source` and the first few keys of each kind.
    """
    state = get_state_dict(model)
    shapes = {key: tuple(map(int, parameter.shape)) for key, parameter in state.items()}
    check_state(tensors, shapes, type(model).__name__, source)
    for key, parameter in state.items():
        array = tensors[key].astype(parameter.dtype.fmt or np.float32, copy=False)
        parameter.replace(tensor_from_numpy(array, parameter.device).cast(parameter.dtype))


def check_state(
    tensors: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    what: str,
    source: str,
) -> None:
    """Raise CheckpointError unless `tensors` have these names and shapes, all and no other."""
    missing = [key for key in shapes if key not in tensors]
    unexpected = [key for key in tensors if key not in shapes]
    misshapen = [
        f"{key} (expected {shape}, found {tensors[key].shape})"
        for key, shape in shapes.items()
        if key in tensors and shape != tensors[key].shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    if problems := [_list(kind, keys) for kind, keys in kinds.items() if keys]:
        raise CheckpointError(
            f"{source}: expected the {len(shapes)} tensors of this {what}; "
            f"{'; '.join(problems)}. Use the weights of this very architecture"
        )


def _list(kind: str, keys: list[str]) -> str:
    """`2 missing: a, b` or `9 missing: a, b, c, …`"""
    dots = ", …" if len(keys) > SHOWN else ""
    return f"{len(keys)} {kind}: {', '.join(keys[:SHOWN])}{dots}"


def read_tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return the arrays of `read_checkpoint` alone."""
    return read_checkpoint(path).tensors


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Return the state dict of a PyTorch (zip) or safetensors file, in the file's order, and the
    metadata that `write_tensors` left there.

    Of a training checkpoint the state dict is the part under "model". Prefixes `module.` are taken
    off. Floating point becomes float32, integers keep their type. The arrays are writable and own
    their memory.

    Raises:
        CheckpointError: no such file, not a regular file, or anything wrong with its content.
    """
    try:
        size = _regular_size(Path(path))
        with open(path, "rb") as file:
            return parse_checkpoint(file, size)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


def parse_checkpoint(file: BinaryIO, size: int) -> Checkpoint:
    """Return what `read_checkpoint` does, of an open file of `size` bytes.

    Raises:
        ValueError: anything wrong with its content.
        OSError: the disk does not give it.
    """
    try:
        tensors, notes = _read(file, size)
        metadata = json.loads(notes.get(METADATA, "{}"))
        result = {key.removeprefix("module."): _own(array) for key, array in tensors.items()}
    except OSError:
        raise
    except MemoryError:
        raise ValueError("expected a weight file that fits memory, found it too large") from None
    except Exception as error:  # whatever a hostile file provokes in zipfile, json or numpy
        raise ValueError(str(error) if type(error) is ValueError else _damage(error)) from None
    if len(result) != len(tensors):
        raise ValueError("some names stand twice, with and without 'module.'")
    if not isinstance(metadata, dict):
        raise ValueError(f"expected an object in its metadata {METADATA!r}, found another value")
    return Checkpoint(result, metadata)


def _damage(error: Exception) -> str:
    """Put an unforeseen error in a few words."""
    return (
        f"expected a .pth or .safetensors file, found it damaged "
        f"({type(error).__name__}: {error}); copy or download it again"
    )


def _regular_size(path: Path) -> int:
    """Return a regular file's size; ValueError for others, which could block or never end."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("expected a weight file, found a directory or a device; name a file")
    if not status.st_size:
        raise ValueError("expected a .pth or .safetensors file, found it empty; copy it again")
    return status.st_size


def _read(file: BinaryIO, size: int) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Recognise the format by the first bytes and read it."""
    start = file.read(16)
    file.seek(0)
    if start.startswith(b"PK\x03\x04"):
        return read_pth(file, size)
    if looks_like_safetensors(start):
        return read_safetensors(file, size)
    if start.startswith(OLD_FORMAT):
        raise ValueError(
            "expected PyTorch's zip format, found the one before PyTorch 1.6; convert it with "
            "PyTorch: torch.save(torch.load(OLD, weights_only=True), NEW)"
        )
    raise ValueError(
        f"expected a .pth or .safetensors file, found one that begins with {start!r}; "
        "download it again, or choose another file"
    )


def _own(array: np.ndarray) -> np.ndarray:
    """Copy a view of a file's bytes: floating point to float32, anything else in its own type."""
    if array.dtype == BFLOAT16:
        return (array["bfloat16"].astype(np.uint32) << 16).view(np.float32)
    if array.dtype == np.bool_:
        return array.view(np.uint8) != 0
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(np.float32 if array.dtype.kind == "f" else array.dtype, order="C")


def write_tensors(
    tensors: Mapping[str, np.ndarray],
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a state dict as `.pth` ({"model": ...}) or `.safetensors`, by the path's suffix.

    The metadata is kept beside it as JSON text, which the published code passes over.

    The file is written beside its place and then renamed: there is never half a file under `path`.

    Raises:
        CheckpointError: another suffix, a type that the format lacks, or the disk refuses.
    """
    path = Path(path)
    write = _writer(path)
    arrays = {key: np.asarray(array) for key, array in tensors.items()}
    notes = {METADATA: json.dumps(metadata, allow_nan=False)} if metadata else {}
    try:
        with replacing(path) as file:
            write(arrays, file, notes)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be written: {error.strerror or error}: nothing was changed; make "
            "room, or name another place"
        ) from None
    except KeyError as error:
        raise CheckpointError(f"{path}: the format has no type {error}; convert to one") from None


def _writer(
    path: Path,
) -> Callable[[Mapping[str, np.ndarray], BinaryIO, Mapping[str, str]], None]:
    """Return the function that writes the format of the path's suffix."""
    if path.suffix not in WRITERS:
        raise CheckpointError(f"{path}: expected a name that ends in .pth or .safetensors")
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path}: expected a file, found a directory or a device")
    return WRITERS[path.suffix]
