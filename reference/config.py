"""The five published variants as data, and the tensors that a variant has."""

import math
import re
from dataclasses import dataclass

from .ops import Nested

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Config:
    """Channels, number of blocks and MLP ratio of each of the four stages."""

    embedding_dims: tuple[int, ...]  # D_1 to D_4, multiples of 10
    serial_depths: tuple[int, ...]
    mlp_ratios: tuple[float, ...]  # hidden width of the MLPs / channels of their stage
    num_classes: int = 1000


VARIANTS = {
    "miny": Config((40, 80, 160, 160), (3, 3, 12, 4), (4, 4, 4, 4)),
    "tiny": Config((80, 160, 200, 240), (4, 4, 12, 4), (4, 4, 4, 4)),
    "small": Config((80, 160, 320, 320), (2, 4, 12, 4), (4, 4, 4, 4)),
    "base": Config((200, 240, 320, 480), (8, 8, 12, 8), (2, 2, 4, 4)),
    "large": Config((240, 320, 360, 480), (8, 10, 30, 10), (4, 4, 2, 2)),
}


def tensor_shapes(config: Config) -> dict[str, Shape]:
    """The name and shape of every tensor in a checkpoint of this configuration, in order."""
    dims = config.embedding_dims
    shapes: dict[str, Shape] = {}
    for i, (c_in, c_out) in enumerate([(3, dims[0] // 2), (dims[0] // 2, dims[0])], start=1):
        shapes |= _conv(f"conv_stem.proj{i}", c_out, c_in, 3, bias=True)
        shapes |= _batch_norm(f"conv_stem.norm{i}", c_out)
    for i, (c_in, c_out) in enumerate(zip((dims[0], *dims), dims, strict=False)):
        shapes |= _separable_conv(f"patch_embed_layers.{i}.proj", c_out, c_in, 3)
        shapes |= _batch_norm(f"patch_embed_layers.{i}.norm", c_out)
    for i, (dim, depth) in enumerate(zip(dims, config.serial_depths, strict=True)):
        for j in range(depth):
            name = f"groupmixformer_backbone.{i}.gma_stage.{j}"
            shapes |= _block(name, dim, round(dim * config.mlp_ratios[i]))
    return shapes | _batch_norm("norm4", dims[-1]) | _affine("head", config.num_classes, dims[-1])


def _block(name: str, dim: int, hidden: int) -> dict[str, Shape]:
    segment = dim // 5
    shapes = _conv(f"{name}.cpe.proj", dim, 1, 3, bias=True) | _affine(f"{name}.norm1", dim)
    shapes |= _affine(f"{name}.att.qkv", 3 * dim, dim) | _affine(f"{name}.att.proj", dim, dim)
    aggregator = f"{name}.att.aggregator"
    shapes |= _batch_norm(f"{aggregator}.norm0", segment)
    for i, size in ((1, 3), (2, 5), (3, 7)):
        shapes |= _separable_conv(f"{aggregator}.agg{i}", segment, segment, size)
        shapes |= _batch_norm(f"{aggregator}.norm{i}", segment)
    shapes |= _separable_conv(f"{aggregator}.agg0.conv", segment, 3 * segment, 3)
    shapes |= _affine(f"{aggregator}.agg0.norm", segment)
    for i, (heads, size) in enumerate([(2, 3), (3, 5), (3, 7)]):
        shapes |= _conv(f"{name}.att.crpe.conv_list.{i}", heads * dim // 10, 1, size, bias=True)
    shapes |= _affine(f"{name}.norm2", dim) | _affine(f"{name}.mlp.fc1", hidden, dim)
    return shapes | _affine(f"{name}.mlp.fc2", dim, hidden)


def _affine(name: str, *shape: int) -> dict[str, Shape]:
    """A linear layer or a norm: a weight of this shape and a bias."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _batch_norm(name: str, dim: int) -> dict[str, Shape]:
    statistics = {f"{name}.running_mean": (dim,), f"{name}.running_var": (dim,)}
    return _affine(name, dim) | statistics | {f"{name}.num_batches_tracked": ()}


def _conv(name: str, c_out: int, c_in: int, size: int, bias: bool = False) -> dict[str, Shape]:
    shapes = _affine(name, c_out, c_in, size, size)
    return shapes if bias else {f"{name}.weight": shapes[f"{name}.weight"]}


def _separable_conv(name: str, c_out: int, c_in: int, size: int) -> dict[str, Shape]:
    depthwise = _conv(f"{name}.conv1", c_in, 1, size)
    return depthwise | _conv(f"{name}.pointwise_conv", c_out, c_in, 1)


def config_of(weights: dict[str, Nested]) -> Config:
    """Infer the configuration from a checkpoint, and check that every tensor fits it.

    Raises ValueError, in one line, for the first tensor that is missing, unknown or misshapen, or
    that holds something other than finite numbers.
    """
    shapes = {name: shape_of(name, tensor) for name, tensor in weights.items()}
    config = _infer(shapes)
    expected = tensor_shapes(config)
    for name in sorted(expected.keys() - shapes.keys()):
        raise ValueError(f"weights: expected a tensor {name!r} {list(expected[name])}, found none")
    for name in sorted(shapes.keys() - expected.keys()):
        raise ValueError(f"weights: expected no tensor {name!r} in this network, found one")
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise ValueError(
                f"weights: expected {name!r} of shape {list(shape)}, found {list(shapes[name])}"
            )
        if name.endswith("running_var") and min(weights[name]) < 0:
            raise ValueError(f"weights: expected no variance below 0 in {name!r}, found one")
    return config


def _infer(shapes: dict[str, Shape]) -> Config:
    """Dimensions, depths, ratios and classes, from the names and shapes of tensors."""

    def size(name: str) -> int:
        if not shapes.get(name):
            raise ValueError(f"weights: expected a tensor {name!r} with numbers, found none")
        return shapes[name][0]

    dims = tuple(size(f"patch_embed_layers.{i}.norm.weight") for i in range(4))
    for dim in dims:
        if dim == 0 or dim % 10:
            raise ValueError(f"weights: expected channels in multiples of 10, found {dim}")
    blocks: list[set[int]] = [set() for _ in dims]
    for name in shapes:
        if match := re.match(r"groupmixformer_backbone\.([0-3])\.gma_stage\.(\d{1,4})\.", name):
            blocks[int(match[1])].add(int(match[2]))
    first = [f"groupmixformer_backbone.{i}.gma_stage.0.mlp.fc1.bias" for i in range(4)]
    ratios = tuple(size(name) / dim for name, dim in zip(first, dims, strict=True))
    return Config(dims, tuple(map(len, blocks)), ratios, size("head.weight"))


def shape_of(name: str, tensor: Nested) -> Shape:
    """The shape of nested lists of numbers; ValueError if they are ragged or not finite."""
    shape = []
    level = [tensor]
    while all(isinstance(part, list) for part in level):
        lengths = {len(part) for part in level}
        if len(lengths) != 1 or lengths == {0}:
            raise ValueError(f"weights: expected lists of one length in {name!r}, found {lengths}")
        shape.append(lengths.pop())
        level = [value for part in level for value in part]
    try:
        finite = all(map(math.isfinite, level))
    except (TypeError, OverflowError):
        finite = False
    if not finite:
        raise ValueError(f"weights: expected finite numbers in {name!r}, found something else")
    return tuple(shape)
