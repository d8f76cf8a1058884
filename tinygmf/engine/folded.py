"""GroupMixFormer folded for inference: the function of `model.py` in fewer, plainer steps.

Folding turns the arrays of a state dict directly into those that the steps use, in NumPy and in
float64, when a `FoldedGroupMixFormer` is built:

* a BatchNorm after a convolution scales and shifts its outputs: both go into the convolution's
  weights. The last one is followed by an average and a product, and goes into the product;
* a LayerNorm's weight and bias go into the product after it;
* `x + depthwise(x)` is one depthwise convolution with 1 added in the middle of each kernel;
* the aggregator's depthwise convolutions become one: a 3x3 or 5x5 kernel is a 7x7 kernel with a
  rim of zeros, and for segment 0, the tokens themselves, it is 1 in the middle. Its pointwise
  convolutions become one matrix of four blocks, and the three kernels of `crpe` one kernel;
* the heads' small products become blocks of one product, and a mask, which also holds the
  attention's scale, clears everything outside the blocks.

The added zeros allow a few large operations, which suits a GPU; the CPU's loop nests skip them.

Maps have their channels last, (B, H, W, D), so each row of a product is a token and nothing is
transposed; every operation writes its result to memory, so nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, islice
from typing import Any, NamedTuple

import numpy as np
from tinygrad import Device, Tensor, dtypes
from tinygrad.device import Buffer
from tinygrad.dtype import DType
from tinygrad.uop.ops import UOp

from tinygmf.config import NUM_HEADS, GroupMixFormerConfig
from tinygmf.gma import ConvRelPosEnc, attention_scale
from tinygmf.layers import BatchNorm
from tinygmf.loops import pairs, panels
from tinygmf.loops.ends import channels_last, mean
from tinygmf.loops.inference import Run, apply, dense, depthwise, layernorm, outer, softmax
from tinygmf.loops.padding import pad
from tinygmf.loops.tiles import blocks_of, lanes
from tinygmf.loops.values import add, add_product, gelu, hardswish
from tinygmf.model import check_pictures
from tinygmf.tensors import on_cpu, tensor_from_numpy

WINDOW = 7  # the largest kernel of the aggregator and of crpe
VECTOR = 16  # channels; narrower parts are not computed one by one
Array = np.ndarray


class BlockWeights(NamedTuple):
    """The folded weights of one block, in order of use.

    Products are (1, 1, in, out), depthwise kernels (k, k, channels), all others one-dimensional.
    """

    cpe: Any
    cpe_bias: Any
    qkv: Any  # D -> 3D
    qkv_bias: Any
    windows: Any  # (7, 7, 3D): for query, key and value, five segments each
    mix: Any  # 4D/5 -> 4D/5, one block for each segment; (1, 1, 1, in, out), never in panels
    mix_bias: Any
    fifth: Any  # (1, 3, D/5, D/5): the non-attention branch, from query, key and value
    fifth_weight: Any
    fifth_bias: Any
    crpe: Any
    crpe_bias: Any
    proj_fifth: Any  # D/5 -> D, the rows of `proj` for the non-attention branch
    proj_bias: Any
    proj_heads: Any  # 4D/5 -> D
    fc1: Any
    fc1_bias: Any
    fc2: Any
    fc2_bias: Any


class FoldedGroupMixFormer:
    """A `GroupMixFormer` for inference: pictures (B, 3, H, W), at least 32x32 -> logits.

    `arrays` is the state dict of a network of this configuration. The operands of products have
    `dtype` (float32, float16 or bfloat16); sums, norms, softmax and the tokens between blocks stay
    float32. On the CPU the products' matrices are stored in `panels`, unless `plain` is set.
    `forward(x, weights)` depends only on its arguments and the configuration, so a captured program
    can be kept without weights and run with others. Raises ValueError for an ablation.
    """

    def __init__(
        self,
        config: GroupMixFormerConfig,
        arrays: Mapping[str, Array],
        dtype: DType = dtypes.float32,
        device: str | None = None,
        plain: bool = False,
    ) -> None:
        self.config, self.dtype = config, dtype
        self.weights = [place(array, dtype, device, plain) for array in fold(config, arrays)]

    def __call__(self, x: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) -> logits (B, num_classes), or pooled features (B, D4)."""
        return self.forward(x, self.weights)[-1]

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Pictures -> four maps (B, D_i, ceil(H/s), ceil(W/s)), s = 4, 8, 16, 32."""
        *maps, _ = self.forward(x, self.weights)
        return [one.permute(0, 3, 1, 2).contiguous() for one in maps]

    def forward(self, x: Tensor, weights: list[Tensor]) -> tuple[Tensor, ...]:
        """Pictures, and `self.weights` or others of their shapes -> the four maps (B, h, w, D_i),
        which are there anyway and cost nothing, and the logits or pooled features."""
        check_pictures(x, self.config.in_chans)
        remaining = iter(weights)
        maps = list(stages(x, remaining, self.config.serial_depths, self.dtype))  # (B, h, w, D_i)
        logits = dense(mean(maps[-1], self.dtype), *remaining, dtype=dtypes.float32)
        return *maps, logits.reshape(x.shape[0], -1)


def stages(
    x: Tensor, weights: Iterator[Tensor], depths: Sequence[int], dtype: DType
) -> Iterator[Tensor]:
    """Pictures (B, 3, H, W) -> the four maps (B, h, w, D_i), one after each stage of `depths[i]`
    blocks; `weights` as from `fold_stages`."""
    weight, bias = islice(weights, 2)
    stem = partial(dense, epilogue=hardswish, stride=(2, 2), dtype=dtype)
    x = stem(channels_last(x, 1, products_of(weight)), weight, bias)  # (B, H/2, W/2, D1/2)
    x = stem(pad(x, 1), *islice(weights, 2))  # (B, H/4, W/4, D1)
    for stage, depth in enumerate(depths):
        windows, pointwise, bias, mask = islice(weights, 4)
        x = depthwise(x, windows, stride=1 if stage == 0 else 2, dtype=dtype)
        x = dense(x, pointwise, bias, epilogue=hardswish, dtype=dtypes.float32)
        for _ in range(depth):
            x = block(x, BlockWeights(*islice(weights, len(BlockWeights._fields))), mask)
            if on_cpu(x.device):  # always there, while an export may be for a device that is not
                x.realize()  # one by one, so that tinygrad schedules identical blocks once
        yield x


def block(x: Tensor, w: BlockWeights, mask: Tensor) -> Tensor:
    """Position, attention, MLP: (B, H, W, D) -> the same. Steps as in `model.GMABlock`."""
    batch, height, width, dim = x.shape
    n, float32, dtype = height * width, dtypes.float32, products_of(w.qkv)
    tokens = depthwise(x, w.cpe, w.cpe_bias).reshape(batch, 1, n, dim)

    heads, fifth = attention(layernorm(tokens, eps=1e-6, dtype=dtype), w, mask, (height, width))
    tokens = dense(fifth, w.proj_fifth, w.proj_bias, others=(tokens,), epilogue=add, dtype=float32)
    tokens = dense(heads, w.proj_heads, others=(tokens,), epilogue=add, columns=dim, dtype=float32)

    y = layernorm(tokens, eps=1e-6, dtype=dtype)
    y = apply(gelu, dense(y, w.fc1, w.fc1_bias))  # (B, 1, N, hidden)
    tokens = dense(y, w.fc2, w.fc2_bias, others=(tokens,), epilogue=add, dtype=float32)
    return tokens.reshape(batch, height, width, dim)


def attention(
    y: Tensor, w: BlockWeights, mask: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Tokens (B, 1, N, D) -> the heads (B, 1, N, 4D/5) and the non-attention branch (…, D/5)."""
    batch, _, n, dim = y.shape
    segment, most = dim // 5, 4 * dim // 5  # most: the four segments with attention
    qkv = dense(y, w.qkv, w.qkv_bias).reshape(batch, *size, 3 * dim)
    qkv = depthwise(qkv, w.windows, runs=segment_runs(segment), parts=3)
    qkv = qkv.reshape(batch, 1, 3 * n, dim)
    cut = blocks_of(4, segment, VECTOR)
    mixed = dense(qkv, w.mix, w.mix_bias, epilogue=hardswish, blocks=cut)  # (B, 1, 3N, 4D/5)
    fifth = dense(qkv, w.fifth, stride=(1, 3), channel=most, columns=segment)  # (B, 1, N, D/5)
    fifth = layernorm(fifth, w.fifth_weight, w.fifth_bias, eps=1e-5, epilogue=hardswish)

    q_k_v = mixed.reshape(batch, n, 3 * most)
    cut = blocks_of(NUM_HEADS, dim // 10, VECTOR)
    context = outer(softmax(q_k_v, most, most), q_k_v, mask, 2 * most, cut)  # (B, 4D/5, 4D/5)
    q_k_v, runs = mixed.reshape(batch, *size, 3 * most), head_runs(dim // 10)
    around = depthwise(q_k_v, w.crpe, w.crpe_bias, channel=2 * most, runs=runs)
    others = mixed.reshape(batch, 1, n, 3 * most), around.reshape(batch, 1, n, most)
    context = context.reshape(batch, 1, 1, most, most)
    heads = dense(others[0], context, others=others, epilogue=add_product, blocks=cut)
    return heads, fifth  # heads = queries @ context + queries * around


def segment_runs(segment: int) -> tuple[Run, ...]:
    """The sizes of the aggregator's windows within `WINDOW`, by segment: the first is a copy."""
    if segment < lanes():
        return ()
    return tuple(Run(size, i * segment, segment) for i, size in enumerate((1, 3, 5, 7, 3)))


def head_runs(head_dim: int) -> tuple[Run, ...]:
    """The same for `crpe`, by heads."""
    if 2 * head_dim < lanes():
        return ()
    firsts = accumulate((heads for _, heads in ConvRelPosEnc.KERNELS), initial=0)
    return tuple(
        Run(size, first * head_dim, heads * head_dim)
        for (size, heads), first in zip(ConvRelPosEnc.KERNELS, firsts, strict=False)
    )


def products_of(weight: Tensor) -> DType:
    """The dtype of the products that use a weight."""
    return dtypes.bfloat16 if pairs.is_packed(weight) else weight.dtype


def place(array: Array, dtype: DType, device: str | None, plain: bool = False) -> Tensor:
    """A weight on the device: matrices of products in `dtype`, everything else in float32; and so
    are those that a unit for `pairs` cannot take, as every use would widen them."""
    array, name = np.ascontiguousarray(array, dtype=np.float32), Device.canonicalize(device)
    if array.ndim < 4:
        return tensor_from_numpy(array, device)
    unit = pairs.unit() if dtype == dtypes.bfloat16 and on_cpu(name) else None
    if unit and pairs.fits(array):
        array = pairs.pack(array)
    elif unit:
        unit, dtype = None, dtypes.float32
    array = panels.cut(array, unit) if on_cpu(name) and not plain else array
    if unit or dtype == dtypes.float32:
        return tensor_from_numpy(array, device)
    if dtype == dtypes.float16:
        return tensor_from_numpy(array.astype(np.float16), device)
    buffer = Buffer(name, array.size, dtype, preallocate=True)
    buffer.allocator._copyin(buffer._buf, memoryview(bytearray(pairs.rounded(array).tobytes())))
    return Tensor(UOp.from_buffer(buffer).reshape(array.shape))


# Folding: every function returns arrays in the order in which `forward` uses them


class Part:
    """The entries of a state dict under a prefix, in float64."""

    def __init__(self, arrays: Mapping[str, Array], name: str = "") -> None:
        self.arrays, self.name = arrays, name

    def __getitem__(self, name: str) -> Array:
        return self.arrays[self.name + name].astype(np.float64)

    def below(self, name: str) -> Part:
        return Part(self.arrays, f"{self.name}{name}.")


def fold(config: GroupMixFormerConfig, arrays: Mapping[str, Array]) -> Iterator[Array]:
    network = Part(arrays)
    yield from fold_stages(config, network)
    yield from fold_head(network, config.num_classes)


def fold_stages(config: GroupMixFormerConfig, network: Part) -> Iterator[Array]:
    """The weights that `stages` needs."""
    config.require_published_form("folding")
    for i in (1, 2):
        conv, norm = network.below(f"conv_stem.proj{i}"), network.below(f"conv_stem.norm{i}")
        scale, shift = scale_and_shift(norm)
        yield from (kernels(conv, whole=True) * scale, conv["bias"] * scale + shift)
    for stage, depth in enumerate(config.serial_depths):
        embed = network.below(f"patch_embed_layers.{stage}")
        scale, shift = scale_and_shift(embed.below("norm"))
        yield kernels(embed.below("proj.conv1"))
        yield from (kernels(embed.below("proj.pointwise_conv")) * scale, shift)
        yield head_mask(config.embedding_dims[stage])
        for i in range(depth):
            yield from fold_block(network.below(f"groupmixformer_backbone.{stage}.gma_stage.{i}"))


def fold_head(network: Part, num_classes: int) -> tuple[Array, Array]:
    """The product after the average; without a head, only the BatchNorm's scale and shift."""
    scale, shift = scale_and_shift(network.below("norm4"))
    weight, bias = np.eye(len(scale)), np.zeros(len(scale))
    if num_classes:
        weight, bias = network["head.weight"].T, network["head.bias"]
    return (scale[:, None] * weight)[None, None], shift @ weight + bias


def fold_block(block: Part) -> BlockWeights:
    cpe = kernels(block.below("cpe.proj"))
    cpe[1, 1] += 1
    proj, proj_bias = fold_linear(block.below("att.proj"))
    most = 4 * len(proj_bias) // 5
    return BlockWeights._make(
        (
            *(cpe, block["cpe.proj.bias"]),
            *fold_linear(block.below("att.qkv"), block.below("norm1")),
            *fold_aggregator(block.below("att.aggregator")),
            *fold_crpe(block.below("att.crpe")),
            *(proj[:, :, most:], proj_bias, proj[:, :, :most]),
            *fold_linear(block.below("mlp.fc1"), block.below("norm2")),
            *fold_linear(block.below("mlp.fc2")),
        )
    )


def fold_linear(linear: Part, norm: Part | None = None) -> tuple[Array, Array]:
    """A product's matrix (1, 1, in, out) and bias, including the LayerNorm before it."""
    weight, bias = linear["weight"].T, linear["bias"]
    if norm is not None:
        weight, bias = norm["weight"][:, None] * weight, bias + norm["bias"] @ weight
    return weight[None, None], bias


def fold_aggregator(aggregator: Part) -> Iterator[Array]:
    branch = aggregator.below("agg0")
    groups = [aggregator.below(f"agg{i}") for i in (1, 2, 3)]
    norms = [aggregator.below(f"norm{i}") for i in (0, 1, 2, 3)]
    scales, shifts = zip(*map(scale_and_shift, norms), strict=True)
    segment = len(scales[0])

    own = np.ones((1, 1, segment))
    windows = [widen(k) for k in (own, *(kernels(group.below("conv1")) for group in groups))]
    fifths = np.split(widen(kernels(branch.below("conv.conv1"))), 3, axis=2)
    yield np.concatenate([k for fifth in fifths for k in (*windows, fifth)], axis=2)

    mix = np.zeros((1, 1, 4 * segment, 4 * segment))
    matrices = [np.eye(segment), *(kernels(group.below("pointwise_conv")) for group in groups)]
    for i, (matrix, scale) in enumerate(zip(matrices, scales, strict=True)):
        here = slice(i * segment, (i + 1) * segment)
        mix[:, :, here, here] = matrix * scale
    yield from (mix[None], np.concatenate(shifts))
    yield kernels(branch.below("conv.pointwise_conv")).reshape(1, 3, segment, segment)
    yield from (branch["norm.weight"], branch["norm.bias"])


def fold_crpe(crpe: Part) -> tuple[Array, Array]:
    convs = [crpe.below(f"conv_list.{i}") for i in range(len(ConvRelPosEnc.KERNELS))]
    windows = [widen(kernels(conv)) for conv in convs]
    return np.concatenate(windows, axis=2), np.concatenate([conv["bias"] for conv in convs])


def head_mask(dim: int) -> Array:
    """(4D/5, 4D/5): the attention's scale where both channels belong to one head, else 0."""
    head_dim = dim // 10
    return np.kron(np.eye(NUM_HEADS), np.full((head_dim, head_dim), attention_scale(dim)))


def scale_and_shift(norm: Part) -> tuple[Array, Array]:
    """The factor and the summand of a BatchNorm in inference."""
    scale = norm["weight"] / np.sqrt(norm["running_var"] + BatchNorm.EPS)
    return scale, norm["bias"] - scale * norm["running_mean"]


def kernels(conv: Part, whole: bool = False) -> Array:
    """(out, in, kh, kw) -> (kh, kw, in, out); for depthwise kernels (kh, kw, channels), unless the
    kernel is `whole`: an ordinary one with a single input channel, for grey pictures."""
    array = conv["weight"].transpose(2, 3, 1, 0)
    return array if whole or array.shape[2] > 1 else array[:, :, 0]


def widen(windows: Array) -> Array:
    """Depthwise kernels (k, k, channels) -> (7, 7, channels), with a rim of zeros."""
    rim = (WINDOW - len(windows)) // 2
    return np.pad(windows, ((rim, rim), (rim, rim), (0, 0)))
