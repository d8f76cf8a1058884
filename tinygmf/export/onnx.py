"""The network as an ONNX file, with operators that vision runtimes support.

Values have the names of the modules that compute them, initializers the names and shapes of the
checkpoint. Maps are (B, D, H, W), tokens (B * N, D): a linear layer is a `Gemm` with the published
matrix. The batch size is free; the picture size is fixed or free. The graph follows `model.py` and
`gma.py` line by line, except that queries, keys and values have their tokens last.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from tinygmf.config import (
    NUM_HEADS,
    PUBLISHED_SIZE,
    STAGES,
    STRIDES,
    GroupMixFormerConfig,
    variant_name,
)
from tinygmf.engine.folded import Part, scale_and_shift
from tinygmf.files import replacing
from tinygmf.gma import ConvRelPosEnc
from tinygmf.model import MIN_SIZE
from tinygmf.weights.checkpoint import NetworkWeights

OPSET, IR_VERSION = 17, 8  # LayerNormalization came with 17; 8 is the file format from then
Size = tuple[int, int]  # (H, W), in pixels


def write_onnx(
    weights: NetworkWeights,
    path: str | os.PathLike[str],
    size: Size | None = (PUBLISHED_SIZE, PUBLISHED_SIZE),
    *,
    folded: bool = False,
) -> None:
    """Write the network: `input` (B, 3, H, W), normalized -> `logits` (B, num_classes).

    Without a head the output is `features` (B, D4). With `size` None, H and W are free, from 32 on.
    `folded` folds BatchNorms into the neighboring convolutions and the head, and `x + conv(x)`
    into one convolution. The metadata has the classes and the preprocessing of the settings. Raises
    ValueError for an ablation, a size below 32, a wrong number of class names, or if the package
    `onnx` is missing; OSError.
    """
    proto = build(weights, size, folded=folded)
    with replacing(Path(path)) as file:
        file.write(proto.SerializeToString())


def run_onnx(path: str | os.PathLike[str], pictures: np.ndarray) -> np.ndarray:
    """Run the file on normalized pictures (B, 3, H, W) by ONNX's reference evaluator, which is slow
    but needs no runtime -> logits or features."""
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(os.fspath(path)).run(None, {"input": pictures})[0]


def build(
    weights: NetworkWeights,
    size: Size | None = (PUBLISHED_SIZE, PUBLISHED_SIZE),
    *,
    folded: bool = False,
) -> Any:
    """The checked `onnx.ModelProto` of `write_onnx`."""
    if find_spec("onnx") is None:
        raise ValueError("onnx is missing: run pip install 'tinygmf[export]'")
    import onnx
    from onnx import TensorProto, helper

    require_exportable(weights, size)
    config = weights.config
    width = config.num_classes or config.embedding_dims[-1]
    graph = Graph(fold(weights.arrays) if folded else weights.arrays, folded, size)
    result = network(graph, config)
    picture = ["batch", 3, *(size or ("height", "width"))]
    proto = helper.make_graph(
        graph.nodes,
        variant_name(config) or "groupmixformer",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, picture)],
        [helper.make_tensor_value_info(result, TensorProto.FLOAT, ["batch", width])],
        graph.initializers,
    )
    opset = [helper.make_opsetid("", OPSET)]
    made = helper.make_model(proto, opset_imports=opset, ir_version=IR_VERSION)
    helper.set_model_props(made, metadata(weights, size))
    onnx.checker.check_model(made, full_check=True)
    return made


def require_exportable(weights: NetworkWeights, size: Size | None) -> None:
    """ValueError, in one line, for what `write_onnx` cannot write."""
    weights.config.require_published_form("export to ONNX")
    if size is not None and min(size) < MIN_SIZE:
        raise ValueError(f"size: expected at least {MIN_SIZE} pixels, found {size}")
    classes, names = weights.config.num_classes, len(weights.settings.classes)
    if names not in (0, classes):
        raise ValueError(f"classes: expected {classes} names, found {names}")


def metadata(weights: NetworkWeights, size: Size | None) -> dict[str, str]:
    """What users of the file need to know, as JSON under three names."""
    settings = weights.settings
    preprocessing = {
        "resize": f"shorter side to size / {settings.crop:.7g}, bicubic; then the centre cropped",
        "layout": "(B, 3, H, W), RGB",
        "scale": "divide by 255, subtract mean, divide by std",
        "mean": settings.mean,
        "std": settings.std,
    }
    names = settings.classes or [str(i) for i in range(weights.config.num_classes)]
    return {
        "classes": json.dumps(names, ensure_ascii=False),
        "size": json.dumps(size or f"any from {MIN_SIZE} on"),
        "preprocessing": json.dumps(preprocessing),
    }


def fold(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state dict with every BatchNorm but the aggregators' `norm0` folded into a neighbor."""
    tensors, network = dict(arrays), Part(arrays)

    def merge(norm: str, layer: str, inputs: bool = False) -> None:
        scale, shift = scale_and_shift(network.below(norm))
        weight = tensors[f"{layer}.weight"].astype(np.float64)
        bias = tensors.get(f"{layer}.bias", np.zeros(len(weight)))
        bias = bias + weight @ shift if inputs else bias * scale + shift
        weight = weight * (scale if inputs else scale.reshape(-1, *[1] * (weight.ndim - 1)))
        tensors[f"{layer}.weight"] = weight.astype(np.float32)
        tensors[f"{layer}.bias"] = bias.astype(np.float32)
        del tensors[f"{norm}.running_var"]  # without it, the graph has no norm

    for key in arrays:
        norm, _, last = key.rpartition(".")
        parent, _, kind = norm.rpartition(".")
        if last == "running_var" and parent == "conv_stem":
            merge(norm, f"{parent}.proj{kind[-1]}")
        elif last == "running_var" and parent.endswith("aggregator") and kind != "norm0":
            merge(norm, f"{parent}.agg{kind[-1]}.pointwise_conv")
        elif last == "running_var" and parent.startswith("patch_embed_layers"):
            merge(norm, f"{parent}.proj.pointwise_conv")
        elif norm == "norm4" and last == "running_var" and "head.weight" in arrays:
            merge(norm, "head", inputs=True)
        elif key.endswith("cpe.proj.weight"):
            tensors[key] = tensors[key] + np.pad(np.ones((1, 1), np.float32), 1)  # x + conv(x)
    return tensors


class Graph:
    """The nodes and initializers so far. Each method adds what computes a value and returns the
    value's name."""

    def __init__(self, tensors: Mapping[str, np.ndarray], folded: bool, size: Size | None) -> None:
        self.tensors, self.folded, self.size = tensors, folded, size
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.known: set[str] = set()

    def add(self, operator: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output, both called `name`."""
        from onnx import helper

        self.nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def initializer(self, name: str, array: np.ndarray) -> str:
        from onnx import numpy_helper

        if name not in self.known:
            self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
            self.known.add(name)
        return name

    def number(self, value: float) -> str:
        return self.initializer(f"number.{value:.9g}", np.array(value, np.float32))

    def integers(self, *values: int) -> str:
        return self.initializer(
            f"integers.{'_'.join(map(str, values))}", np.array(values, np.int64)
        )

    def parameters(self, layer: str, *kinds: str) -> list[str]:
        """Those of the named tensors that the layer has."""
        names = [f"{layer}.{kind}" for kind in kinds]
        return [self.initializer(n, self.tensors[n]) for n in names if n in self.tensors]

    def linear(self, layer: str, x: str) -> str:
        return self.add("Gemm", layer, x, *self.parameters(layer, "weight", "bias"), transB=1)

    def conv(self, layer: str, x: str, stride: int = 1) -> str:
        """A dense, pointwise or depthwise convolution, by the weight's shape; zero-padded."""
        channels, inputs, kernel, _ = self.tensors[f"{layer}.weight"].shape
        return self.add(
            *("Conv", layer, x, *self.parameters(layer, "weight", "bias")),
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[kernel // 2] * 4,
            group=channels if inputs == 1 else 1,
        )

    def separable(self, layer: str, x: str, stride: int = 1) -> str:
        return self.conv(f"{layer}.pointwise_conv", self.conv(f"{layer}.conv1", x, stride))

    def batchnorm(self, layer: str, x: str) -> str:
        if f"{layer}.running_var" not in self.tensors:  # folded
            return x
        names = self.parameters(layer, "weight", "bias", "running_mean", "running_var")
        return self.add("BatchNormalization", layer, x, *names, epsilon=1e-5)

    def layernorm(self, layer: str, x: str, eps: float) -> str:
        names = self.parameters(layer, "weight", "bias")
        return self.add("LayerNormalization", layer, x, *names, epsilon=eps, axis=-1)

    def gelu(self, layer: str, x: str) -> str:
        """x * (1 + erf(x / sqrt(2))) / 2, in the operators of opset 17."""
        erf = self.add("Erf", f"{layer}.erf", self.times(f"{layer}.scaled", x, 0.5**0.5))
        phi = self.add("Add", f"{layer}.phi", erf, self.number(1))
        return self.times(layer, self.add("Mul", f"{layer}.twice", x, phi), 0.5)

    def times(self, name: str, x: str, factor: float) -> str:
        return self.add("Mul", name, x, self.number(factor))

    def shaped(self, name: str, x: str, *shape: int) -> str:
        """Reshape; 0 keeps a dimension, -1 takes what remains."""
        return self.add("Reshape", name, x, self.integers(*shape))

    def split(self, name: str, x: str, *sizes: int) -> list[str]:
        """Split the channels."""
        from onnx import helper

        names = [f"{name}#{i}" for i in range(len(sizes))]
        inputs = [x, self.integers(*sizes)]
        self.nodes.append(helper.make_node("Split", inputs, names, name, axis=1))
        return names

    def to_tokens(self, name: str, x: str, channels: int) -> str:
        """(B, D, H, W) -> (B * N, D)"""
        last = self.add("Transpose", f"{name}.channels_last", x, perm=[0, 2, 3, 1])
        return self.shaped(name, last, -1, channels)

    def to_map(self, name: str, x: str, shape: str) -> str:
        """(B * N, D) -> (B, D, H, W); `shape` names the value (-1, H, W, D)."""
        last = self.add("Reshape", f"{name}.channels_last", x, shape)
        return self.add("Transpose", name, last, perm=[0, 3, 1, 2])

    def map_shape(self, stage: int, x: str, channels: int) -> str:
        """(-1, H, W, channels) for a stage whose maps have the size of x."""
        if self.size is not None:
            height, width = (-(-side // STRIDES[stage]) for side in self.size)
            return self.integers(-1, height, width, channels)
        name = f"shape.stage{stage}"
        if name not in self.known:
            self.known.add(self.add("Shape", name, x, start=2, end=4))
        parts = self.integers(-1), name, self.integers(channels)
        return self.add("Concat", f"{name}.{channels}", *parts, axis=0)


# The network, as in model.py


def network(g: Graph, config: GroupMixFormerConfig) -> str:
    """The value `input` (B, 3, H, W) -> `logits` (B, num_classes) or `features` (B, D4)."""
    x = "input"
    for i in (1, 2):  # (B, D1/2, H/2, W/2), then (B, D1, H/4, W/4)
        y = g.batchnorm(f"conv_stem.norm{i}", g.conv(f"conv_stem.proj{i}", x, stride=2))
        x = g.add("HardSwish", f"conv_stem.act{i}", y)
    for stage in range(STAGES):
        embed, dim = f"patch_embed_layers.{stage}", config.embedding_dims[stage]
        y = g.separable(f"{embed}.proj", x, stride=1 if stage == 0 else 2)
        x = g.add("HardSwish", f"{embed}.act", g.batchnorm(f"{embed}.norm", y))
        shapes = g.map_shape(stage, x, dim), g.map_shape(stage, x, 3 * dim)
        for j in range(config.serial_depths[stage]):
            x = block(g, f"groupmixformer_backbone.{stage}.gma_stage.{j}", x, dim, shapes)
    pooled = g.add("GlobalAveragePool", "pooled", g.batchnorm("norm4", x))  # (B, D4, 1, 1)
    if not config.num_classes:
        return g.add("Flatten", "features", pooled)
    names = g.parameters("head", "weight", "bias")
    return g.add("Gemm", "logits", g.add("Flatten", "features", pooled), *names, transB=1)


def block(g: Graph, name: str, x: str, dim: int, shapes: tuple[str, str]) -> str:
    """Position, attention, MLP: a map (B, D, H, W) -> the same."""
    y = g.conv(f"{name}.cpe.proj", x)
    y = y if g.folded else g.add("Add", f"{name}.cpe.sum", x, y)
    x = g.to_tokens(f"{name}.cpe", y, dim)
    y = attention(g, f"{name}.att", g.layernorm(f"{name}.norm1", x, 1e-6), dim, shapes[1])
    x = g.add("Add", f"{name}.after_att", x, y)  # (B * N, D)
    y = g.linear(f"{name}.mlp.fc1", g.layernorm(f"{name}.norm2", x, 1e-6))  # (B * N, hidden)
    y = g.linear(f"{name}.mlp.fc2", g.gelu(f"{name}.mlp.act", y))
    x = g.add("Add", name, x, y)  # (B * N, D)
    return g.to_map(f"{name}.map", x, shapes[0])


def attention(g: Graph, name: str, x: str, dim: int, shape: str) -> str:
    """Group-Mix Attention: tokens (B * N, D) -> the same."""
    most, head_dim = 4 * dim // 5, dim // 10
    qkv = g.to_map(f"{name}.qkv.map", g.linear(f"{name}.qkv", x), shape)  # (B, 3D, H, W)
    mixed, fifth = aggregator(g, f"{name}.aggregator", qkv, dim)
    maps = g.split(
        f"{name}.q_k_v", g.shaped(f"{name}.mixed", mixed, -1, 3 * most, 0, 0), *[most] * 3
    )
    q, k, v = (  # (B, 8, D/10, N)
        g.shaped(f"{name}.{letter}", part, 0, NUM_HEADS, head_dim, -1)
        for letter, part in zip("qkv", maps, strict=True)
    )
    k = g.add("Softmax", f"{name}.softmax", k, axis=-1)  # over the tokens
    k = g.add("Transpose", f"{name}.softmax.transposed", k, perm=[0, 1, 3, 2])
    context = g.add("MatMul", f"{name}.context", v, k)  # (B, 8, D/10, D/10)
    context = g.times(f"{name}.context.scaled", context, (dim // NUM_HEADS) ** -0.5)
    out = g.add("MatMul", f"{name}.attended", context, q)  # (B, 8, D/10, N)
    around = crpe(g, f"{name}.crpe", maps[2], head_dim)  # (B, 4D/5, H, W)
    around = g.shaped(f"{name}.crpe.heads", around, 0, NUM_HEADS, head_dim, -1)
    out = g.add("Add", f"{name}.heads", out, g.add("Mul", f"{name}.relative", q, around))
    out = g.shaped(f"{name}.heads.channels", out, 0, most, -1)  # (B, 4D/5, N)
    out = g.add("Transpose", f"{name}.heads.tokens", out, perm=[0, 2, 1])
    out = g.shaped(f"{name}.heads.rows", out, -1, most)  # (B * N, 4D/5)
    out = g.add("Concat", f"{name}.ensemble", out, fifth, axis=1)  # (B * N, D)
    return g.linear(f"{name}.proj", out)


def aggregator(g: Graph, name: str, qkv: str, dim: int) -> tuple[str, str]:
    """(B, 3D, H, W) -> group proxies (3B, 4D/5, H, W), non-attention branch (B * N, D/5)."""
    maps = g.shaped(f"{name}.input", qkv, -1, dim, 0, 0)  # (3B, D, H, W)
    *segments, fifth = g.split(f"{name}.segments", maps, *[dim // 5] * 5)  # (3B, D/5, H, W) each
    parts = []
    for i, x in enumerate(segments):
        x = g.separable(f"{name}.agg{i}", x) if i else x
        parts.append(g.add("HardSwish", f"{name}.act{i}", g.batchnorm(f"{name}.norm{i}", x)))
    mixed = g.add("Concat", f"{name}.mixed", *parts, axis=1)

    fifth = g.shaped(f"{name}.agg0.input", fifth, -1, 3 * dim // 5, 0, 0)  # (B, 3D/5, H, W)
    fifth = g.separable(f"{name}.agg0.conv", fifth)  # (B, D/5, H, W)
    fifth = g.to_tokens(f"{name}.agg0.tokens", fifth, dim // 5)
    fifth = g.layernorm(f"{name}.agg0.norm", fifth, 1e-5)
    return mixed, g.add("HardSwish", f"{name}.agg0.act", fifth)


def crpe(g: Graph, name: str, v: str, head_dim: int) -> str:
    """The depthwise convolutions of the values, one for each group of heads."""
    sizes = [heads * head_dim for _, heads in ConvRelPosEnc.KERNELS]
    parts = g.split(f"{name}.parts", v, *sizes)
    convs = [g.conv(f"{name}.conv_list.{i}", part) for i, part in enumerate(parts)]
    return g.add("Concat", f"{name}.encoding", *convs, axis=1)  # (B, 4D/5, H, W)
