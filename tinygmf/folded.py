"""GroupMixFormer folded for inference: the same function as `model.py` in fewer, plainer steps.

What is folded, in NumPy and in float64, when a `FoldedGroupMixFormer` is built:

* a BatchNorm after a convolution scales its outputs and shifts its bias; the last one, before the
  average, goes into the head;
* a LayerNorm's weight and bias go into the product that follows;
* `x + depthwise(x)` is one depthwise convolution, with 1 added in the middle of each kernel;
* the aggregator's depthwise convolutions are one: a 3x3 or 5x5 kernel is a 7x7 kernel with a rim of
  zeros, and segment 0, which only looks at its own token, has the kernel that is 1 in the middle.
  Its pointwise convolutions are one block-diagonal matrix. Likewise for `crpe`;
* the eight small products of the heads are blocks of one matrix, and a mask clears the rest;
* the attention's scale goes into the mask.

Maps lie channels last, (B, H, W, D), so that tokens need no transposing, and the rows of a product
are tokens. Every operation here writes its result to memory: nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from tinygrad import Tensor, dtypes, function
from tinygrad.dtype import DType, to_dtype

from tinygmf.config import NUM_HEADS, GroupMixFormerConfig
from tinygmf.gma import ConvRelPosEnc, GroupMixAttention, SeparableConv2d
from tinygmf.kernels import (
    add,
    add_product,
    apply,
    dense,
    depthwise,
    gelu,
    hardswish,
    layernorm,
    outer,
    pad,
    softmax,
)
from tinygmf.layers import BatchNorm, Conv2d, LayerNorm, Linear
from tinygmf.model import GMABlock, GroupMixFormer
from tinygmf.tensors import tensor_from_numpy

WINDOW = 7  # the largest kernel of the aggregator and of crpe
BLOCK_WEIGHTS = 20
Array = np.ndarray


class FoldedGroupMixFormer:
    """A `GroupMixFormer` for inference: pictures (B, 3, H, W), at least 32x32 -> logits.

    `dtype` (float32, float16 or bfloat16) is that of the products' operands; sums, norms, softmax
    and the tokens between the blocks stay float32. The weights are copied: a later change of
    `model` does not reach them. `forward(x, weights)` is a pure function, so that a captured
    program takes the weights as arguments.
    """

    def __init__(
        self, model: GroupMixFormer, dtype: DType = dtypes.float32, device: str | None = None
    ) -> None:
        self.config, self.dtype = model.config, dtype
        self.weights = [self._place(array, device) for array in fold(model)]

    def __call__(self, x: Tensor) -> Tensor:
        return self.forward(x, self.weights)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """The four maps (B, D_i, ceil(H/s), ceil(W/s)), s = 4, 8, 16, 32, as the model's."""
        return [m.permute(0, 3, 1, 2).float() for m in self._maps(x, iter(self.weights))]

    def forward(self, x: Tensor, weights: list[Tensor]) -> Tensor:
        """Pictures and `self.weights` -> logits (B, num_classes), or pooled features (B, D4)."""
        remaining = iter(weights)
        *_, last = self._maps(x, remaining)
        pooled = last.mean((1, 2), keepdim=True).cast(self.dtype).contiguous()
        logits = dense(pooled, next(remaining), next(remaining), dtype=dtypes.float32)
        return logits.reshape(x.shape[0], -1)

    def _maps(self, x: Tensor, weights: Iterator[Tensor]) -> Iterator[Tensor]:
        config = self.config
        x = x.permute(0, 2, 3, 1).cast(self.dtype)  # (B, H, W, 3)
        for _ in range(2):
            x = dense(
                pad(x, 1), next(weights), next(weights), epilogue=hardswish, stride=(2, 2)
            )  # (B, H/2, W/2, D/2), (B, H/4, W/4, D)
        for stage, depth in enumerate(config.serial_depths):
            x = depthwise(pad(x, 1), next(weights), stride=1 if stage == 0 else 2)
            x = dense(x, next(weights), next(weights), epilogue=hardswish, dtype=dtypes.float32)
            mask = next(weights)
            for _ in range(depth):
                x = block(x, mask, *(next(weights) for _ in range(BLOCK_WEIGHTS - 1)))
            yield x
            x = x.cast(self.dtype)

    def _place(self, array: Array, device: str | None) -> Tensor:
        tensor = tensor_from_numpy(np.ascontiguousarray(array, dtype=np.float32), device)
        return tensor if self.dtype == dtypes.float32 else tensor.cast(self.dtype).realize()


def block(x, mask, cpe, cpe_bias, qkv, qkv_bias, window, mix, mix_bias, fifth, fifth_weight, fifth_bias, crpe, crpe_bias, proj, proj_fifth, proj_bias, fc1, fc1_bias, fc2, fc2_bias) -> Tensor:
    """Position, attention, MLP: (B, H, W, D) -> the same."""
    batch, height, width, dim = x.shape
    n, most, dtype, float32 = height * width, 4 * dim // 5, qkv.dtype, dtypes.float32
    x = depthwise(pad(x, 1), cpe, cpe_bias)  # (B, H, W, D)

    y = layernorm(x, eps=1e-6, dtype=dtype)
    qkv = dense(y, qkv, qkv_bias)  # (B, H, W, 3D)
    qkv = depthwise(pad(qkv, WINDOW // 2), window)  # (B, H, W, 3D)
    rows = qkv.reshape(batch, 1, 3 * n, dim)  # the query, key and value of each token
    mixed = dense(rows, mix, mix_bias, epilogue=hardswish)  # (B, 1, 3N, 4D/5)
    mixed = mixed.reshape(batch, n, 3 * most)
    u = dense(rows, fifth, stride=(1, 3), channel=most)  # (B, 1, N, D/5)
    u = layernorm(u, fifth_weight, fifth_bias, eps=1e-5, epilogue=hardswish)

    context = outer(softmax(mixed, most, most), mixed, mask, 2 * most)  # (B, 4D/5, 4D/5)
    values = mixed.reshape(batch, height, width, 3 * most)
    around = depthwise(pad(values, WINDOW // 2, 2 * most), crpe, crpe_bias)  # (B, H, W, 4D/5)
    mixed = mixed.reshape(batch, 1, n, 3 * most)
    heads = dense(
        mixed,
        context.reshape(batch, 1, 1, most, most),
        others=(mixed, around.reshape(batch, 1, n, most)),
        epilogue=add_product,
    )  # (B, 1, N, 4D/5)
    tokens = x.reshape(batch, 1, n, dim)
    tokens = dense(u, proj_fifth, proj_bias, others=(tokens,), epilogue=add, dtype=float32)
    tokens = dense(heads, proj, others=(tokens,), epilogue=add, dtype=float32)  # (B, 1, N, D)

    y = layernorm(tokens, eps=1e-6, dtype=dtype)
    y = apply(gelu, dense(y, fc1, fc1_bias))  # (B, 1, N, hidden)
    tokens = dense(y, fc2, fc2_bias, others=(tokens,), epilogue=add, dtype=float32)
    return tokens.reshape(batch, height, width, dim)


# Folding, in NumPy


def read(tensor: Tensor | None) -> Array:
    return tensor.numpy().astype(np.float64)


def scale_and_shift(norm: BatchNorm) -> tuple[Array, Array]:
    """The two vectors that a BatchNorm in inference multiplies by and adds."""
    scale = read(norm.weight) / np.sqrt(read(norm.running_var) + norm.eps)
    return scale, read(norm.bias) - scale * read(norm.running_mean)


def last(kernels: Array) -> Array:
    """(out, in, kh, kw) -> (kh, kw, in, out); for depthwise kernels (kh, kw, out)."""
    return kernels.transpose(2, 3, 1, 0).squeeze(2) if kernels.shape[1] == 1 else kernels.transpose(2, 3, 1, 0)


def fold(model: GroupMixFormer) -> Iterator[Array]:
    """Every weight of the folded network, in the order in which it is used."""
    stem = model.conv_stem
    for conv, norm in ((stem.proj1, stem.norm1), (stem.proj2, stem.norm2)):
        scale, shift = scale_and_shift(norm)
        yield last(read(conv.weight)) * scale
        yield read(conv.bias) * scale + shift
    for embed, stage in zip(model.patch_embed_layers, model.groupmixformer_backbone, strict=True):
        scale, shift = scale_and_shift(embed.norm)
        yield last(read(embed.proj.conv1.weight))
        yield last(read(embed.proj.pointwise_conv.weight)) * scale
        yield shift
        yield head_mask(stage.gma_stage[0].att)
        for gma_block in stage.gma_stage:
            yield from fold_block(gma_block)
    scale, shift = scale_and_shift(model.norm4)
    head = np.eye(len(scale)) if model.head is None else read(model.head.weight).T
    bias = 0 if model.head is None else read(model.head.bias)
    yield (scale[:, None] * head)[None, None]
    yield shift @ head + bias


def head_mask(attention: GroupMixAttention) -> Array:
    head_dim = attention.proj.weight.shape[0] // 10
    return np.kron(np.eye(NUM_HEADS), np.full((head_dim, head_dim), attention.scale))


def fold_linear(linear: Linear, norm: LayerNorm | None = None) -> tuple[Array, Array]:
    """The matrix (1, 1, in, out) and bias of a product, with the affine part of a norm before it."""
    weight, bias = read(linear.weight).T, read(linear.bias)
    if norm is not None:
        weight, bias = read(norm.weight)[:, None] * weight, bias + read(norm.bias) @ weight
    return weight[None, None], bias


def widen(kernels: Array) -> Array:
    """Depthwise kernels (k, k, C) -> (7, 7, C), with a rim of zeros."""
    rim = (WINDOW - len(kernels)) // 2
    return np.pad(kernels, ((rim, rim), (rim, rim), (0, 0)))


def fold_block(block: GMABlock) -> Iterator[Array]:
    cpe = last(read(block.cpe.proj.weight))
    cpe[1, 1] += 1
    yield from (cpe, read(block.cpe.proj.bias))
    yield from fold_linear(block.att.qkv, block.norm1)
    yield from fold_aggregator(block.att.aggregator)
    convolutions = block.att.crpe.conv_list
    yield np.concatenate([widen(last(read(conv.weight))) for conv in convolutions], axis=2)
    yield np.concatenate([read(conv.bias) for conv in convolutions])
    weight, bias = fold_linear(block.att.proj)
    most = 4 * len(bias) // 5
    yield from (weight[:, :, :most], weight[:, :, most:], bias)
    yield from fold_linear(block.mlp.fc1, block.norm2)
    yield from fold_linear(block.mlp.fc2)


def fold_aggregator(aggregator) -> Iterator[Array]:
    segment = len(read(aggregator.agg0.norm.weight))
    own = widen(np.ones((1, 1, segment)))
    groups = (aggregator.agg1, aggregator.agg2, aggregator.agg3)
    windows = [own, *(widen(last(read(group.conv1.weight))) for group in groups)]
    fifth = np.split(widen(last(read(aggregator.agg0.conv.conv1.weight))), 3, axis=2)
    yield np.concatenate([kernel for part in fifth for kernel in (*windows, part)], axis=2)

    norms = [aggregator.norm0, aggregator.norm1, aggregator.norm2, aggregator.norm3]
    matrices = [np.eye(segment), *(last(read(g.pointwise_conv.weight))[0, 0] for g in groups)]
    mix, shifts = np.zeros((1, 1, 4 * segment, 4 * segment)), []
    for i, (matrix, norm) in enumerate(zip(matrices, norms, strict=True)):
        scale, shift = scale_and_shift(norm)
        here = slice(i * segment, (i + 1) * segment)
        mix[0, 0, here, here] = matrix * scale
        shifts.append(shift)
    yield from (mix, np.concatenate(shifts))
    pointwise = last(read(aggregator.agg0.conv.pointwise_conv.weight))
    yield pointwise.reshape(1, 3, segment, segment)
    yield from (read(aggregator.agg0.norm.weight), read(aggregator.agg0.norm.bias))
