"""Load and save networks, in either format, strictly.

`reading` turns a file into arrays, `entries` finds the network among them; here names, shapes and
values are checked against the architecture that they imply.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from tinygrad import Context, Tensor, dtypes
from tinygrad.nn.state import get_state_dict

from tinygmf.config import GroupMixFormerConfig, Settings
from tinygmf.files import one_line, replacing
from tinygmf.model import GroupMixFormer, state_shapes
from tinygmf.tensors import tensor_from_numpy
from tinygmf.weights.entries import find_network
from tinygmf.weights.pth import write_pth
from tinygmf.weights.reading import (
    METADATA,
    Checkpoint,
    CheckpointError,
    is_bundled,
    network_file,
    read_checkpoint,
)
from tinygmf.weights.safetensors import write_safetensors

WRITERS = {".pth": write_pth, ".safetensors": write_safetensors}
BLOCK_TENSORS = 40  # a block has 50: bounds the time that hostile names can cost
COUNTER = "num_batches_tracked"
SHOWN = 3  # keys of each kind that an error lists

log = logging.getLogger("tinygmf")  # without a handler a warning is a line on standard error


class NetworkWeights(NamedTuple):
    """A network without modules: its configuration, its state dict as arrays, its settings."""

    config: GroupMixFormerConfig
    arrays: Mapping[str, np.ndarray]
    settings: Settings = Settings()

    @classmethod
    def of(cls, model: GroupMixFormer) -> NetworkWeights:
        """Copy a model's current weights."""
        return cls(model.config, state_arrays(model), model.settings)


def load_weights(path: str | os.PathLike[str], entry: str | None = None) -> NetworkWeights:
    """Return the network that a weight file holds, its architecture inferred from keys and shapes.

    A training run's folder or file stands for its network so far. `entry` names one of several
    networks in the file by the path to it ("teacher", "state_dict.model"); without it, of a network
    and its average the average is loaded. What was chosen or skipped is logged as a warning.

    A network without a head may also lack its last norm, which becomes neutral; it returns features
    and can be fine-tuned. Missing BatchNorm counters become 0.

    Raises:
        CheckpointError: the file cannot be read, is not a GroupMixFormer, or holds several.
    """
    weights, remark = _network_of(read_network(path, entry), path)
    shapes = state_shapes(weights.config)
    weights, remark = _complete(weights, shapes, remark)
    check_state(weights.arrays, shapes, GroupMixFormer.__name__, str(path))
    _tell(path, remark)
    return weights


def load_model(
    path: str | os.PathLike[str], device: str | None = None, entry: str | None = None
) -> GroupMixFormer:
    """Return what `load_weights` does, as a module.

    `device` is the tinygrad device of its weights; None is the default device.

    Raises:
        CheckpointError: the file cannot be read, is not a GroupMixFormer, or holds several.
    """
    return build_model(read_network(path, entry), path, device)


def read_network(path: str | os.PathLike[str], entry: str | None = None) -> Checkpoint:
    """Read the network of a file; of a training run's folder or file its network so far."""
    return read_checkpoint(network_file(path), partial(find_network, entry=entry))


def build_model(
    checkpoint: Checkpoint, path: str | os.PathLike[str], device: str | None = None
) -> GroupMixFormer:
    """Return what `load_model` does, of the network that `find_network` found in the file."""
    weights, remark = _network_of(checkpoint, path)
    with Context(DEV=device) if device else nullcontext():
        model = GroupMixFormer(weights.config, seed=None)
        weights, remark = _complete(weights, _shapes(get_state_dict(model)), remark)
        load_state_dict(model, weights.arrays, str(path))
    model.settings = weights.settings
    _tell(path, remark)
    return model


def _network_of(checkpoint: Checkpoint, path: str | os.PathLike[str]) -> tuple[NetworkWeights, str]:
    """Infer the configuration; other names and shapes may still be wrong. The text tells the user
    what was chosen."""
    tensors, metadata, remark = checkpoint
    shapes = {key: array.shape for key, array in tensors.items()}
    try:
        config = GroupMixFormerConfig.from_state_dict(shapes)
        settings = Settings.from_json(_as_backbone(metadata))
        require_whole(config, shapes)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return NetworkWeights(config, tensors, settings), remark


def _as_backbone(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """A dense network's metadata, with its pictures' shorter side as the training size."""
    if metadata.get("image_size") is None and "min_size" in metadata:
        return {**metadata, "image_size": metadata["min_size"]}
    return metadata


def _complete(
    weights: NetworkWeights, shapes: Mapping[str, tuple[int, ...]], remark: str
) -> tuple[NetworkWeights, str]:
    """Add what the file of a whole network may lack: BatchNorm's counters and, without a head, the
    last norm, which dense networks do not use."""
    lacking = {key: shape for key, shape in shapes.items() if key not in weights.arrays}
    added = counters(lacking)
    norm = [key for key in shapes if key.startswith("norm4.") and COUNTER not in key]
    if "head.weight" not in shapes and all(key in lacking for key in norm):
        ones = ("norm4.weight", "norm4.running_var")
        added |= {k: np.full(shapes[k], float(k in ones), np.float32) for k in norm}
        remark = "; ".join(filter(None, (remark, "the last norm, norm4, is missing: left neutral")))
    return weights._replace(arrays={**weights.arrays, **added}), remark


def counters(lacking: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The BatchNorm counters that a file lacks, at 0: no output depends on them."""
    return {key: np.zeros(shape, np.int64) for key, shape in lacking.items() if COUNTER in key}


def _tell(path: str | os.PathLike[str], remark: str) -> None:
    if remark and not is_bundled(path):
        log.warning("%s", one_line(f"{path}: {remark}"))


def require_whole(config: GroupMixFormerConfig, tensors: Mapping[str, Any]) -> None:
    """Raise ValueError for a file with too few tensors for the blocks that its names imply."""
    if (blocks := sum(config.serial_depths)) * BLOCK_TENSORS > len(tensors):
        raise ValueError(
            f"expected at least {BLOCK_TENSORS} tensors for each of its {blocks} blocks, "
            f"found {len(tensors)} in all: the file is incomplete; copy it again"
        )


def save_model(model: Any, path: str | os.PathLike[str]) -> None:
    """Write the network's weights in the published layout: `.pth` or `.safetensors` by suffix.

    `model.settings` go into the metadata. PyTorch's `torch.load(path, weights_only=True)["model"]`
    loads into the published code strictly.

    Raises:
        CheckpointError: another suffix, or the file cannot be written; an older one stays intact.
    """
    _writer(Path(path))  # a wrong name is found before anything is computed
    write_tensors(state_arrays(model), path, model.settings.to_json())


def state_arrays(model: Any) -> dict[str, np.ndarray]:
    """Return a module's state dict as arrays, floating point as float32."""
    state = get_state_dict(model)
    plain = {k: t.float() if dtypes.is_float(t.dtype) else t for k, t in state.items()}
    Tensor.realize(*plain.values())  # at once: one schedule for what is still to be computed
    return {key: tensor.numpy() for key, tensor in plain.items()}


def load_state_dict(
    model: Any, tensors: Mapping[str, np.ndarray], source: str = "the state dict"
) -> None:
    """Set the model's parameters and buffers to `tensors`, which must have exactly these names.

    Raises:
        CheckpointError: keys are missing, unexpected or misshapen, values are not finite, or
            weights are integers. The model is unchanged; the message names `source` and the first
            few keys of each kind.
    """
    state = get_state_dict(model)
    check_state(tensors, _shapes(state), type(model).__name__, source)
    for key, parameter in state.items():
        array = tensors[key].astype(parameter.dtype.fmt or np.float32, copy=False)
        parameter.replace(tensor_from_numpy(array, parameter.device).cast(parameter.dtype))


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(map(int, parameter.shape)) for key, parameter in state.items()}


def check_state(
    tensors: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    what: str,
    source: str,
) -> None:
    """Raise CheckpointError unless `tensors` have exactly these names and shapes and, except for
    the counters, finite floating-point values."""
    missing = [key for key in shapes if key not in tensors]
    unexpected = [key for key in tensors if key not in shapes]
    misshapen = [
        f"{key} (expected {shape}, found {tensors[key].shape})"
        for key, shape in shapes.items()
        if key in tensors and shape != tensors[key].shape
    ]
    floats = {key: a for key, a in tensors.items() if key in shapes and COUNTER not in key}
    integers = [key for key, array in floats.items() if array.dtype.kind != "f"]
    kinds = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    kinds["integer or quantized"] = integers
    if problems := [_list(kind, keys) for kind, keys in kinds.items() if keys]:
        raise CheckpointError(
            f"{source}: expected the {len(shapes)} tensors of this {what}; "
            f"{'; '.join(problems)}. Use weights of this architecture"
        )
    if broken := [key for key, array in floats.items() if not np.isfinite(array).all()]:
        raise CheckpointError(
            f"{source}: expected finite numbers, found {_list('with NaN or infinity', broken)}: "
            "the training diverged; take an earlier checkpoint"
        )


def _list(kind: str, keys: list[str]) -> str:
    """`2 missing: a, b` or `9 missing: a, b, c, …`"""
    dots = ", …" if len(keys) > SHOWN else ""
    return f"{len(keys)} {kind}: {', '.join(keys[:SHOWN])}{dots}"


def read_tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return only the arrays of `read_checkpoint`."""
    return read_checkpoint(path).tensors


def write_tensors(
    tensors: Mapping[str, np.ndarray],
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a state dict as `.pth` ({"model": ...}) or `.safetensors`, by the path's suffix.

    The metadata is kept beside it as JSON text, which the published code ignores.

    The file is written under another name and then renamed: `path` never holds half a file.

    Raises:
        CheckpointError: another suffix, a type that the format lacks, or a failed write.
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
            "room, or choose another path"
        ) from None
    except KeyError as error:
        raise CheckpointError(f"{path}: the format has no type {error}; convert it") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: cannot be written: {error}") from None


def _writer(
    path: Path,
) -> Callable[[Mapping[str, np.ndarray], BinaryIO, Mapping[str, str]], None]:
    """Return the function that writes the format of the path's suffix."""
    if path.suffix not in WRITERS:
        raise CheckpointError(f"{path}: expected a name that ends in .pth or .safetensors")
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path}: expected a file, found a folder or a device")
    return WRITERS[path.suffix]
