"""GroupMixFormer folded for inference: the function of `model.py` in fewer, plainer steps.

Folding happens in NumPy, in float64, when a `FoldedGroupMixFormer` is built:

* a BatchNorm after a convolution scales its outputs and shifts them: both go into its weights. The
  last one comes before an average and a product, and goes into the product;
* a LayerNorm's weight and bias go into the product that follows it;
* `x + depthwise(x)` is one depthwise convolution with 1 added in the middle of each kernel;
* the aggregator's depthwise convolutions are one: a 3x3 or 5x5 kernel is a 7x7 kernel with a rim of
  zeros, and for segment 0, the tokens themselves, it is 1 in the middle. Its pointwise convolutions
  are one matrix of four blocks. The three kernels of `crpe` are one in the same way;
* the heads' small products are blocks of one product, and a mask, which also holds the attention's
  scale, clears what lies between the blocks.

Maps have their channels last, (B, H, W, D), so a row of a product is a token and nothing is
transposed; every operation writes its result to memory, so nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from tinygrad import Device, Tensor, dtypes
from tinygrad.device import Buffer
from tinygrad.dtype import DType
from tinygrad.uop.ops import UOp

from tinygmf.config import NUM_HEADS
from tinygmf.gma import Aggregator, ConvRelPosEnc, GroupMixAttention
from tinygmf.layers import BatchNorm, LayerNorm, Linear
from tinygmf.loops.inference import apply, dense, depthwise, layernorm, outer, pad, softmax
from tinygmf.loops.values import add, add_product, gelu, hardswish
from tinygmf.model import MIN_SIZE, GMABlock, GroupMixFormer
from tinygmf.tensors import tensor_from_numpy

WINDOW = 7  # the largest kernel of the aggregator and of crpe
Array = np.ndarray


class BlockWeights(NamedTuple):
    """The folded weights of one block, in the order in which they are used.

    Products are (1, 1, in, out), depthwise kernels (k, k, channels), all others one-dimensional.
    """

    cpe: Any
    cpe_bias: Any
    qkv: Any  # D -> 3D
    qkv_bias: Any
    windows: Any  # (7, 7, 3D): of query, key and value, five segments each
    mix: Any  # 4D/5 -> 4D/5, one block for each segment
    mix_bias: Any
    fifth: Any  # (1, 3, D/5, D/5): the non-attention branch, from query, key and value
    fifth_weight: Any
    fifth_bias: Any
    crpe: Any
    crpe_bias: Any
    proj_fifth: Any  # D/5 -> D, the rows of `proj` that the non-attention branch meets
    proj_bias: Any
    proj_heads: Any  # 4D/5 -> D
    fc1: Any
    fc1_bias: Any
    fc2: Any
    fc2_bias: Any


class FoldedGroupMixFormer:
    """A `GroupMixFormer` for inference: pictures (B, 3, H, W), at least 32x32 -> logits.

    `dtype` (float32, float16 or bfloat16) is that of the products' operands; sums, norms, softmax
    and the tokens between blocks stay float32. The weights are copies: a later change of `model`
    does not reach them. `forward(x, weights)` depends on nothing but its arguments and the
    configuration, so a captured program can be kept without weights and run with others.
    """

    def __init__(
        self, model: GroupMixFormer, dtype: DType = dtypes.float32, device: str | None = None
    ) -> None:
        self.config, self.dtype = model.config, dtype
        self.weights = [place(array, dtype, device) for array in fold(model)]

    def __call__(self, x: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) -> logits (B, num_classes), or pooled features (B, D4)."""
        return self.forward(x, self.weights)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Pictures -> four maps (B, D_i, ceil(H/s), ceil(W/s)), s = 4, 8, 16, 32."""
        return list(self.outputs(x, self.weights)[:-1])

    def forward(self, x: Tensor, weights: list[Tensor]) -> Tensor:
        """Pictures, and `self.weights` or others of their shapes -> logits or pooled features."""
        return self.outputs(x, weights)[-1]

    def outputs(self, x: Tensor, weights: list[Tensor]) -> tuple[Tensor, ...]:
        """The four maps (B, D_i, h, w), and the logits or pooled features."""
        remaining = iter(weights)
        maps = list(self._maps(x, remaining))  # (B, h, w, D_i)
        pooled = maps[-1].mean((1, 2), keepdim=True).cast(self.dtype).contiguous()
        logits = dense(pooled, next(remaining), next(remaining), dtype=dtypes.float32)
        channels_first = (m.permute(0, 3, 1, 2).contiguous() for m in maps)
        return *channels_first, logits.reshape(x.shape[0], -1)

    def _maps(self, x: Tensor, weights: Iterator[Tensor]) -> Iterator[Tensor]:
        """The four maps (B, h, w, D_i), each after its stage."""
        if x.ndim != 4 or x.shape[1] != 3 or min(x.shape[2:]) < MIN_SIZE:
            raise ValueError(
                f"pictures: expected (B, 3, H, W) with H and W of at least {MIN_SIZE}, "
                f"found {tuple(x.shape)}"
            )
        x = x.permute(0, 2, 3, 1).cast(self.dtype).contiguous()  # (B, H, W, 3)
        for _ in range(2):  # (B, H/2, W/2, D1/2), then (B, H/4, W/4, D1)
            kernel, bias = islice(weights, 2)
            x = dense(pad(x, 1), kernel, bias, epilogue=hardswish, stride=(2, 2))
        for stage, depth in enumerate(self.config.serial_depths):
            windows, pointwise, bias, mask = islice(weights, 4)
            x = depthwise(pad(x.cast(self.dtype), 1), windows, stride=1 if stage == 0 else 2)
            x = dense(x, pointwise, bias, epilogue=hardswish, dtype=dtypes.float32)
            for _ in range(depth):
                x = block(x, BlockWeights(*islice(weights, len(BlockWeights._fields))), mask)
            yield x


def block(x: Tensor, w: BlockWeights, mask: Tensor) -> Tensor:
    """Position, attention, MLP: (B, H, W, D) -> the same. Steps as in `model.GMABlock`."""
    batch, height, width, dim = x.shape
    n, float32, dtype = height * width, dtypes.float32, w.qkv.dtype
    tokens = depthwise(pad(x, 1), w.cpe, w.cpe_bias).reshape(batch, 1, n, dim)

    y = layernorm(tokens, eps=1e-6, dtype=dtype)
    heads, fifth = attention(y, w, mask, (height, width))
    tokens = dense(fifth, w.proj_fifth, w.proj_bias, others=(tokens,), epilogue=add, dtype=float32)
    tokens = dense(heads, w.proj_heads, others=(tokens,), epilogue=add, dtype=float32)

    y = layernorm(tokens, eps=1e-6, dtype=dtype)
    y = apply(gelu, dense(y, w.fc1, w.fc1_bias))  # (B, 1, N, hidden)
    tokens = dense(y, w.fc2, w.fc2_bias, others=(tokens,), epilogue=add, dtype=float32)
    return tokens.reshape(batch, height, width, dim)


def attention(
    y: Tensor, w: BlockWeights, mask: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Tokens (B, 1, N, D) -> the heads (B, 1, N, 4D/5) and the non-attention branch (…, D/5)."""
    batch, _, n, dim = y.shape
    most = 4 * dim // 5  # channels of the four segments with attention
    qkv = dense(y, w.qkv, w.qkv_bias).reshape(batch, *size, 3 * dim)
    qkv = depthwise(pad(qkv, WINDOW // 2), w.windows).reshape(batch, 1, 3 * n, dim)
    mixed = dense(qkv, w.mix, w.mix_bias, epilogue=hardswish)  # (B, 1, 3N, 4D/5)
    fifth = dense(qkv, w.fifth, stride=(1, 3), channel=most)  # (B, 1, N, D/5)
    fifth = layernorm(fifth, w.fifth_weight, w.fifth_bias, eps=1e-5, epilogue=hardswish)

    q_k_v = mixed.reshape(batch, n, 3 * most)
    context = outer(softmax(q_k_v, most, most), q_k_v, mask, 2 * most)  # (B, 4D/5, 4D/5)
    values = pad(mixed.reshape(batch, *size, 3 * most), WINDOW // 2, channel=2 * most)
    around = depthwise(values, w.crpe, w.crpe_bias).reshape(batch, 1, n, most)
    queries = mixed.reshape(batch, 1, n, 3 * most)
    context = context.reshape(batch, 1, 1, most, most)
    heads = dense(queries, context, others=(queries, around), epilogue=add_product)
    return heads, fifth  # heads = queries @ context + queries * around


def place(array: Array, dtype: DType, device: str | None) -> Tensor:
    """A weight on the device: the matrices of products in `dtype`, all else in float32."""
    array = np.ascontiguousarray(array, dtype=np.float32)
    if array.ndim < 4 or dtype == dtypes.float32:
        return tensor_from_numpy(array, device)
    if dtype == dtypes.float16:
        return tensor_from_numpy(array.astype(np.float16), device)
    bits = array.view(np.uint32)  # bfloat16, which NumPy lacks, is the upper half, rounded to even
    halves = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    buffer = Buffer(Device.canonicalize(device), array.size, dtype, preallocate=True)
    buffer.allocator._copyin(buffer._buf, memoryview(bytearray(halves.tobytes())))
    return Tensor(UOp.from_buffer(buffer).reshape(array.shape))


# Folding: every function gives arrays in the order in which `forward` uses them


def fold(model: GroupMixFormer) -> Iterator[Array]:
    model.config.require_published_form("folding")
    stem = model.conv_stem
    for conv, norm in ((stem.proj1, stem.norm1), (stem.proj2, stem.norm2)):
        scale, shift = scale_and_shift(norm)
        yield from (kernels(conv.weight) * scale, read(conv.bias) * scale + shift)
    for embed, stage in zip(model.patch_embed_layers, model.groupmixformer_backbone, strict=True):
        scale, shift = scale_and_shift(embed.norm)
        yield kernels(embed.proj.conv1.weight)
        yield from (kernels(embed.proj.pointwise_conv.weight) * scale, shift)
        yield head_mask(stage.gma_stage[0].att)
        for gma_block in stage.gma_stage:
            yield from fold_block(gma_block)
    yield from fold_head(model.norm4, model.head)


def fold_head(norm: BatchNorm, head: Linear | None) -> tuple[Array, Array]:
    """The product after the average; without a head it is the BatchNorm's scale alone."""
    scale, shift = scale_and_shift(norm)
    weight, bias = (
        (np.eye(len(scale)), 0.0) if head is None else (read(head.weight).T, read(head.bias))
    )
    return (scale[:, None] * weight)[None, None], shift @ weight + bias


def fold_block(gma_block: GMABlock) -> BlockWeights:
    attention = gma_block.att
    cpe = kernels(gma_block.cpe.proj.weight)
    cpe[1, 1] += 1
    proj, proj_bias = fold_linear(attention.proj)
    most = 4 * len(proj_bias) // 5
    return BlockWeights._make(
        (
            *(cpe, read(gma_block.cpe.proj.bias)),
            *fold_linear(attention.qkv, gma_block.norm1),
            *fold_aggregator(attention.aggregator),
            *fold_crpe(attention.crpe),
            *(proj[:, :, most:], proj_bias, proj[:, :, :most]),
            *fold_linear(gma_block.mlp.fc1, gma_block.norm2),
            *fold_linear(gma_block.mlp.fc2),
        )
    )


def fold_linear(linear: Linear, norm: LayerNorm | None = None) -> tuple[Array, Array]:
    """The matrix (1, 1, in, out) and bias of a product, with those of a norm before it."""
    weight, bias = read(linear.weight).T, read(linear.bias)
    if norm is not None:
        weight, bias = read(norm.weight)[:, None] * weight, bias + read(norm.bias) @ weight
    return weight[None, None], bias


def fold_aggregator(aggregator: Aggregator) -> Iterator[Array]:
    branch = aggregator.agg0
    groups = (aggregator.agg1, aggregator.agg2, aggregator.agg3)
    norms = (aggregator.norm0, aggregator.norm1, aggregator.norm2, aggregator.norm3)
    scales, shifts = zip(*map(scale_and_shift, norms), strict=True)
    segment = len(scales[0])

    own = np.ones((1, 1, segment))
    windows = [widen(k) for k in (own, *(kernels(group.conv1.weight) for group in groups))]
    fifths = np.split(widen(kernels(branch.conv.conv1.weight)), 3, axis=2)
    yield np.concatenate([k for fifth in fifths for k in (*windows, fifth)], axis=2)

    mix = np.zeros((1, 1, 4 * segment, 4 * segment))
    matrices = [np.eye(segment), *(kernels(group.pointwise_conv.weight) for group in groups)]
    for i, (matrix, scale) in enumerate(zip(matrices, scales, strict=True)):
        here = slice(i * segment, (i + 1) * segment)
        mix[:, :, here, here] = matrix * scale
    yield from (mix, np.concatenate(shifts))
    yield kernels(branch.conv.pointwise_conv.weight).reshape(1, 3, segment, segment)
    yield from (read(branch.norm.weight), read(branch.norm.bias))


def fold_crpe(crpe: ConvRelPosEnc) -> tuple[Array, Array]:
    windows = [widen(kernels(conv.weight)) for conv in crpe.conv_list]
    return np.concatenate(windows, axis=2), np.concatenate([read(c.bias) for c in crpe.conv_list])


def head_mask(attention: GroupMixAttention) -> Array:
    """(4D/5, 4D/5): the attention's scale where both channels are of one head, else 0."""
    head_dim = int(attention.proj.weight.shape[0]) // 10
    return np.kron(np.eye(NUM_HEADS), np.full((head_dim, head_dim), attention.scale))


def scale_and_shift(norm: BatchNorm) -> tuple[Array, Array]:
    """What a BatchNorm in inference multiplies by and adds."""
    scale = read(norm.weight) / np.sqrt(read(norm.running_var) + norm.eps)
    return scale, read(norm.bias) - scale * read(norm.running_mean)


def kernels(weight: Tensor) -> Array:
    """(out, in, kh, kw) -> (kh, kw, in, out); of a depthwise convolution (kh, kw, channels)."""
    array = read(weight).transpose(2, 3, 1, 0)
    return array[:, :, 0] if array.shape[2] == 1 else array


def widen(windows: Array) -> Array:
    """Depthwise kernels (k, k, channels) -> (7, 7, channels), with a rim of zeros."""
    rim = (WINDOW - len(windows)) // 2
    return np.pad(windows, ((rim, rim), (rim, rim), (0, 0)))


def read(tensor: Tensor | None) -> Array:
    assert tensor is not None
    return tensor.numpy().astype(np.float64)
