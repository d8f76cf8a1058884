"""The measured numbers in tests/data, and the weights and inputs they were measured with.

The weights are not stored: each tensor is drawn from NumPy's frozen legacy generator, seeded by
its name, so that any two implementations can be given the same ones.
"""

import gzip
import json
import math
import zlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parents[1] / "data"

Entry = tuple[str, tuple[int, ...], str]  # a tensor's key, shape and dtype

NANO_CONFIG = {
    "embedding_dims": [20, 20, 30, 40],
    "serial_depths": [1, 2, 1, 1],
    "mlp_ratios": [4, 3, 2, 4],
    "num_classes": 10,
}

# The measurements of every module's output, and the shape (B, 3, H, W) of their pictures.
ONE_PICTURE, TWO_PICTURES = "nano_activations_1x3x64x64", "nano_activations_2x3x32x64"
MEASURED = {ONE_PICTURE: (1, 3, 64, 64), TWO_PICTURES: (2, 3, 32, 64)}

# Projections that end a residual branch are drawn small, so that deep networks stay tame.
SMALL_GAIN = ("cpe.proj.weight", "att.proj.weight", "mlp.fc2.weight")


@cache
def manifest() -> dict[str, dict[str, Any]]:
    """Each published variant's `config`, `num_parameters` and `state_dict` entries."""
    with gzip.open(DATA / "state_dict_manifest.json.gz", "rt") as file:
        return json.load(file)


def load_npz(name: str) -> dict[str, np.ndarray]:
    """A file of tests/data as a dictionary of arrays; the suffix may be left out.

    Where it has rows (name, other) under `same`, the array `name` equals that of the other.
    """
    with np.load(DATA / f"{name.removesuffix('.npz')}.npz") as file:
        arrays = dict(file)
    return arrays | {name: arrays[other] for name, other in arrays.pop("same", ())}


def sampled(array: np.ndarray, most: int) -> np.ndarray:
    """All of an array, flat, or `most` of its values at equal distances."""
    flat = np.asarray(array).ravel()
    return flat if flat.size <= most else flat[np.linspace(0, flat.size - 1, most).astype(int)]


@cache
def dense_manifest() -> dict[str, dict[str, Any]]:
    """Of each dense network the entries `state_dict` (key, shape, dtype) of the file that its
    library wrote, and `values`: name, number of samples and largest value of what was measured."""
    with gzip.open(DATA / "dense_manifest.json.gz", "rt") as file:
        return json.load(file)


def dense_values(name: str) -> dict[str, tuple[np.ndarray, float]]:
    """What was measured of a dense network: samples, as `sampled` takes them, and the largest."""
    with np.load(DATA / "dense.npz") as arrays:
        rest = arrays[f"{name}/values"]
    found = {}
    for key, count, largest in dense_manifest()[name]["values"]:
        found[key], rest = (rest[:count], largest), rest[count:]
    return found


def parity_input(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """The input of a measurement: standard normal, float32, of this shape (B, 3, H, W)."""
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, of the largest value expected."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def assert_measured(
    measured: dict[str, np.ndarray], logits: np.ndarray, maps: Iterable[np.ndarray]
) -> None:
    """The logits and the four maps of a published variant are those that were measured."""
    assert relative_difference(logits, measured["logits"]) < 1e-4
    for i, found in enumerate(maps, start=1):
        assert found.shape == tuple(measured[f"stage{i}_shape"])
        samples = found.ravel()[measured[f"stage{i}_index"]]
        assert relative_difference(samples, measured[f"stage{i}_value"]) < 1e-4
        assert abs(found.mean() - measured[f"stage{i}_mean"]) < 1e-4


def activations_of(name: str = ONE_PICTURE) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Pictures (B, 3, H, W), and what each module of the nano network makes of them."""
    outputs = load_npz(name)
    return parity_input(int(outputs.pop("seed")), MEASURED[name]), outputs


def deterministic_state_dict(entries: Iterable[Any]) -> dict[str, np.ndarray]:
    """Each tensor of `entries` (key, shape, dtype), drawn by the rule for its kind of key."""
    return {key: _draw(key, tuple(shape)) for key, shape, _ in entries}


def _draw(key: str, shape: tuple[int, ...]) -> np.ndarray:
    rs = np.random.RandomState(zlib.crc32(key.encode()))
    if key.endswith("num_batches_tracked"):
        return np.array(100, dtype=np.int64)
    if key.endswith("running_mean"):
        value = 0.1 * rs.standard_normal(shape)
    elif key.endswith("running_var"):
        value = 0.5 + rs.random_sample(shape)
    elif key.endswith("weight") and len(shape) == 1:
        value = 1 + 0.1 * rs.standard_normal(shape)
    elif key.endswith("bias"):
        value = 0.1 * rs.standard_normal(shape)
    else:
        gain = 0.2 if key.endswith(SMALL_GAIN) else 1.0
        value = gain * rs.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
    return np.asarray(value, dtype=np.float32)


def nano_entries() -> list[Entry]:
    """The entries of the network small enough to compare whole."""
    return entries_for(NANO_CONFIG)


def entries_for(config: dict[str, Any]) -> list[Entry]:
    """Key, shape and dtype of every tensor of a configuration, in a checkpoint's order.

    `config` is as in the manifest; `num_classes` is 1000 where it is left out.
    """
    dims = config["embedding_dims"]
    stem = (3, dims[0] // 2, dims[0])
    embedding = (dims[0], *dims)
    entries: list[Entry] = []
    for i in (1, 2):
        entries += _layer(f"conv_stem.proj{i}", (stem[i], stem[i - 1], 3, 3))
        entries += _batch_norm(f"conv_stem.norm{i}", stem[i])
    for i, dim in enumerate(dims):
        entries += _separable(f"patch_embed_layers.{i}.proj", embedding[i], dim, 3)
        entries += _batch_norm(f"patch_embed_layers.{i}.norm", dim)
    for i, dim in enumerate(dims):
        for j in range(config["serial_depths"][i]):
            name = f"groupmixformer_backbone.{i}.gma_stage.{j}"
            entries += _block(name, dim, dim * config["mlp_ratios"][i])
    entries += _batch_norm("norm4", dims[3])
    return entries + _layer("head", (config.get("num_classes", 1000), dims[3]))


def _block(name: str, dim: int, hidden: int) -> list[Entry]:
    return [
        *_layer(f"{name}.cpe.proj", (dim, 1, 3, 3)),
        *_layer(f"{name}.norm1", (dim,)),
        *_attention(f"{name}.att", dim),
        *_layer(f"{name}.norm2", (dim,)),
        *_layer(f"{name}.mlp.fc1", (hidden, dim)),
        *_layer(f"{name}.mlp.fc2", (dim, hidden)),
    ]


def _attention(name: str, dim: int) -> list[Entry]:
    segment, head = dim // 5, dim // 10
    entries = _layer(f"{name}.qkv", (3 * dim, dim)) + _layer(f"{name}.proj", (dim, dim))
    entries += _batch_norm(f"{name}.aggregator.norm0", segment)
    for i, kernel in ((1, 3), (2, 5), (3, 7)):
        entries += _separable(f"{name}.aggregator.agg{i}", segment, segment, kernel)
        entries += _batch_norm(f"{name}.aggregator.norm{i}", segment)
    entries += _separable(f"{name}.aggregator.agg0.conv", 3 * segment, segment, 3)
    entries += _layer(f"{name}.aggregator.agg0.norm", (segment,))
    for i, (heads, kernel) in enumerate([(2, 3), (3, 5), (3, 7)]):
        entries += _layer(f"{name}.crpe.conv_list.{i}", (heads * head, 1, kernel, kernel))
    return entries


def _layer(name: str, shape: tuple[int, ...]) -> list[Entry]:
    return [(f"{name}.weight", shape, "float32"), (f"{name}.bias", shape[:1], "float32")]


def _batch_norm(name: str, dim: int) -> list[Entry]:
    return [
        *_layer(name, (dim,)),
        (f"{name}.running_mean", (dim,), "float32"),
        (f"{name}.running_var", (dim,), "float32"),
        (f"{name}.num_batches_tracked", (), "int64"),
    ]


def _separable(name: str, c_in: int, c_out: int, kernel: int) -> list[Entry]:
    return [
        (f"{name}.conv1.weight", (c_in, 1, kernel, kernel), "float32"),
        (f"{name}.pointwise_conv.weight", (c_out, c_in, 1, 1), "float32"),
    ]


def safetensors_bytes(tensors: dict[str, np.ndarray]) -> bytes:
    """A .safetensors file of float32 and int64 tensors, as bytes."""
    header, data = {}, b""
    for name, tensor in tensors.items():
        raw = tensor.tobytes()
        header[name] = {
            "dtype": {"float32": "F32", "int64": "I64"}[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data
